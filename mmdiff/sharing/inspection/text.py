"""What `mmdiff inspect` found, as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LINES = "weights kv_cache working gradients moments activations activations_checkpointed logits".split()
NAMES = {"kv_cache": "keys and values", "activations_checkpointed": "activations, checkpointed"}
COLUMNS = {"inference": "inference", "full_training": "training", "lora_training": "LoRA"}


def as_text(found: Mapping[str, Any]) -> str:
    """Returns a table of facts, then one of memory in GiB."""
    vocabulary, memory = found["vocabulary"], found["memory"]
    reserved = "".join(f", {count} reserved ({name})" for name, count in vocabulary["reserved"].items())
    block = f", blocks of {found['block_length']}" if found["block_length"] else ""
    shift = f", logits of a position from {found['shift']} before" if found["shift"] else ""
    others = {name: count for name, count in found["parts"].items() if name != "backbone"}
    lines = {
        "family": f"{found['family']} ({found['class']})",
        "parameters": f"{found['parameters']:,}",
        "elsewhere" if found["elsewhere"] else "parts": ", ".join(
            f"{name} {count:,}" for name, count in others.items()
        ),
        "files": f"{found['files']}, {found['bytes'] / 1e9:.4g} GB, {' and '.join(found['dtypes'])}",
        "task": found["task"] or "",
        "attention": f"{found['attention']}{block}{shift}",
        "noise": found["noise"],
        "special ids": ", ".join(_id(i, found, name) for name, i in found["special_ids"].items()),
        "end ids": ", ".join(_id(i, found) for i in found["end_ids"]),
        "vocabulary": f"{vocabulary['rows']:,} rows, {vocabulary['tokenizer']:,} of the tokenizer{reserved}, "
        f"{vocabulary['free']:,} free",
        "context": f"{found['max_length']:,} positions",
        "missing": _some(found["missing"]),
        "unexpected": _some(found["unexpected"]),
        "problems": "; ".join(found["problems"][:3]),
        "code": f"{', '.join(found['code'])}, which is not run" if found["code"] else "",
        "loads": "yes" if found["loads"] else "no",
    }
    facts = [f"{name:12}  {line}" for name, line in lines.items() if line]
    head = f"GiB, {memory['batch']} x {memory['length']:,} positions, {found['dtype']}, LoRA of rank {memory['rank']}"
    rows = [[head, *COLUMNS.values()]]
    for name in LINES:
        rows.append([NAMES.get(name, name), *(_gib(memory[kind].get(name)) for kind in COLUMNS)])
    rows.append(["in all", *(_gib(memory[kind]["total"]) for kind in COLUMNS)])
    rows.append(["in all, checkpointed", *(_gib(memory[kind].get("total_checkpointed")) for kind in COLUMNS)])
    width = max(len(row[0]) for row in rows)
    table = [f"{row[0]:{width}}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows]
    return "\n".join([*facts, "", *(line.rstrip() for line in table)])


def _id(i: int, found: Mapping[str, Any], name: str = "") -> str:
    token = found["tokens"].get(str(i))
    return " ".join([*([name] if name else []), str(i), *([ascii(token)[1:-1]] if token else [])])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{len(names):,}: {', '.join(names[:3])}{more}" if names else ""


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"
