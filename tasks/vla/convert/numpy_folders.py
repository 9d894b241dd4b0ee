"""Episodes as numpy files: a folder per episode, or an .npz per episode.

    folder/0/action.npy          (N, D); `actions.npy` will do
    folder/0/state.npy           (N, S), may be missing
    folder/0/front.npy           uint8 (N, H, W, 3): the camera "front"
    folder/0/wrist/0.png ...     a picture per frame, in natural order: the camera "wrist" (.png, .jpg, .jpeg)
    folder/0/instruction.txt     or folder/instruction.txt, of all
    folder/1.npz                 arrays `action`, `state`, `instruction`, and cameras

fps is an argument. Arrays of Python objects are refused, as reading them would run code.

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import DataError, nearest
from mmdiff.tasks.vla.data.reading import check_regular

from .options import ReadOptions
from .source import Array, Recorded, Recording, check_unpacked, decoded, natural, picture_file, reading, recording

ACTIONS = ("action", "actions")
PICTURES = (".png", ".jpg", ".jpeg")
OTHER = ("state", "instruction")


def is_numpy_folder(folder: Path) -> bool:
    """Whether it holds an .npz, or a folder with actions."""
    return any(_has_actions(entry) for entry in _entries(folder))


def numpy_episodes(folder: Path, options: ReadOptions) -> Iterator[Recorded]:
    """The episodes of a folder, in natural order. Raises ConfigError without fps; `read` raises DataError."""
    options.fps_of(None, str(folder))
    for entry in _entries(folder):
        where = f"{folder} episode {entry.name}"
        yield Recorded(where, partial(_read, entry, options, where))


def _entries(folder: Path) -> list[Path]:
    """Its folders and .npz files, without hidden ones."""
    entries = [e for e in folder.iterdir() if not e.name.startswith((".", "__"))]
    return sorted((e for e in entries if e.is_dir() or e.suffix == ".npz"), key=lambda e: natural(e.name))


def _has_actions(entry: Path) -> bool:
    return entry.suffix == ".npz" or any((entry / f"{name}.npy").is_file() for name in ACTIONS)


def _read(entry: Path, options: ReadOptions, where: str) -> Recording:
    parts: Mapping[str, Any] = _folder(entry) if entry.is_dir() else _archive(entry)
    keys = options.action or [name for name in ACTIONS if name in parts][:1]
    if not keys:
        raise DataError(f"no action{nearest('action', parts)}")
    state = options.state if options.state is not None else [name for name in ("state",) if name in parts]
    action, states = (_columns(parts, names, what) for names, what in ((keys, "action"), (state, "state")))
    used = {*keys, *state, *ACTIONS, *OTHER}
    rest = {name: part for name, part in parts.items() if name not in used}
    found = {name: name for name, part in rest.items() if isinstance(part, list) or part.ndim == 4}
    cameras = {camera: _reader(parts[key], camera) for camera, key in options.pictures(found, parts).items()}
    words = options.instruction_of(_words(parts.get("instruction"), entry), where)
    fps = options.fps_of(None, where)
    return recording(options, where, fps=fps, instruction=words, action=action, state=states, cameras=cameras)


def _folder(entry: Path) -> dict[str, Any]:
    """Name -> an array on disk, or the files of a camera."""
    parts: dict[str, Any] = {}
    for path in sorted(entry.iterdir(), key=lambda p: natural(p.name)):
        if path.suffix == ".npy":
            with reading(path.name):
                check_regular(path)
                part: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.is_dir() and not path.name.startswith("."):
            files = [f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
            part = sorted(files, key=lambda f: natural(f.name))
            if not part:
                continue
        else:
            continue
        if path.stem in parts:
            raise DataError(f"{path.stem!r} exists twice, as .npy and as a folder")
        parts[path.stem] = part
    return parts


def _archive(entry: Path) -> dict[str, Any]:
    packed = check_regular(entry)
    with open(entry, "rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaves a broken one open
        check_unpacked(sum(info.file_size for info in archive.zip.infolist()), packed, entry.name)
        return {name: archive[name] for name in archive.files}


def _columns(parts: Mapping[str, Any], keys: Sequence[str], what: str) -> list[tuple[str, Array]]:
    for key in keys:
        if not isinstance(parts.get(key), np.ndarray):
            raise DataError(f"{what}: no array {key!r}{nearest(key, parts)}")
    return [(key, np.asarray(parts[key])) for key in keys]


def _words(stored: Any, entry: Path) -> str | None:
    if isinstance(stored, np.ndarray) and stored.dtype.kind in "US" and stored.size == 1:
        words = stored.reshape(-1)[0]
        return words.decode("utf-8") if isinstance(words, bytes) else str(words)
    for path in (entry / "instruction.txt", entry.parent / "instruction.txt"):
        if path.is_file():
            check_regular(path, 1 << 20)
            return path.read_text(encoding="utf-8-sig")
    return None


def _reader(part: Any, camera: str) -> tuple[int, Callable[[int], Array]]:
    """Returns the number of pictures, and a reader of one: out of an array, or of a list of files."""
    if isinstance(part, list):
        return len(part), lambda n: decoded(picture_file(part[n]))
    if part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] != 3:
        raise DataError(f"camera {camera!r} is {part.dtype} {part.shape}, expected uint8 (N, H, W, 3)")
    return len(part), lambda n: np.asarray(part[n])
