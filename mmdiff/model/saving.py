"""A model as a folder: enough to load, generate and go on training, without any path it came from.

    config.json            every part's target and arguments, LoRA adapters, task and sampler (what `load` needs);
                           a folder from elsewhere may name declared parts only, see mmdiff.config.parts
    backbone/              the architecture and the tokenizer, as transformers writes them
    model.safetensors      all weights, or several files (of at most 4 GiB) and model.safetensors.index.json
    SHA256SUMS             of all these files, signed, see mmdiff.files.sums

Folders are written aside and renamed, so one that is there is whole. The layout of the hub, which is read too, is in
`mmdiff.model.published.exported`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdiff.backbones.weights import check_finite, check_header
from mmdiff.backbones.weights import weight_files as backbone_files
from mmdiff.canvas.pattern import Pattern
from mmdiff.config import build_saved
from mmdiff.errors import ConfigError
from mmdiff.files import aside, link, open_tensors, read_json, write_sums
from mmdiff.protocols import Model

from .published.described import BACKBONE_FIELDS, FORMAT, PARTS
from .published.exported import read_exported
from .published.folder import read_weights_of, write_published
from .published.layout import is_exported, other_files
from .published.layouts import is_published
from .tensors import weights, write_tensors

INDEX = "model.safetensors.index.json"


def save_model(
    model: Model, folder: Path, *, extra: Mapping[str, Any] | None = None, frozen: Path | None = None
) -> None:
    """Write `model` to `folder`, which must not exist unless it is empty.

    extra: further entries of config.json (task, sampler).
    frozen: a file that already holds the weights that training does not change; it is linked, not written again.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; nothing was overwritten")
    with aside(folder) as part:
        write_model(model, part, extra=extra, frozen=frozen)
        write_sums(part)


