"""The model that a configuration describes, made from its parts or loaded from a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mmdiff.backbones.backbone import check_attention
from mmdiff.backbones.family import find_family
from mmdiff.backbones.load import tokenizer_of
from mmdiff.backbones.weights import read_json
from mmdiff.canvas.pattern import Pattern
from mmdiff.config import build
from mmdiff.config.load import check_weights
from mmdiff.config.settings import ModelConfig
from mmdiff.errors import ConfigError, nearest

from .model import MMDiff
from .saving import PARTS, prefix_causal_node, read_config


def build_model(config: ModelConfig, *, toy: bool = False, logit_chunk: int = 4096) -> MMDiff:
    """Returns the model that a configuration describes. toy: the same parts at toy width, without outside weights.

    Raises ConfigError for parts that do not fit each other, and for parts beside `weights`.
    """
    check_weights(config)
    attention = _attention(config)
    if config.weights and not toy:
        model = MMDiff.from_pretrained(config.weights)
        model.logit_chunk = logit_chunk
        return _attending(model, attention)
    if config.weights:
        config = parts_of(Path(config.weights))
        attention = attention or config.attention
    if config.backbone is None:
        raise ConfigError("model.backbone: no backbone is given, expected {target: dotted.path, ...}")
    backbone = build(config.backbone, toy=toy, where="model.backbone")
    encoders = {k: build(n, toy=toy, where=f"model.encoders.{k}") for k, n in config.encoders.items() if n}
    parts: dict[str, dict[str, nn.Module]] = {"connectors": {}, "heads": {}}
    for name, run_time in (("connectors", {"width_out": backbone.dim}), ("heads", {"vocab_size": backbone.vocab.size})):
        for kind, node in getattr(config, name).items():
            if kind not in encoders:
                if node and config.encoders.get(kind, "absent") == "absent":
                    raise ConfigError(f"model.{name}.{kind}: no encoder of that kind{nearest(kind, encoders)}")
                continue  # the encoder was taken out by `model.encoders.<kind>=null`
            if node:
                where = f"model.{name}.{kind}"
                parts[name][kind] = build(node, toy=toy, where=where, width_in=encoders[kind].width, **run_time)
    model = MMDiff(backbone, encoders, parts["connectors"], parts["heads"], logit_chunk=logit_chunk)
    return _attending(model, attention)


def _attending(model: MMDiff, node: dict[str, Any] | None) -> MMDiff:
    """Returns the model with the pattern of a node; None: with its own. Raises ConfigError if it cannot attend so."""
    if node is not None:
        pattern = build(node, where="model.attention")
        if not isinstance(pattern, Pattern):
            raise ConfigError(f"model.attention: {node['target']} is no attention pattern, see mmdiff.canvas.patterns")
        check_attention(model.backbone, pattern)
        model.attention = pattern
    return model


def _attention(config: ModelConfig) -> dict[str, Any] | None:
    """Returns the node of the pattern, None where none is given. Raises ConfigError for one that is given twice."""
    if config.attention is not None and config.prefix_causal is not None:
        raise ConfigError("model.prefix_causal: model.attention says who sees whom already, expected one of them")
    node: dict[str, Any] | None = config.attention
    return prefix_causal_node(config.prefix_causal) if node is None else node


def parts_of(folder: Path) -> ModelConfig:
    """Returns the parts of a saved model as a configuration, of which `build_model` makes a toy twin."""
    saved = read_config(folder)
    given = ("width_in", "width_out", "vocab_size")  # by `build_model` itself
    parts: dict[str, Any] = {
        name: {k: {key: v for key, v in node.items() if key not in given} for k, node in saved[name].items()}
        for name in PARTS
    }
    own = find_family(str(read_json(folder / "backbone" / "config.json").get("model_type")))
    backbone = {
        "target": "mmdiff.backbones.load_backbone",
        "path": str(folder / "backbone"),
        "tokenizer": tokenizer_of(folder / "backbone", own),  # its words are those of the user's rows
        **saved["backbone"],
    }
    return ModelConfig(backbone=backbone, attention=saved["attention"], **parts)
