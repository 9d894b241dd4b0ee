"""The folder that `embeddings.py` writes part by part, and the single file that is put together from it.

What the files hold: `files.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from mmdiff.errors import ConfigError, short
from mmdiff.files import digest, lock, read_json, remove, writable, write_text
from mmdiff.runs.records import append_lines, first_change

from .arrays import save
from .files import DIGITS, INDEX, PART, SETTINGS, Line, digest_of, index_of, part_arrays, whole, width_of


class Folder:
    """A folder of parts, locked while it is written. `next`: the name of the part that `add` writes."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.suffix = settings["format"]
        with writable(path):
            if path.exists() and not path.is_dir():
                raise ConfigError(
                    f"{short(path)}: a file, expected a folder, or a name that ends in .safetensors or .npz"
                )
            made = path / SETTINGS
            if path.is_dir() and not made.is_file() and any(not x.name.startswith(".") for x in path.iterdir()):
                raise ConfigError(f"{short(path)} is there already and holds no embeddings; choose another folder")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            try:
                self._begin(made, settings)
            except BaseException as error:
                self._lock.close()
                if isinstance(error, ValueError | KeyError | TypeError):
                    why = f"{SETTINGS} or {INDEX} is damaged"
                    raise ConfigError(f"{short(path)}: {why}; choose another folder") from None
                raise

    def _begin(self, made: Path, settings: Mapping[str, Any]) -> None:
        """Check the settings of what is there, or write them; remove what a killed process left half written."""
        path = self.path
        if made.is_file():
            unchanged(path, read_json(made), settings)
        else:
            write_text(made, json.dumps(settings, indent=2) + "\n")
        for left in [*path.glob(".*.part-*"), *path.glob(".*.aside")]:  # the latter of 0.1
            remove(left)
        self.records, self._parts, size = whole(path)
        (path / INDEX).touch()
        os.truncate(path / INDEX, size)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.close()

    @property
    def next(self) -> str:
        return f"part-{self._parts:05d}.{self.suffix}"

    def lines(self) -> Iterator[Line]:
        return index_of(self.path, self.records)

    def add(self, lines: Sequence[Line], values: Sequence[Tensor]) -> None:
        file = self.path / self.next
        save({line["key"]: x.contiguous() for line, x in zip(lines, values, strict=True)}, file)
        part_digest = digest(file)[:DIGITS]
        append_lines(self.path / INDEX, [{**line, "part_digest": part_digest} for line in lines])
        self.records += len(lines)
        self._parts += 1

    def remove(self) -> None:
        """Remove what was written here, and the folder if that was all."""
        _clear(self.path)


def discard(folder: Path) -> None:
    """Remove the parts of a file that is finished, which a kill left there, whole or not. Raises ConfigError."""
    with writable(folder), _lock(folder):
        _clear(folder)


def _lock(folder: Path) -> TextIO:
    return lock(folder / ".lock", f"{short(folder)}: another process is writing embeddings here")


def _clear(folder: Path) -> None:
    """The index first: without it, no part is taken for whole. The settings late: they say what the rest is."""
    with writable(folder):
        parts = [file for file in folder.glob("part-*") if PART.fullmatch(file.name)]
        for file in [folder / INDEX, *parts, *folder.glob(".*.part-*"), folder / SETTINGS, folder / ".lock"]:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


def merge(folder: Folder, out: Path, settings: Mapping[str, Any]) -> None:
    """Write the vectors of all finished windows as one file, in the order of the records."""
    lines = list(folder.lines())
    by_residue = settings["pool"] == ["residue"]
    offsets = np.cumsum([0, *(line["length"] if by_residue else 1 for line in lines)])
    width = width_of(settings)
    values = torch.empty(int(offsets[-1]), width, dtype=getattr(torch, settings["dtype"]))
    for name, group in groupby(enumerate(lines), key=lambda numbered: numbered[1]["part"]):
        part = part_arrays(folder.path / name)
        for i, line in group:
            rows = int(offsets[i + 1] - offsets[i])
            part.expect(line["key"], (rows, width) if by_residue else (width,), settings["dtype"])
            values[offsets[i] : offsets[i + 1]] = part.tensor(line["key"])
    index = "".join(json.dumps(line) + "\n" for line in lines)
    texts = {"index": index.encode(), "settings": json.dumps(settings).encode()}
    tensors = {"embeddings": values}
    tensors |= {name: torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()) for name, text in texts.items()}
    if by_residue:
        tensors["offsets"] = torch.from_numpy(offsets)
    sizes = {name: len(x) for name, x in tensors.items()}
    sha = digest_of(lambda name, low, high: tensors[name][low:high], sizes)
    tensors["digest"] = torch.from_numpy(np.frombuffer(sha, dtype=np.uint8).copy())
    save(tensors, out)


def unchanged(where: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare settings. Raises ConfigError that names the first one that differs."""
    if change := first_change(old, json.loads(json.dumps(new))):
        raise ConfigError(f"{short(where)} was written with another {change}; choose another name")
