"""`mmdiff inspect`: family, facts, tensors by name and memory of a folder with a model, from heads of files alone.

The folder may be anyone's. Nothing in it is imported or unpickled, and no tensor is read: what its configuration says
of the model's parameters is compared with what the heads of its safetensors files describe. Torch is imported where
that is not plain arithmetic only (`light.py`, `thorough.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from mmdiff.backbones.bounds import DTYPES, check_ids, one_line, reserve_of, reserve_ranges
from mmdiff.backbones.family import Facts, find_family, model_type_of
from mmdiff.backbones.weights import Header, Match, factor_faults
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import Full
from mmdiff.config import build_saved
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, nearest
from mmdiff.lazy import uncollected
from mmdiff.model.published.layouts import layout_of
from mmdiff.parts.ranges import AtLeast1

from . import light
from .figures import Canvases
from .folder import Folder, find_folder, part_of, read_configuration, weight_files
from .headers import read_headers

DTYPE_OF = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LONGEST = 4096
"""Positions that memory is computed for where no length is given, of models with a longer context."""


@typed
@uncollected()
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
    dtype = _dtype(folder, headers) if dtype is None else dtype
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: not a dtype of weights{nearest(dtype, DTYPES)}")
    seen = light.look(folder, raw, own, headers, dtype)
    if seen is None:
        from .thorough import look

        seen = look(folder, raw, own, headers, dtype)
    tokenizer, facts, found, rows = seen.tokenizer, seen.facts, seen.found, seen.rows
    if not len(tokenizer):
        problems.append("no tokenizer: ids are those of config.json and of the family")
    made = folder.exported or seen.made
    if folder.saved is None:
        problems += factor_faults(found, folder.path, raw.get("lora_alpha"))
    ranges: dict[str, tuple[int, int]] = {}
    try:
        check_ids(facts, max(rows, len(tokenizer)) if own.GROWS and not folder.saved else rows, len(tokenizer))
        ranges = reserve_ranges(reserve_of(raw, len(tokenizer), rows), len(tokenizer), max(rows, len(tokenizer)))
    except ConfigError as error:
        problems.append(str(error))
    pattern = _pattern(folder, facts, made)
    size = getattr(pattern, "size", None)
    length = min(facts.max_length, LONGEST) if length is None else length
    with one_line(file, "its memory: "):
        memory = seen.memory(Canvases(length, batch, min(size or length, length), rank))
    reserved = {key: high - low for key, (low, high) in ranges.items()}
    return {
        "path": str(path),
        "family": name,
        "class": seen.kind,
        "parameters": seen.parameters,
        "dtype": dtype,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": _dtypes(headers),
        "parts": _parts(folder, raw, headers, found, seen.multimodal),
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


# The files ------------------------------------------------------------------------------------------------------------


def _parts(
    folder: Folder, raw: Mapping[str, Any], headers: list[Header], found: Match, multimodal: bool
) -> dict[str, int]:
    """Returns the numbers in the files by part: the backbone, LoRA factors, and what is elsewhere by its name."""
    elsewhere, out = set(found.elsewhere), Counter[str]()
    of = _of_backbone
    if multimodal:
        of = layout_of(raw).part_of
    for header in headers:
        part = part_of(folder, header.name) if folder.described else None
        if part is None and header.name in elsewhere:
            part = ".".join(header.name.split(".")[:2])
        if part is None:
            part = "lora" if ".lora_" in header.name else of(header.name)
        out[part] += prod(header.shape)
    return dict(out.most_common(100))


def _of_backbone(name: str) -> str:
    return "backbone"


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
    pattern = build_saved(node, f"{folder.path}: attention")
    if not isinstance(pattern, Pattern):
        raise ConfigError(f"{folder.path}: attention: {node['target']} is no part of a model")
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
