"""Pictures of any resolution: the whole picture as one crop, then its tiles as one map with a newline after each row.

LLaVA-OneVision (arXiv 2408.03326); the settings of LLaDA-V (arXiv 2505.16933) are the defaults. Pure functions for the
geometry, then the connector. `mmdiff.encoders.tiling.Tiles` cuts the tiles.

Shape letters: N crops, T features per crop, S side of a crop's grid of features, E width in, D width out, M slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import build_part
from mmdiff.config.saveable import saveable
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Connector

from .merge import square

SLACK = 1.1  # a map this much larger a side than allowed is not shrunk yet


def grid_canvases(grid: int, max_tiles: int | None = None) -> list[tuple[int, int]]:
    """Returns the (rows, columns) of all canvases of at most `grid` tiles per side, and `max_tiles` in all."""
    sides = range(1, grid + 1)
    return [(rows, columns) for rows in sides for columns in sides if max_tiles is None or rows * columns <= max_tiles]


def select_canvas(size: tuple[int, int], tile: int, canvases: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Returns (rows, columns) of the canvas of tiles that shows most pixels of a picture, and of those the smallest.

    size: (height, width) of the picture. tile: side in pixels. canvases: of equal ones the first is taken.
    """
    height, width = size
    best, chosen = (-1, 0), (1, 1)
    for rows, columns in canvases:
        # in floats, as published: where a product falls just below a whole number, the choice depends on it
        scale = min(columns * tile / width, rows * tile / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        waste = rows * columns * tile * tile - shown
        if (shown, -waste) > best:
            best, chosen = (shown, -waste), (rows, columns)
    return chosen


def unpad(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Returns (margin above and below, margin left and right) of a picture in the middle of a map of rows x columns.

    size: (height, width) of the picture, in any unit.
    """
    height, width = size  # in floats, as published: a product may fall just below a whole number
    if width / height > columns / rows:
        return (rows - int(height * (columns / width))) // 2, 0
    return 0, (columns - int(width * (rows / height))) // 2


def shrink(rows: int, columns: int, side: int, max_tiles: int | None) -> tuple[int, int]:
    """Returns the size of a map that may not hold many more features than `max_tiles` tiles of side x side."""
    if max_tiles is None:
        return rows, columns
    ratio = sqrt(rows * columns / (max_tiles * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > SLACK else (rows, columns)


def map_size(layout: tuple[int, ...], side: int, max_tiles: int | None) -> tuple[int, int]:
    """Returns (rows, columns) of the features of all tiles of a picture, newlines not counted.

    layout: (height, width, tile rows, tile columns). side: features along a tile.
    """
    height, width, tile_rows, tile_columns = layout
    rows, columns = tile_rows * side, tile_columns * side
    above, left = unpad((height, width), rows, columns)
    return shrink(rows - 2 * above, columns - 2 * left, side, max_tiles)


@saveable
class AnyRes(nn.Module):
    """Slots of the whole picture, then those of its tiles as one map: margins cut, shrunk, a newline after each row.

    An item of one crop takes its features and one newline (LLaDA-V's layout of several pictures in a sample).

    inner: the connector of each crop, or the dotted path of one that takes the widths alone; it makes a square grid of
        slots per crop.
    max_tiles: the features of this many tiles are kept at most, with a slack of 1.1 per side (`anyres_max_4`); None:
        all (`anyres`).
    Raises ConfigError when the slots of a crop are not square.
    """

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        *,
        inner: str | Connector = "mmdiff.connectors.mlp.MLP",
        max_tiles: AtLeast1 | None = 4,
    ) -> None:
        super().__init__()
        made = {"width_in": width_in, "width_out": width_out}
        self.inner: Connector = (
            build_part({"target": inner}, where="inner", **made) if isinstance(inner, str) else inner
        )
        self.max_tiles = max_tiles
        self.image_newline = nn.Parameter(torch.randn(width_out) / sqrt(width_out))

    def slots(self, tokens: int, item: Item) -> int:
        per_crop = int(self.inner.slots(tokens, Item(item.values[:1])))
        if len(item.values) == 1:
            return per_crop + 1
        rows, columns = map_size(item.layout, square(per_crop), self.max_tiles)
        return per_crop + rows * (columns + 1)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        inner_NTD: Tensor = self.inner(features_NTE, media).unflatten(0, (len(features_NTE), -1))
        groups = zip(inner_NTD.split(media.crops), media.layouts, strict=True)
        return torch.cat([self._pack(crop_NTD, layout) for crop_NTD, layout in groups])

    def _pack(self, crop_NTD: Tensor, layout: tuple[int, ...]) -> Tensor:
        """Returns the slots of one item."""
        newline_D = self.image_newline.to(crop_NTD.dtype)
        if len(crop_NTD) == 1:
            return torch.cat([crop_NTD[0], newline_D[None]])
        side = square(crop_NTD.shape[1])
        height, width, tile_rows, tile_columns = layout
        tiles = crop_NTD[1:].reshape(tile_rows, tile_columns, side, side, -1)
        map_DHW = tiles.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
        above, left = unpad((height, width), *map_DHW.shape[1:])
        map_DHW = map_DHW[:, above : map_DHW.shape[1] - above, left : map_DHW.shape[2] - left]
        size = map_size(layout, side, self.max_tiles)
        if size != map_DHW.shape[1:]:
            map_DHW = F.interpolate(map_DHW[None], size, mode="bilinear")[0]
        ends_DH1 = newline_D[:, None, None].expand(-1, size[0], 1)
        rows_DHW = torch.cat([map_DHW, ends_DH1], 2)
        return torch.cat([crop_NTD[0], rows_DHW.flatten(1).T])
