"""A companion of every masked position: a noisy embedding of what stood there, which the mask alone would lose.

Shape letters: R rows, L canvas length, P positions, D backbone width, V vocabulary, Z size of the companion.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1


@saveable
class Companion(nn.Module):
    """Embeddings that companions are noised from (CADD, arXiv 2510.01329), and how a companion goes in.

    A companion is mapped to the backbone's width, without a bias, and added to the embedding of its masked position:
    where it is zero or not given, the model is the one without it. The embeddings are of unit variance, fixed, and of
    their own (the paper takes the backbone's), so that noise of unit variance has the same scale in every model.

    size: Z. width (D) and vocab_size (V) come from the model at build time.
    """

    node: dict[str, Any]  # set by @saveable
    table: Tensor

    def __init__(self, *, width: AtLeast1, vocab_size: AtLeast1, size: AtLeast1 = 32) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("table", torch.randn(vocab_size, size))
        self.up = nn.Linear(size, width, bias=False)

    def grow(self, source_V: Tensor) -> None:
        """Give the table a larger vocabulary. source_V: as `mmdiff.backbones.reserve.grow` has it."""
        old_VZ, kept_V = self.table, source_V >= 0
        self.table = torch.randn(len(source_V), self.size).to(old_VZ)
        self.table[kept_V] = old_VZ[source_V[kept_V]]
        self.node["vocab_size"] = len(source_V)

    def estimate(self, logits_PV: Tensor, kind: Literal["hard", "soft"]) -> Tensor:
        """Returns (P, Z), the embedding of the likeliest id, or the mean embedding under the model's distribution."""
        if kind == "hard":
            return self.table[logits_PV.argmax(-1)].float()
        return logits_PV.softmax(-1).to(self.table.dtype).matmul(self.table).float()

    def embed(self, x_RLD: Tensor, ids_RL: Tensor, values_RL: Tensor | None) -> Tensor:
        """Returns the embeddings with companions added. values_RL: (R, L, Z), zero at positions that are not masked."""
        if values_RL is None:
            return x_RLD
        if values_RL.shape[2] != self.size:
            raise ConfigError(
                f"process.size: {values_RL.shape[2]}, expected {self.size}, that of the model's companion"
            )
        return x_RLD + self.up(values_RL.to(self.up.weight.dtype)).to(x_RLD.dtype)
