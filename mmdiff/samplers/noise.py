"""The sampler's random numbers: a pure function of (seed, sample, the row's own step), so batch mates change nothing.

Shape letters: R rows of a step, N predicted positions of one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.diffusion.keys import NoiseKey


def uniform(seed: int, sample: int, step: int, stream: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns float64 numbers in [0, 1), drawn on the device itself: noise over a vocabulary is too much to copy there.

    sample: the global sample index (`Batch.index_B`). step: the row's own step, counted from 1.
    stream: "token" for the draw of tokens, "order" for random scores, "select" for noise on the order of scores.
    """
    seed_here = int(NoiseKey(seed, step, f"sampler/{stream}").uniform(sample, 1)[0] * 2.0**53)
    generator = torch.Generator(device).manual_seed(seed_here)
    return torch.rand(shape, dtype=torch.float64, generator=generator, device=device)


@dataclass(frozen=True)
class StepNoise:
    """The random numbers of one step. sample_R and step_R identify the rows, count_R: their predicted positions."""

    seed: int
    sample_R: Tensor
    step_R: Tensor
    count_R: Tensor

    def rows(self, stream: str, *width: int) -> Iterator[Tensor]:
        """Yields (N, *width) float64 for one row after the other, so that the noise of one row exists at a time."""
        for sample, step, n in zip(self.sample_R.tolist(), self.step_R.tolist(), self.count_R.tolist(), strict=True):
            yield uniform(self.seed, sample, step, stream, (n, *width), self.count_R.device)
