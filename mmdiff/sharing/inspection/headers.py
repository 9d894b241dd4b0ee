"""Heads of safetensors files, which describe every tensor: 8 bytes that give a length, then so many bytes of JSON.

    b"\\x42\\0\\0\\0\\0\\0\\0\\0" {"norm.weight": {"dtype": "BF16", "shape": [4096], "data_offsets": [0, 8192]}, ...}

Nothing behind them is read, so a file of 16 GB takes as long as one of 16 KB. What stands in them may be anyone's:
their length, the number of their values and of tensors, every name, shape and offset is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from mmdiff.backbones.weights import Header
from mmdiff.errors import ConfigError
from mmdiff.files import regular

from .strict import parsed_object

HEAD_BYTES = 16 * 1024**2
"""Most bytes of the heads of a folder's files together: a model of 100 billion parameters in 256 experts has 4 MB."""
TENSORS, AXES, NAME = 100_000, 16, 1000
BITS = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 16),
    **dict.fromkeys(["I32", "U32", "F32"], 32),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 64),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    "F4": 4,
}
"""Bits of a number by safetensors' name."""


def read_headers(files: Iterable[Path]) -> list[Header]:
    """Returns the headers of all tensors of safetensors files, in the order of the files.

    Raises ConfigError, in one line that names the file, for what is no such file.
    """
    out: list[Header] = []
    left = HEAD_BYTES
    for file in files:
        left, found = _head(file, left)
        out += found
        if len(out) > TENSORS:
            raise ConfigError(f"{file}: {len(out):,} tensors, expected at most {TENSORS:,} in all files of a folder")
    return out


def _head(file: Path, most: int) -> tuple[int, list[Header]]:
    try:
        size = regular(file)
    except FileNotFoundError:
        raise ConfigError(f"{file}: a link that leads nowhere") from None
    with open(file, "rb") as handle:
        first = handle.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or not 2 <= length <= size - 8:
            raise ConfigError(f"{file}: not a safetensors file: a head of {length:,} bytes in a file of {size:,}")
        if length > most:
            raise ConfigError(f"{file}: a head of {length:,} bytes, expected at most {HEAD_BYTES:,} in all files")
        text = handle.read(length)
    if len(text) < length:
        raise ConfigError(f"{file}: not a safetensors file: it ends within its head")
    tensors = parsed_object(text, 14 * TENSORS, f"{file}: not a safetensors file: its head")
    tensors.pop("__metadata__", None)
    headers, spans = [], []
    for name, entry in tensors.items():
        try:
            dtype, shape, begin, end = _tensor(name, entry)
        except ValueError as error:
            raise ConfigError(f"{file}: tensor {name[:80]!r}: {error}") from None
        headers.append(Header(file, name, dtype, shape))
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ConfigError(f"{file}: not a safetensors file: tensors overlap, or leave bytes between them")
        at = end
    if at != size - 8 - length:
        raise ConfigError(f"{file}: tensors of {at:,} bytes, but {size - 8 - length:,} follow its head")
    return most - length, headers


def _tensor(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Returns dtype, shape, first byte and the one behind the last. Raises ValueError for anything else."""
    if len(name) > NAME or not name.isprintable():
        raise ValueError("not a name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"dtype {str(dtype)[:20]!r} is none of safetensors")
    if not _sizes(shape) or len(shape) > AXES:
        raise ValueError(f"shape {str(shape)[:80]}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"data_offsets {str(offsets)[:80]}")
    begin, end = offsets
    if (end - begin) * 8 != prod(shape) * BITS[dtype]:
        raise ValueError(f"{end - begin:,} bytes, expected {prod(shape) * BITS[dtype] // 8:,} of its shape and dtype")
    return dtype, tuple(shape), begin, end


def _sizes(value: Any) -> bool:
    whole = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    return whole and all(0 <= n < 2**63 for n in value)
