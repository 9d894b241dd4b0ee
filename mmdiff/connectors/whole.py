"""A connector with one slot more per crop, for the crop as a whole.

Shape letters: N crops, T features per crop, E width in, D width out, M slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch, largest, packed
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.parts.ranges import AtLeast1, Positive

from .mlp import MLP


@saveable
class Whole(nn.Module):
    """`MLP` over the features of a crop, behind a slot of the largest value of each channel over all of them.

    What `mmdiff.objectives.readout.Naming` trains an encoder for stands in that slot. A backbone that begins from
    nothing reads one slot at once; to find which of many shows something takes it thousands of steps.

    hidden, norm, out_norm: as in `MLP`.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        hidden: AtLeast1 | None = None,
        norm: bool = True,
        *,
        out_norm: Positive | None = None,
    ) -> None:
        super().__init__()
        self.mlp = MLP(width_in, width_out, hidden, norm, out_norm=out_norm)

    @classmethod
    def toy(cls, width_in: int, width_out: int, hidden: int | None = None, norm: bool = True, **settings: Any) -> Whole:
        return cls(width_in, width_out, None, norm, **settings)

    def slots(self, tokens: int, item: Item) -> int:
        return (tokens + 1) * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        largest_NE = largest(features_NTE, media.tokens)
        out_NTD: Tensor = self.mlp.mapped(torch.cat([largest_NE[:, None], features_NTE], 1))
        return packed(out_NTD, None if media.tokens is None else [tokens + 1 for tokens in media.tokens])
