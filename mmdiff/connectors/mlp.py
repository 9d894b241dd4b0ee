"""Connectors that map each feature by itself.

Shape letters: N views, T features a view, E width in, D width out, M slots.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..batch import Item, MediaBatch, packed
from ..parts import part


@part
class Linear(nn.Module):
    """One linear map: as many slots as features."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        out_NTD: Tensor = self.linear(features_NTE)
        return packed(out_NTD, media.tokens)


@part
class MLP(nn.Module):
    """Two linear layers with a GELU between them (LLaVA-1.5, arXiv 2310.03744): as many slots as features.

    hidden: width between the layers, `width_out` by default. norm: a LayerNorm before them.
    """

    def __init__(self, width_in: int, width_out: int, hidden: int | None = None, norm: bool = False) -> None:
        super().__init__()
        hidden = hidden or width_out
        self.norm = nn.LayerNorm(width_in) if norm else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        out_NTD: Tensor = self.layers(self.norm(features_NTE))
        return packed(out_NTD, media.tokens)
