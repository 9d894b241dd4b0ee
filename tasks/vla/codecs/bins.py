"""Codecs: a chunk of actions in [-1, 1] to a fixed number of codes, and back. A fourth one is in `fast.py`.

Shape letters: K actions of a chunk, D dimensions, T codes, B bins, C coefficients kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts.ranges import AtLeast1, AtLeast2, Positive

from .normalise import Normaliser, Statistics

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Bools = NDArray[np.bool_]


class ActionCodec(Protocol):
    """A codec is made from plain configuration values, under `@saveable`. Its codes are 0..size-1, one token id each.

    Binary dimensions of the normaliser keep their sign, and so their value, in every codec that is bound to it.
    """

    node: dict[str, Any]

    @property
    def size(self) -> int: ...

    def bind(self, statistics: Statistics, normaliser: Normaliser) -> ActionCodec:
        """Returns the codec fitted to statistics; itself where it does not depend on them. Raises ConfigError."""
        ...

    def tokens(self, chunk: int, dims: int) -> int:
        """Returns T. Raises ConfigError for a chunk that the codec cannot encode."""
        ...

    def encode(self, x_KD: ArrayLike) -> Codes:
        """(K, D) in [-1, 1], others clipped -> (T,). Raises DataError."""
        ...

    def decode(self, codes_T: ArrayLike, chunk: int, dims: int) -> Floats:
        """(T,) -> (K, D) in [-1, 1]. Raises DataError for another length and codes outside 0..size-1."""
        ...

    def padded(self, pad_K: ArrayLike, dims: int) -> Bools:
        """Returns bool (T,): the codes that encode padded actions only, which are no targets of training."""
        ...

    def steps(self, chunk: int, dims: int) -> tuple[int, int]:
        """Returns (groups, codes per group), whose product is T: the actions and tokens of hierarchical decoding."""
        ...


@saveable
class UniformBins:
    """`bins` equal intervals of [-1, 1]: one code per entry, action after action (OpenVLA, LLaDA-VLA).

    A code is decoded as the centre of its interval: the error is at most 1 / bins. Interval i is [2i / bins - 1,
    2(i + 1) / bins - 1); the last one is closed. OpenVLA's 256 edges are 255 intervals: `UniformBins(255)` has the same
    centres, and OpenVLA's id is its vocabulary's size - 1 - code.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, bins: AtLeast2 = 32) -> None:
        self.bins = self.size = bins

    def bind(self, statistics: Statistics, normaliser: Normaliser) -> UniformBins:
        return self

    def tokens(self, chunk: int, dims: int) -> int:
        return chunk * dims

    def encode(self, x_KD: ArrayLike) -> Codes:
        return to_bins(checked_chunk(x_KD), self.bins).ravel()

    def decode(self, codes_T: ArrayLike, chunk: int, dims: int) -> Floats:
        return from_bins(checked_codes(codes_T, chunk * dims, self.size), self.bins).reshape(chunk, dims)

    def padded(self, pad_K: ArrayLike, dims: int) -> Bools:
        return np.repeat(np.asarray(pad_K, bool), dims)

    def steps(self, chunk: int, dims: int) -> tuple[int, int]:
        return chunk, dims


