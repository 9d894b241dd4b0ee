"""Grammars: the text is of the language in any order of unmasking; it is the likeliest one, or drawn by its law."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
from logit_tables import Table
from torch import Tensor

from mmdiff.backbones.load import toy_backbone
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config import sampler_nodes
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError, MissingExtra
from mmdiff.samplers.deliberation import MaskRandom, rewrite
from mmdiff.samplers.grammars.automaton import ByteAutomaton, of_regular
from mmdiff.samplers.grammars.ebnf import Ebnf
from mmdiff.samplers.grammars.pattern import Choices, Pattern
from mmdiff.samplers.grammars.scaffold import scaffold, text_of
from mmdiff.samplers.grammars.schema import Schema
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.editing import Editing
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.select import Everything

pytestmark = pytest.mark.needs("outlines_core")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tall": {"type": "boolean"},
        "kind": {"enum": ["ant", "bée", '"']},
        "marks": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    },
    "required": ["name", "age", "tall", "kind", "marks"],
}
ORDERS: dict[str, dict[str, Any]] = {
    "low_confidence": {"steps": 6},
    "random": {"remasking": "random", "steps": 5, "temperature": 1.0},
    "blocks": {"block_length": 16, "steps": 10, "temperature": 0.7},
    "threshold": {"threshold": 0.1},
    "revise": {"steps": 6, "select": Everything(), "revise": RunningConfidence()},
    "late ends": {"steps": 6, "eos_policy": "last", "temperature": 1.0},
    "at once": {"steps": 6, "end_rule": "at_once", "temperature": 1.0},
    "cooling": {"steps": 6, "temperature": 1.5, "temperature_end": 0.0},
    "no ends": {"steps": 4, "eos_policy": "suppress"},
}


def is_person(text: str) -> bool:
    value = json.loads(text)
    assert list(value) == PERSON["required"]
    assert isinstance(value["name"], str) and isinstance(value["tall"], bool)
    assert type(value["age"]) is int and 0 <= value["age"] <= 120
    assert value["kind"] in PERSON["properties"]["kind"]["enum"]
    assert len(value["marks"]) <= 3 and all(type(mark) in (int, float) for mark in value["marks"])
    return True


class Noise:
    """A Denoise whose logits are noise, other at every call, the same for a row whatever it is batched with."""

    def __init__(self, vocab: Vocab, seed: int = 0, scale: float = 4.0) -> None:
        self.size, self.seed, self.scale = vocab.size, seed, scale

    def __call__(self, query: Query) -> Prediction:
        assert query.step is not None
        out = []
        for row, forward, predict_L in zip(
            query.row_R.tolist(), query.step.forward_R.tolist(), query.predict_RL, strict=True
        ):
            made = torch.Generator().manual_seed(1000 * self.seed + 100 * row + int(forward))
            out.append(self.scale * torch.randn(int(predict_L.sum()), self.size, generator=made))
        return Prediction(torch.cat(out))


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    """One id per byte, and LLaDA's special tokens."""
    return toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab


