"""A tower of a few convolutions for work on a CPU: one token for each cell of a small picture.

Shape letters: N crops, H W pixels, T tokens (cells), E width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.model.published.tensors import fill_own
from mmdiff.parts.ranges import AtLeast1

from .media.images import ImageSpec, read_item


@saveable
class ConvTower(nn.Module):
    """An encoder of small pictures: (N, 3, size, size) -> (N, (size / cell)^2, width).

    It has a learned table of positions.

    size, cell: in pixels; a cell is a multiple of 4, and `size` one of the cell.
    pool: halves the map by maxima of 2 x 2 behind each convolution in place of strides; a cell is then a power of 2. On
        4,000 pictures of one shape each, shapes are told apart after a third of the steps (docs/vqa.md).
    weights: a safetensors file of this tower's own names. Raises ConfigError.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        size: AtLeast1 = 24,
        width: AtLeast1 = 96,
        cell: AtLeast1 = 12,
        *,
        pool: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if cell < 4 or cell % 4 or size < cell or size % cell:
            raise ConfigError(f"cell: {cell} is not a multiple of 4 that divides size {size}")
        if pool and cell & (cell - 1):
            raise ConfigError(f"cell: {cell} is not a power of 2, as pool wants it")
        self.width = width
        self.grid = (size // cell, size // cell)
        self.tokens = self.grid[0] * self.grid[1]
        self.spec = ImageSpec((size, size))
        self.convs = _pooling(width, cell) if pool else _striding(width, cell)
        self.positions_TE = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        self.checkpointed = False
        if weights is not None:
            fill_own(self, weights)
            self.node["weights"] = None

    @classmethod
    def toy(
        cls, size: int = 24, width: int = 96, cell: int = 12, *, pool: bool = False, weights: str | None = None
    ) -> ConvTower:
        return cls(size, min(width, 32), cell, pool=pool)

    def read(self, data: object) -> Item:
        return read_item(data, self.spec)

    def forward(self, values_N3HW: Tensor) -> Tensor:
        if self.checkpointed and self.training:
            map_NEHW: Tensor = checkpoint(self.convs, values_N3HW, use_reentrant=False)
        else:
            map_NEHW = self.convs(values_N3HW)
        return map_NEHW.flatten(2).transpose(1, 2) + self.positions_TE

    def gradient_checkpointing(self, on: bool) -> None:
        self.checkpointed = on


def _striding(width: int, cell: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(width, width, cell // 4, stride=cell // 4),
    )


def _pooling(width: int, cell: int) -> nn.Sequential:
    """Returns log2(cell) convolutions; the width doubles from one to the next and ends at `width`."""
    n = cell.bit_length() - 1
    widths = [3, *(max(width >> (n - 1 - i), 4) for i in range(n))]
    layers = [
        (nn.Conv2d(before, after, 3, padding=1), nn.GELU(), nn.MaxPool2d(2))
        for before, after in zip(widths[:-1], widths[1:], strict=True)
    ]
    return nn.Sequential(*(module for layer in layers for module in layer))