@saveable
class QuantileBins:
    """Bins that hold equally many of the values the statistics were made of, dimension by dimension.

    A code is decoded as the median of its bin: the error is at most the width of the bin, for values between the least
    and the greatest of the data; others go into the end bins. A value that makes up more than a bin has one of no width
    and comes back exactly; the codes between are not used. Binary dimensions have equal intervals. Edges are those of
    `Statistics.grid` after normalisation, so the codec must be bound before it encodes.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, bins: AtLeast2 = 256) -> None:
        self.bins = self.size = bins
        self.edges_DB: Floats | None = None  # (D, bins + 1)
        self.medians_DB: Floats | None = None  # (D, bins)

    def bind(self, statistics: Statistics, normaliser: Normaliser) -> QuantileBins:
        if self.bins > len(statistics.grid) - 1:
            have = f"a grid of {len(statistics.grid) - 1} intervals" if statistics.grid else "no grid of quantiles"
            raise ConfigError(
                f"codec: QuantileBins({self.bins}), but the statistics have {have}; compute them from data"
            )
        grid_QD = normaliser.forward(statistics.grid)
        grid_QD[:, normaliser.binary_D] = np.linspace(-1, 1, len(grid_QD))[:, None]
        at_Q = np.linspace(0, 1, len(grid_QD))
        at_B = np.linspace(0, 1, 2 * self.bins + 1)
        bound, found_DB = copy.copy(self), np.stack([np.interp(at_B, at_Q, column) for column in grid_QD.T])
        bound.edges_DB, bound.medians_DB = found_DB[:, ::2], found_DB[:, 1::2]
        return bound

    def tokens(self, chunk: int, dims: int) -> int:
        return chunk * dims

    def encode(self, x_KD: ArrayLike) -> Codes:
        x = checked_chunk(x_KD)
        edges_DB, _ = self._bound(x.shape[1])
        below = (edges_DB < x[..., None]).sum(-1)
        up_to = (edges_DB <= x[..., None]).sum(-1)
        inside = np.where(up_to - below > 1, below, up_to - 1)  # on a stretch of equal edges: its first bin
        return inside.clip(0, self.bins - 1).ravel()

    def decode(self, codes_T: ArrayLike, chunk: int, dims: int) -> Floats:
        codes_KD = checked_codes(codes_T, chunk * dims, self.size).reshape(chunk, dims)
        return self._bound(dims)[1][np.arange(dims), codes_KD]

    def padded(self, pad_K: ArrayLike, dims: int) -> Bools:
        return np.repeat(np.asarray(pad_K, bool), dims)

    def steps(self, chunk: int, dims: int) -> tuple[int, int]:
        return chunk, dims

    def _bound(self, dims: int) -> tuple[Floats, Floats]:
        if self.edges_DB is None or self.medians_DB is None:
            raise ConfigError("codec: QuantileBins has no edges, bind it to statistics first")
        if len(self.edges_DB) != dims:
            raise DataError(f"actions of {dims} dimensions, the codec's statistics have {len(self.edges_DB)}")
        return self.edges_DB, self.medians_DB


@saveable
class DCTBins:
    """The `keep` lowest frequencies of each dimension over the chunk, each coefficient in `bins` equal intervals.

    The transform is the orthonormal DCT-II, c = M x of `dct(K)`. Coefficient k of entries in [-1, 1] is at most
    r_k = sum_n |M_kn| in size, which is sqrt(K) for k = 0; `ranges` puts in smaller r_k (see `fitted`), beyond which
    coefficients are clipped. The error of entry n, where nothing is clipped, is at most
    sum_{k<keep} |M_kn| r_k / bins (quantisation) + |sum_{k>=keep} M_kn c_k| (truncation). An odd number of bins has a
    centre at 0: what does not move stays.

    Codes stand low frequencies first, the dimensions of one frequency together. Every coefficient depends on every
    action, so no code is padded unless all actions are; padded actions should repeat the last one. Binary dimensions
    (known once bound), whose switch a truncated series would blur, follow with one code per action.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, bins: AtLeast2 = 63, keep: AtLeast1 = 3, ranges: Sequence[Positive] | None = None) -> None:
        self.bins = self.size = bins
        if ranges is not None and len(ranges) != keep:
            raise ConfigError(f"ranges: {list(ranges)}, expected a number for each of {keep} coefficients")
        self.keep, self.ranges = keep, None if ranges is None else tuple(map(float, ranges))
        self.binary: tuple[int, ...] = ()

    @classmethod
    def fitted(cls, chunks_NKD: ArrayLike, bins: int = 63, keep: int = 3, share: float = 0.999) -> DCTBins:
        """Fit `ranges` to data: `share` of all coefficients of a frequency lie inside. Leave binary dimensions out."""
        x = np.asarray(chunks_NKD, np.float64)
        if x.ndim != 3 or 0 in x.shape or not np.isfinite(x).all():
            raise DataError(f"chunks of shape {x.shape}: expected finite numbers (chunks, actions, dimensions)")
        if keep > x.shape[1]:
            raise ConfigError(f"keep: {keep} coefficients of chunks of {x.shape[1]} actions")
        c_NCD = dct(x.shape[1])[:keep] @ x.clip(-1, 1)
        range_C = np.quantile(np.abs(c_NCD), share, axis=(0, 2))
        return cls(bins, keep, np.maximum(range_C, 1e-6).tolist())

    def bind(self, statistics: Statistics, normaliser: Normaliser) -> DCTBins:
        bound = copy.copy(self)
        bound.binary = tuple(np.flatnonzero(normaliser.binary_D).tolist())
        return bound

    def tokens(self, chunk: int, dims: int) -> int:
        if self.keep > chunk:
            raise ConfigError(f"codec: DCTBins keeps {self.keep} coefficients, more than a chunk's {chunk} actions")
        return self.keep * (dims - len(self.binary)) + chunk * len(self.binary)

    def encode(self, x_KD: ArrayLike) -> Codes:
        x = checked_chunk(x_KD)
        self.tokens(*x.shape)
        matrix_CK, range_C = self._transform(len(x))
        smooth = np.delete(x, self.binary, axis=1)
        c_CD = matrix_CK @ smooth / range_C[:, None]
        return np.concatenate([to_bins(c_CD, self.bins).ravel(), to_bins(x[:, self.binary], self.bins).ravel()])

    def decode(self, codes_T: ArrayLike, chunk: int, dims: int) -> Floats:
        values_T = from_bins(checked_codes(codes_T, self.tokens(chunk, dims), self.size), self.bins)
        matrix_CK, range_C = self._transform(chunk)
        smooth = np.delete(np.arange(dims), self.binary)
        c_CD = values_T[: self.keep * len(smooth)].reshape(self.keep, len(smooth))
        x_KD = np.empty((chunk, dims))
        x_KD[:, smooth] = (matrix_CK.T @ (c_CD * range_C[:, None])).clip(-1, 1)
        x_KD[:, self.binary] = values_T[c_CD.size :].reshape(chunk, len(self.binary))
        return x_KD

    def padded(self, pad_K: ArrayLike, dims: int) -> Bools:
        pad = np.asarray(pad_K, bool)
        coefficients = np.full(self.keep * (dims - len(self.binary)), pad.all())
        return np.concatenate([coefficients, np.repeat(pad, len(self.binary))])

    def steps(self, chunk: int, dims: int) -> tuple[int, int]:
        """A group is a frequency; all codes are one group where binary dimensions follow."""
        return (1, self.tokens(chunk, dims)) if self.binary else (self.keep, dims)

    def _transform(self, chunk: int) -> tuple[Floats, Floats]:
        matrix_CK = dct(chunk)[: self.keep]
        return matrix_CK, np.abs(matrix_CK).sum(1) if self.ranges is None else np.asarray(self.ranges)


