"""One id space: a text tokenizer, the ids diffusion needs, and reserved ranges (action bins, residues).

All ids in the code come from a `Vocab`; literal ids stand only where a tokenizer or a backbone family is defined.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.parts import part

KNOWN = 1 << 16  # encoded texts kept; a tokenizer call costs 70 microseconds, and questions come again every epoch

NO_MASK = -1
"""Marks masked positions for a model that has no mask token; it must not reach an embedding table."""


@dataclass(frozen=True)
class Vocab:
    """The ids of a model. size: rows of the embedding table, which may exceed the tokenizer's length.

    mask_id: stands at masked positions of a canvas. A model whose noise is uniform has no mask token: `NO_MASK`, no id
        of its table, only marks them until a noise process puts noise there.
    slot_id: stands at the positions of media; its embedding is never read, for features overwrite it.
    end_ids: ids that end an answer (EOS, and end-of-turn where a family has one).
    ranges: named half-open ranges of ids that are not text.
    """

    tokenizer: Any
    size: int
    mask_id: int
    eos_id: int
    pad_id: int
    slot_id: int
    bos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    _known: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)  # texts that were encoded
    _named: set[str] = field(default_factory=set, repr=False, compare=False)  # unknown words that were warned of

    @property
    def noise_id(self) -> int:
        """The mask id, for what a model is to see masked. Raises ConfigError for a model without a mask token."""
        if self.mask_id == NO_MASK:
            raise ConfigError(
                "the model has no mask token, its noise is uniform: expected a process or objective of uniform noise, "
                "such as mmdiff.samplers.processes.hybrid.Renoising or .Hybrid with uniform: 1"
            )
        return self.mask_id

    @cached_property
    def text_ids(self) -> np.ndarray:
        """int64 array, the ids of plain text: all of the tokenizer's that are not special."""
        special = {*self.tokenizer.all_special_ids, self.mask_id, self.slot_id, self.pad_id, self.eos_id, *self.end_ids}
        return np.setdiff1d(np.arange(len(self.tokenizer)), list(special))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, no special tokens added. A special token that it spells out is that token.

        A word that the tokenizer does not know is named on stderr, once. Raises DataError for text with half a
        character (a lone surrogate).
        """
        if text not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            check_text(text)
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            for word in unknown_words(text, ids, self.tokenizer):
                if word not in self._named:
                    self._named.add(word)
                    near = nearest(word.lower(), self.tokenizer.get_vocab())
                    near = near if "did you mean" in near else ""
                    print(f"the tokenizer does not know the word {word!r:.60}{near}", file=sys.stderr)
            self._known[text] = ids
        return list(self._known[text])

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Returns the text of `ids`, without special tokens unless `special`."""
        return str(self.tokenizer.decode([int(i) for i in ids if i != NO_MASK], skip_special_tokens=not special))

    def piece(self, token_id: int) -> str:
        """Returns one token as text; special tokens are spelled out (a report shows canvases token by token)."""
        return str(self.tokenizer.decode([int(token_id)]))

    def id_of(self, token: str | int, where: str) -> int:
        """Returns the id of a token that is named by its exact spelling, or by its id.

        Raises ConfigError, which begins with `where`, for one that the vocabulary does not have.
        """
        if isinstance(token, int):
            if not 0 <= token < self.size:
                raise ConfigError(f"{where}: {token} does not fit a vocabulary of {self.size}")
            return token
        found = None if self.tokenizer is None else self.tokenizer.convert_tokens_to_ids(token)
        if (
            found is None or self.tokenizer.convert_ids_to_tokens(found) != token
        ):  # the unknown id, for what is not there
            known = () if self.tokenizer is None else self.tokenizer.all_special_tokens
            raise ConfigError(f"{where}: the tokenizer has no {token!r:.80}{nearest(token, known)}")
        return int(found)

    def until_end(self, ids: Iterable[int]) -> list[int]:
        """Returns the ids before the first one that ends an answer."""
        out: list[int] = []
        for i in ids:
            if int(i) in self.end_ids or int(i) == self.eos_id:
                break
            out.append(int(i))
        return out

    def range(self, name: str) -> tuple[int, int]:
        """Returns the half-open range (low, high) of that name. Raises ConfigError where it is not reserved."""
        if name not in self.ranges:
            raise ConfigError(f"vocabulary range {name!r} is not reserved{nearest(name, self.ranges)}")
        return self.ranges[name]


