"""The config.json of a saved model, read and checked, for who looks at a folder and need not wait for torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiff.config import as_node, check_parts, sampler_nodes, trusted
from mmdiff.errors import ConfigError, nearest
from mmdiff.files import check_sums, read_json

from .layout import EXPORTED, is_exported
from .layouts import is_multimodal

FORMAT = 1
PARTS = ("encoders", "connectors", "heads", "extras")
BACKBONE_FIELDS = ("dtype", "attention", "rope_in_fp32", "reserve")  # of the backbone, in config.json


def read_config(folder: Path, *, whole: bool = False) -> dict[str, Any]:
    """Returns the checked config.json of a saved model, every part in it as a node `{target: ..., **arguments}`.

    A published multimodal checkpoint is described as a saved model is, with its own config.json as `published`.
    whole: check all files of the folder against its checksums.

    A node that names anything but a declared part is refused, unless this user's mmdiff wrote the file: it is neither
    imported nor called. Raises ConfigError that names the file and the field.
    """
    file = config_file(folder)
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no saved model here (config.json is missing)") from None
    if isinstance(config, dict) and file.name != EXPORTED and is_multimodal(config, folder):
        from .folder import read_published

        return read_published(folder)
    if not isinstance(config, dict) or config.get("mmdiff_format") != FORMAT:
        found = config.get("mmdiff_format") if isinstance(config, dict) else config
        raise ConfigError(f"{file}: mmdiff_format is {found!r}, expected {FORMAT}")
    config.setdefault("extras", {})  # models of 0.1 have none
    for name, kind in {"backbone": dict, **dict.fromkeys(PARTS, dict), "adapters": list}.items():
        if not isinstance(config.get(name), kind):
            raise ConfigError(f"{file}: {name} is {config.get(name)!r}, expected a {kind.__name__}")
    for name in config["backbone"]:
        if name not in BACKBONE_FIELDS:
            raise ConfigError(f"{file}: backbone.{name}: no such field{nearest(name, BACKBONE_FIELDS)}")
    for name in PARTS:
        config[name] = {kind: _node(node, f"{file}: {name}.{kind}") for kind, node in config[name].items()}
    config["attention"] = config.get("attention") or prefix_causal_node(config.pop("prefix_causal", None))
    for name in ("task", "attention"):
        if config.get(name) is not None:
            config[name] = _node(config[name], f"{file}: {name}")
    if not isinstance(config.get("sampler", {}), dict):
        raise ConfigError(f"{file}: sampler is {config['sampler']!r}, expected a mapping")
    if not trusted(file):
        check_parts(config, str(file))
        check_parts(sampler_nodes(config.get("sampler") or {}), f"{file}: sampler")
    if not isinstance(config.get("published") or {}, dict):
        raise ConfigError(f"{file}: published is {config['published']!r}, expected a mapping")
    if whole:
        check_sums(folder)
    return config


def config_file(folder: Path) -> Path:
    """Returns the file that describes a saved model."""
    return folder / (EXPORTED if is_exported(folder) else "config.json")


def prefix_causal_node(prefix_causal: object) -> dict[str, Any] | None:
    """Returns the pattern that the setting `prefix_causal` names, as a node; None where it is not given."""
    if prefix_causal is None:
        return None
    return {"target": f"mmdiff.canvas.patterns.{'PrefixCausal' if prefix_causal is True else 'Full'}"}


def _node(node: Any, where: str) -> dict[str, Any]:
    node = as_node(node)
    if not isinstance(node, dict) or "target" not in node:
        raise ConfigError(f"{where}: {node!r} is not a node, expected {{target: dotted.path, ...}}")
    return dict(node)
