"""Connectors that make one slot of several neighbouring features.

Shape letters: N crops, T features per crop, R neighbours merged along one axis, E width in, D width out, M slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config.ranges import AtLeast1, Positive
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError

from .mlp import MLP


@saveable
class PixelShuffle(nn.Module):
    """Concatenates blocks of factor x factor features of a grid, then applies an MLP (InternVL, arXiv 2404.16821).

    grid: (rows, columns) of the features; square when left out. hidden, norm: of the MLP.
    Raises ConfigError when the features are no such grid.
    """

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        factor: AtLeast1 = 2,
        *,
        grid: Sequence[AtLeast1] | None = None,
        hidden: AtLeast1 | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        check_whole(factor=factor)
        self.factor = factor
        self.grid = grid
        self.mlp = MLP(width_in * factor**2, width_out, hidden, norm)

    def slots(self, tokens: int, item: Item) -> int:
        rows, columns = self._grid(tokens)
        return len(item.values) * (rows // self.factor) * (columns // self.factor)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        n, tokens, width = features_NTE.shape
        rows, columns = self._grid(tokens)
        r = self.factor
        blocks = features_NTE.reshape(n, rows // r, r, columns // r, r, width).transpose(2, 3)
        out_MD: Tensor = self.mlp(blocks.reshape(n, -1, r * r * width), media)
        return out_MD

    def _grid(self, tokens: int) -> tuple[int, int]:
        rows, columns = self.grid or (isqrt(tokens), isqrt(tokens))
        if rows * columns != tokens:
            what = f"{rows} x {columns}" if self.grid else "square"
            raise ConfigError(f"grid: {tokens} features are not {what}, give the grid of the encoder")
        if rows % self.factor or columns % self.factor:
            fits = [n for n in range(2, max(rows, columns) + 1) if not (rows % n or columns % n)]
            raise ConfigError(f"factor: {self.factor} does not divide {rows} x {columns}, expected one of {fits}")
        return rows, columns


@saveable
class FrameStack(nn.Module):
    """Concatenates runs of `factor` features, the last one padded with zeros, then applies an MLP.

    hidden, norm, out_norm: of the MLP.
    """

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        factor: AtLeast1 = 2,
        *,
        hidden: AtLeast1 | None = None,
        norm: bool = False,
        out_norm: Positive | None = None,
    ) -> None:
        super().__init__()
        check_whole(factor=factor)
        self.factor = factor
        self.mlp = MLP(width_in * factor, width_out, hidden, norm, out_norm=out_norm)

    def slots(self, tokens: int, item: Item) -> int:
        return len(item.values) * -(-tokens // self.factor)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        filled = F.pad(features_NTE, (0, 0, 0, -features_NTE.shape[1] % self.factor))
        runs_NRE = filled.reshape(len(filled), -1, self.factor * filled.shape[2])
        tokens = None if media.tokens is None else [-(-n // self.factor) for n in media.tokens]
        out_MD: Tensor = self.mlp(runs_NRE, replace(media, tokens=tokens))
        return out_MD


def check_whole(**values: object) -> None:
    """Raise ConfigError for a value that is not a whole number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: {value!r} is not a whole number above 0")
