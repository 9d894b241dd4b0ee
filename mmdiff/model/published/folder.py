"""A multimodal checkpoint in the one folder that its authors publish: every tensor read by name, and written back.

A language model, a tower, a projector and a newline are in the same files. They are matched together, so that no tensor
of any of them is left out and none is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmdiff.backbones.bounds import check_files
from mmdiff.backbones.families.tokenizers import save_generation, save_tokenizer
from mmdiff.backbones.family import find_family, model_type_of
from mmdiff.backbones.shares import Published
from mmdiff.backbones.weights import read_json, read_weights, weight_files, write_weights
from mmdiff.errors import ConfigError, nearest

from .layouts import FILES, layout_of, with_files, without_files
from .released import RELEASED
from .tensors import tensor_shapes

ROWS = ("vocab_size", "embedding_size")  # fields that change with the vocabulary


def read_published(folder: Path) -> dict[str, Any]:
    """Returns the parts of a published folder as those of a saved model. Raises ConfigError as `parts` does."""
    check_files(folder)
    raw = with_files(read_json(folder / "config.json"), folder)
    return layout_of(raw).parts(raw, tensor_shapes(weight_files(folder)))


def toy_published(path: str) -> dict[str, Any] | None:
    """Returns the parts of a checkpoint that is not here and that `RELEASED` lists; None for any other name.

    path: a hub id, or a folder of its last word.
    """
    for name, raw in RELEASED.items():
        if path == name or Path(path).name == name.rpartition("/")[2]:
            return layout_of(raw).parts(raw, None)
    return None


def names_of(model: Any, raw: Mapping[str, Any]) -> Published:
    """Returns {published tensor: what of the model it holds}, of all tensors of a folder.

    model: an MMDiff, or an object with its `backbone`, `encoders` and `connectors`. raw: the folder's config.json.
    """
    theirs = find_family(model_type_of(raw)).published_names(model.backbone.model.config)
    encoder, connector = model.encoders["image"], model.connectors["image"]
    siglip = getattr(encoder, "encoder", encoder)
    tiled, tower = siglip is not encoder, siglip.tower.state_dict()
    return layout_of(raw).names_of_parts(raw, theirs, tiled, tower, connector.state_dict())


def read_weights_of(model: Any, folder: Path, raw: Mapping[str, Any]) -> None:
    """Copy all tensors of a published folder into a model.

    Raises ConfigError for tensors of any part that are missing, unexpected, misshapen, or hold numbers that are not
    finite.
    """
    read_weights(model, folder, names_of(model, raw), lambda name: False, lora_alpha=raw.get("lora_alpha"))


def write_published(model: Any, folder: Path, raw: Mapping[str, Any]) -> None:
    """Write a model as the folder that it came from: the same fields, names and kind of numbers, and its tokenizer.

    Raises ConfigError where the model has something that the published layout has no room for.
    """
    if model.adapters or len(model.heads) or len(model.extras) or set(model.encoders) != {"image"}:
        raise ConfigError("original_format: the model has parts besides those of its checkpoint (or adapters: merge)")
    rows = model.backbone.vocab.size
    fields, beside = without_files(raw)
    fields = _with_rows(fields, rows)
    dtype = str(raw.get("torch_dtype") or raw.get("dtype") or "float32").removeprefix("torch.")
    if dtype not in (known := ("float32", "bfloat16", "float16", "float64")):
        raise ConfigError(f"config.json: torch_dtype {dtype!r}: not a dtype of weights{nearest(dtype, known)}")
    write_weights(model, folder, names_of(model, raw), dtype=getattr(torch, dtype))
    for name, content in {"config.json": fields, **beside}.items():
        if name in ("config.json", *FILES):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tokenizer(model.backbone.vocab.tokenizer, folder)
    if "generation_config.json" not in beside:
        save_generation(model.backbone.facts, folder)


def _with_rows(fields: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Returns the fields of a config.json for so many ids, those of a language model within it too."""
    text = fields.get("text_config")
    nested = {"text_config": _with_rows(text, rows)} if isinstance(text, Mapping) else {}
    return {**{name: rows if name in ROWS else value for name, value in fields.items()}, **nested}
