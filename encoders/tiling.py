"""Tiles: an encoder that sees a large picture as a whole and in pieces. See `mmdiff.connectors.anyres`.

Shape letters: N crops, H W pixels, T tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.connectors.anyres import grid_canvases, select_canvas
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1

from .media.images import ImageSpec, pixels, read_image

if TYPE_CHECKING:
    from PIL.Image import Image


@saveable
class Tiles(nn.Module):
    """An encoder that reads a picture as 1 + rows * columns crops: the whole, then the tiles of a canvas, row by row.

    The canvas is the one of at most `grid` x `grid` tiles that shows most of the picture; the picture is put on its
    middle, on black (LLaVA-OneVision, arXiv 2408.03326; LLaDA-V has grid=6).

    encoder: a vision tower with `spec` and a square picture. max_tiles: of a canvas; None: grid * grid.
    canvases: [rows, columns] of the canvases to choose from, instead of `grid` and `max_tiles` (LaViDa has five).
    Items have layout (height, width, rows, columns). Raises ConfigError.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        grid: AtLeast1 = 6,
        max_tiles: AtLeast1 | None = None,
        canvases: Sequence[Sequence[AtLeast1]] | None = None,
    ) -> None:
        super().__init__()
        spec = getattr(encoder, "spec", None)
        if not isinstance(spec, ImageSpec) or spec.size[0] != spec.size[1]:
            raise ConfigError(f"encoder: {type(encoder).__name__} does not take square pictures, which can be tiled")
        if canvases is not None and (not canvases or any(len(canvas) != 2 for canvas in canvases)):
            raise ConfigError("canvases: expected [[rows, columns], ...], at least one")
        self.encoder = encoder
        self.spec = spec
        self.canvases = grid_canvases(grid, max_tiles) if canvases is None else [(r, c) for r, c in canvases]
        self.width: int = encoder.width
        self.tokens: int = encoder.tokens
        self.grid: tuple[int, int] = encoder.grid

    def read(self, data: object) -> Item:
        image = read_image(data)
        side = self.spec.size[0]
        rows, columns = select_canvas((image.height, image.width), side, self.canvases)
        canvas = _on_canvas(image, rows * side, columns * side, self.spec)
        crops = [pixels(image, self.spec)]
        for top in range(0, rows * side, side):
            for left in range(0, columns * side, side):
                crops.append(pixels(canvas.crop((left, top, left + side, top + side)), self.spec))
        return Item(torch.stack(crops), (image.height, image.width, rows, columns))

    def forward(self, values_N3HW: Tensor) -> Tensor:
        features_NTE: Tensor = self.encoder(values_N3HW)
        return features_NTE

    def gradient_checkpointing(self, on: bool) -> None:
        self.encoder.gradient_checkpointing(on)


def _on_canvas(image: Image, height: int, width: int, spec: ImageSpec) -> Image:
    from PIL import Image
    from PIL.Image import Resampling

    if width / image.width < height / image.height:
        size = (width, min(ceil(image.height * (width / image.width)), height))
    else:
        size = (min(ceil(image.width * (height / image.height)), width), height)
    canvas = Image.new("RGB", (width, height))
    resized = image.resize(size, Resampling[spec.interpolation.upper()])
    canvas.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas
