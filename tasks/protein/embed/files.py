"""The files that `embeddings.py` writes (`folder.py`), and their reader.

A folder holds

    settings.json             what the numbers depend on: pools, layer, dtype, format, and the model by its weights
    part-00000.safetensors    the embeddings of a window of records, by key; or .npz
    index.jsonl               a line per record: id, description, length, part, key, digest of the sequence and of the
                              part

A part is written aside, made durable and renamed, then indexed, so an interrupted call resumes with the window after
the last whole part. Ids may come again; the key is the record's number in the input.

A single file holds `embeddings` (n, D), or (all residues, D) with `offsets` (n + 1,), and `index` and `settings` as
UTF-8 in arrays of bytes, and `digest`, the SHA-256 of all of these.

Before an embedding is handed out, its shape, kind of number and checksum are those that settings and index say. A
folder may come from anyone: nothing in it is executed, and no name in it leads out of it.

Shape letters: D width, N residues of a sequence, n records.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.errors import ConfigError, DataError, short
from mmdiff.files import digest, read_json, regular

from .arrays import Arrays, open_arrays

INDEX, SETTINGS = "index.jsonl", "settings.json"
FORMATS = ("safetensors", "npz")
DTYPES = ("float32", "float16", "bfloat16")
PART = re.compile(r"part-\d{5,9}\.(safetensors|npz)")
DIGITS = 16  # of the checksum of a part
LONGEST = 1 << 24  # bytes of a line of the index
LARGEST = {"index": 1 << 30, "settings": 1 << 20}  # bytes in a single file
ROWS = 4096  # that are added to a checksum at a time

Line = dict[str, Any]
"""A line of the index."""


class Embeddings:
    """What `embed` wrote, a folder or a file. `embeddings[i]`: (D,) pooled or (N, D), an array of float32 or float16.

    The index is kept in memory, embeddings are read when they are asked for. An interrupted folder has the records of
    its whole parts. ids, descriptions, lengths: by record. settings: see the head of this file.
    Raises ConfigError for what `embed` did not write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.offsets: NDArray[np.int64] | None = None
        self._merged: Arrays | None = None
        self._part: tuple[str, Arrays | None] = ("", None)
        self._verified: set[str] = set()
        try:
            if self.path.is_dir():
                self.settings = _checked_settings(read_json(self.path / SETTINGS))
                self.lines = list(index_of(self.path, whole(self.path)[0]))
            else:
                self._merged = open_arrays(self.path)
                self._open_merged(self._merged)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = short(" ".join(repr(error).split()))
            raise ConfigError(f"{short(self.path)}: no embeddings that this command wrote ({why})") from None
        self.ids = [line["id"] for line in self.lines]
        self.descriptions = [line["description"] for line in self.lines]
        self.lengths = [line["length"] for line in self.lines]

    def _open_merged(self, merged: Arrays) -> None:
        if missing := {"embeddings", *LARGEST} - merged.facts.keys():
            raise KeyError(*missing)
        for name, most in LARGEST.items():
            (shape, kind) = merged.facts[name]
            if kind != "uint8" or len(shape) != 1 or shape[0] > most:
                raise ValueError(f"{name}: {kind} of shape {shape}")
        self.settings = _checked_settings(json.loads(merged("settings").tobytes()))
        self.lines = [checked_line(raw) for raw in merged("index").tobytes().split(b"\n")[:-1]]
        lengths = [line["length"] for line in self.lines]
        by_residue = self.settings["pool"] == ["residue"]
        rows = sum(lengths) if by_residue else len(lengths)
        merged.expect("embeddings", (rows, width_of(self.settings)), self.settings["dtype"])
        if by_residue:
            merged.expect("offsets", (len(lengths) + 1,), "int64")
            self.offsets = merged("offsets")
            if self.offsets.tolist() != np.cumsum([0, *lengths]).tolist():
                raise ValueError("offsets: not those of the lengths in the index")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> NDArray[Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        i %= len(self)
        if self._merged is None:
            line = self.lines[i]
            part = self._opened(line)
            shape = (line["length"],) if self.settings["pool"] == ["residue"] else ()
            part.expect(line["key"], (*shape, width_of(self.settings)), self.settings["dtype"])
            return part(line["key"])
        self._verify(self._merged)
        if self.offsets is not None:
            return self._merged.rows("embeddings", int(self.offsets[i]), int(self.offsets[i + 1]))
        return self._merged.rows("embeddings", i, i + 1)[0]

    def _opened(self, line: Line) -> Arrays:
        """The part of a record, after a check of its checksum."""
        name = line["part"]
        if self._part[0] != name:
            file = self.path / name
            self._part = (name, part_arrays(file))
            if name not in self._verified and line.get("part_digest") not in (None, digest(file)[:DIGITS]):
                raise ConfigError(f"{short(file)}: is damaged or was changed, its SHA-256 is not that of {INDEX}")
            self._verified.add(name)
        assert self._part[1] is not None
        return self._part[1]

    def _verify(self, merged: Arrays) -> None:
        """Check the checksum of a single file, once."""
        if "digest" in merged.facts and not self._verified:
            merged.expect("digest", (32,), "uint8")
            sizes = {name: shape[0] for name, (shape, _) in merged.facts.items() if name != "digest"}
            if merged("digest").tobytes() != digest_of(merged.rows_of, sizes):
                raise ConfigError(f"{short(self.path)}: is damaged or was changed, its SHA-256 is another")
        self._verified.add("embeddings")

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def stacked(self) -> NDArray[Any]:
        """(n, D) of pooled embeddings. Raises ConfigError where they are by residue."""
        if self.settings["pool"] == ["residue"]:
            raise ConfigError(f"{self.path}: embeddings by residue cannot be stacked; embed with a pool such as mean")
        if not len(self):
            raise DataError(f"{self.path}: no embeddings")
        if self._merged is None:
            return np.stack(list(self))
        self._verify(self._merged)
        return self._merged("embeddings")


def index_of(folder: Path, records: int | None = None) -> Iterator[Line]:
    """Yields so many lines of the index, None: all that are whole. Raises ValueError for what is none."""
    file = folder / INDEX
    if records == 0 or not file.exists():
        return
    regular(file)
    with open(file, "rb") as handle:
        for number, raw in enumerate(iter(lambda: handle.readline(LONGEST), b"")):
            if number == records or not raw.endswith(b"\n"):
                if len(raw) == LONGEST:
                    raise ValueError(f"line {number + 1} is longer than {LONGEST:,} bytes")
                return
            yield {**checked_line(raw), "bytes": len(raw)} if records is None else checked_line(raw)


def whole(folder: Path) -> tuple[int, int, int]:
    """(records, parts, bytes of the index), without the last part where its lines were not all written."""
    part, before, now = "", (0, 0, 0), (0, 0, 0)
    for line in index_of(folder):
        records, parts, size = now
        if (name := line["part"]) != part:
            part, before, parts = name, now, parts + 1
            if not (folder / part).exists():
                raise ConfigError(f"{short(folder / part)} is missing, and {INDEX} names it; choose another folder")
        now = (records + 1, parts, size + line["bytes"])
    return now if not part or len(open_arrays(folder / part).facts) == now[0] - before[0] else before


def part_arrays(file: Path) -> Arrays:
    """Returns the arrays of one file of an unfinished set. Raises ConfigError where it is missing."""
    try:
        return open_arrays(file)
    except FileNotFoundError:
        raise ConfigError(f"{short(file)} is missing, and {INDEX} names it") from None


def checked_line(raw: bytes) -> Line:
    """A line of the index. Raises ValueError, KeyError for what is none, names that lead out of the folder too."""
    line = json.loads(raw)
    kinds = {"id": str, "description": str, "length": int, "part": str, "key": str}
    if not isinstance(line, dict) or any(type(line[name]) is not kind for name, kind in kinds.items()):
        raise ValueError(f"{raw[:60]!r} is no line of an index")
    if not PART.fullmatch(line["part"]) or line["length"] < 1:
        raise ValueError(f"part {short(line['part'], 60)!r} or length {line['length']} in {INDEX}")
    return line


def _checked_settings(found: Any) -> dict[str, Any]:
    """Settings as `embed` writes them. Raises ValueError, KeyError, TypeError for others."""
    pool, dim = found["pool"], found["model"]["dim"]
    right = isinstance(pool, list) and pool and all(isinstance(name, str) for name in pool)
    if not right or type(dim) is not int or dim < 1 or found["dtype"] not in DTYPES or found["format"] not in FORMATS:
        raise ValueError(f"settings {short(json.dumps(found))}")
    return dict(found)


def width_of(settings: Mapping[str, Any]) -> int:
    """Returns the numbers of a vector: those of the model, for each way of pooling."""
    return int(settings["model"]["dim"] * len(settings["pool"]))


def digest_of(rows: Callable[[str, int, int], Tensor], sizes: Mapping[str, int]) -> bytes:
    """SHA-256 of arrays in the order of their names, some rows at a time. rows: (name, first, end) -> rows of one."""
    sha = hashlib.sha256()
    for name in sorted(sizes):
        for low in range(0, sizes[name], ROWS):
            sha.update(rows(name, low, low + ROWS).contiguous().view(torch.uint8).numpy().tobytes())
    return sha.digest()
