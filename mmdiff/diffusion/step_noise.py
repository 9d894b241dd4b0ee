"""The sampler's random numbers: a pure function of (seed, sample, the row's own step), so batch mates change nothing.

Counter-based Philox4x32-10 (Salmon et al., SC 2011), for all positions of a step at once. The numbers are made on the
CPU, the same for every device, and sent to it without waiting: a step draws one or two of them per position.

Shape letters: R rows of a step, N predicted positions of one row, P those of all rows, C counters.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key after each round


def philox(counter_C4: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Returns (C, 4), 32 random bits in each number. counter_C4, key: numbers below 2^32."""
    a, b, c, d = counter_C4.T
    for turn in range(10):
        k0, k1 = (np.uint64((word + turn * weyl) & 0xFFFFFFFF) for word, weyl in zip(key, WEYL, strict=True))
        one, two = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (two >> SHIFT) ^ b ^ k0, two & LOW, (one >> SHIFT) ^ d ^ k1, one & LOW
    return np.stack([a, b, c, d], axis=1)


def uniform(
    seed: int, sample_C: NDArray[np.int64], step_C: NDArray[np.int64], number_C: NDArray[np.int64], stream: str
) -> NDArray[np.float64]:
    """Returns (C,) numbers strictly between 0 and 1, with 53 random bits.

    sample_C: global sample indices (`Batch.index_B`). step_C: the rows' own steps, from 1. number_C: which of the
        numbers of that row and step.
    stream: "token" for the draw of tokens, "order" for random scores, "select" for noise on the order of scores, ...
    """
    sample_C = sample_C.astype(np.uint64)
    counter_C4 = np.stack(
        [number_C.astype(np.uint64) & LOW, step_C.astype(np.uint64) & LOW, sample_C & LOW, sample_C >> SHIFT], axis=1
    )
    key = (seed ^ zlib.crc32(f"sampler/{stream}".encode())) & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    bits_C4 = philox(counter_C4, key)
    high_C, low_C = bits_C4[:, 0] >> np.uint64(5), bits_C4[:, 1] >> np.uint64(6)
    out_C: NDArray[np.float64] = (high_C.astype(np.float64) * 2.0**26 + low_C.astype(np.float64) + 0.5) * 2.0**-53
    return out_C


@dataclass(frozen=True)
class StepNoise:
    """The random numbers of one step. All arrays are on the CPU.

    sample_R, step_R: identify the rows. count_R: their predicted positions.
    """

    seed: int
    sample_R: NDArray[np.int64]
    step_R: NDArray[np.int64]
    count_R: NDArray[np.int64]
    device: torch.device
    below: str = ""

    def fold(self, name: str) -> StepNoise:
        """Returns the noise of independent streams below `name`."""
        return replace(self, below=f"{self.below}{name}/")

    def uniform(self, stream: str) -> Tensor:
        """Returns float64 (P,), one number strictly between 0 and 1 for each predicted position."""
        row_P = np.repeat(np.arange(len(self.count_R)), self.count_R)
        first_R = np.cumsum(self.count_R) - self.count_R
        return self._sent(row_P, np.arange(len(row_P)) - first_R[row_P], stream)

    def vectors(self, stream: str, size: int) -> Tensor:
        """Returns float64 (P, size), so many standard normal numbers for each predicted position."""
        row_P = np.repeat(np.arange(len(self.count_R)), self.count_R)
        first_R = np.cumsum(self.count_R) - self.count_R
        number_PZ = (np.arange(len(row_P)) - first_R[row_P])[:, None] * size + np.arange(size)
        return torch.special.ndtri(self._sent(row_P.repeat(size), number_PZ.ravel(), stream)).view(-1, size)

    def row_uniform(self, stream: str) -> Tensor:
        """Returns float64 (R,), one number for each row."""
        row_R = np.arange(len(self.count_R))
        return self._sent(row_R, np.zeros_like(row_R), stream)

    def table(self, stream: str, count: int) -> Tensor:
        """Returns float64 (R, count), so many numbers for each row; those of a row do not depend on how many."""
        rows = len(self.count_R)
        number_C = np.tile(np.arange(count), rows)
        return self._sent(np.repeat(np.arange(rows), count), number_C, stream).view(rows, count)

    def _sent(self, row_C: NDArray[np.int64], number_C: NDArray[np.int64], stream: str) -> Tensor:
        out_C = uniform(self.seed, self.sample_R[row_C], self.step_R[row_C], number_C, self.below + stream)
        return torch.from_numpy(out_C).to(self.device, non_blocking=True)
