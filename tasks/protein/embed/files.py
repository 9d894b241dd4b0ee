"""The files that `embeddings.py` writes, and their reader.

A folder holds

    settings.json             what the numbers depend on: pools, layer, dtype, format, and the model by its weights
    part-00000.safetensors    the embeddings of a window of records, by key; or .npz
    index.jsonl               a line per record: id, description, length, part, key, digest of the sequence

A part is written aside, made durable and renamed, then indexed, so an interrupted call resumes with the window after
the last whole part. Ids may come again; the key is the record's number in the input.

A single file holds `embeddings` (n, D), or (all residues, D) with `offsets` (n + 1,), and `index` and `settings` as
UTF-8 in arrays of bytes.

Shape letters: D width, N residues of a sequence, n records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.errors import ConfigError, DataError
from mmdiff.files import aside, lock, remove, write_text
from mmdiff.runs.records import append_lines, first_change

INDEX, SETTINGS = "index.jsonl", "settings.json"

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
        try:
            if self.path.is_dir():
                self.settings = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
                with open(self.path / INDEX, "rb") as file:
                    self.lines = [json.loads(raw) for raw in islice(file, _whole(self.path)[0])]
            else:
                self._merged = open_arrays(self.path)
                if missing := {"embeddings", "index", "settings"} - set(self._merged.keys()):
                    raise KeyError(*missing)
                self.settings = json.loads(self._merged("settings").tobytes())
                self.lines = [json.loads(raw) for raw in self._merged("index").tobytes().splitlines()]
                if self.settings["pool"] == ["residue"]:
                    self.offsets = self._merged("offsets")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: no embeddings that this command wrote ({error!r})") from None
        self.ids = [line["id"] for line in self.lines]
        self.descriptions = [line["description"] for line in self.lines]
        self.lengths = [line["length"] for line in self.lines]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> NDArray[Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        i %= len(self)
        if self._merged is None:
            name = self.lines[i]["part"]
            if self._part[0] != name:
                self._part = (name, open_arrays(self.path / name))
            assert self._part[1] is not None
            return self._part[1](self.lines[i]["key"])
        if self.offsets is not None:
            return self._merged.rows("embeddings", int(self.offsets[i]), int(self.offsets[i + 1]))
        return self._merged.rows("embeddings", i, i + 1)[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def stacked(self) -> NDArray[Any]:
        """(n, D) of pooled embeddings. Raises ConfigError where they are by residue."""
        if self.settings["pool"] == ["residue"]:
            raise ConfigError(f"{self.path}: embeddings by residue cannot be stacked; embed with a pool such as mean")
        if not len(self):
            raise DataError(f"{self.path}: no embeddings")
        return np.stack(list(self)) if self._merged is None else self._merged("embeddings")


class Folder:
    """A folder of parts, locked while it is written. `next`: the name of the part that `add` writes."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.suffix = settings["format"]
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: a file, expected a folder, or a name that ends in .safetensors or .npz")
        made = path / SETTINGS
        if path.is_dir() and not made.is_file() and any(not x.name.startswith(".") for x in path.iterdir()):
            raise ConfigError(f"{path} is there already and holds no embeddings; choose another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path / ".lock", f"{path}: another process is writing embeddings here")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            if made.is_file():
                unchanged(path, json.loads(made.read_text(encoding="utf-8")), settings)
            else:
                write_text(made, json.dumps(settings, indent=2) + "\n")
            for left in [*path.glob(".*.part-*"), *path.glob(".*.aside")]:  # of a killed process, the latter of 0.1
                remove(left)
            self.records, self._parts, size = _whole(path)
            (path / INDEX).touch()
            os.truncate(path / INDEX, size)
        except (ValueError, KeyError):
            raise ConfigError(f"{path}: {SETTINGS} or {INDEX} is damaged; choose another folder") from None

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.close()

    @property
    def next(self) -> str:
        return f"part-{self._parts:05d}.{self.suffix}"

    def lines(self) -> Iterator[Line]:
        with open(self.path / INDEX, "rb") as file:
            yield from map(json.loads, file)

    def add(self, lines: Sequence[Line], values: Sequence[Tensor]) -> None:
        tensors = {line["key"]: x.contiguous() for line, x in zip(lines, values, strict=True)}
        _save(tensors, self.path / self.next)
        append_lines(self.path / INDEX, lines)
        self.records += len(lines)
        self._parts += 1

    def remove(self) -> None:
        """Remove what was written here, and the folder if that was all."""
        for file in [*self.path.glob(f"part-*.{self.suffix}"), *map(self.path.joinpath, (INDEX, SETTINGS, ".lock"))]:
            file.unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:  # something else lies in it
            pass


def _whole(folder: Path) -> tuple[int, int, int]:
    """(records, parts, bytes of the index), without the last part where its lines were not all written."""
    part, before, now = "", (0, 0, 0), (0, 0, 0)
    if not (folder / INDEX).is_file():
        return now
    with open(folder / INDEX, "rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            records, parts, size = now
            if (name := json.loads(raw)["part"]) != part:
                part, before, parts = name, now, parts + 1
                if not (folder / part).is_file():
                    raise ConfigError(f"{folder / part} is missing, and {INDEX} names it; choose another folder")
            now = (records + 1, parts, size + len(raw))
    return now if not part or len(open_arrays(folder / part).keys()) == now[0] - before[0] else before


def merge(folder: Folder, out: Path, settings: Mapping[str, Any]) -> None:
    lines = list(folder.lines())
    by_residue = settings["pool"] == ["residue"]
    offsets = np.cumsum([0, *(line["length"] if by_residue else 1 for line in lines)])
    width = settings["model"]["dim"] * len(settings["pool"])
    values = torch.empty(int(offsets[-1]), width, dtype=getattr(torch, settings["dtype"]))
    for name, group in groupby(enumerate(lines), key=lambda numbered: numbered[1]["part"]):
        part = open_arrays(folder.path / name)
        for i, line in group:
            values[offsets[i] : offsets[i + 1]] = part.tensor(line["key"])
    index = "".join(json.dumps(line) + "\n" for line in lines)
    texts = {"index": index.encode(), "settings": json.dumps(settings).encode()}
    tensors = {"embeddings": values}
    tensors |= {name: torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()) for name, text in texts.items()}
    if by_residue:
        tensors["offsets"] = torch.from_numpy(offsets)
    _save(tensors, out)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    with aside(file) as part:
        if file.suffix == ".npz":
            np.savez(part, **{name: x.numpy() for name, x in tensors.items()})  # type: ignore[arg-type]
        else:
            from safetensors.torch import save_file

            save_file(tensors, part)


class Arrays:
    """Tensors of a file by name, each read when it is asked for; rows of one are read alone in a safetensors file."""

    def __init__(self, file: Path) -> None:
        self._npz: Any = None
        self._known: dict[str, NDArray[Any]] = {}  # numpy reads a whole array of an .npz: those asked rows of stay
        if file.suffix == ".npz":
            self._npz = np.load(file, allow_pickle=False)
        else:
            from safetensors import safe_open

            self._tensors = safe_open(file, "pt")

    def keys(self) -> list[str]:
        return list(self._npz.files if self._npz is not None else self._tensors.keys())

    def tensor(self, key: str) -> Tensor:
        value: Tensor = torch.from_numpy(self._npz[key]) if self._npz is not None else self._tensors.get_tensor(key)
        return value

    def __call__(self, key: str) -> NDArray[Any]:
        return _array(self.tensor(key))

    def rows(self, key: str, low: int, high: int) -> NDArray[Any]:
        if self._npz is None:
            return _array(self._tensors.get_slice(key)[low:high])
        if key not in self._known:
            self._known[key] = self._npz[key]
        return self._known[key][low:high]


def open_arrays(file: Path) -> Arrays:
    """Open a file of arrays. Raises ConfigError for a file that is damaged or something else."""
    import zipfile

    from safetensors import SafetensorError

    try:
        return Arrays(file)
    except (SafetensorError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ConfigError(f"{file}: not a readable file of arrays ({' '.join(str(error).split())[:100]})") from None


def _array(x: Tensor) -> NDArray[Any]:
    out: NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return out


def unchanged(where: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare settings. Raises ConfigError that names the first one that differs."""
    if change := first_change(old, json.loads(json.dumps(new))):
        raise ConfigError(f"{where} was written with another {change}; choose another name")
