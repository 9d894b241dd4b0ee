"""Choices, regular expressions and context-free grammars."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.errors import ConfigError, DataError, MissingExtra
from mmdiff.samplers.grammars.automaton import of_regular
from mmdiff.samplers.grammars.ebnf import Ebnf
from mmdiff.samplers.grammars.pattern import Choices, Pattern
from mmdiff.samplers.grammars.schema import Schema
from mmdiff.samplers.processes.editing import Editing
from tests.core.samplers.grammars.grammar_texts import Noise, filled, runs, texts

pytestmark = pytest.mark.needs("outlines_core")


def test_choices_patterns_and_characters_of_several_bytes(vocab: Vocab, pieces: Vocab) -> None:
    choices = ["yes", "no", "né", "日本", 'a"b\\', ""]
    for words in (vocab, pieces):
        for seed in range(6):
            named: dict[str, Any] = dict(denoise=Noise(words, seed), temperature=1.0, steps=3)
            out = filled(words, Target(length=8), Target(length=6), grammar=Choices(choices), **named)
            assert set(texts(words, out)) <= set(choices)
            out = filled(words, Target(length=12), grammar=Pattern("[é日]{2}(-[0-9]+)?"), **named)
            assert re.fullmatch("[é日]{2}(-[0-9]+)?", texts(words, out)[0])
    words = Vocab(word_tokenizer(["red", "blue", "not"]), 7, mask_id=2, eos_id=1, pad_id=0, slot_id=0)
    out = filled(words, Target(length=3), grammar=Choices(["red", "not blue"]), steps=2)
    assert texts(words, out)[0] in ("red", "not blue")


def test_pieces_with_a_space_before_them_and_bytes_that_fall_back() -> None:
    """A tokenizer as SentencePiece makes them: decoding takes the first space away, and only that one."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "</s>", "▁", "▁yes", "yes", "no", "▁n", "o", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    words = Vocab(fast, len(fast), mask_id=len(fast) - 1, eos_id=1, pad_id=0, slot_id=0)
    choices = ["yes", "no", " no", "né", "日"]
    seen = set()
    for seed in range(12):
        named: dict[str, Any] = dict(denoise=Noise(words, seed), temperature=1.0, steps=3)
        seen |= set(texts(words, filled(words, *[Target(length=6)] * 3, grammar=Choices(choices), **named)))
    assert seen == set(choices)


ARITHMETIC = """
start: sum
sum: product | sum ("+" | "-") product
product: atom | product ("*" | "/") atom
atom: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
%import common.WS_INLINE
%ignore WS_INLINE
"""


@pytest.mark.needs("lark")
def test_a_context_free_grammar_is_held_to_a_depth(vocab: Vocab, pieces: Vocab) -> None:
    import lark

    parser = lark.Lark(ARITHMETIC, parser="earley")
    deepest = 0
    for words in (vocab, pieces):
        for seed in range(4):
            out = filled(
                words,
                Target(length=24),
                Target(length=17),
                grammar=Ebnf(ARITHMETIC),
                denoise=Noise(words, seed),
                temperature=1.0,
                steps=4,
            )
            for text in texts(words, out):
                parser.parse(text)
                deepest = max(deepest, *itertools.accumulate((c == "(") - (c == ")") for c in text))
    given = vocab.encode("(((7)))")
    out = filled(vocab, Target([*given, *[vocab.mask_id] * 3]), grammar=Ebnf(ARITHMETIC))
    assert texts(vocab, out)[0].startswith("(((7)))") and deepest <= 3
    with pytest.raises(DataError, match="row 0: no text of the language fits .* contradict"):
        filled(vocab, Target([*vocab.encode("((((7))))"), vocab.mask_id]), grammar=Ebnf(ARITHMETIC))
    long = "+".join(["1"] * 40)  # lists are not bounded
    out = filled(vocab, Target([*vocab.encode(long), vocab.mask_id]), grammar=Ebnf(ARITHMETIC))
    parser.parse(texts(vocab, out)[0])


def test_expressions_are_those_of_python() -> None:
    """The automaton of an expression, against the standard library, on all short texts."""
    for pattern in ("a( c)*", "(a|ab)(c|bcd)?", "a??b?", "(ab|a)*?", "(a|b)*a(a|b)", "a(b|é)*", "-?a+(b[0c]+)?", "a|"):
        letters = of_regular(Pattern(pattern).regular())
        for n in range(6):
            for text in map("".join, itertools.product("abc", repeat=n)):
                assert runs(letters, text) == bool(re.fullmatch(pattern, text)), (pattern, text)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"outlines_core is not installed: pip install 'mmdiff\[structured\]'"):
        of_regular(Pattern("a").regular())
    with pytest.raises(MissingExtra, match=r"lark is not installed"):
        Ebnf(ARITHMETIC).regular()


def test_what_cannot_be_is_refused_in_one_line(vocab: Vocab) -> None:
    def refused(line: str, target: Target, grammar: Any, error: type[Exception] = ConfigError, **named: Any) -> None:
        with pytest.raises(error, match=line) as found:
            filled(vocab, Target(length=40), target, grammar=grammar, **named)
        assert "\n" not in str(found.value)

    yes = Choices(["yes", "no"])
    short, fits = Target(length=1), Target(length=4)
    refused(r"row 1: .* 1 positions from \d+ .* shortest text takes 2", short, yes, DataError)
    refused("row 1: .*contradict", Target([*vocab.encode("x"), vocab.mask_id]), yes, DataError)
    refused("row 0: .*its length, or the ids", fits, yes, DataError, eos_policy="suppress")
    refused("row 0: ", fits, yes, DataError, suppress_ids=[vocab.encode("o")[0], vocab.encode("s")[0]])
    refused("top_k and top_p", fits, yes, temperature=1.0, top_k=3)
    refused("no regular expression", fits, Pattern("(a"))
    refused("no regular expression", fits, Pattern(r"(a)\1"))
    refused("more than 1024 times", fits, Schema({"type": "string", "maxLength": 10**9}))
    refused("more than 1024 times", fits, Pattern("a{3,2000}"))
    refused("states, more than", fits, Pattern("(a|b)*a(a|b){15}"))
    refused("Editing replaces tokens", fits, yes, process=Editing(0.5))
    refused("is not a list of texts", fits, {"target": "mmdiff.samplers.grammars.pattern.Choices", "choices": []})
    refused("has no '<none>'", fits, Choices(["a"], null="<none>"))
    endless = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}}
    refused("its language has no text", fits, Schema(endless))


@pytest.mark.needs("lark")
def test_grammars_that_cannot_be_read_are_refused() -> None:
    for grammar, line in [
        ("start: x", "grammar: "),
        ("start: /(/", "grammar: "),
        ("", "grammar: "),
        ('%import .secret (x)\nstart: "a"', "expected common"),
    ]:
        with pytest.raises(ConfigError, match=line) as found:
            Ebnf(grammar, depth=1).regular()
        assert "\n" not in str(found.value)
