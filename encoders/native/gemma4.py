"""Gemma 4's vision tower, of transformers: DiffusionGemma's. Pictures keep their shape; nine patches become a feature.

Shape letters: N crops, F numbers of a patch, T patches of the longest crop, E width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.model.published.tensors import fill, tensors_around

from ..media.images import ImageSpec, Interpolation, pixels, read_image
from ..media.towers import checkpoint_layers
from .patches import apart, in_rows, patches_item, vision_config, within_patches

FIRST = "patch_embedder.input_proj.weight"
FIELDS: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_parameters": None,
    "pooling_kernel_size": 3,
    "patch_size": 16,
    "position_embedding_size": 10240,
    "use_clipped_linears": False,
    "standardize": True,
}
"""Fields of the tower, with DiffusionGemma 26B's values."""


@saveable
class Gemma4Vision(nn.Module):
    """An encoder of pictures as they are: n patches of 16 x 16 pixels give n / 9 features, of numbers in 0..1.

    config: `vision_config` of a config.json; fields left out are DiffusionGemma 26B's.
    soft_tokens: a picture is resized, its shape kept, to as many patches as give at most so many features.
    weights: a folder or safetensors file with a Gemma 4 tower, alone or within a model.
    Items have layout (rows, columns) of patches. Raises ConfigError.
    """

    node: dict[str, Any]  # set by @saveable
    by_layout = True

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        soft_tokens: Literal[70, 140, 280, 560, 1120] = 280,
        interpolation: Interpolation = "bicubic",
        weights: str | None = None,
    ) -> None:
        from transformers import Gemma4VisionConfig, Gemma4VisionModel

        super().__init__()
        made = vision_config(Gemma4VisionConfig, config or {}, FIELDS)
        if made.head_dim % 4 or made.num_attention_heads % made.num_key_value_heads:
            raise ConfigError(
                f"vision_config: {made.num_attention_heads} heads of {made.head_dim}, {made.num_key_value_heads} for "
                "keys, expected a multiple of 4 and a divisor"
            )
        self.patch, self.merge, self.tokens = made.patch_size, made.pooling_kernel_size, soft_tokens
        side = self.patch * self.merge
        self.spec = ImageSpec((side, side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation)
        self.tower = Gemma4VisionModel(made)
        if made.standardize:
            self.tower.std_bias.zero_()
            self.tower.std_scale.fill_(1.0)
        self.width: int = made.hidden_size
        if weights is not None:
            fill(self.tower, tensors_around(weights, FIRST, "vision tower of Gemma 4"), weights)
        self.node.update(config={name: getattr(made, name) for name in FIELDS}, weights=None)

    @classmethod
    def toy(cls, config: Mapping[str, Any] | None = None, **outside: Any) -> Gemma4Vision:
        """The same with two blocks of width 32, and a table of 1024 positions per side."""
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        heads = {"num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 1024}
        return cls({**small, **heads, "standardize": (config or {}).get("standardize", True)}, soft_tokens=70)

    def read(self, data: object) -> Item:
        image = read_image(data)
        size = within_patches((image.height, image.width), self.patch, self.merge, self.tokens)
        spec = ImageSpec(size, self.spec.mean, self.spec.std, self.spec.interpolation)
        grid = size[0] // self.patch, size[1] // self.patch
        return patches_item(in_rows(pixels(image, spec), self.patch), grid, self.merge)

    def forward(self, values_NFT: Tensor, length_N: Tensor, layouts: Sequence[tuple[int, ...]]) -> Tensor:
        """Returns (N, T / 9, E). layouts: rows and columns of patches of each crop."""
        at_NT2 = torch.full((len(values_NFT), values_NFT.shape[2], 2), -1, dtype=torch.int64)
        for at_T2, (rows, columns) in zip(at_NT2, layouts, strict=True):
            order_T = torch.arange(rows * columns)
            at_T2[: rows * columns] = torch.stack([order_T % columns, order_T // columns], -1)
        out = self.tower(pixel_values=values_NFT.transpose(1, 2), pixel_position_ids=at_NT2.to(values_NFT.device))
        features_ME: Tensor = out.last_hidden_state
        return apart(features_ME, [rows * columns // self.merge**2 for rows, columns in layouts])

    def gradient_checkpointing(self, on: bool) -> None:
        checkpoint_layers(self.tower, on)
