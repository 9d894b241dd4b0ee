"""Documents cut into windows of so many tokens, several documents in one where they are short.

    {"pieces": [[1, 52, 17, 2], [1, 9, 33]], "tokenizer": "a3...", "where": "stories.jsonl line 1 to line 2"}

The first id of a piece is given, all others are to be predicted; the tokens of all documents, ends included, are so
predicted exactly once per epoch. A document begins with the tokenizer's BOS, or its EOS where it has none, and ends in
EOS; where a document goes on in another window, that begins with the last token of the one before.

Shape letters: T tokens of all documents, U documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast2
from mmdiff.protocols import Row

from .documents import texts_of


@part
@dataclass(eq=False)
class Windows:
    """A source of windows. The documents are read once; their ids are held, four bytes per token.

    documents: what yields {"text": ...}: a node of `mmdiff.tasks.text.data.documents`, a `datasets.Dataset`, a list.
    tokenizer: that of the model, or a folder that holds it.
    length: positions of a window, given ones included. Only the last window of all may be shorter.
    pack: False: a window holds one document or a piece of one, and shorter ones are filled up when they are batched.
    field: where a document has its text.

    Raises DataError for documents without any text, ConfigError for a tokenizer without an end-of-sequence token.
    """

    documents: Iterable[Row] | None
    tokenizer: Any
    length: AtLeast2
    pack: bool = True
    field: str = "text"

    def __post_init__(self) -> None:
        tokenizer = tokenizer_of(self.tokenizer)
        if tokenizer.eos_token_id is None:
            raise ConfigError("windows: the tokenizer has no end-of-sequence token, with which documents end")
        self.mark = fingerprint(tokenizer)
        self.ids_T, self.start_U, self.names = _read(self.documents or (), tokenizer, self.field)
        self.documents = self.tokenizer = None  # processes that read rows need neither
        step = self.length - 1
        if self.pack:
            self._begin = np.arange(0, len(self.ids_T) - 1, step)
            self._end = np.minimum(self._begin + self.length, len(self.ids_T))
        else:
            ends_U = np.append(self.start_U[1:], len(self.ids_T))
            pairs = [(at, min(at + self.length, e)) for b, e in zip(self.start_U, ends_U, strict=True)
                     for at in range(b, e - 1, step)]  # fmt: skip
            self._begin, self._end = (np.array(side) for side in zip(*pairs, strict=True))

    def __len__(self) -> int:
        return len(self._begin)

    def __getitem__(self, index: int) -> Row:
        begin, end = int(self._begin[index]), int(self._end[index])
        first, last = np.searchsorted(self.start_U, [begin, end - 1], side="right") - 1
        edges = [begin, *self.start_U[first + 1 : last + 1].tolist(), end]
        pieces = [self.ids_T[a:b].tolist() for a, b in zip(edges[:-1], edges[1:], strict=True)]
        names = self.names[first] if first == last else f"{self.names[first]} to {self.names[last]}"
        return {"pieces": pieces, "tokenizer": self.mark, "where": names}

    @property
    def predicted(self) -> int:
        """How many tokens are predicted in all windows together."""
        return len(self.ids_T) - len(self.start_U)


def _read(documents: Iterable[Row], tokenizer: Any, field: str) -> tuple[Any, Any, list[str]]:
    """Returns ids_T, uint32, the begin of each document among them, and the names of the documents."""
    end = tokenizer.eos_token_id
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    chunks, starts, names, count = [], [], [], 0
    for where, text in texts_of(documents, field):
        if not text:
            continue
        # a special token that a document spells out stays text
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        chunks.append(np.array([begin, *found, end], dtype=np.uint32))
        starts.append(count)
        names.append(where)
        count += len(chunks[-1])
    if not chunks:
        raise DataError("windows: there are no documents, or all are empty")
    return np.concatenate(chunks), np.array(starts, dtype=np.int64), names


def tokenizer_of(given: Any) -> Any:
    """Returns a tokenizer, or the one in a folder. Raises ConfigError for what is neither."""
    if isinstance(given, str):
        from mmdiff.model.build import tokenizer_in

        return tokenizer_in(given)
    if not hasattr(given, "eos_token_id"):
        raise ConfigError(f"tokenizer: {given!r:.60}, expected a tokenizer, or a folder that holds one")
    return given


@lru_cache(maxsize=8)
def fingerprint(tokenizer: Any) -> str:
    """Returns a digest of a tokenizer's words and their ids."""
    words = repr(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.blake2b(words, digest_size=8).hexdigest()
