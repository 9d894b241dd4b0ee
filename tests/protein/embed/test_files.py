"""Folders of embeddings from anywhere: what is damaged, lies or leads elsewhere is refused by name."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.errors import ConfigError
from mmdiff.tasks.protein.embed.embeddings import Embeddings
from mmdiff.tasks.protein.embed.files import SETTINGS
from mmdiff.tasks.protein.embed.folder import Folder, merge

WIDTH, LENGTHS = 3, (2, 1, 4)
Change = Callable[[Any], Any]


def written(folder: Path, format: str = "safetensors", pool: str = "mean", single: bool = False) -> Path:
    """Two parts, without a model: `WIDTH` numbers per record or residue."""
    dim = {"family": "esm", "dim": WIDTH, "digest": "0"}
    settings = {"pool": [pool], "layer": 2, "dtype": "float32", "format": format, "model": dim}
    made = folder.with_name(folder.name + f".{format}") if single else folder
    with Folder(folder, settings) as parts:
        for group in ((0, 1), (2,)):
            shape = [(LENGTHS[i], WIDTH) if pool == "residue" else (WIDTH,) for i in group]
            lines = [{"id": f"s{i}", "description": "", "length": LENGTHS[i], "part": parts.next} for i in group]
            lines = [{**line, "key": str(i), "digest": "0"} for i, line in zip(group, lines, strict=True)]
            parts.add(lines, [torch.arange(float(np.prod(one))).reshape(one) for one in shape])
        if single:
            merge(parts, made, settings)
            parts.remove()
    return made


def read(path: Path) -> list[Any]:
    return [x.tolist() for x in Embeddings(path)]


@pytest.mark.parametrize("format", ["safetensors", "npz"])
@pytest.mark.parametrize("pool", ["mean", "residue"])
def test_folder_and_file_are_read_alike(format: str, pool: str, tmp_path: Path) -> None:
    folder, file = (written(tmp_path / name, format, pool, single) for name, single in (("a", False), ("b", True)))
    assert read(folder) == read(file) and len(read(file)) == 3 and sorted(os.listdir(tmp_path)) == ["a", file.name]


def edit_settings(change: Change) -> Change:
    def edit(folder: Path) -> None:
        found = json.loads((folder / SETTINGS).read_text())
        change(found)
        (folder / SETTINGS).write_text(json.dumps(found))

    return edit


def edit_line(**fields: Any) -> Change:
    def edit(folder: Path) -> None:
        lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        lines[0].update(fields)
        (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return edit


def flip(name: str) -> Change:
    def edit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return edit


def instead(name: str, make: Change) -> Change:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return edit


PART = "part-00000.safetensors"
LIES: dict[str, tuple[Change, str]] = {
    "dtype": (
        edit_settings(lambda s: s.update(dtype="float16")),
        f"{PART}: 0: float32 .*, expected float16",
    ),
    "width": (edit_settings(lambda s: s["model"].update(dim=4)), f"{PART}: 0: .*expected float32 of shape .4,."),
    "pools": (edit_settings(lambda s: s.update(pool=["residue"])), r"expected float32 of shape .2, 3."),
    "no dtype": (edit_settings(lambda s: s.pop("dtype")), "no embeddings that this command wrote"),
    "object": (edit_settings(lambda s: s.update(dtype="object")), "no embeddings that this command wrote"),
    "dim of text": (edit_settings(lambda s: s["model"].update(dim="3")), "no embeddings that this command wrote"),
    "huge text": (edit_settings(lambda s: s.update(pool="x" * 10**6)), "no embeddings that this command wrote"),
    "endless": (instead(SETTINGS, lambda f: f.symlink_to("/dev/zero")), "settings.json: is a device or pipe"),
    "pipe": (instead("index.jsonl", os.mkfifo), "index.jsonl: is a device or pipe"),
    "part pipe": (instead(PART, os.mkfifo), f"{PART}: is a device or pipe"),
    "deep": (lambda f: (f / SETTINGS).write_text("[" * 10**5), "nested too deeply"),
    "outside": (edit_line(part="../other/part-00000.safetensors"), "part '../other"),
    "absolute": (edit_line(part="/etc/passwd"), "part '/etc/passwd'"),
    "length": (edit_line(length=-1), "length -1"),
    "length of text": (edit_line(length="2"), "is no line of an index"),
    "id": (edit_line(id=None), "is no line of an index"),
    "key": (edit_line(key="no"), f"{PART}: no: is missing, expected float32"),
    "gone": (lambda f: (f / PART).unlink(), f"{PART} is missing"),
    "flipped": (flip(PART), f"{PART}: is damaged or was changed"),
    "cut": (lambda f: os.truncate(f / PART, 99), f"{PART}: not a readable file of arrays"),
    "pickle": (lambda f: torch.save({"0": 1}, f / PART), f"{PART}: not a readable file of arrays"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    folder, (change, message) = written(tmp_path / "a"), LIES[lie]
    change(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


class Calls:
    """Executed when a pickle of it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def npz(file: Path, header: str, content: bytes = b"", packed: int = zipfile.ZIP_STORED) -> None:
    head = header.encode().ljust(118) + b"\n"
    with zipfile.ZipFile(file, "w", packed) as out:
        out.writestr("0.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content)


def test_arrays_of_numpy_make_no_room_that_they_do_not_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "a", "npz")
    part = folder / "part-00000.npz"
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }"
    for make in (
        lambda: npz(part, shape % 10**12),
        lambda: npz(part, shape % 10**6, bytes(4 * 10**6), zipfile.ZIP_DEFLATED),
        lambda: npz(part, "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        lambda: np.savez(part, **{"0": np.array([Calls()], dtype=object)}),
        lambda: part.write_bytes(b"\x93NUMPY" + bytes(99)),
    ):
        make()
        with pytest.raises(ConfigError, match="part-00000.npz: not a readable file of arrays"):
            read(folder)
    assert os.listdir() == ["a"]


@pytest.mark.parametrize("name", ["embeddings", "offsets", "index", "settings", "digest"])
def test_a_single_file_that_lies_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a", pool="residue", single=True)
    whole = load_file(file)
    ones = torch.ones_like(whole[name])
    for other in (whole[name] + ones, whole[name][:-1].contiguous(), whole[name].double(), whole[name][None]):
        save_file({**whole, name: other}, file)
        with pytest.raises(ConfigError, match=r"a.safetensors: "):
            read(file)
        with pytest.raises(ConfigError, match=r"a.safetensors: "):
            Embeddings(file).stacked()


@pytest.mark.parametrize("function", ["fsync", "replace", "mkdir"])
def test_a_full_disk_is_one_line(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, function, full)
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
            written(tmp_path / "a")
    assert len(read(written(tmp_path / "a"))) == 3
