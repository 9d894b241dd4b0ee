"""The visual tower of any open_clip model (open_clip 3.1 or later).

Shape letters: N crops, H W pixels, T tokens, E width, P positions of a position table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmdiff.backbones.weights import read_json
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, nearest, require
from mmdiff.model.published.tensors import fill, read_tensors, tensor_files, tensor_names
from mmdiff.parts.ranges import AtLeast1, Finite, Positive, Whole

from .media.images import CLIP_MEAN, CLIP_STD, HALF, ImageSpec, Interpolation, ResizeMode, read_item
from .media.towers import feature_map, prune, resized_positions

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
TABLE = "positional_embedding"
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}  # made, and thrown away


@saveable
class OpenCLIP(nn.Module):
    """An encoder that gives the features of one layer: (N, 3, H, W) -> (N, T, E), without the class token.

    name: of an open_clip model, `ViT-L-14`; left out, the architecture is that of `open_clip_config.json` in `weights`.
    config: the architecture as open_clip writes it, {embed_dim, vision_cfg, quick_gelu}, in place of a name.
    weights: a folder as open_clip publishes them, or a safetensors file, of the whole model or its visual tower.
    layer: -1 is the last block, -2 the one before it; those above are dropped. norm: whether the last norm is applied.
    image_size: side of the pictures, in pixels; the position table is resized to it.
    mean, std, interpolation: default to those of the checkpoint, then to SigLIP's or CLIP's.
    Raises ConfigError for what does not exist or does not fit.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        name: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        weights: str | None = None,
        layer: Whole = -2,
        norm: bool = False,
        image_size: AtLeast1 | None = None,
        mean: Sequence[Finite] | None = None,
        std: Sequence[Positive] | None = None,
        interpolation: Interpolation | None = None,
        resize_mode: ResizeMode = "squash",
    ) -> None:
        require("open_clip", "vision")
        super().__init__()
        config, facts = _architecture(name, config, weights)
        trunk = config["vision_cfg"].get("timm_model_name")
        side = image_size or config["vision_cfg"].get("image_size", 224)
        siglip = "siglip" in f"{name} {trunk}".lower()
        self.spec = ImageSpec(
            (side, side),
            mean or facts.get("mean") or (HALF if siglip else CLIP_MEAN),  # type: ignore[arg-type]
            std or facts.get("std") or (HALF if siglip else CLIP_STD),  # type: ignore[arg-type]
            interpolation or facts.get("interpolation") or "bicubic",
            resize_mode,
        )
        tower = _create(config, side)
        spare = set(tower.state_dict())
        if trunk:
            self.index = prune(tower.trunk, layer, norm)
            tower.head = nn.Identity()
        else:
            self.index = prune(tower, layer, norm)
            tower.attn_pool = None
        if weights is not None:
            fill(tower, _tensors(weights, None if trunk else tower.grid_size), weights, spare)
        if trunk and side != tower.trunk.pretrained_cfg["input_size"][-1]:  # open_clip makes trunks at their own size
            tower.set_input_size(side)
        self.tower = tower
        self.norm = norm
        self.width, *grid = feature_map(self._map, tower, (side, side))
        self.grid = (grid[0], grid[1])
        self.tokens = grid[0] * grid[1]
        self.node.update(
            name=None,
            config=config,
            weights=None,
            image_size=side,
            **self.spec.colours(),
        )

    @classmethod
    def toy(
        cls, *name: str, layer: int = -2, norm: bool = False, resize_mode: ResizeMode = "squash", **outside: Any
    ) -> OpenCLIP:
        """A CLIP transformer of 2 x 2 patches, whatever the name."""
        vision = {"image_size": 28, "patch_size": 14, "width": 32, "head_width": 16, "layers": 1 - layer}
        return cls(config={"embed_dim": 32, "vision_cfg": vision}, layer=layer, norm=norm, resize_mode=resize_mode)

    def read(self, data: object) -> Item:
        return read_item(data, self.spec)

    def forward(self, values_N3HW: Tensor) -> Tensor:
        return self._map(self.tower, values_N3HW).flatten(2).transpose(1, 2)

    def gradient_checkpointing(self, on: bool) -> None:
        self.tower.set_grad_checkpointing(on)

    def _map(self, tower: Any, values_N3HW: Tensor) -> Tensor:
        found = tower.forward_intermediates(
            values_N3HW,
            indices=self.index,
            normalize_intermediates=self.norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        map_NEHW: Tensor = found["image_intermediates"][0]
        return map_NEHW


def _architecture(
    name: str | None, config: Mapping[str, Any] | None, weights: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the architecture of the visual tower, and how a checkpoint was trained to see pictures."""
    import open_clip

    published: dict[str, Any] = {}
    if weights is not None and (Path(weights) / CONFIG).is_file():
        published = read_json(Path(weights) / CONFIG)
    if config is None and name is not None:
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            raise ConfigError(f"name: open_clip has no model {name!r}{nearest(name, open_clip.list_models())}")
    config = config or published.get("model_cfg")
    if config is None:
        raise ConfigError(f"name: neither a name nor a config is given, and weights bring no {CONFIG}")
    for key in ("embed_dim", "vision_cfg"):
        if key not in config:
            raise ConfigError(f"config: {key} is missing, expected {{embed_dim, vision_cfg, quick_gelu}}")
    kept = {"embed_dim": config["embed_dim"], "vision_cfg": dict(config["vision_cfg"])}
    return {**kept, "quick_gelu": bool(config.get("quick_gelu"))}, published.get("preprocess_cfg", {})


def _create(config: Mapping[str, Any], side: int) -> Any:
    import open_clip

    vision = {**config["vision_cfg"], "image_size": side, "timm_model_pretrained": False}
    if (trunk := vision.get("timm_model_name")) is not None:
        import timm

        if not (isinstance(trunk, str) and timm.is_model(trunk)):  # `hf-hub:` names would be downloaded
            raise ConfigError(f"config: timm_model_name: timm has no model {trunk!r}")
    if isinstance(vision.get("layers"), list):
        raise ConfigError("config: open_clip's ResNets cannot be cut at a layer, use mmdiff.encoders.vit.TimmViT")
    try:
        return open_clip.CustomTextCLIP(config["embed_dim"], vision, NO_TEXT, config["quick_gelu"]).visual
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from None


def _tensors(weights: str, grid: tuple[int, int] | None) -> dict[str, Tensor]:
    files = tensor_files(weights, WEIGHTS)
    prefix = "visual." if any(name.startswith("visual.") for name in tensor_names(files)) else ""
    tensors = read_tensors(files, prefix)
    if grid is not None and TABLE in tensors:
        tensors[TABLE] = resized_positions(tensors[TABLE], grid, prefix=1)
    return tensors
