"""Codes of their own for every dimension of an action, around another codec.

Shape letters: K actions of a chunk, D dimensions, T codes, B codes of the inner codec.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, DataError

from .bins import ActionCodec, Bools, Codes, Floats, UniformBins
from .normalise import Normaliser, Statistics


@saveable
class Apart:
    """The codes of `inner`, which has one for each entry of a chunk; those of dimension d are d B .. d B + B - 1.

    Where all dimensions share their codes, as in published models, all masked positions of a chunk look alike, and a
    model of rotary positions must first learn which of them is which. With codes apart, and each position confined to
    its own (`ranges`), one hidden state may hold the next value of every dimension; a small model that begins from
    nothing then learns within hundreds of steps to look at the picture and to read the instruction (docs/robots.md).
    It needs D times as many reserved ids.

    inner: None: 32 uniform bins. Raises ConfigError for a codec whose codes are not one for each entry (DCT, FAST).
    """

    def __init__(self, inner: ActionCodec | None = None) -> None:
        self.inner: ActionCodec = UniformBins(32) if inner is None else inner
        self.dims = 1

    @property
    def size(self) -> int:
        """D B, once bound."""
        return self.dims * self.inner.size

    def bind(self, statistics: Statistics, normaliser: Normaliser) -> Apart:
        bound = copy.copy(self)
        bound.inner, bound.dims = self.inner.bind(statistics, normaliser), normaliser.dims
        return bound

    def tokens(self, chunk: int, dims: int) -> int:
        found = self.inner.tokens(chunk, dims)
        if found != chunk * dims or self.inner.steps(chunk, dims) != (chunk, dims):
            raise ConfigError(f"codec.inner: {type(self.inner).__name__} has no code for each entry; expected bins")
        return found

    def ranges(self, chunk: int, dims: int) -> list[tuple[int, int]]:
        """Returns the codes that each of the T positions may hold, half-open."""
        each = self.inner.size
        return [(d * each, (d + 1) * each) for _ in range(chunk) for d in range(dims)]

    def encode(self, x_KD: ArrayLike) -> Codes:
        codes_T = self.inner.encode(x_KD)
        return codes_T + self._first(len(codes_T))

    def decode(self, codes_T: ArrayLike, chunk: int, dims: int) -> Floats:
        codes = np.asarray(codes_T, np.int64)
        if codes.ndim != 1 or len(codes) != self.tokens(chunk, dims):
            raise DataError(f"codes of shape {codes.shape}, expected ({chunk * dims},)")
        return self.inner.decode(codes - self._first(len(codes)), chunk, dims)

    def padded(self, pad_K: ArrayLike, dims: int) -> Bools:
        return self.inner.padded(pad_K, dims)

    def steps(self, chunk: int, dims: int) -> tuple[int, int]:
        return self.inner.steps(chunk, dims)

    def _first(self, length: int) -> Codes:
        """int64 (T,), the first code of each position's dimension."""
        first_T: Codes = np.arange(length) % self.dims * self.inner.size
        return first_T


def spans(codec: ActionCodec, chunk: int, dims: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Yield the runs of a chunk's T positions that may hold the same codes, and the range of these, half-open."""
    if not isinstance(codec, Apart):
        yield slice(0, codec.tokens(chunk, dims)), (0, codec.size)
        return
    ranges_T = codec.ranges(chunk, dims)
    for codes, run in groupby(range(len(ranges_T)), key=ranges_T.__getitem__):
        at = list(run)
        yield slice(at[0], at[-1] + 1), codes
