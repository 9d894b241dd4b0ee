"""Connectors that make one slot of several neighbouring features.

Shape letters: N crops, T features per crop, R neighbours merged along one axis, E width in, D width out, M slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import build_part
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1, Positive

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
class Pooled(nn.Module):
    """Applies a connector, then halves the side of each crop's square grid of slots, rounded up (LaViDa, 27 to 14).

    A slot is the bilinear mean of its neighbours (arXiv 2505.16839), at the middle of the features that it stands for.
    inner: the connector, or the dotted path of one that takes the widths alone; it makes a square grid per crop.
    Raises ConfigError when the slots of a crop are not square.
    """

    def __init__(self, width_in: AtLeast1, width_out: AtLeast1, *, inner: Any = "mmdiff.connectors.mlp.MLP") -> None:
        super().__init__()
        if isinstance(inner, str):
            inner = build_part({"target": inner}, where="inner", width_in=width_in, width_out=width_out)
        self.inner = inner

    def slots(self, tokens: int, item: Item) -> int:
        side = square(self.inner.slots(tokens, Item(item.values[:1])))
        return len(item.values) * (-(-side // 2)) ** 2

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        slots_NTD: Tensor = self.inner(features_NTE, media).unflatten(0, (len(features_NTE), -1))
        side = square(slots_NTD.shape[1])
        map_NDHW = slots_NTD.transpose(1, 2).unflatten(2, (side, side))
        half = -(-side // 2)
        return F.interpolate(map_NDHW, (half, half), mode="bilinear").flatten(2).transpose(1, 2).flatten(0, 1)


def square(tokens: int) -> int:
    """Returns the side of a square grid of slots. Raises ConfigError where there is none."""
    side = isqrt(tokens)
    if side * side != tokens:
        raise ConfigError(f"inner: {tokens} slots per crop are not a square grid, which tiles need")
    return side


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
