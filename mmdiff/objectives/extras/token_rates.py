"""Mask rates that are learned: one number for each id of the vocabulary (GenMD4, arXiv 2406.04329, section 5).

Shape letters: V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.config.saveable import saveable
from mmdiff.parts.ranges import AtLeast1


@saveable
class TokenRates(nn.Module):
    """The power w of each id: it is masked at time t with probability (1 - eps) t ** w. All begin at 1.

    An id with a smaller power is masked earlier. vocab_size (V) comes from the model at build time.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, vocab_size: AtLeast1) -> None:
        super().__init__()
        self.log_power = nn.Parameter(torch.zeros(vocab_size))

    def grow(self, source_V: Tensor) -> None:
        """Give the table a larger vocabulary. source_V: as `mmdiff.backbones.reserve.grow` has it."""
        old_V, kept_V = self.log_power.data, source_V >= 0
        log_power_V = old_V.new_zeros(len(source_V))
        log_power_V[kept_V] = old_V[source_V[kept_V]]
        self.log_power = nn.Parameter(log_power_V)
        self.node["vocab_size"] = len(source_V)

    def powers(self) -> Tensor:
        """Returns fp32 (V,), the powers, above 0."""
        return self.log_power.float().exp()
