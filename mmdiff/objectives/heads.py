"""Readouts of an encoder's features, used by its pre-training objective."""

from __future__ import annotations

from torch import Tensor, nn

from mmdiff.config.ranges import AtLeast1
from mmdiff.config.saveable import saveable


@saveable
class WordHead(nn.Module):
    """A linear readout of features (..., E) as logits (..., words * V).

    words: how many tokens each feature stands for. width_in (E) and vocab_size (V) come from the model at build time.
    """

    def __init__(self, *, width_in: AtLeast1, vocab_size: AtLeast1, words: AtLeast1 = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, words * vocab_size)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out