def write_model(
    model: Model, folder: Path, *, extra: Mapping[str, Any] | None = None, frozen: Path | None = None
) -> None:
    """Write the files of a model straight into `folder`. Arguments and errors are those of `save_model`."""
    config = describe(model, folder, extra)
    (folder / "backbone").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model.backbone.save_pretrained(folder / "backbone", weights=False)
    tensors = weights(model)
    if frozen is None:
        files = write_tensors(tensors, folder, "model")
        if len(set(files.values())) > 1:
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return
    with open_tensors(frozen) as held:
        there = set(held.keys())
    link(frozen, folder / "frozen.safetensors")
    files = write_tensors({name: tensor for name, tensor in tensors.items() if name not in there}, folder, "trained")
    files = {name: "frozen.safetensors" if name in there else files[name] for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def describe(model: Model, folder: Path, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns config.json of a model that is saved to `folder`. Raises ConfigError for what JSON cannot hold."""
    nodes = {name: {kind: part.node for kind, part in getattr(model, name).items()} for name in PARTS}
    config = {
        "mmdiff_format": FORMAT,
        "backbone": {key: value for key, value in model.backbone.node.items() if key in BACKBONE_FIELDS},
        **nodes,
        "adapters": model.adapters,
        "attention": model.attention.node,
        **({"published": model.published} if model.published else {}),
        **(extra or {}),
    }
    try:
        json.dumps(config)
    except TypeError as error:
        raise ConfigError(f"{folder}: a part's arguments cannot be written as JSON: {error}") from None
    return config


def save_original(model: Model, folder: Path) -> None:
    """Write a model that came from a published multimodal checkpoint as its authors lay it out.

    Raises ConfigError for another model, a folder that is not empty, and what the layout has no room for.
    """
    if not model.published:
        raise ConfigError("original_format: the model is of no multimodal checkpoint; its backbone can be written so")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; nothing was overwritten")
    with aside(folder) as part:
        part.mkdir(parents=True, exist_ok=True)
        write_published(model, part, model.published)


def saved_folder(path: str | Path) -> Path | None:
    """Returns the saved model that a path names, itself or as a finished run; None for anything else.

    Raises ConfigError for a run that is not finished.
    """
    folder = Path(path)
    for found in (folder, folder / "model"):
        if (found / "config.json").is_file() and ((found / "backbone").is_dir() or is_exported(found)):
            return found
    if (folder / "checkpoints").is_dir():
        raise ConfigError(f"{folder}: this run is not finished, expected a folder of {folder / 'checkpoints'}")
    return None


def model_folder(path: str | Path) -> Path | None:
    """Returns `saved_folder`, or the folder of a published multimodal checkpoint; None for anything else."""
    found = saved_folder(path)
    return Path(path) if found is None and is_published(Path(path)) else found


def backbone_folder(folder: Path) -> Path:
    """Returns where a model's backbone is described: in a folder of its own, or among the rest as published."""
    return folder / "backbone" if (folder / "backbone").is_dir() else folder


def saved_part(node: dict[str, Any], where: str, kind: type = nn.Module) -> Any:
    """Returns a part of a saved model, made of its node. Raises ConfigError for what is not of its kind."""
    made = build_saved(node, where)
    if not isinstance(made, kind):
        raise ConfigError(f"{where}: {node['target']} is no part of a model")
    return made


def saved_parts(config: Mapping[str, Any], folder: Path) -> list[dict[str, nn.Module]]:
    """Returns the parts of a config.json by name, in the order of `PARTS`."""
    return [
        {name: saved_part(node, f"{folder}: {part}.{name}") for name, node in config[part].items()} for part in PARTS
    ]


def pattern_of(config: Mapping[str, Any], folder: Path) -> Pattern | None:
    """Returns who sees whom by a config.json, None where it says nothing."""
    node = config["attention"]
    found: Pattern | None = node and saved_part(node, f"{folder}: attention", Pattern)
    return found


def load_model_weights(model: Model, folder: Path, config: Mapping[str, Any]) -> None:
    """Copy every tensor of a model's folder into it. config: as `read_config` returns it. Raises as `load_weights`."""
    if is_exported(folder):
        names = read_exported(model, folder, config.get("published"))
        if names or other_files(folder):
            _copy(model, folder, other_files(folder), names=names)
    elif "mmdiff_format" in config:
        load_weights(model, folder)
    else:
        read_weights_of(model, folder, config["published"])


def load_weights(model: nn.Module | Model, folder: Path, prefix: str = "") -> None:
    """Copy every tensor of the folder into `model`, in place, one tensor at a time.

    prefix: of the names in the folder, those of a part: tensors of other names are left alone.
    Raises ConfigError for files that cannot be read, for tensors that are missing, unexpected, misshapen, of another
    kind of number, and for numbers that are not finite; what was copied before stays.
    """
    _copy(model, folder, weight_files(folder), prefix=prefix)


def _copy(
    model: nn.Module | Model,
    folder: Path,
    files: Sequence[Path],
    *,
    prefix: str = "",
    names: Sequence[str] | None = None,
) -> None:
    """Copy the tensors of files as `load_weights` does. names: those of the model that they hold; None: all."""
    state = model.state_dict()
    state = state if names is None else {name: state[name] for name in names}
    parameters = {name for name, _ in model.named_parameters()}
    missing = set(state)
    unexpected: list[str] = []
    with torch.no_grad():
        for path in files:
            with open_tensors(path) as file:
                for name in file.keys():
                    key = name.removeprefix(prefix)
                    if key not in state or not name.startswith(prefix):
                        unexpected += [name] if name.startswith(prefix) else []
                        continue
                    check_header(file.get_slice(name), state[key], f"{path}: {name}")
                    value = file.get_tensor(name)
                    check_finite(value, f"{path}: {name}", infinite=key not in parameters)
                    state[key].copy_(value)
                    missing.discard(key)
    copied = {state[key].data_ptr() for key in state if key not in missing}
    missing = {key for key in missing if state[key].data_ptr() not in copied}  # tied weights are saved once
    if missing or unexpected:
        raise ConfigError(f"{folder}: weights do not fit: missing {_some(missing)}, unexpected {_some(unexpected)}")


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a saved model, from its index if it has one."""
    if is_exported(folder):
        return [*backbone_files(folder), *other_files(folder)]
    index = folder / INDEX
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except FileNotFoundError:
        return [folder / "model.safetensors"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index}: not an index of weights ({error!r})") from None
    return [folder / Path(name).name for name in names]  # of this folder, whatever the index says


def _some(names: Any) -> str:
    listed = sorted(names)
    return "none" if not listed else ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
