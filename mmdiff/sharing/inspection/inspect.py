"""`mmdiff inspect`: family, facts, tensors by name and memory of a folder with a model, from heads of files alone.

The folder may be anyone's. Nothing in it is imported or unpickled, and no tensor is read: its configuration makes a
model on torch's meta device, whose parameters are compared with what the heads of its safetensors files describe.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdiff.backbones.bounds import bounded_by, check_sizes, one_line
from mmdiff.backbones.family import Facts, Family, find_family, model_type_of, stock_model
from mmdiff.backbones.load import DTYPES, check_ids
from mmdiff.backbones.reserve import reserve_of, reserve_ranges
from mmdiff.backbones.weights import Header, Match, factor_faults, match
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import Full
from mmdiff.config import build_saved
from mmdiff.config.ranges import AtLeast1
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, nearest
from mmdiff.model.published.exported import other_files
from mmdiff.model.published.folder import names_of
from mmdiff.model.published.folder import part_of as published_part
from mmdiff.model.published.llava import is_multimodal, parts

from .folder import Folder, find_folder, find_tokenizer, read_configuration, weight_files
from .headers import read_headers
from .memory import ATTENTION, memory_of, register_attention

DTYPE_OF = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LONGEST = 4096
"""Positions that memory is computed for where no length is given, of models with a longer context."""


@typed
def inspect(
    path: str | Path,
    *,
    length: AtLeast1 | None = None,
    batch: AtLeast1 = 1,
    rank: AtLeast1 = 8,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Returns what a folder is, as `docs/commands.md` lists it.

    path: a published folder, a run of mmdiff, a model that it saved, or a hub id whose files are in the hub's cache.
    length, batch: of the canvases that memory is computed for; None: the context length, at most `LONGEST`.
    rank: of the LoRA factors. dtype: of the weights in memory; None: that of the files.
    Raises ConfigError, in one line, for a folder that cannot be one of a model, and for fields that its family does
    not know.
    """
    folder = find_folder(path)
    raw = read_configuration(folder)
    file, name = folder.home / "config.json", model_type_of(raw)
    own = find_family(name)
    problems = []
    if raw.get("quantization_config") is not None:
        problems.append("quantization_config: only plain floats are loaded")
    files = weight_files(folder)
    headers = read_headers(files)
    names = {header.name for header in headers}
    dtype = _dtype(folder, headers) if dtype is None else dtype
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: not a dtype of weights{nearest(dtype, DTYPES)}")
    tokenizer = find_tokenizer(folder.home, own)
    if not len(tokenizer):
        problems.append("no tokenizer: ids are those of config.json and of the family")
    with bounded_by(files, folder.path), one_line(file):
        config = own.config(raw if folder.saved else own.settle(raw, names))
        check_sizes(config, file)
        facts = own.facts(raw, config, tokenizer)
        model = on_meta(own, config, dtype)
    with bounded_by(files, folder.path), one_line(file):
        published = {} if folder.saved else own.published_names(config)
        shapes = {header.name: header.shape for header in headers}
        made = parts(raw, shapes) if folder.saved is None and is_multimodal(raw) else folder.saved or {}
        whole = on_meta_whole(model, made) if "published" in made and folder.saved is None else None
    found = _matched(folder, model, headers, published, own) if whole is None else _matched_whole(whole, raw, headers)
    made = folder.exported or made
    if folder.saved is None:
        problems += factor_faults(found, folder.path, raw.get("lora_alpha"))
    rows, ranges = config.vocab_size, {}
    try:
        check_ids(facts, max(rows, len(tokenizer)) if own.GROWS and not folder.saved else rows, len(tokenizer))
        ranges = reserve_ranges(reserve_of(raw, len(tokenizer), rows), len(tokenizer), max(rows, len(tokenizer)))
    except ConfigError as error:
        problems.append(str(error))
    pattern = _pattern(folder, facts, made)
    size = getattr(pattern, "size", None)
    length = min(facts.max_length, LONGEST) if length is None else length
    with one_line(file, "its memory: "):
        memory = memory_of(
            model, own, length=length, batch=batch, masked=min(size or length, length), logit_chunk=4096, rank=rank
        )
    reserved = {key: high - low for key, (low, high) in ranges.items()}
    return {
        "path": str(path),
        "family": name,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in (whole or model).parameters()),
        "dtype": dtype,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": _dtypes(headers),
        "parts": _parts(folder, headers, found, whole is not None),
        "mask_id": facts.mask_id,
        "attention": _spelled(pattern),
        "block_length": size,
        "shift": facts.shift,
        "noise": facts.noise,
        "special_ids": _special_ids(facts),
        "end_ids": list(facts.end_ids),
        "tokens": _tokens(facts, tokenizer),
        "max_length": facts.max_length,
        "vocabulary": {
            "rows": rows,
            "tokenizer": len(tokenizer),
            "reserved": reserved,
            "free": max(0, rows - len(tokenizer) - sum(reserved.values())),
        },
        "missing": found.missing,
        "unexpected": found.unexpected,
        "elsewhere": found.elsewhere,
        "problems": [*found.faults, *problems],
        "loads": not (found.missing or found.unexpected or found.faults or problems),
        "code": _code(raw),
        "task": (made.get("task") or {}).get("target"),
        "memory": {"length": length, "batch": batch, "rank": rank, **memory},
    }


# The model ------------------------------------------------------------------------------------------------------------


