"""A vision tower of transformers: SigLIP, SigLIP 2 of fixed resolution, CLIP (transformers 5.2 or later).

Shape letters: N crops, H W pixels, T tokens, E width, P positions of a position table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdiff.backbones.weights import read_json
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, nearest
from mmdiff.model.published.llava import has_siglip, tower_config
from mmdiff.model.published.tensors import fill, tensor_files, tensor_shapes, tensors_around
from mmdiff.parts.ranges import AtLeast1, Finite, Positive, Whole

from .media.images import CLIP_MEAN, CLIP_STD, HALF, ImageSpec, Interpolation, ResizeMode, read_item
from .media.towers import check_layer, checkpoint_layers, resized_positions

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
FILTERS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic")  # PIL's numbers 0 to 3
FIRST, TABLE = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"


@saveable
class Siglip(nn.Module):
    """An encoder that gives the features of one layer: (N, 3, H, W) -> (N, T, E), without the class token.

    LLaDA-V's tower is `google/siglip2-so400m-patch14-384` with layer=-2 and norm=False: 729 tokens of width 1152.

    config: the vision part of a `config.json`: model_type (siglip_vision_model, clip_vision_model), hidden_size, ...;
        left out, the one of `weights` is read.
    weights: a folder with `config.json`, of the tower alone or of a model that holds it, or a safetensors file. The
        towers in LLaVA's, such as LLaDA-V's, were saved without the block that is not used: their layer is -1.
    layer: -1 is the last block, -2 the one before it; those above are dropped. norm: whether the last norm is applied.
    spare_norm: keep a last norm that is not applied, of a checkpoint that has it (LLaVA's), so that it is saved again.
    image_size: side of the pictures, in pixels; the position table is resized to it.
    mean, std, interpolation: default to the `preprocessor_config.json` of `weights`, then to the family's.
    Raises ConfigError for what does not exist or does not fit.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        weights: str | None = None,
        layer: Whole = -2,
        norm: bool = False,
        spare_norm: bool = False,
        image_size: AtLeast1 | None = None,
        mean: Sequence[Finite] | None = None,
        std: Sequence[Positive] | None = None,
        interpolation: Interpolation | None = None,
        resize_mode: ResizeMode = "squash",
    ) -> None:
        super().__init__()
        config = _architecture(config, weights)
        if image_size is not None:
            config["image_size"] = image_size
        check_layer(layer)
        depth = config["num_hidden_layers"]
        if depth + layer < 0:
            raise ConfigError(f"layer: {layer} lies below the first of {depth} layers")
        clip = config["model_type"] == "clip_vision_model"
        facts = _pictures(weights)
        self.spec = ImageSpec(
            (config["image_size"], config["image_size"]),
            mean or facts.get("image_mean") or (CLIP_MEAN if clip else HALF),  # type: ignore[arg-type]
            std or facts.get("image_std") or (CLIP_STD if clip else HALF),  # type: ignore[arg-type]
            interpolation or facts.get("interpolation", "bicubic"),
            resize_mode,
        )
        tower = _create({**config, "num_hidden_layers": depth + layer + 1})
        side = config["image_size"] // config["patch_size"]
        self.prefix = 1 if clip else 0
        self.norm: nn.Module = tower.post_layernorm if norm else nn.Identity()
        if spare_norm:  # buffers: a parameter that nothing uses would have no gradient
            for name, value in tower.post_layernorm.named_parameters():
                self.register_buffer(f"spare_norm_{name}", value.detach())
        if not norm and not spare_norm:
            tower.post_layernorm = nn.Identity()
        if weights is not None:
            tensors = tensors_around(weights, FIRST, "vision tower")  # also under the longer paths of LLaVA
            if TABLE in tensors:
                tensors[TABLE] = resized_positions(tensors[TABLE], (side, side), self.prefix)
            fill(tower, tensors, weights, _all_names(config))
        tower.post_layernorm = nn.Identity()  # the two families apply it to different things
        self.tower = tower
        self.width = config["hidden_size"]
        self.grid = (side, side)
        self.tokens = side * side
        self.node.update(
            config=config,
            weights=None,
            **self.spec.colours(),
        )

    @classmethod
    def toy(
        cls,
        config: Mapping[str, Any] | None = None,
        *,
        layer: Whole = -2,
        norm: bool = False,
        spare_norm: bool = False,
        resize_mode: ResizeMode = "squash",
        **outside: Any,
    ) -> Siglip:
        """A tower of the same family with 2 x 2 patches."""
        family = _family(config or {})
        size = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 1 - layer}
        width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        config = {"model_type": family, **size, **width}
        return cls(config, layer=layer, norm=norm, spare_norm=spare_norm, resize_mode=resize_mode)

    def read(self, data: object) -> Item:
        return read_item(data, self.spec)

    def forward(self, values_N3HW: Tensor) -> Tensor:
        h_NTE: Tensor = self.tower(pixel_values=values_N3HW).last_hidden_state[:, self.prefix :]
        return cast(Tensor, self.norm(h_NTE))

    def gradient_checkpointing(self, on: bool) -> None:
        checkpoint_layers(self.tower, on)


