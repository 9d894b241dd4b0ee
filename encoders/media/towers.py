"""What the vision towers of three libraries have in common: numbering of layers, shapes, resized position tables.

Shape letters: E width, P positions of a position table.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.errors import ConfigError


def check_layer(layer: int) -> None:
    """Raises ConfigError unless `layer` is below 0: libraries number from the end alike, from the front they differ."""
    if isinstance(layer, bool) or not isinstance(layer, int) or layer >= 0:
        raise ConfigError(f"layer: {layer!r} is not a negative number (-1 the last block, -2 the one before it)")


def prune(tower: Any, layer: int, norm: bool) -> list[int]:
    """Drop the layers above a block of a timm or open_clip tower. Returns the index of that block afterwards."""
    check_layer(layer)
    try:
        kept: list[int] = tower.prune_intermediate_layers([layer], prune_norm=not norm, prune_head=True)
    except AssertionError:
        raise ConfigError(f"layer: {layer} lies below the first layer of {type(tower).__name__}") from None
    return kept


def checkpoint_layers(tower: Any, on: bool) -> None:
    """Turn gradient checkpointing of a transformers model on or off."""
    renamed = hasattr(tower, "activation_checkpointing_enable")  # later in transformers 5; the old name warns
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    if on:
        getattr(tower, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(tower, f"{name}_disable")()


def feature_map(
    forward: Callable[[Any, Tensor], Tensor], tower: nn.Module, size: tuple[int, int]
) -> tuple[int, int, int]:
    """Returns (E, grid height, grid width) of a tower for pictures of `size`; it runs on meta tensors.

    forward: a tower and pixels (1, 3, H, W) to features (1, E, grid height, grid width).
    """
    meta = {id(t): t.detach().to("meta") for t in [*tower.parameters(), *tower.buffers()]}
    copy = deepcopy(tower, meta).eval()  # what `meta` holds is not copied but replaced
    try:
        with torch.device("meta"), torch.no_grad():
            _, width, gh, gw = forward(copy, torch.empty(1, 3, *size)).shape
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"image_size: {size} does not fit this tower: {' '.join(str(error).split())}") from None
    return width, gh, gw


def resized_positions(table_PE: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """Returns a learned table of a square grid, after `prefix` rows of no position, for another grid (bicubic)."""
    head_E, positions_PE = table_PE[:prefix], table_PE[prefix:].float()
    side = round(len(positions_PE) ** 0.5)
    if side * side != len(positions_PE):
        raise ConfigError(f"image_size: a position table of {len(positions_PE)} positions is not square")
    if grid == (side, side):
        return table_PE
    map_1EHW = positions_PE.T.reshape(1, -1, side, side)
    map_1EHW = F.interpolate(map_1EHW, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([head_E, map_1EHW[0].flatten(1).T.to(table_PE.dtype)])
