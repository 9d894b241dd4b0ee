"""A model as the hub has it: the backbone as its authors publish it, and beside it what mmdiff has to know besides.

    config.json, model.safetensors, tokenizer     the backbone, under its family's published fields and names
    mmdiff_config.json                            all that config.json of a saved model holds (`mmdiff.model.saving`)
    mmdiff_parts.safetensors                      encoders, connectors, heads, extras, LoRA factors, if there are any

A multimodal checkpoint that is as its authors lay it out stays so: its tower and projector are among its own tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmdiff.backbones.families.tokenizers import save_generation, save_tokenizer
from mmdiff.backbones.family import find_family
from mmdiff.backbones.weights import read_weights, write_weights
from mmdiff.protocols import Model

from ..tensors import weights, write_tensors
from .folder import read_weights_of, write_published
from .layout import EXPORTED, STEM
from .llava import BACKBONE

FACTOR = ".lora_"


def write_exported(model: Model, folder: Path, config: Mapping[str, Any]) -> None:
    """Write the files of the hub's layout straight into `folder`. config: as `mmdiff.model.saving.describe` has it.

    A multimodal checkpoint that has got parts its authors' layout has no room for is laid out as any other model.
    Raises ConfigError for what the published layout of the backbone's family has no field for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model.published and (model.adapters or len(model.heads) or len(model.extras)):
        config = {key: value for key, value in config.items() if key != "published"}
    if published := config.get("published"):
        write_published(model, folder, published)
    else:
        _write_backbone(model, folder)
        rest = {name: tensor for name, tensor in weights(model).items() if not _in_backbone(name)}
        if rest:
            write_tensors(rest, folder, STEM)
    (folder / EXPORTED).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_backbone(model: Any, folder: Path) -> None:
    backbone = model.backbone
    own, config = find_family(backbone.family), backbone.model.config
    fields = {**own.published_config(config, backbone.facts), **own.fields_of(backbone.facts)}
    if reserve := backbone.node.get("reserve"):
        fields["reserve"] = reserve
    if isinstance(code := fields.get("auto_map"), dict):  # which is not in this folder
        home = next(iter(own.PUBLISHED))
        fields["auto_map"] = {key: name if "--" in name else f"{home}--{name}" for key, name in code.items()}
    fields["dtype" if "dtype" in fields else "torch_dtype"] = backbone.node["dtype"]  # what the files hold
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tokenizer(backbone.vocab.tokenizer, folder)
    if own.CACHES:
        save_generation(backbone.facts, folder)
    write_weights(WithoutAdapters(backbone.model), folder, own.published_names(config))  # type: ignore[arg-type]


def read_exported(model: Any, folder: Path, published: Mapping[str, Any] | None) -> list[str]:
    """Copy the tensors of the backbone, or of a whole multimodal checkpoint, into a model, its adapters excepted.

    Returns the names of the model's tensors that are in `other_files`. Raises ConfigError as `read_weights` does.
    """
    if published:
        read_weights_of(model, folder, published)
        return []
    backbone = model.backbone
    own = find_family(backbone.family)
    plain: Any = WithoutAdapters(backbone.model)
    read_weights(plain, folder, own.published_names(backbone.model.config), own.is_elsewhere)
    return [name for name in model.state_dict() if not _in_backbone(name)]


def _in_backbone(name: str) -> bool:
    return name.startswith(BACKBONE) and FACTOR not in name


class WithoutAdapters:
    """A module as it was before adapters came: without their factors, and each layer under its own name."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yields parameters by name, tied ones once."""
        return _plain(self._model.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yields buffers by name."""
        return _plain(self._model.named_buffers())

    def state_dict(self) -> dict[str, Tensor]:
        """Returns parameters and buffers that are saved, by name."""
        return dict(_plain(self._model.state_dict().items()))


def _plain(named: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name.replace(".base_layer.", "."), value) for name, value in named if FACTOR not in name)
