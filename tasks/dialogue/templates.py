"""How a dialogue is written on a canvas: what stands around the questions, and which id ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from mmdiff.canvas.sample import Media, Part, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError, DataError, nearest

from .turns import Content

LLADA_V_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class Template(Protocol):
    def end(self, vocab: Vocab) -> int:
        """The id that ends an answer."""
        ...

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        """The whole sample. The answers are laid down as they are, their end id among them."""
        ...


class Plain:
    """Pictures, question and answer, and nothing else; ends in EOS. White space around texts is dropped."""

    def end(self, vocab: Vocab) -> int:
        return vocab.eos_id

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        parts: list[Part] = []
        for content, answer in turns:
            for piece in content:
                parts.append(piece if isinstance(piece, Media) else Text(literal(piece.strip(), vocab)))
            parts.append(answer)
        return parts


class LLaDAChat:
    """The dialogue format of LLaDA-8B-Instruct and LLaDA-V (github.com/ML-GSAI/LLaDA-V, template llava_llada).

    system: None leaves the system turn out. LLaDA-MedV has its own text.
    suffix: put behind every user turn; the last LLaDA-V stage was trained with " /think" and " /no_think".
    structural: train on the tokens that LLaDA-V's labels hold besides the answers: the headers of assistant turns, and
        every begin, header and end-of-turn token of the dialogue. They tell the model nothing; for parity.

    Raises ConfigError when the tokenizer lacks one of the tokens.
    """

    def __init__(self, system: str | None = LLADA_V_SYSTEM, suffix: str = "", structural: bool = False) -> None:
        self.system, self.suffix, self.structural = system, suffix, structural

    def end(self, vocab: Vocab) -> int:
        return special("<|eot_id|>", vocab)

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        kind = Target if self.structural and train else Text

        def mark(token: str) -> Part:
            return kind([special(token, vocab)])

        def header(role: str) -> list[Part]:
            name = (kind if role == "assistant" else Text)(literal(role, vocab))
            return [mark("<|start_header_id|>"), name, mark("<|end_header_id|>")]

        def said(content: Content) -> list[Part]:
            texts = joined(["\n\n", *content])
            return [piece if isinstance(piece, Media) else Text(literal(piece, vocab)) for piece in texts]

        parts: list[Part] = [mark("<|startoftext|>")]
        if self.system is not None:
            parts += [*header("system"), *said([self.system]), mark("<|eot_id|>")]
        for content, answer in turns:
            parts += [*header("user"), *said([*content, self.suffix]), mark("<|eot_id|>")]
            parts += [*header("assistant"), kind(literal("\n\n", vocab)), answer]
        return parts


def joined(content: Content) -> Content:
    """Neighbouring texts as one: a tokenizer may merge across the seam, as it would in the written-out string."""
    out: list[str | Media] = []
    for piece in content:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece != "":
            out.append(piece)
    return out


def special(token: str, vocab: Vocab) -> int:
    """The id of a special token. Raises ConfigError when the tokenizer does not have it."""
    tokenizer = vocab.tokenizer
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ConfigError(f"template: the tokenizer has no {token}{nearest(token, tokenizer.get_added_vocab())}")
    return int(found)


def literal(text: str, vocab: Vocab) -> list[int]:
    """Ids of what a person wrote: a special token that is spelled out stays text.

    Raises DataError for a word that the tokenizer does not know, or can only read as a special token (tokenizers of
    whole words; those of bytes know all).
    """
    return list(_encode(text, vocab.tokenizer))


@lru_cache(maxsize=1 << 16)  # a call costs 35 microseconds, and the same questions come again every epoch
def _encode(text: str, tokenizer: Any) -> tuple[int, ...]:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not set(ids).isdisjoint(tokenizer.all_special_ids):
        if len(words := text.split()) > 1:
            for word in words:  # one of them raises, and names itself
                _encode(word, tokenizer)
        known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        raise DataError(f"the tokenizer does not know the word {text!r}{nearest(text.lower(), known)}")
    return tuple(ids)
