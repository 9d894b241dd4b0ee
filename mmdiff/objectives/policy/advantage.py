"""Advantages: how much better a generation is than the others of its prompt.

Shape letters: G prompts, N generations of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import Positive


class Advantage(Protocol):
    """What the rewards of a group of generations are worth against each other."""

    def __call__(self, reward_GN: Tensor) -> Tensor:
        """Returns the advantages (G, N), float64, of rewards."""
        ...


@part
@dataclass(frozen=True)
class LeaveOneOut:
    """The reward less the mean of the others (RLOO): the gradient is that of the expected reward, unbiased."""

    def __call__(self, reward_GN: Tensor) -> Tensor:
        size = reward_GN.shape[1]
        return (reward_GN - reward_GN.mean(1, keepdim=True)) * size / max(size - 1, 1)


@part
@dataclass(frozen=True)
class Centred:
    """The reward less the mean of its group: d1's and Dr. GRPO's. Its gradient is (N - 1) / N of the unbiased one.

    scaled: divided by the standard deviation of the group (GRPO, arXiv 2402.03300), so that easy and hard prompts
    count the same. That is no gradient of an expected reward.
    """

    scaled: bool = False

    def __call__(self, reward_GN: Tensor) -> Tensor:
        out_GN = reward_GN - reward_GN.mean(1, keepdim=True)
        return out_GN / (reward_GN.std(1, keepdim=True, correction=0) + 1e-4) if self.scaled else out_GN


@part
@dataclass(frozen=True)
class Softmaxes:
    """softmax(psi * A) - softmax(-psi * A) over a group, A centred: wd1's weights (arXiv 2507.08838), with `Plain`.

    A good generation is made likelier, a bad one less likely, without a ratio to what sampled them.
    """

    psi: Positive = 1.0

    def __call__(self, reward_GN: Tensor) -> Tensor:
        a_GN = self.psi * (reward_GN - reward_GN.mean(1, keepdim=True))
        return a_GN.softmax(1) - (-a_GN).softmax(1)
