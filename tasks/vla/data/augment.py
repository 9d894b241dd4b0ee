"""Augmentation of robot rows: pictures are moved and recoloured, states get noise; actions and instructions stay.

    {"image": uint8 (H, W, 3), "state": [0.1, -0.2], "instruction": "open the drawer", "action": [[0.3, 0.0, 1.0], ...]}

Shape letters: H W pixels, S entries of a state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, BelowOne, NotNegative
from mmdiff.protocols import Row, Source

Picture = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: how bright a colour looks


@part
class Augmented:
    """`copies` different versions of every row: row i is a version of row i % n, the same whenever it is read.

    shift: a picture is moved by up to so many pixels in either direction, and filled with its own edge (DrQ,
        arXiv 2004.13649: 4 of 84). Cameras are moved apart from each other.
    brightness, contrast, saturation: a factor drawn from 1 - x to 1 + x, one for all pictures of a row: of every value,
        of its distance from the mean grey of the picture, and from the grey of the pixel. In this order; clipped once.
    state_noise: standard deviation of the noise of the state, in its units; one number, or one per entry.

    Pictures come out as uint8 arrays (H, W, 3). Draws depend on (seed, i) alone. Raises ConfigError.
    """

    def __init__(
        self,
        rows: Source,
        *,
        copies: AtLeast1 = 1,
        seed: AtLeast0 = 0,
        shift: AtLeast0 = 0,
        brightness: BelowOne = 0.0,
        contrast: BelowOne = 0.0,
        saturation: BelowOne = 0.0,
        state_noise: NotNegative | Sequence[NotNegative] = 0.0,
    ) -> None:
        noise_S = np.asarray(state_noise, np.float64)
        if noise_S.ndim > 1 or not ((noise_S >= 0) & (noise_S < math.inf)).all():
            raise ConfigError(f"state_noise: {state_noise!r} is not one or more numbers of at least 0")
        self.rows, self.copies, self.seed, self.shift, self.noise_S = rows, copies, seed, shift, noise_S
        self.colours = np.array([brightness, contrast, saturation])

    def __len__(self) -> int:
        return self.copies * len(self.rows)

    def __getitem__(self, index: int) -> Row:
        i = range(len(self))[index]
        row = dict(self.rows[i % len(self.rows)])
        colour_key, shift_key, noise_key = np.random.default_rng([self.seed, i]).spawn(3)
        if row.get("image") is not None:
            factors = 1 + self.colours * colour_key.uniform(-1, 1, 3)
            several = isinstance(row["image"], list | tuple)
            seen = [
                self._picture(one, factors, shift_key.integers(-self.shift, self.shift, 2, endpoint=True))
                for one in (row["image"] if several else [row["image"]])
            ]
            row["image"] = seen if several else seen[0]
        if row.get("state") is not None and self.noise_S.any():
            state_S = np.asarray(row["state"], np.float64)
            if self.noise_S.ndim and self.noise_S.shape != state_S.shape:
                where = row.get("where", f"row {i % len(self.rows)}")
                raise DataError(f"{where}: state_noise has {len(self.noise_S)} numbers, the state is {state_S.shape}")
            row["state"] = (state_S + self.noise_S * noise_key.standard_normal(state_S.shape)).astype(np.float32)
        return row

    def _picture(self, source: Any, factors: NDArray[np.float64], by: NDArray[np.int64]) -> Picture:
        is_array = isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape[2:] == (3,)
        picture: Picture = source if is_array else np.asarray(read_image(source))
        if self.colours.any():
            picture = recoloured(picture, *factors.tolist())
        return moved(picture, *by.tolist())


def moved(picture: Picture, down: int, right: int) -> Picture:
    """Returns the picture moved by whole pixels; its edge is repeated."""
    height, width = picture.shape[:2]
    y = (np.arange(height) - down).clip(0, height - 1)
    x = (np.arange(width) - right).clip(0, width - 1)
    return picture[y[:, None], x]


def recoloured(picture: Picture, brightness: float = 1, contrast: float = 1, saturation: float = 1) -> Picture:
    """Returns the picture with colours changed by factors; 1 changes nothing."""
    x = picture * np.float64(brightness)
    mean = (x @ LUMA).mean()
    x = mean + contrast * (x - mean)
    grey = (x @ LUMA)[..., None]
    x = grey + saturation * (x - grey)
    return x.round().clip(0, 255).astype(np.uint8)
