"""Noise as a pure function of (seed, step, sample, copy): resume, batching and world size cannot change it.

Counter-based Philox4x64-10 (Salmon et al., SC 2011) through numpy: the key holds the seed and the stream, the counter
holds step, sample and copy, its lowest word is left to count the draws. Same bits on any device and torch version.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = (1 << 64) - 1
WORD_32 = (1 << 32) - 1


def mixed(value: Any) -> Any:
    """Returns 32 bits, 0 to 2^32 - 1, of which each depends on all low 32 bits of a whole number or int64 tensor.

    The finaliser of MurmurHash3 (Appleby), one to one, for draws that must be made on the device, per pair of
    positions, say. It needs no more than the low half of a product, so that the 64 bits of a tensor suffice.
    """
    value = value & WORD_32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = ((value ^ (value >> shift)) * factor) & WORD_32
    return value ^ (value >> 16)


@dataclass(frozen=True)
class NoiseKey:
    """Where random numbers are drawn from. A key is a value: drawing from it twice gives the same numbers.

    stream: a name that keeps independent uses apart ("mask", "level", ...).
    batch: samples of a step over all processes, so that levels can be spread evenly over the whole step.
    """

    seed: int
    step: int = 0
    stream: str = ""
    batch: int = 1

    def fold(self, name: str) -> NoiseKey:
        """Returns the key of an independent stream below this one."""
        return replace(self, stream=f"{self.stream}/{name}")

    def uniform(self, sample: int, n: int, copy: int = 0) -> NDArray[np.float64]:
        """Returns (n,) float64 numbers in [0, 1) with 53 random bits, those of one copy of one sample."""
        bits = np.random.Philox(
            key=np.array([self.seed & WORD, zlib.crc32(self.stream.encode())], dtype=np.uint64),
            counter=np.array([0, copy & WORD, sample & WORD, self.step & WORD], dtype=np.uint64),
        ).random_raw(n)
        return (bits >> np.uint64(11)) * np.float64(2.0**-53)

    def uniforms(self, samples: Sequence[int], n: int) -> NDArray[np.float64]:
        """Returns (len(samples), n), one row per sample."""
        return np.stack([self.uniform(int(s), n) for s in samples])

    def integer(self, bound: int) -> int:
        """Returns one number in 0..bound-1, to seed generators that take an integer."""
        return int(self.uniform(0, 1)[0] * bound)