@pytest.fixture(scope="module")
def pieces() -> Vocab:
    """Pairs of bytes of JSON are tokens: they straddle its parts, and the bytes of a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    texts = ['{"name": "ant é日本", "age": 12, "tall": true, "kind": "bée", "marks": [1.5, -2e9]}'] * 9
    texts += ['{"name": "日 é", "age": 120, "tall": false, "kind": "ant", "marks": []}', "((1+2)*3)-(4/5)"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", mask_token="<mask>")
    n = len(fast)
    return Vocab(fast, n + 3, mask_id=n - 1, eos_id=n - 2, pad_id=n - 2, slot_id=n - 2, end_ids=(n - 2,))


def filled(vocab: Vocab, *targets: Target, grammar: Any, denoise: Any = None, **named: Any) -> Generation:
    batch = collate([[Text([1, 2]), target] for target in targets], vocab)
    return sample(denoise or Noise(vocab), batch, vocab, generation_config(constraint=grammar, **named))


def texts(vocab: Vocab, out: Generation) -> list[str]:
    return [vocab.decode(vocab.until_end(ids)) for ids in out.targets()]


# The string


WORDS = Vocab(word_tokenizer(["a", "b", "c"]), 7, mask_id=2, eos_id=1, pad_id=0, slot_id=0)
LANGUAGE = "a( (b a|c))*( b)?"


def language(length: int) -> Tensor:
    """All strings of the language of so many words, filled up with EOS."""
    strings = []
    for words in itertools.product([4, 5, 6, 1], repeat=length):
        n = words.index(1) if 1 in words else length
        text = " ".join(" abc"[i - 3] for i in words[:n])
        if all(i == 1 for i in words[n:]) and re.fullmatch(LANGUAGE, text):
            strings.append(words)
    return torch.tensor(strings)


@pytest.mark.parametrize("length", [1, 4, 6])
def test_the_proposal_is_the_likeliest_string(length: int) -> None:
    strings = language(length)
    for seed in range(20):
        logits_BLV = 3 * torch.randn(1, length, 7, generator=torch.Generator().manual_seed(seed))
        score = logits_BLV[0, torch.arange(length), strings].sum(1)
        batch = collate([[Target(length=length)]], WORDS)
        config = generation_config(constraint=Pattern(LANGUAGE), steps=1, early_stop=False)
        out = sample(Table(logits_BLV), batch, WORDS, config)
        assert out.ids_BL[0].tolist() == strings[score.argmax()].tolist()
        allowed = [i for i in range(7) if i not in (WORDS.mask_id, WORDS.slot_id)]
        p = logits_BLV[0][:, allowed].softmax(-1)
        at = torch.tensor([allowed.index(i) for i in out.ids_BL[0].tolist()])
        assert torch.allclose(out.confidence_BL[0], p.gather(1, at[:, None]).squeeze(1), atol=1e-6)


@pytest.mark.parametrize(("temperature", "given"), [(1.0, None), (0.5, None), (1.0, (2, 5))])
def test_a_drawn_string_has_the_law_of_the_marginals_given_the_language(
    temperature: float, given: tuple[int, int] | None
) -> None:
    length, n = 5, 4000
    strings = language(length)
    ids = [WORDS.mask_id] * length
    if given is not None:
        ids[given[0]] = given[1]
        strings = strings[strings[:, given[0]] == given[1]]
    logits_LV = torch.randn(length, 7, generator=torch.Generator().manual_seed(3))
    free = [t for t in range(length) if given is None or t != given[0]]
    score = sum(logits_LV[t, strings[:, t]].double() for t in free)
    law = (score / temperature).softmax(0)
    batch = collate([[Target(ids)]] * n, WORDS)
    config = generation_config(constraint=Pattern(LANGUAGE), steps=1, early_stop=False, temperature=temperature)
    out = sample(Table(logits_LV.expand(n, -1, -1)), batch, WORDS, config)
    seen = Counter(map(tuple, out.targets()))
    assert len(strings) > 3 and seen.keys() <= set(map(tuple, strings.tolist()))
    for words, p in zip(strings.tolist(), law.tolist(), strict=True):
        assert abs(seen[tuple(words)] / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_a_block_is_drawn_by_its_own_law_among_those_that_can_be_completed() -> None:
    """However many ways there are to go on, a later block counts for nothing but that there is one."""
    length, n = 6, 4000
    strings = language(length)
    logits_LV = torch.randn(length, 7, generator=torch.Generator().manual_seed(4))
    halves = strings[:, :3].unique(dim=0)
    law = logits_LV[torch.arange(3), halves].sum(1).softmax(0)
    config = generation_config(constraint=Pattern(LANGUAGE), steps=2, block_length=3, early_stop=False, temperature=1.0)
    batch = collate([[Target(length=length)]] * n, WORDS)
    out = sample(Table(logits_LV.expand(n, -1, -1)), batch, WORDS, config)
    assert {tuple(words) for words in out.targets()} <= set(map(tuple, strings.tolist()))
    seen = Counter(tuple(words[:3]) for words in out.targets())
    for words, p in zip(halves.tolist(), law.tolist(), strict=True):
        assert abs(seen[tuple(words)] / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-9


# Any order


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["vocab", "pieces"])
def test_every_text_is_valid_in_any_order(order: str, name: str, request: pytest.FixtureRequest) -> None:
    vocab = request.getfixturevalue(name)
    targets = [Target(length=n) for n in (80, 66, 72)]
    out = filled(vocab, *targets, grammar=Schema(PERSON), **ORDERS[order])
    assert all(map(is_person, texts(vocab, out)))
    assert not (out.ids_BL == vocab.mask_id).any()
    if name == "vocab":
        row = filled(vocab, targets[0], grammar=Schema(PERSON), **ORDERS[order])  # alone, as in the batch
        assert row.targets()[0] == out.targets()[0] and row.forwards_B[0] == out.forwards_B[0]


def test_the_text_is_valid_whatever_the_model_says(vocab: Vocab) -> None:
    """Also where it gives no id of the language a probability at all."""
    logits_BLV = torch.full((1, 74, vocab.size), -torch.inf)
    logits_BLV[..., vocab.encode("~")] = 0.0
    for temperature in (0.0, 1.0):
        out = filled(
            vocab,
            Target(length=72),
            grammar=Schema(PERSON),
            denoise=Table(logits_BLV),
            steps=4,
            temperature=temperature,
        )
        assert is_person(texts(vocab, out)[0])


def test_a_draft_is_written_again_within_the_language(vocab: Vocab) -> None:
    draft = vocab.encode('{"name":"ant","age":7,"tall":true,"kind":"ant","marks":[1]}') + [vocab.eos_id] * 8
    batch = collate([[Text([1, 2]), Target(draft)]] * 3, vocab)
    config = generation_config(constraint=Schema(PERSON), draft=MaskRandom(0.6), temperature=1.0, steps=4)
    out = rewrite(Noise(vocab), batch, vocab, config)
    assert all(map(is_person, texts(vocab, out))) and (out.step_BL > 0).any()


def test_without_the_path_the_text_is_not_valid(vocab: Vocab) -> None:
    """The test above can fail: what each position likes best is no person."""
    with pytest.raises(ValueError):
        is_person(texts(vocab, filled(vocab, Target(length=96), grammar=None, steps=6))[0])


def test_given_ids_and_a_fixed_suffix_stay(vocab: Vocab) -> None:
    gap = [vocab.mask_id]
    ids = gap * 30 + vocab.encode('"age": 42,') + gap * 40 + vocab.encode("[3]}")
    out = filled(vocab, Target(ids), grammar=Schema(PERSON), steps=5, temperature=1.0)
    given = torch.tensor(ids)
    assert (out.ids_BL[0, 2:] == given)[given != vocab.mask_id].all()
    text = texts(vocab, out)[0]
    assert is_person(text) and json.loads(text)["age"] == 42 and json.loads(text)["marks"] == [3]


def test_a_scaffold_is_filled_and_its_gaps_are_of_unknown_length(vocab: Vocab) -> None:
    null = "<|start_header_id|>"
    grammar = Schema(PERSON, null=null)
    ids = scaffold(grammar, vocab, gap=8)
    out = filled(vocab, Target(ids), Target(ids), grammar=grammar, steps=4, temperature=1.0, early_stop=False)
    read = [text_of(row, vocab, null) for row in out.targets()]
    assert all(map(is_person, read)) and len(set(map(len, read))) > 0
    logits_BLV = torch.zeros(1, len(ids) + 2, vocab.size)
    logits_BLV[..., vocab.tokenizer.convert_tokens_to_ids(null)] = 50.0  # a model that would say nothing at all
    out = filled(vocab, Target(ids), grammar=grammar, steps=4, denoise=Table(logits_BLV))
    value = json.loads(text_of(out.targets()[0], vocab, null))
    assert value["name"] == "" and value["marks"] == []
    with pytest.raises(ConfigError, match="null.*ends an answer; set early_stop"):
        filled(vocab, Target(ids), grammar=Schema(PERSON, null="<|eot_id|>"))


# The languages


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


SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string", "minLength": 1, "maxLength": 2}, ['"é"', r'"\"a"'], ['""', '"abc"', '"a']),
    ({"type": "string", "pattern": "a+"}, ['"bab"', '"a"'], ['"b"']),
    ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"ab"']),
    ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-02-30"', '"2024-13-01"']),
    ({"type": ["integer", "null"]}, ["-12", "null", "0"], ["01", "1.0", "nul"]),
    ({"const": {"a": [1, "x"]}}, ['{"a": [1, "x"]}'], ['{"a": [1]}']),
    ({"type": "integer", "enum": [1, "b", True]}, ["1"], ['"b"', "true"]),
    ({"type": "array", "items": {"type": "null"}, "minItems": 1}, ["[null]", "[null, null]"], ["[]", "[null,]"]),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"const": 1}]}, ["[null, 1]"], ["[null]"]),
    ({"type": "object", "additionalProperties": {"const": 1}}, ["{}", '{"a": 1, "b": 1}'], ['{"a": 2}', '{"a"}']),
    (
        {"type": "object", "properties": {k: {"const": 1} for k in 'a"c'}, "required": ['"']},
        [r'{"\"": 1}', r'{"a": 1, "\"": 1}', r'{"\"":1,"c":1}'],
        ["{}", '{"a": 1}', r'{"\"": 1,}', r'{,"\"": 1}'],
    ),
    (
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}},
        ["{}", '{"n": {}}', '{"n": {"n": {}}}'],
        ['{"n": null}'],
    ),
    ({"anyOf": [{"type": "boolean"}, True]}, ["true", '{"x": [1, {"y": []}]}', '"x"'], ["yes"]),
]


def accepts(grammar: Any, text: str) -> bool:
    return runs(of_regular(grammar.regular()), text)


def runs(letters: ByteAutomaton, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = letters.next_SB[state, byte]
    return bool(letters.accepts_S[state])


@pytest.mark.parametrize(("schema", "valid", "others"), SCHEMAS, ids=[f"{i}" for i in range(len(SCHEMAS))])
def test_schemas(schema: Any, valid: list[str], others: list[str]) -> None:
    grammar = Schema(json.dumps(schema))
    assert [text for text in valid if not accepts(grammar, text)] == []
    assert [text for text in others if accepts(grammar, text)] == []
    for text in valid:
        json.loads(text)


def test_texts_of_a_schema_are_those_of_another_implementation(vocab: Vocab) -> None:
    from outlines_core.json_schema import build_regex_from_schema

    kinds: list[Any] = [{"type": kind} for kind in ("integer", "number", "boolean", "null")]
    kinds = [{"type": "string", "maxLength": 3}, *kinds]
    kinds += [{"enum": ["a.b", 2, None]}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]
    properties = {f"p{i}": kind for i, kind in enumerate(kinds)}
    schema = {"type": "object", "properties": properties, "required": ["p0", "p3"]}
    theirs = re.compile(build_regex_from_schema(json.dumps(schema)))
    seen = set()
    for seed in range(3):
        named: dict[str, Any] = dict(denoise=Noise(vocab, seed, scale=6.0), temperature=1.0, steps=3)
        out = filled(vocab, *[Target(length=n) for n in (28, 60, 100)], grammar=Schema(schema, spaces="none"), **named)
        for text in texts(vocab, out):
            signed = re.sub(r"([0-9][eE])([0-9])", r"\1+\2", text)  # they want a sign there
            assert theirs.fullmatch(signed), text
            seen |= json.loads(text).keys()
    assert {"p0", "p3"} < seen


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"outlines_core is not installed: pip install 'mmdiff\[structured\]'"):
        of_regular(Pattern("a").regular())
    with pytest.raises(MissingExtra, match=r"lark is not installed"):
        Ebnf(ARITHMETIC).regular()


def test_expressions_are_those_of_python() -> None:
    """The automaton of an expression, against the standard library, on all short texts."""
    for pattern in ("a( c)*", "(a|ab)(c|bcd)?", "a??b?", "(ab|a)*?", "(a|b)*a(a|b)", "a(b|é)*", "-?a+(b[0c]+)?", "a|"):
        letters = of_regular(Pattern(pattern).regular())
        for n in range(6):
            for text in map("".join, itertools.product("abc", repeat=n)):
                assert runs(letters, text) == bool(re.fullmatch(pattern, text)), (pattern, text)


@pytest.mark.parametrize(
    ("schema", "line"),
    [
        ({"type": "number", "minimum": 0}, r"schema.minimum: cannot be held"),
        ({"type": "object", "properties": {"a": {"oneOf": []}}}, r"schema.properties.a: oneOf without a type"),
        ({"type": "string", "maxlength": 3}, r"did you mean .maxLength"),
        ({"type": "string", "pattern": ".*"}, "may hold a quote"),
        ({"type": "string", "pattern": "(?=a)"}, "no regular expression"),
        ({"type": "object", "required": ["a"]}, "'a' is not among the properties"),
        ({"$ref": "#/$defs/x"}, "is not there"),
        ({"$ref": 3}, "3 is not a text"),
        ({"type": "object", "properties": ["a"]}, "is not a mapping"),
        ({"enum": 3}, "3 is not a list"),
        ({"type": 3}, "3 is not a type"),
        ({"type": "strin"}, "did you mean .string"),
        ({"type": ["string", {}]}, "known: array"),
        ({"type": "string", "minLength": -1}, "is not a whole number"),
        ({"anyOf": [3]}, "is not a schema"),
        ({"type": "integer", "minimum": 0}, "expected both"),
        ("{", "not JSON"),
        ("3", "is not a schema"),
    ],
    ids=str,
)
def test_what_a_schema_says_and_cannot_be_held_is_refused(schema: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        of_regular(Schema(schema).regular())


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


def test_allow_sets_hold_as_well(vocab: Vocab) -> None:
    """Two targets of a row, each a text of its own; one has an allow-set, here that of digits and EOS."""
    zero = vocab.encode("0")[0]
    allow = ((zero, zero + 10), (vocab.eos_id, vocab.eos_id + 1))
    batch = collate([[Target(length=7, allow=allow), Target(length=5), Text([1]), Target(length=4)]] * 2, vocab)
    config = generation_config(constraint=Pattern("[0-9]+|[a-z]+"), temperature=1.0, block_length=4)
    out = sample(Noise(vocab), batch, vocab, config)
    for ids in out.targets():
        first, second, third = (vocab.decode(vocab.until_end(part)) for part in (ids[:7], ids[7:12], ids[12:]))
        assert re.fullmatch("[0-9]+", first)
        assert re.fullmatch("[0-9]+|[a-z]+", second) and re.fullmatch("[0-9]+|[a-z]+", third)


def test_a_configuration_names_it(vocab: Vocab) -> None:
    node = {"target": "mmdiff.samplers.grammars.schema.Schema", "schema": PERSON, "spaces": "none"}
    out = filled(vocab, Target(length=90), grammar=node, steps=3)
    assert is_person(texts(vocab, out)[0]) and '"age": ' not in texts(vocab, out)[0]
    assert sampler_nodes({"constraint": node}) == {"constraint": node}  # what the gate of saved folders looks at