def on_meta(own: Family, config: Any, dtype: str) -> Any:
    """Returns the model of a configuration, without numbers, to be counted."""
    from transformers.initialization import no_init_weights

    register_attention()
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0  # a loop over the canvas that changes no result, and takes minutes
    with torch.device("meta"), no_init_weights():
        model = stock_model(own, config, dtype=getattr(torch, dtype), attn_implementation=ATTENTION)
    model = own.finished(model)
    model.tie_weights()
    return model


def _matched(folder: Folder, model: Any, headers: list[Header], published: Any, own: Family) -> Match:
    """Returns which tensors are of the model; of a saved one those that `MMDiff` calls `backbone.model.*`."""
    if folder.exported is not None:
        found = match(model, [h for h in headers if not _is_other(h)], published, own.is_elsewhere)
        others = [h.name for h in headers if _is_other(h)]
        found.elsewhere += [name for name in others if _part_of(folder, name)]
        found.unexpected += [name for name in others if not _part_of(folder, name) and ".lora_" not in name]
        return found
    if folder.saved is None:
        return match(model, headers, published, own.is_elsewhere)
    prefix = "backbone.model."
    buffers = {name for name, _ in model.named_buffers()}
    ours = [h._replace(name=h.name.removeprefix(prefix)) for h in headers if h.name.startswith(prefix)]
    found = match(model, ours, {}, lambda name: name in buffers)
    found.elsewhere = [h.name for h in headers if _part_of(folder, h.name)]
    others = [h.name for h in headers if not h.name.startswith(prefix) and not _part_of(folder, h.name)]
    found.unexpected = [prefix + name for name in found.unexpected] + others
    found.missing = [prefix + name for name in found.missing]
    return found


def _is_other(header: Header) -> bool:
    return header.file in other_files(header.file.parent)


def on_meta_whole(model: Any, made: Mapping[str, Any]) -> nn.Module:
    """Returns a multimodal checkpoint without numbers, its parts under the names that they have in an `MMDiff`."""
    whole = nn.Module()
    whole.backbone = nn.Module()
    whole.backbone.model = model
    with torch.device("meta"):
        for name in ("encoders", "connectors"):
            built = {kind: build_saved(node, f"{name}.{kind}") for kind, node in made[name].items()}
            setattr(whole, name, nn.ModuleDict(built))
    return whole


def _matched_whole(whole: nn.Module, raw: Mapping[str, Any], headers: list[Header]) -> Match:
    return match(whole, headers, names_of(whole, raw), lambda name: False)


def _part_of(folder: Folder, name: str) -> str | None:
    """Returns the part of a saved model besides its backbone that a tensor is of, `encoders.image`."""
    kind, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    parts = folder.described.get(kind)
    return f"{kind}.{part}" if kind != "backbone" and isinstance(parts, Mapping) and part in parts else None


def _parts(folder: Folder, headers: list[Header], found: Match, multimodal: bool) -> dict[str, int]:
    """Returns the numbers in the files by part: the backbone, LoRA factors, and what is elsewhere by its name."""
    elsewhere, out = set(found.elsewhere), Counter[str]()
    for header in headers:
        part = _part_of(folder, header.name) if folder.described else None
        if part is None and header.name in elsewhere:
            part = ".".join(header.name.split(".")[:2])
        if part is None:
            part = "lora" if ".lora_" in header.name else published_part(header.name) if multimodal else "backbone"
        out[part] += prod(header.shape)
    return dict(out.most_common(100))


def _dtypes(headers: list[Header]) -> dict[str, int]:
    out = Counter[str]()
    for header in headers:
        out[header.dtype] += prod(header.shape)
    return dict(out.most_common())


def _dtype(folder: Folder, headers: list[Header]) -> str:
    if folder.saved is not None:
        return str(folder.saved["backbone"].get("dtype", "float32"))
    return next((DTYPE_OF[dtype] for dtype in _dtypes(headers) if dtype in DTYPE_OF), "float32")


# Facts ----------------------------------------------------------------------------------------------------------------


def _pattern(folder: Folder, facts: Facts, made: Mapping[str, Any]) -> Pattern:
    node = made.get("attention")
    if node is None:
        return facts.attention or Full()
    from mmdiff.model.saving import saved_part

    pattern: Pattern = saved_part(node, f"{folder.path}: attention", Pattern)
    return pattern


def _spelled(pattern: Pattern) -> str:
    """Returns `block-causal` of `BlockCausal(size=32)`."""
    inner = getattr(pattern, "patterns", None)
    if inner is not None:
        return " and ".join(map(_spelled, inner))
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(pattern).__name__).lower()


def _special_ids(facts: Facts) -> dict[str, int]:
    """Returns the ids that a family has facts of, by name: mask, eos, pad, bos, and what else there is."""
    ids = {f.name.removesuffix("_id"): getattr(facts, f.name) for f in fields(facts) if f.name.endswith("_id")}
    return {name: i for name, i in ids.items() if i is not None}


def _tokens(facts: Facts, tokenizer: Any) -> dict[str, str]:
    """Returns the spellings of special ids and ends, by id, of those that the tokenizer has."""
    spelled = {}
    for i in sorted({*_special_ids(facts).values(), *facts.end_ids}):
        if 0 <= i < len(tokenizer):
            spelled[str(i)] = str(tokenizer.convert_ids_to_tokens(i))[:100]
    return spelled


def _code(raw: Mapping[str, Any]) -> list[str]:
    """Returns what `auto_map` names, which is never imported."""
    named = raw.get("auto_map")
    listed = named.values() if isinstance(named, Mapping) else ()
    return sorted({name[:200] for name in listed if isinstance(name, str)})[:20]