def check_text(text: str) -> None:
    """Raise DataError for text with a lone surrogate: half a character, which tokenizers and files cannot take."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise DataError(f"a lone surrogate, which is no character, at {error.start} of {around!a}") from None


def unknown_words(text: str, ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Returns the words of a text that its ids do not hold: those for which an unknown token stands, or none at all.

    Tokenizers of bytes know all words. A word that is the unknown token itself is known.
    """
    unknown, drops = _unknown(tokenizer)
    if not drops and unknown.isdisjoint(ids):
        return []
    out = []
    for word in dict.fromkeys(text.split()):
        pieces = list(word) if drops else [word]
        of_pieces = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        if not all(of_pieces) or (not unknown.isdisjoint(i for ids in of_pieces for i in ids) and word not in UNKNOWN):
            out.append(word)
    return out


def literal(text: str, vocab: Vocab) -> list[int]:
    """Returns the ids of a text from a person: a special token that is spelled out stays text.

    Raises DataError for a word that the tokenizer does not know, or can only read as a special token (tokenizers of
    whole words; those of bytes know all).
    """
    return list(_encode(text, vocab.tokenizer))


@lru_cache(maxsize=1 << 16)  # a call costs 35 microseconds, and the same questions come again every epoch
def _encode(text: str, tokenizer: Any) -> tuple[int, ...]:
    check_text(text)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not set(ids).isdisjoint(tokenizer.all_special_ids):
        if len(words := text.split()) > 1:
            for word in words:  # one of them raises, and names itself
                _encode(word, tokenizer)
        known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        raise DataError(f"the tokenizer does not know the word {text!r:.60}{nearest(text.lower(), known)}")
    if words := unknown_words(text, ids, tokenizer):
        known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        raise DataError(f"the tokenizer does not know the word {words[0]!r:.60}{nearest(words[0].lower(), known)}")
    return tuple(ids)


def start_of(vocab: Vocab) -> int:
    """Returns the id with which a document begins: BOS, or EOS where there is none."""
    return vocab.eos_id if vocab.bos_id is None else vocab.bos_id


UNKNOWN = ("<unk>", "[UNK]")


@lru_cache(maxsize=64)
def _unknown(tokenizer: Any) -> tuple[frozenset[int], bool]:
    """Returns the ids of unknown tokens, declared or not, and whether characters that are unknown are dropped."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    name = getattr(getattr(backend, "model", None), "unk_token", None)  # which transformers may not know of
    unknown = {getattr(tokenizer, "unk_token_id", None), backend.token_to_id(name) if name else None}
    others = {None, *(getattr(tokenizer, f"{role}_token_id", None) for role in ("eos", "bos", "pad"))}
    return frozenset(i for i in unknown - others if i is not None), not tokenizer("\ue123", add_special_tokens=False)[
        "input_ids"
    ]


@part
def word_tokenizer(words: Sequence[str]) -> Any:
    """Returns a transformers tokenizer of whole lower-case words, for the small tasks that come with the package.

    Ids: 0 `<pad>`, 1 `<eos>`, 2 `<mask>`, 3 `<unk>`, then `words` in order. Text is split at white space.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"tokenizer.words: {words!r:.80} is not a list of words")
    special = ["<pad>", "<eos>", "<mask>", "<unk>"]
    ids = {word: i for i, word in enumerate([*special, *words])}
    if len(ids) != len(special) + len(words):
        raise ConfigError("tokenizer.words: a word is given twice")
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", mask_token="<mask>", unk_token="<unk>"
    )
