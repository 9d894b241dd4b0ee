"""Pictures as bytes until they reach the device, and JPEG decoded at the size that a small crop needs.

Shape letters: N crops, H W pixels, T tokens, E width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError

from .images import ImageSpec, normalised, read_bytes


@saveable
class Compact(nn.Module):
    """An encoder whose crops are uint8 (N, 3, H, W) until the model has them: a quarter of the bytes to pass on.

    Its features are those of `encoder` alone, to the last bit, unless pictures are reduced.

    encoder: a vision tower with `spec`, of one crop per picture.
    reduce: JPEG is decoded at a half, quarter or eighth of its size where that is still twice the crop's, and pictures
        are resized by torch in place of Pillow. That takes much less time and changes values a little, so training and
        use must agree: a saved model keeps it.
    Raises ConfigError.
    """

    def __init__(self, encoder: Any, *, reduce: bool = False) -> None:
        super().__init__()
        spec = getattr(encoder, "spec", None)
        if not isinstance(spec, ImageSpec) or len(encoder.read(np.zeros((*spec.size, 3), np.uint8)).values) != 1:
            raise ConfigError(f"encoder: {type(encoder).__name__} does not take a picture as one crop")
        self.encoder, self.reduce = encoder, reduce
        self._spec = spec  # under another name: what cuts pictures itself (`Tiles`) would hand on numbers, not bytes
        self.width: int = encoder.width
        self.tokens: int = encoder.tokens
        self.grid: tuple[int, int] = encoder.grid

    def read(self, data: object) -> Item:
        return read_bytes(data, self._spec, reduce=self.reduce)

    def forward(self, values_N3HW: Tensor) -> Tensor:
        # whole numbers up to 255 are exact in every dtype; means and deviations are not
        features_NTE: Tensor = self.encoder(normalised(values_N3HW, self._spec).to(values_N3HW.dtype))
        return features_NTE

    def gradient_checkpointing(self, on: bool) -> None:
        self.encoder.gradient_checkpointing(on)
