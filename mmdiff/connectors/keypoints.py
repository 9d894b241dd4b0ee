"""A connector that says where things are: a few points per picture, each with its coordinates.

Shape letters: N crops, T features per crop, K points, E width in, D width out, M slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch, packed
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1

SHARP = 3.0  # of the softmax at first: between the mean of all positions and the one of the largest value


@saveable
class Keypoints(nn.Module):
    """Spatial softmax (Levine et al., JMLR 2016, section 5.2), the usual end of a small tower of a robot's policy.

    Each of `points` learned maps of the features is made a distribution over the grid. Its slot is an MLP of the mean
    coordinates, in [-1, 1], and of the mean feature under it, plus a vector of its own, by which the backbone tells the
    slots apart. The number of slots does not depend on the resolution, and where something lies is a number, finer
    than a cell, instead of the number of a slot.

    points: K. grid: (rows, columns) of the features; square when left out. Raises ConfigError when they are no such
    grid, and for crops of unequal length.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        points: AtLeast1 = 12,
        *,
        grid: Sequence[AtLeast1] | None = None,
    ) -> None:
        super().__init__()
        self.points, self.grid = points, grid
        self.norm = nn.LayerNorm(width_in)
        self.maps = nn.Linear(width_in, points)
        self.layers = nn.Sequential(nn.Linear(width_in + 2, width_out), nn.GELU(), nn.Linear(width_out, width_out))
        self.own_KD = nn.Parameter(torch.randn(points, width_out) * 0.1)

    @classmethod
    def toy(cls, width_in: int, width_out: int, points: int = 12, **settings: Any) -> Keypoints:
        return cls(width_in, width_out, min(points, 4), **settings)

    def slots(self, tokens: int, item: Item) -> int:
        self._grid(tokens)
        return self.points * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        if media.tokens is not None:
            raise ConfigError("Keypoints: crops of unequal length have no grid; expected an encoder of pictures")
        xy_T2 = self._coordinates(features_NTE)
        x_NTE = self.norm(features_NTE)
        share_NKT = (SHARP * self.maps(x_NTE)).softmax(1).transpose(1, 2)
        found_NKE = torch.cat([share_NKT @ (2 * xy_T2), share_NKT @ x_NTE], -1)
        return packed(self.layers(found_NKE) + self.own_KD, None)

    def _coordinates(self, features_NTE: Tensor) -> Tensor:
        """Returns (T, 2), x and y of each feature, the middles of the outermost ones at -1 and 1."""
        rows, columns = self._grid(features_NTE.shape[1])
        y, x = (torch.linspace(-1, 1, n, device=features_NTE.device, dtype=features_NTE.dtype) for n in (rows, columns))
        return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1)

    def _grid(self, tokens: int) -> tuple[int, int]:
        rows, columns = self.grid or (isqrt(tokens), isqrt(tokens))
        if rows * columns != tokens:
            what = f"{rows} x {columns}" if self.grid else "square"
            raise ConfigError(f"grid: {tokens} features are not {what}, give the grid of the encoder")
        return rows, columns
