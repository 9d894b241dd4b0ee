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

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import DataError, nearest
from mmdiff.tasks.vla.data.episode import Episode

from .options import ReadOptions
from .source import Array, Frames, Recorded, Recording, decoded, guarded, joined, natural

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
        yield Recorded(where, partial(guarded, where, partial(_read, entry, options, where)))


def _entries(folder: Path) -> list[Path]:
    """Its folders and .npz files, without hidden ones."""
    entries = [e for e in folder.iterdir() if not e.name.startswith((".", "__"))]
    return sorted((e for e in entries if e.is_dir() or e.suffix == ".npz"), key=lambda e: natural(e.name))


def _has_actions(entry: Path) -> bool:
    return entry.suffix == ".npz" or any((entry / f"{name}.npy").is_file() for name in ACTIONS)


def _read(entry: Path, options: ReadOptions, where: str) -> Recording:
    parts: Mapping[str, Any] = _folder(entry, where) if entry.is_dir() else _archive(entry)
    keys = options.action or [name for name in ACTIONS if name in parts][:1]
    if not keys:
        raise DataError(f"{where}: no action{nearest('action', parts)}")
    action_ND, action_names = joined(_columns(parts, keys, "action", where), "action", where)
    state = options.state if options.state is not None else [name for name in ("state",) if name in parts]
    state_NS, state_names = joined(_columns(parts, state, "state", where), "state", where) if state else (None, ())
    used = {*keys, *state, *ACTIONS, *OTHER}
    rest = {name: part for name, part in parts.items() if name not in used}
    found = {name: name for name, part in rest.items() if isinstance(part, list) or part.ndim == 4}
    images = {}
    for camera, key in options.pictures(found, parts, where).items():
        part = parts[key]
        if not _is_camera(part):
            raise DataError(f"{where}: camera {camera!r} is {part.dtype} {part.shape}, expected uint8 (N, H, W, 3)")
        files = isinstance(part, list)
        images[camera] = Frames(len(part), partial(_decoded_file if files else _frame, part), options, where, camera)
    words = options.instruction_of(_words(parts.get("instruction"), entry), where)
    episode = Episode(words, action_ND, state_NS, images, options.fps_of(None, where))
    return Recording(episode, action_names, state_names)


def _folder(entry: Path, where: str) -> dict[str, Any]:
    """Name -> an array on disk, or the files of a camera."""
    parts: dict[str, Any] = {}
    for path in sorted(entry.iterdir(), key=lambda p: natural(p.name)):
        if path.suffix == ".npy":
            load = partial(np.load, path, mmap_mode="r", allow_pickle=False)
            part: Any = guarded(f"{where}: {path.name}", load)
        elif path.is_dir() and not path.name.startswith("."):
            files = [f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
            part = sorted(files, key=lambda f: natural(f.name))
            if not part:
                continue
        else:
            continue
        if path.stem in parts:
            raise DataError(f"{where}: {path.stem!r} is there twice, as .npy and as a folder")
        parts[path.stem] = part
    return parts


def _archive(entry: Path) -> dict[str, Any]:
    with open(entry, "rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaves a broken one open
        return {name: archive[name] for name in archive.files}


def _columns(parts: Mapping[str, Any], keys: Sequence[str], what: str, where: str) -> list[tuple[str, Array]]:
    for key in keys:
        if not isinstance(parts.get(key), np.ndarray):
            raise DataError(f"{where}: {what}: no array {key!r}{nearest(key, parts)}")
    return [(key, np.asarray(parts[key])) for key in keys]


def _words(stored: Any, entry: Path) -> str | None:
    if isinstance(stored, np.ndarray) and stored.dtype.kind in "US" and stored.size == 1:
        words = stored.reshape(-1)[0]
        return words.decode("utf-8") if isinstance(words, bytes) else str(words)
    for path in (entry / "instruction.txt", entry.parent / "instruction.txt"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None


def _is_camera(part: Any) -> bool:
    return isinstance(part, list) or (part.dtype == np.uint8 and part.ndim == 4 and part.shape[3] == 3)


def _frame(array: Array, index: int) -> Array:
    return np.asarray(array[index])


def _decoded_file(files: Sequence[Path], index: int) -> Array:
    return decoded(files[index].read_bytes())
