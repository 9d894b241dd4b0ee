"""Amino acid sequences to ids and back, one byte per residue: lengths never change, and no tokenizer is called.

transformers' ESM tokenizer takes a millisecond per sequence, makes one `<unk>` of any run of lower-case letters, and
puts spaces between the letters it decodes; a table of 256 entries does neither.

Shape letters: N residues of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError

CANONICAL = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 residues that the genetic code writes."""
AMBIGUOUS = "XBZJ"
"""Any residue, D or N, E or Q, I or L."""
RARE = "UO"
"""Selenocysteine and pyrrolysine."""
GAP = "-"
MASKED = "_"
"""A masked position, in sequences that people read."""
RANGE = "residues"
"""The name under which a text backbone reserves ids for residues: `reserve: {residues: 26}` (see `LETTERS`)."""
LETTERS = CANONICAL + "XBUZO-"
"""What the ids of a reserved range stand for, in this order; a shorter range has fewer of them."""

Ids = NDArray[np.int64]


class Residues:
    """The letters of a vocabulary. ESM's are tokens of its tokenizer; a text backbone has them in a reserved range.

    letters: those the vocabulary has an id for, in the order of their ids.
    Raises ConfigError for a vocabulary with neither.
    """

    def __init__(self, vocab: Vocab) -> None:
        found = _reserved(vocab) if RANGE in vocab.ranges else _tokens(vocab)
        if missing := set(CANONICAL) - found.keys():
            names = ", ".join(sorted(missing)[:3])
            raise ConfigError(
                f"backbone: its vocabulary has no ids for residues ({names}, ...); "
                f"expected an ESM vocabulary, or `reserve: {{{RANGE}: {len(LETTERS)}}}`"
            )
        self.letters = "".join(sorted(found, key=lambda letter: found[letter]))
        self.id_of = found
        self.mask_id = vocab.mask_id
        self._ids = np.full(256, -1, dtype=np.int64)  # by byte
        self._bytes = np.full(vocab.size, ord("?"), dtype=np.uint8)  # by id
        for letter, i in found.items():
            self._ids[ord(letter)] = i
            self._bytes[i] = ord(letter)
        self._ids[ord(MASKED)] = vocab.mask_id
        self._bytes[vocab.mask_id] = ord(MASKED)

    def encode(self, sequence: str) -> Ids:
        """(N,) ids; `_` is the mask id. Raises DataError that names the first letter without an id and its position."""
        try:
            raw = np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise _unknown(sequence, error.start, self.letters) from None
        ids_N: Ids = self._ids[raw]
        if len(ids_N) and ids_N.min() < 0:
            raise _unknown(sequence, int((ids_N < 0).argmax()), self.letters)
        return ids_N

    def encode_many(self, sequences: Sequence[str]) -> list[Ids]:
        """`encode` of each, through one look-up of them all."""
        joined = "".join(sequences)
        try:
            ids = self.encode(joined)
        except DataError:
            return [self.encode(sequence) for sequence in sequences]  # names the position in its own sequence
        return np.split(ids, np.cumsum([len(sequence) for sequence in sequences])[:-1]) if sequences else []

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """One letter per id: `_` for the mask, `?` for what is no residue."""
        return self._bytes[np.asarray(ids, dtype=np.int64)].tobytes().decode("ascii")

    def ranges(self, letters: Iterable[str]) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of the ids of `letters`, as `Target.allow` takes them."""
        return _ranges(tuple(sorted({self.id_of[letter] for letter in letters})))


def codes(sequence: str, letters: str) -> NDArray[np.int16]:
    """(N,) index of each letter in `letters`, -1 for any other."""
    table = np.full(256, -1, dtype=np.int16)
    table[np.frombuffer(letters.encode(), dtype=np.uint8)] = np.arange(len(letters))
    return table[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]


def permuted(sequence: str, number: int, seed: int = 0) -> str:
    """The same residues in random order, by (seed, number of the record): a control of equal length and composition."""
    order = NoiseKey(seed, stream="permuted").uniform(number, len(sequence)).argsort(kind="stable")
    return "".join(sequence[i] for i in order)


@lru_cache(maxsize=4096)
def _ranges(ids: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for i in ids:
        if out and out[-1][1] == i:
            out[-1] = (out[-1][0], i + 1)
        else:
            out.append((i, i + 1))
    return tuple(out)


def _reserved(vocab: Vocab) -> dict[str, int]:
    low, high = vocab.range(RANGE)
    return dict(zip(LETTERS, range(low, high), strict=False))


def _tokens(vocab: Vocab) -> dict[str, int]:
    """Single letters (and `-`, `.`) of an ESM tokenizer: one with a word per residue, and hardly anything else."""
    words = vocab.tokenizer.get_vocab()
    if len(words) > 256:  # a text tokenizer has letters too, and they are no residues
        return {}
    return {word: int(i) for word, i in words.items() if len(word) == 1 and word in LETTERS + "."}


def _unknown(sequence: str, at: int, letters: str) -> DataError:
    return DataError(f"residue {at + 1}: {sequence[at]!r} is none of {letters}")
