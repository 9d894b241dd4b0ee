"""One id space: a text tokenizer, the ids diffusion needs, and reserved ranges (action bins, residues).

All ids in the code come from a `Vocab`; literal ids stand only where a tokenizer or a backbone family is defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, nearest
from mmdiff.parts import part

KNOWN = 1 << 16  # encoded texts kept; a tokenizer call costs 70 microseconds, and questions come again every epoch


@dataclass(frozen=True)
class Vocab:
    """The ids of a model. size: rows of the embedding table, which may exceed the tokenizer's length.

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

    @cached_property
    def text_ids(self) -> np.ndarray:
        """int64 array, the ids of plain text: all of the tokenizer's that are not special."""
        special = {*self.tokenizer.all_special_ids, self.mask_id, self.slot_id, self.pad_id, self.eos_id, *self.end_ids}
        return np.setdiff1d(np.arange(len(self.tokenizer)), list(special))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, no special tokens added. A special token that it spells out is that token."""
        if text not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[text] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self._known[text])

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Returns the text of `ids`, without special tokens unless `special`."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special))

    def piece(self, token_id: int) -> str:
        """Returns one token as text; special tokens are spelled out (a report shows canvases token by token)."""
        return str(self.tokenizer.decode([int(token_id)]))

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


@part
def word_tokenizer(words: Sequence[str]) -> Any:
    """Returns a transformers tokenizer of whole lower-case words, for the small tasks that come with the package.

    Ids: 0 `<pad>`, 1 `<eos>`, 2 `<mask>`, 3 `<unk>`, then `words` in order. Text is split at white space.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

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
