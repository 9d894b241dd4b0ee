"""Any timm model as a vision tower: transformers and convolutional networks (timm 1.0.20 or later).

Shape letters: N crops, H W pixels, T tokens, E width.
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

from .media.images import ImageSpec, Interpolation, ResizeMode, read_item
from .media.towers import feature_map, prune

OUTSIDE = ("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit")
"""Arguments of `timm.create_model` that are not of an architecture."""


@saveable
class TimmViT(nn.Module):
    """An encoder that gives the features of one layer: (N, 3, H, W) -> (N, T, E), without class and register tokens.

    name: of a timm architecture, `vit_so400m_patch14_siglip_378`; left out, that of `config.json` in `weights`.
    config: arguments of that architecture (`embed_dim`, `patch_size`, ...), over its own.
    weights: a folder as timm publishes them, or a safetensors file; None makes random ones.
    layer: -1 is the last block (or stage, in a convolutional network), -2 the one before it; those above are dropped.
    norm: whether the tower's last norm is applied.
    image_size: of the pictures, in pixels: a side or (H, W); position tables are resized to it.
    mean, std, interpolation: default to those of the checkpoint, then to those of the architecture.
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
        image_size: AtLeast1 | Sequence[AtLeast1] | None = None,
        mean: Sequence[Finite] | None = None,
        std: Sequence[Positive] | None = None,
        interpolation: Interpolation | None = None,
        resize_mode: ResizeMode = "squash",
    ) -> None:
        require("timm", "vision")
        super().__init__()
        published = _published(weights)
        name = name or published.get("architecture")
        if not name:
            raise ConfigError("name: no timm architecture is named, and weights bring no config.json that does")
        config = {**published.get("model_args", {}), **(config or {})}
        tower = _create(name, config)
        facts = {**tower.pretrained_cfg, **published.get("pretrained_cfg", {})}
        spare = set(tower.state_dict())
        self.index = prune(tower, layer, norm)
        if weights is not None:
            files = tensor_files(weights)
            heads = tuple(f"{head}." for head in _listed(tower.pretrained_cfg.get("classifier")))
            spare.update(key for key in tensor_names(files) if key.startswith(heads))
            fill(tower, read_tensors(files), weights, spare)
        native = _pair(config.get("img_size") or tower.pretrained_cfg["input_size"][-2:])
        size = _pair(image_size or native)
        how = interpolation or facts["interpolation"]
        self.spec = ImageSpec(size, mean or facts["mean"], std or facts["std"], how, resize_mode)  # type: ignore[arg-type]
        if size != native and hasattr(tower, "set_input_size"):
            tower.set_input_size(img_size=size)
        self.tower = tower
        self.norm = norm
        self.width, *grid = feature_map(self._map, tower, size)
        self.grid = (grid[0], grid[1])
        self.tokens = grid[0] * grid[1]
        self.node.update(
            name=name,
            config=config,
            weights=None,
            image_size=list(size),
            **self.spec.colours(),
        )

    @classmethod
    def toy(
        cls, *name: str, layer: int = -2, norm: bool = False, resize_mode: ResizeMode = "squash", **outside: Any
    ) -> TimmViT:
        """A transformer of 2 x 2 patches, whatever the name."""
        small = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "num_heads": 2, "depth": 1 - layer}
        return cls("vit_tiny_patch16_224", config=small, layer=layer, norm=norm, resize_mode=resize_mode)

    def read(self, data: object) -> Item:
        return read_item(data, self.spec)

    def forward(self, values_N3HW: Tensor) -> Tensor:
        return self._map(self.tower, values_N3HW).flatten(2).transpose(1, 2)

    def gradient_checkpointing(self, on: bool) -> None:
        try:
            self.tower.set_grad_checkpointing(on)
        except AssertionError:
            raise ConfigError(f"gradient_checkpointing: {type(self.tower).__name__} of timm has none") from None

    def _map(self, tower: Any, values_N3HW: Tensor) -> Tensor:
        # NCHW is the one format that all models know
        (map_NEHW,) = tower.forward_intermediates(
            values_N3HW, indices=self.index, norm=self.norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        result: Tensor = map_NEHW
        return result


def _create(name: str, config: Mapping[str, Any]) -> Any:
    import timm

    if not timm.is_model(name):  # which also refuses `hf-hub:` names
        raise ConfigError(f"name: timm has no model {name!r}{nearest(name, timm.list_models())}")
    for key in config:
        if key in OUTSIDE or str(key).startswith("pretrained"):  # timm would read a file, which may be pickled
            raise ConfigError(f"config: {key}: weights come from `weights` alone, which takes safetensors")
    try:
        tower = timm.create_model(name, pretrained=False, **{"num_classes": 0, **config})
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"config: {name}: {' '.join(str(error).split())}") from None
    if not (hasattr(tower, "forward_intermediates") and hasattr(tower, "prune_intermediate_layers")):
        raise ConfigError(f"name: {name} does not give the features of a layer, expected a model that does")
    return tower


def _published(weights: str | None) -> dict[str, Any]:
    """`config.json` of a folder as timm publishes it; old ones hold the facts of the weights at their root."""
    if weights is None or not (Path(weights) / "config.json").is_file():
        return {}
    content = read_json(Path(weights) / "config.json")
    facts = content.get("pretrained_cfg", content)
    kept = {key: facts[key] for key in ("mean", "std", "interpolation") if key in facts}
    return {
        "architecture": content.get("architecture"),
        "model_args": content.get("model_args", {}),
        "pretrained_cfg": kept,
    }


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[return-value]  # ImageSpec checks it


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
