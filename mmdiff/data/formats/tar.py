"""WebDataset's tar shards by row number: members that follow each other under one name are one row.

    000/cat.jpg 000/cat.json 000/dog.jpg 000/dog.json     two rows, {"jpg": bytes, ...and the fields of the JSON}

The name of a row is the path of its members up to the first dot behind the last slash; what follows is the field.
Pictures become the field `image`, sounds `audio`, `txt` the field `text`, `cls` a whole number, `npy` an array; `json`
gives its own fields. All other members stay bytes. One pass over the headers notes where members begin; a member is
read when its row is asked for. Nothing is unpacked to the disk, and nothing in a member is run: a pickle is refused, as
are paths that lead out of the archive, links and devices. Members whose name begins with a dot are left out.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mmdiff.data.fields import ENDINGS
from mmdiff.errors import DataError, line_of, shown
from mmdiff.files import json_object

BLOCK = 512
PICKLES = frozenset("pickle pkl pyd pt pth ckpt joblib dill".split())  # pyd: WebDataset's ending for them
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Tar:
    """The rows of tar files, file after file. See `mmdiff.data.formats.table.Table`.

    Raises DataError that names file and member: a file that is no tar file, is packed, damaged or cut off, or has a
    member that is refused.
    """

    group_sizes: Sequence[int] = ()
    in_order = False

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._field: dict[str, int] = {}  # endings of members, by number
        names: list[str] = []  # of rows
        begin: list[int] = []  # of rows, among members
        counts = [0]
        self._members: Any
        members: list[tuple[int, int, int]] = []  # field, offset, size
        for path in self.files:
            name, before = None, set[str]()
            for member in _members(path):
                own, ending = _named(member.name)
                if own != name:
                    if own in before:
                        raise DataError(
                            f"{path} {shown(member.name)}: apart from the other members of {shown(own)!r}, which "
                            "stand before another row; expected an archive in the order of names"
                        )
                    before.add(own)
                    names.append(own)
                    begin.append(len(members))
                    name = own
                elif any(members[at][0] == self._field.get(ending) for at in range(begin[-1], len(members))):
                    raise DataError(f"{path} {shown(member.name)}: a second member of this name and ending")
                members.append((self._field.setdefault(ending, len(self._field)), member.offset_data, member.size))
            counts.append(len(names))
        self._names, self._begin = names, np.array([*begin, len(members)], dtype=np.int64)
        self._first = np.array(counts)
        self._members = np.array(members, dtype=np.int64).reshape(-1, 3)
        self._endings = list(self._field)

    def __len__(self) -> int:
        return len(self._names)

    def _file(self, index: int) -> Path:
        return self.files[int(np.searchsorted(self._first, index, side="right")) - 1]

    def where(self, index: int) -> str:
        return f"{self._file(index)} {shown(self._names[index])}"

    def size(self, index: int) -> int:
        rows = self._members[self._begin[index] : self._begin[index + 1]]
        return int(sum(size for field, _, size in rows.tolist() if self._endings[field] in ("json", "txt")))

    def read(self, index: int) -> Mapping[str, Any]:
        row: dict[str, Any] = {}
        with self._file(index).open("rb") as file:
            for field, offset, size in self._members[self._begin[index] : self._begin[index + 1]].tolist():
                ending = self._endings[field]
                file.seek(offset)
                data = file.read(size)
                try:
                    found = _decoded(ending, data) if len(data) == size else {}
                except DataError as error:
                    raise DataError(f"{ending}: {error}") from None
                if len(data) < size:
                    raise DataError(f"{ending}: is cut off, {len(data)} of {size} bytes are there")
                if both := sorted(row.keys() & found.keys()):
                    raise DataError(f"{ending}: the field {both[0]!r} is there twice")
                row |= found
        return row


def _members(path: Path) -> Sequence[tarfile.TarInfo]:
    """Returns the regular files of an archive, checked. Raises DataError."""
    found = []
    try:
        with path.open("rb") as raw:
            head = raw.read(6)
            if head.startswith(PACKED):
                raise DataError(f"{path}: is packed, and rows are read by number; unpack it to a .tar")
            raw.seek(0)
            with tarfile.open(fileobj=raw, mode="r:") as archive:
                for member in archive:
                    if member.size < 0:
                        raise DataError(f"{path} {shown(member.name)}: has {member.size} bytes")
                    if not (member.isdir() or PurePosixPath(member.name).name.startswith(".")):
                        _check(path, member)
                        found.append(member)
                    archive.members = []  # type: ignore[attr-defined]  # they would all be kept
                at = archive.offset
            raw.seek(at)  # a damaged header ends the loop as if the archive ended there
            if any(end := raw.read(BLOCK)):
                raise DataError(f"{path}: the header at byte {at} is damaged")
            if not end:
                raise DataError(f"{path}: is cut off at byte {at}: the block that ends an archive is missing")
    except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError: numbers that are none, or too large
        raise DataError(f"{path}: not a tar file that can be read ({line_of(error)})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return found


def _check(path: Path, member: tarfile.TarInfo) -> None:
    name, parts = member.name, PurePosixPath(member.name).parts
    fault = None
    if name.startswith("/") or ".." in parts:
        fault = "leads out of the archive"
    elif member.issym() or member.islnk():
        fault = "is a link, expected a file"
    elif not member.isfile() or member.issparse():
        fault = "is no plain file"
    elif not PICKLES.isdisjoint(_named(name)[1].split(".")):
        fault = "is a pickle, which could run anything; expected json, txt, npy or media"
    if fault:
        raise DataError(f"{path} {shown(name)}: {fault}")


def _named(member: str) -> tuple[str, str]:
    """Returns the name of the row and the ending, in small letters."""
    folder, _, last = member.removeprefix("./").rpartition("/")
    name, _, ending = last.partition(".")
    return f"{folder}/{name}" if folder else name, ending.lower()


def _decoded(ending: str, data: bytes) -> Mapping[str, Any]:
    *before, kind = ending.split(".")
    if kind in KINDS:
        value = KINDS[kind](data)
        if kind == "json" and not before:
            return dict(value)
        return {".".join(before) or {"txt": "text"}.get(kind, kind): value}
    for field, endings in ENDINGS.items():
        if f".{kind}" in endings:
            return {".".join(before) or field: data}
    return {ending or "data": data}


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from None


def _class(data: bytes) -> int:
    try:
        return int(_text(data))
    except ValueError:
        raise DataError(f"{data!r:.40} is not a whole number") from None


def _array(data: bytes) -> Any:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"not an array ({' '.join(str(error).split())[:200]})") from None


KINDS: Mapping[str, Callable[[bytes], Any]] = {"json": json_object, "txt": _text, "cls": _class, "npy": _array}
