"""Pictures at their own shape: the size that a picture is resized to, and its patches as the numbers of one crop.

Shape letters: F numbers of a patch, T patches, H W pixels, P side of a patch, M patches merged along a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, sqrt
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.sample import Item
from mmdiff.errors import ConfigError, DataError, line_of, nearest

LONGEST = 200  # times as long as wide: more is refused where pictures keep their shape


def within_pixels(size: tuple[int, int], factor: int, least: int, most: int) -> tuple[int, int]:
    """Returns the (height, width) that a picture of (height, width) is resized to: multiples of `factor`, its shape
    nearly kept, with `least` to `most` pixels (Qwen2-VL, arXiv 2409.12191; Dream-VL enlarges what is below `factor`).

    Raises DataError for a picture that is too long for its width.
    """
    height, width = size
    if min(height, width) < factor:
        if height < width:
            height, width = factor, round(width / height * factor)
        else:
            height, width = round(height / width * factor), factor
    elif max(height, width) > LONGEST * min(height, width):
        height = 0
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > most:
        shrink = sqrt(height * width / most)
        high, wide = floor(height / shrink / factor) * factor, floor(width / shrink / factor) * factor
    elif height and high * wide < least:
        enlarge = sqrt(least / (height * width))
        high, wide = ceil(height * enlarge / factor) * factor, ceil(width * enlarge / factor) * factor
    if not high or not wide:
        raise DataError(f"picture of {size[1]} x {size[0]} pixels: it is too long for its width")
    return high, wide


def within_patches(size: tuple[int, int], patch: int, merge: int, slots: int) -> tuple[int, int]:
    """Returns the (height, width) that a picture of (height, width) is resized to: the largest of its shape whose
    patches, merged, are at most `slots` (Gemma 4). Raises DataError for a picture that is too long for its width."""
    height, width = size
    side = patch * merge
    scale = sqrt(slots * merge**2 * patch**2 / (height * width))
    high, wide = floor(scale * height / side) * side, floor(scale * width / side) * side
    if not high and wide:
        high, wide = side, min(width // height, slots) * side
    elif not wide and high:
        high, wide = min(height // width, slots) * side, side
    if not high or not wide:
        raise DataError(f"picture of {size[1]} x {size[0]} pixels: it is too long for its width")
    return high, wide


def patches_item(patches_TF: Tensor, grid: tuple[int, int], merge: int) -> Item:
    """Returns one crop of T patches. grid: its rows and columns, which are the item's layout."""
    count = len(patches_TF)
    return Item(patches_TF.T[None], grid, lengths=(count,), tokens=(count // merge**2,))


def in_blocks(picture_3HW: Tensor, patch: int, merge: int) -> Tensor:
    """Returns (T, 3 * P * P): M x M that are merged follow each other; within a patch colours, rows, columns."""
    rows, columns = (n // patch // merge for n in picture_3HW.shape[1:])
    apart = picture_3HW.reshape(3, rows, merge, patch, columns, merge, patch)
    return apart.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * patch**2)


def in_rows(picture_3HW: Tensor, patch: int) -> Tensor:
    """Returns (T, P * P * 3): patches row by row; within a patch rows, columns, colours."""
    rows, columns = (n // patch for n in picture_3HW.shape[1:])
    apart = picture_3HW.reshape(3, rows, patch, columns, patch)
    return apart.permute(1, 3, 2, 4, 0).reshape(-1, 3 * patch**2)


def apart(features_ME: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns (N, T, E), features of crops that follow each other, each filled up with zeros to the longest."""
    return torch.nn.utils.rnn.pad_sequence(list(features_ME.split(list(counts))), batch_first=True)


def vision_config(made: Any, config: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Returns a tower's configuration of transformers, of the fields of a config.json.

    made: its class. known: fields with what they are where they are left out. Raises ConfigError for one that is not
    known, a size that is not above 0, and what transformers refuses.
    """
    for name, value in config.items():
        if name not in known and name != "model_type":
            raise ConfigError(f"vision_config.{name[:80]}: no field of this vision tower{nearest(name, known)}")
        usual = known.get(name)
        if type(usual) is int and (type(value) is not int or not 0 < value <= 1_000_000):
            raise ConfigError(f"vision_config.{name}: {str(value)[:80]!r}, expected a whole number above 0")
    fields = {name: config.get(name, usual) for name, usual in known.items()}
    try:
        return made(**fields)
    except Exception as error:  # of whatever checks transformers has of its fields
        raise ConfigError(f"vision_config: {line_of(error)}") from None
