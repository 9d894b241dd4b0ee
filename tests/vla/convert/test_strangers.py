"""Recordings of a stranger: links, endless files, and files that unpack to very much are refused in one line."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdiff.commands.cli import main
from mmdiff.errors import DataError
from mmdiff.tasks.vla.convert.rlds import Feature, _numbers
from mmdiff.tasks.vla.convert.tfrecord import masked_crc32c, records

pytestmark = pytest.mark.needs("h5py", "pyarrow", "google_crc32c")

SECRET = b"secret of the person who converts" * 20
WORDS = ["--fps", "10", "--instruction", "go"]


def aloha(folder: Path, fill: Callable[[Any], None]) -> Path:
    import h5py

    (folder / "secret").write_bytes(SECRET)
    with h5py.File(folder / "other.h5", "w") as other:
        other["action"] = np.zeros((4, 2))
    with h5py.File(folder / "episode.hdf5", "w") as file:
        seen = file.create_group("observations")
        seen["qpos"] = np.zeros((4, 2))
        file["action"] = np.zeros((4, 2))
        fill(file)
    return folder / "episode.hdf5"


def external_values(file: Any) -> None:
    del file["action"]
    file.create_dataset("action", (4, 2), "f8", external=[("secret", 0, 64)])


def external_pictures(file: Any) -> None:
    file.create_dataset("observations/images/front", (4, 5, 5, 3), "u1", external=[("secret", 0, 300)])


def a_link(file: Any) -> None:
    import h5py

    del file["action"]
    file["action"] = h5py.ExternalLink("other.h5", "action")


def virtual(file: Any) -> None:
    import h5py

    del file["action"]
    layout = h5py.VirtualLayout((4, 2), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "action", (4, 2))
    file.create_virtual_dataset("action", layout)


def endless(file: Any) -> None:
    del file["action"]
    file.create_dataset("action", (1 << 40, 2), "f8", chunks=(1024, 2))


def wide(file: Any) -> None:
    file.create_dataset("observations/images/front", (4, 1 << 20, 1 << 20, 3), "u1", chunks=(1, 64, 64, 3))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (external_values, "action 'action': its values are in other files"),
        (external_pictures, "camera 'front': its values are in other files"),
        (a_link, "action is a link into the file 'other.h5'"),
        (virtual, "action 'action': its values are in other files"),
        (endless, "action 'action': 0 bytes that unpack to 17,592,186,044,416"),
        (wide, "camera 'front' has pictures of (1048576, 1048576, 3)"),
    ],
)
def test_hdf5(
    fill: Callable[[Any], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = aloha(tmp_path, fill)
    assert main(["vla", "convert", str(path), "--out", "data", *WORDS]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not Path("data").exists()


def numpy_folder(folder: Path) -> Path:
    (folder / "0/front").mkdir(parents=True)
    np.save(folder / "0/action.npy", np.zeros((1, 2)))
    Image.new("RGB", (8, 8)).save(folder / "0/front/0.png")
    return folder


@pytest.mark.parametrize("name", ["0/action.npy", "0/front/0.png", "0/instruction.txt"])
def test_a_numpy_folder_of_links(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = numpy_folder(tmp_path / "source")
    for kind in ("endless", "pipe"):
        (source / name).unlink(missing_ok=True)
        if kind == "endless":
            (source / name).symlink_to("/dev/zero")
        else:
            os.mkfifo(source / name)
        start = time.monotonic()
        code = main(["vla", "convert", str(source), "--layout", "numpy", "--out", str(tmp_path / kind), *WORDS])
        said = capsys.readouterr().err
        assert time.monotonic() - start < 5 and "Traceback" not in said
        assert code == (0 if name.endswith("txt") else 2)  # an instruction that is no file is not looked at
        assert code == 0 or "device or pipe" in said


def test_an_archive_that_unpacks_to_very_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    np.savez_compressed(tmp_path / "source/0.npz", action=np.zeros((3_000_000, 2)))
    assert main(["vla", "convert", str(tmp_path / "source"), "--out", str(tmp_path / "data"), *WORDS]) == 2
    assert "that unpack to 48," in capsys.readouterr().err


def test_a_record_of_absurd_length(tmp_path: Path) -> None:
    head = (1 << 60).to_bytes(8, "little")
    (tmp_path / "x").write_bytes(head + masked_crc32c(head).to_bytes(4, "little") + b"short")
    (found,) = records(tmp_path / "x")
    assert isinstance(found, DataError) and "cut off" in str(found)
    (tmp_path / "zero").symlink_to("/dev/zero")
    (found,) = records(tmp_path / "zero")
    assert isinstance(found, DataError) and "device or pipe" in str(found)


def test_a_tensor_that_unpacks_to_very_much() -> None:
    value = zlib.compress(bytes(10_000_000))
    with pytest.raises(DataError, match="a tensor of 17 bytes or more, expected 16"):
        _numbers([value], Feature("tensor", "float64", (2,), "zlib"))
    with pytest.raises(DataError, match="unpack to"):
        _numbers([value], Feature("tensor", "float64", (1 << 30,), "zlib"))
    assert _numbers([zlib.compress(bytes(16))], Feature("tensor", "float64", (2,), "zlib")).shape == (1, 2)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"featuresDict": []}', '{"featuresDict": {"features": {"steps": 3}}}', "\xff"]
)
def test_features_that_are_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "features.json").write_text(text, encoding="latin-1")
    assert main(["vla", "convert", str(tmp_path), "--layout", "rlds", "--out", str(tmp_path / "data"), *WORDS]) == 2
    said = capsys.readouterr().err
    assert "features.json" in said and "Traceback" not in said