def dct(length: int) -> Floats:
    """Returns the orthonormal DCT-II as a matrix: M x are the coefficients of x, M^T c the entries of c."""
    k, n = np.mgrid[0:length, 0:length]
    scale_K = np.sqrt(np.where(np.arange(length) == 0, 1, 2) / length)
    matrix: Floats = scale_K[:, None] * np.cos(np.pi * (n + 0.5) * k / length)
    return matrix


def to_bins(x: Floats, bins: int) -> Codes:
    """Numbers in [-1, 1], others clipped -> the equal interval each lies in, 0..bins-1."""
    return np.floor((x.clip(-1, 1) + 1) / 2 * bins).astype(np.int64).clip(0, bins - 1)


def from_bins(codes: Codes, bins: int) -> Floats:
    """The centres of equal intervals of [-1, 1]; 0 exactly in the middle of an odd number."""
    return (2 * codes + 1 - bins) / bins


def checked_chunk(x_KD: ArrayLike) -> Floats:
    """float64 in [-1, 1]. Raises DataError for another shape, NaN and infinity."""
    x = np.asarray(x_KD, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"actions of shape {x.shape}: expected (actions, dimensions)")
    if not np.isfinite(x).all():
        k, d = np.argwhere(~np.isfinite(x))[0].tolist()
        raise DataError(f"action {k}, dimension {d}: {x[k, d]} is not finite")
    return x.clip(-1, 1)


def checked_codes(codes_T: ArrayLike, tokens: int, size: int) -> Codes:
    """int64. Raises DataError for another length, no whole numbers, and numbers outside 0..size-1."""
    codes = np.asarray(codes_T)
    if codes.shape != (tokens,) or not np.issubdtype(codes.dtype, np.integer):
        raise DataError(f"codes of shape {codes.shape} and {codes.dtype}: expected {tokens} whole numbers")
    wrong = (codes < 0) | (codes >= size)
    if wrong.any():
        t = int(np.argmax(wrong))
        raise DataError(f"code {t}: {codes[t]} is not in 0..{size - 1}")
    return codes.astype(np.int64)
