"""The model that a configuration describes: made from its parts, or from those of saved models, or loaded whole."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmdiff.backbones import Backbone
from mmdiff.backbones.backbone import check_attention
from mmdiff.backbones.bounds import bounded_by
from mmdiff.backbones.family import find_family, model_type_of
from mmdiff.backbones.load import local_folder, tokenizer_of
from mmdiff.backbones.weights import read_json, tensor_names
from mmdiff.canvas.pattern import Pattern
from mmdiff.config import build, flatten, locate
from mmdiff.config.load import check_weights
from mmdiff.config.moved import today
from mmdiff.config.nodes import OFFERED, RUN_TIME, taken
from mmdiff.config.settings import ModelConfig
from mmdiff.errors import ConfigError, nearest
from mmdiff.files import check_sums
from mmdiff.parts import part

from .model import MMDiff
from .published.described import PARTS, prefix_causal_node, read_config
from .published.folder import toy_published
from .published.released import RELEASED
from .saving import backbone_folder, load_weights, model_folder, saved_folder, weight_files


def build_model(config: ModelConfig, *, toy: bool = False, logit_chunk: int = 4096) -> MMDiff:
    """Returns the model that a configuration describes. toy: the same parts at toy width, without outside weights.

    Raises ConfigError for parts that do not fit each other, and for parts beside `weights`.
    """
    check_weights(config)
    attention = _attention(config)
    if config.weights and not toy:
        model = MMDiff.from_pretrained(_weights_folder(config.weights), dtype=config.dtype)
        model.logit_chunk = logit_chunk
    else:
        parts = toy_parts(config.weights) if config.weights else config
        attention = attention or parts.attention
        model = _of_parts(parts, toy, logit_chunk)
    if config.words or config.reserve:
        model.grow(config.words, config.reserve)
    return _attending(model, attention)


def _of_parts(config: ModelConfig, toy: bool, logit_chunk: int) -> MMDiff:
    if config.backbone is None:
        raise ConfigError("model.backbone: no backbone is given, expected {target: dotted.path, ...}")
    backbone = build(config.backbone, toy=toy, where="model.backbone")
    encoders = {k: build_or_reuse(n, f"encoders.{k}", backbone, toy=toy) for k, n in config.encoders.items() if n}
    parts: dict[str, dict[str, nn.Module]] = {"connectors": {}, "heads": {}}
    for name, run_time in (("connectors", {"width_out": backbone.dim}), ("heads", {"vocab_size": backbone.vocab.size})):
        for kind, node in getattr(config, name).items():
            if kind not in encoders:
                if node and config.encoders.get(kind, "absent") == "absent":
                    raise ConfigError(f"model.{name}.{kind}: no encoder of that kind{nearest(kind, encoders)}")
                continue  # the encoder was taken out by `model.encoders.<kind>=null`
            if node:
                run_time["width_in"] = encoders[kind].width
                parts[name][kind] = build_or_reuse(node, f"{name}.{kind}", backbone, toy=toy, **run_time)
    extras = {name: _extra(n, f"extras.{name}", backbone, toy=toy) for name, n in config.extras.items() if n}
    return MMDiff(backbone, encoders, parts["connectors"], parts["heads"], extras, logit_chunk=logit_chunk)


def _extra(node: Mapping[str, Any], key: str, backbone: Backbone, *, toy: bool) -> nn.Module:
    known = {"width": backbone.dim, "vocab_size": backbone.vocab.size, "mask_id": backbone.vocab.mask_id}
    target = node.get("target") if isinstance(node, Mapping) else None
    names = taken(locate(target, f"model.{key}.target"), known) if target else ()
    return build_or_reuse(node, key, backbone, toy=toy, **{name: known[name] for name in names})


def _attending(model: MMDiff, node: dict[str, Any] | None) -> MMDiff:
    """Returns the model with the pattern of a node; None: with its own. Raises ConfigError if it cannot attend so."""
    if node is not None:
        pattern = build(node, where="model.attention")
        if not isinstance(pattern, Pattern):
            raise ConfigError(f"model.attention: {node['target']} is no attention pattern, see mmdiff.canvas.patterns")
        if pattern.drawn:
            raise ConfigError(f"model.attention: {node['target']} is drawn anew at every step, see stages' `anneal`")
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
    """Returns the parts of a saved model, or of a published one, of which `build_model` makes a toy twin."""
    home = backbone_folder(folder)
    tokenizer = tokenizer_in(home)  # its words are those of the user's rows
    return _as_config(read_config(folder), {"path": str(home), "tokenizer": tokenizer})


def toy_parts(weights: str) -> ModelConfig:
    """Returns `parts_of` a folder; of a released multimodal checkpoint also where none is here."""
    folder = model_folder(weights)
    released = None if folder is not None else toy_published(weights)
    if released is None:
        return parts_of(folder or Path(weights))
    family = find_family(model_type_of(released["published"]))
    return _as_config(released, {"path": next(iter(family.PUBLISHED))})


def _as_config(saved: Mapping[str, Any], backbone: Mapping[str, Any]) -> ModelConfig:
    given = {name: (RUN_TIME | OFFERED).get(f"model.{name}", set()) for name in PARTS}  # by `build_model` itself
    parts: dict[str, Any] = {
        name: {k: {key: v for key, v in node.items() if key not in given[name]} for k, node in saved[name].items()}
        for name in PARTS
    }
    node = {"target": "mmdiff.backbones.load_backbone", **backbone, **saved["backbone"]}
    return ModelConfig(backbone=node, attention=saved["attention"], **parts)


def _weights_folder(weights: str) -> Path:
    """Returns the folder that `model.weights` names; a released checkpoint is fetched as a backbone is."""
    folder = model_folder(weights)
    return folder or (local_folder(weights) if weights in RELEASED else Path(weights))


# One part of a saved model in another: `model.encoders.image.weights=runs/x`


def build_or_reuse(node: Mapping[str, Any], key: str, backbone: Backbone, *, toy: bool, **run_time: Any) -> nn.Module:
    """Returns the part of a node, with the weights of the same part of a saved model where `weights` names one.

    key: of the part, `encoders.image`. backbone: of the model that gets it. run_time: widths, as `build` takes them.
    `weights` may name a saved model, a checkpoint, or a finished run; anything else is left to the part itself. What
    the node does not say is as in the saved model, and what it says must be so: the part there has the same target,
    the same arguments, and tensors of the same names and shapes, whose checksums are right. One that is given the
    size of the vocabulary (a readout) is of the same words. A part whose class has `reads_saved` takes what fits by
    rules of its own.
    Raises ConfigError, in one line, where the part differs.
    """
    where, path = f"model.{key}", node.get("weights") if isinstance(node, Mapping) else None
    if path is None:
        return _built(node, where, toy, run_time)
    folder = saved_folder(path) if isinstance(path, str) else None
    made = locate(node.get("target"), f"{where}.target")
    plain = {name: value for name, value in node.items() if name != "weights"}
    takes = "weights" in inspect.signature(made).parameters
    if folder is None or getattr(made, "reads_saved", False):
        if folder is None and not takes and not toy:
            raise ConfigError(f"{where}.weights: {path!r} is neither a saved model nor the folder of a run")
        if folder is not None and not toy:
            check_sums(folder)
        return _built({**plain, "weights": str(folder or path)} if takes else plain, where, toy, run_time)
    saved = _saved_part(folder, key, where)
    own = {name: value for name, value in saved.items() if name not in run_time and name != "weights"}
    full = {**_defaults(made), **saved, "target": today(saved["target"])}
    given = {**plain, "target": today(plain["target"])}
    resolved = [n for n, value in given.items() if value is not None and full.get(n) is None]  # a name, say
    _check_same({n: v for n, v in given.items() if n not in resolved} | ({} if toy else run_time), full, where, folder)
    if toy:
        return _built(plain if resolved else own, where, toy, run_time)
    if resolved:
        part = _built(plain, where, toy, run_time)
        _check_same({**_defaults(made), **part.node, "target": full["target"]}, full, where, folder)  # type: ignore[dict-item]
    else:
        with bounded_by(weight_files(folder), folder):
            part = _built(own, where, toy, run_time)
    words = backbone.vocab.tokenizer.get_vocab()
    if "vocab_size" in run_time and tokenizer_in(backbone_folder(folder)).get_vocab() != words:
        raise ConfigError(f"{where}.weights: the words of {folder} are others than this model's")
    check_sums(folder)
    load_weights(part, folder, f"{key}.")
    return part


def _built(node: Mapping[str, Any], where: str, toy: bool, run_time: Mapping[str, Any]) -> nn.Module:
    part: nn.Module = build(node, toy=toy, where=where, **run_time)
    return part


def _saved_part(folder: Path, key: str, where: str) -> dict[str, Any]:
    name, _, kind = key.partition(".")
    parts = read_config(folder)[name]
    if kind not in parts:
        raise ConfigError(f"{where}.weights: {folder} has no {key}{nearest(kind, parts)}")
    saved: dict[str, Any] = parts[kind]
    return saved


def _defaults(made: Any) -> dict[str, Any]:
    parameters = inspect.signature(made).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _check_same(here: Mapping[str, Any], there: Mapping[str, Any], where: str, folder: Path) -> None:
    for name, value in here.items():
        a, b = (flatten(json.loads(json.dumps(x, default=str)), name) for x in (value, there.get(name)))
        for key in {**a, **b} if name != "weights" else ():
            if a.get(key) != b.get(key):
                raise ConfigError(
                    f"{where}.{key}: {a.get(key)!r}, but the part of {folder} has {b.get(key)!r}; make them the same, "
                    f"or leave {where}.weights out"
                )


@part
def tokenizer_in(folder: str | Path) -> Any:
    """Returns the tokenizer of a backbone's folder, a saved model or a run, with the mask token that its model has.

    So a causal model's, which came without, has the words that windows of text and other models are to share with it.
    Raises ConfigError for a folder without one.
    """
    saved = saved_folder(folder)
    folder = Path(folder) if saved is None else backbone_folder(saved)
    raw = read_json(folder / "config.json")
    own = find_family(model_type_of(raw))
    tokenizer = tokenizer_of(folder, own)
    if tokenizer.mask_token_id is None:
        own.facts(raw, own.config(own.settle(raw, tensor_names(folder))), tokenizer)
    return tokenizer


def _toy_tokenizer(folder: str | Path) -> Any:
    """Returns a tokenizer of bytes with a mask token, whatever the folder: it need not be there."""
    own = find_family("llada")
    tokenizer = own.toy_tokenizer()
    tokenizer.mask_token = own.mask  # type: ignore[attr-defined]
    return tokenizer


tokenizer_in.toy = _toy_tokenizer  # type: ignore[attr-defined]
