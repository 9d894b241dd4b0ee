"""A connector that normalises each feature and maps it by one matrix.

Shape letters: N crops, T features per crop, E width in, D width out, M slots.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch, packed
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.parts.ranges import AtLeast1, Positive


@saveable
class Normed(nn.Module):
    """Features of an RMS of 1, then one matrix without a bias: as many slots as features (Gemma 4's `embed_vision`).

    eps: added to the mean square.
    """

    def __init__(self, width_in: AtLeast1, width_out: AtLeast1, *, eps: Positive = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.projection = nn.Linear(width_in, width_out, bias=False)

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        x_NTE = features_NTE.float()
        x_NTE = x_NTE * (x_NTE.pow(2).mean(-1, keepdim=True) + self.eps).pow(-0.5)  # as published, to the last bit
        out_NTD: Tensor = self.projection(x_NTE.to(features_NTE.dtype))
        return packed(out_NTD, media.tokens)
