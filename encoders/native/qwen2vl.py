"""Qwen2-VL's vision tower, of transformers: Dream-VL's. Pictures keep their shape; four patches become one feature.

Shape letters: N crops, F numbers of a patch, T patches of the longest crop, E width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.model.published.tensors import fill, tensors_around
from mmdiff.parts.ranges import AtLeast0, Finite, Pixels, Positive

from ..media.images import CLIP_MEAN, CLIP_STD, ImageSpec, Interpolation, pixels, read_image
from ..media.towers import checkpoint_layers
from .patches import apart, in_blocks, patches_item, vision_config, within_pixels

FIRST = "patch_embed.proj.weight"
FIELDS: Mapping[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "hidden_act": "quick_gelu",
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""Fields of the tower, with Qwen2-VL 7B's values."""


@saveable
class Qwen2VL(nn.Module):
    """An encoder of pictures as they are (arXiv 2409.12191): n patches of 14 x 14 pixels give n / 4 features.

    config: `vision_config` of a config.json; fields left out are Qwen2-VL 7B's.
    min_pixels, max_pixels: a picture is resized to sides that are multiples of 28 and to so many pixels.
    axes_behind: id of the token behind which the slots of a picture lie along axes, in a backbone that has positions
        along three (`<|vision_start|>` of Dream-VL); None: its slots follow each other like text.
    weights: a folder or safetensors file with a Qwen2-VL tower, alone or within a model.
    Items have layout (rows, columns) of patches. Raises ConfigError.
    """

    node: dict[str, Any]  # set by @saveable
    by_layout = True

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        min_pixels: Pixels = 56 * 56,
        max_pixels: Pixels = 4096 * 28 * 28,
        axes_behind: AtLeast0 | None = None,
        mean: Sequence[Finite] = CLIP_MEAN,
        std: Sequence[Positive] = CLIP_STD,
        interpolation: Interpolation = "bicubic",
        weights: str | None = None,
    ) -> None:
        from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

        super().__init__()
        made = vision_config(Qwen2VLVisionConfig, config or {}, FIELDS)
        self.patch, self.merge, self.frames = made.patch_size, made.spatial_merge_size, made.temporal_patch_size
        if made.in_channels != 3 or made.embed_dim % (4 * made.num_heads):
            raise ConfigError(
                f"vision_config: {made.in_channels} colours and heads of {made.embed_dim / made.num_heads:g}, "
                "expected 3 and a multiple of 4"
            )
        side = self.patch * self.merge
        if not min_pixels <= max_pixels or max_pixels < side**2:
            raise ConfigError(f"min_pixels: {min_pixels}, max_pixels: {max_pixels}, expected room for {side} x {side}")
        self.min_pixels, self.max_pixels, self.axes_behind = min_pixels, max_pixels, axes_behind
        self.spec = ImageSpec((side, side), mean, std, interpolation)  # type: ignore[arg-type]
        self.tower = Qwen2VisionTransformerPretrainedModel(made)
        self.width: int = made.hidden_size
        self.tokens: int = max_pixels // side**2
        if weights is not None:
            fill(self.tower, tensors_around(weights, FIRST, "vision tower of Qwen2-VL"), weights)
        self.node.update(config={name: getattr(made, name) for name in FIELDS}, weights=None)

    @classmethod
    def toy(cls, config: Mapping[str, Any] | None = None, *, axes_behind: int | None = None, **outside: Any) -> Qwen2VL:
        """The same with two blocks of width 32, and at most 16 features."""
        small = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2}
        return cls(small, min_pixels=28 * 28, max_pixels=16 * 28 * 28, axes_behind=axes_behind)

    def read(self, data: object) -> Item:
        image = read_image(data)
        size = within_pixels((image.height, image.width), self.patch * self.merge, self.min_pixels, self.max_pixels)
        spec = ImageSpec(size, self.spec.mean, self.spec.std, self.spec.interpolation)
        grid = size[0] // self.patch, size[1] // self.patch
        return patches_item(in_blocks(pixels(image, spec), self.patch, self.merge), grid, self.merge)

    def grid_of(self, item: Item, before: int | None) -> tuple[int, int] | None:
        """Returns the rows and columns of an item's slots, where these lie along axes. before: the id in front."""
        if self.axes_behind is None or before != self.axes_behind:
            return None
        rows, columns = item.layout
        return rows // self.merge, columns // self.merge

    def forward(self, values_NFT: Tensor, length_N: Tensor, layouts: Sequence[tuple[int, ...]]) -> Tensor:
        """Returns (N, T / 4, E). layouts: rows and columns of patches of each crop."""
        counts = [rows * columns for rows, columns in layouts]
        real = [values_FT[:, :count].T for values_FT, count in zip(values_NFT, counts, strict=True)]
        picture_M3PP = torch.cat(real).unflatten(1, (3, self.patch, self.patch))
        frames_MF = picture_M3PP[:, :, None].expand(-1, -1, self.frames, -1, -1).flatten(1)  # a still film
        grid_N3 = torch.tensor([(1, *grid) for grid in layouts], device=values_NFT.device)
        features_ME: Tensor = self.tower(frames_MF, grid_thw=grid_N3).pooler_output
        return apart(features_ME, [count // self.merge**2 for count in counts])

    def gradient_checkpointing(self, on: bool) -> None:
        checkpoint_layers(self.tower, on)
