"""Readouts of an encoder's features, used by its pre-training objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.config.saveable import saveable
from mmdiff.parts.ranges import AtLeast1


@saveable
class WordHead(nn.Module):
    """A linear readout of features (..., E) as logits (..., words * V).

    words: how many tokens each feature stands for. width_in (E) and vocab_size (V) come from the model at build time.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width_in: AtLeast1, vocab_size: AtLeast1, words: AtLeast1 = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, words * vocab_size)

    def grow(self, source_V: Tensor) -> None:
        """Give the readout a larger vocabulary. source_V: as `mmdiff.backbones.reserve.grow` has it."""
        words, old = self.node.get("words", 1), self.linear
        self.linear = nn.Linear(old.in_features, words * len(source_V)).to(old.weight)
        kept_V = source_V >= 0
        with torch.no_grad():
            for name, new in self.linear.named_parameters():
                table_WV = new.unflatten(0, (words, -1))
                table_WV[:, kept_V] = getattr(old, name).unflatten(0, (words, -1))[:, source_V[kept_V]]
        self.node["vocab_size"] = len(source_V)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out