def _family(config: Mapping[str, Any]) -> str:
    given = config.get("model_type", "siglip_vision_model")
    known = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
    if given not in {*known, *known.values()}:
        more = "; its pictures vary in size" if str(given).startswith("siglip2") else ""
        raise ConfigError(f"model_type: {given!r} is not one of {', '.join(known.values())}{more}")
    return known.get(given, given)


def _architecture(config: Mapping[str, Any] | None, weights: str | None) -> dict[str, Any]:
    """Returns the fields of the configuration that determine the tower."""
    if config is not None:
        for key in config:
            if key not in (*FIELDS, "model_type"):
                raise ConfigError(f"config: {key!r} is not a field of a vision tower{nearest(key, FIELDS)}")
    elif weights is None:
        raise ConfigError("config: neither a config nor weights are given")
    elif Path(weights).is_dir():
        config = read_json(Path(weights) / "config.json")
        if has_siglip(config):  # the folder of a whole model, which describes its language model
            config = tower_config(str(config["mm_vision_tower"]), tensor_shapes(tensor_files(weights)))
    else:
        raise ConfigError(f"weights: {weights} is not a folder with config.json; give config as well")
    family = _family(config)
    config = config.get("vision_config", config)
    whole = _class(family).config_class(**{key: config[key] for key in FIELDS if key in config})
    return {"model_type": family, **{key: getattr(whole, key) for key in FIELDS}}


def _class(family: str) -> Any:
    from transformers import CLIPVisionModel, SiglipVisionModel

    return CLIPVisionModel if family == "clip_vision_model" else SiglipVisionModel


def _create(config: Mapping[str, Any]) -> Any:
    model = _class(config["model_type"])
    whole = model.config_class(**{key: config[key] for key in FIELDS})
    whole.vision_use_head = False  # SigLIP's attention pooling
    try:
        return model(whole)
    except ValueError as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from None


def _all_names(config: Mapping[str, Any]) -> set[str]:
    """Returns the names of all tensors a published tower may have, those of dropped layers and the head included."""
    model = _class(config["model_type"])
    with torch.device("meta"):
        whole = model(model.config_class(**{key: config[key] for key in FIELDS}))
    return {*whole.state_dict(), "embeddings.position_ids"}


def _pictures(weights: str | None) -> dict[str, Any]:
    """Returns the colours and the resize filter of `preprocessor_config.json`, or {}."""
    if weights is None or not (Path(weights) / "preprocessor_config.json").is_file():
        return {}
    content = read_json(Path(weights) / "preprocessor_config.json")
    resample = content.get("resample")
    if resample is None:
        return content
    if resample not in range(len(FILTERS)):
        raise ConfigError(f"{weights}/preprocessor_config.json: resample: {resample!r} is not one of 0 to 3")
    return {**content, "interpolation": FILTERS[resample]}
