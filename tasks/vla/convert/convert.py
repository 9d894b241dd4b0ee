"""Recorded episodes of other layouts, written as a LeRobot dataset.

One episode is in memory at a time, and its pictures are read one by one where the source allows that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, DataError, UserError, nearest
from mmdiff.parts.ranges import AtLeast1
from mmdiff.tasks.vla.data.writer import LeRobotWriter

from .hdf5 import LAYOUTS as HDF5
from .hdf5 import SUFFIXES, hdf5_episodes, is_readable, layout_of
from .numpy_folders import is_numpy_folder, numpy_episodes
from .options import ReadOptions
from .rlds import rlds_episodes, rlds_folder
from .source import Recorded, broken, natural

LAYOUTS = (*HDF5, "numpy", "rlds")
ALL = ReadOptions()


@typed
def convert(
    source: str | Path,
    out: str | Path,
    options: ReadOptions = ALL,
    *,
    layout: str | None = None,
    skip: bool = False,
    limit: AtLeast1 | None = None,
    video: bool = False,
    robot_type: str | None = None,
) -> dict[str, Any]:
    """Write the episodes of `source` into the folder `out`, which must not be there.

    source: an .hdf5 file, a folder of them, a folder of numpy episodes, or a TFDS folder. layout: one of `LAYOUTS`;
        None: found out, and logged on stderr.
    options: what is read of an episode, and how.
    skip: leaves broken episodes out and lists them; otherwise the first one ends the conversion.
    limit: the first episodes only. video: pictures as mp4 rather than one by one. robot_type: a name to write down.

    Returns {"folder", "layout", "fps", "cameras", "episodes": int, "frames": int, "skipped": [one line each]}.
    Raises ConfigError, and DataError that names file, episode and frame; then there is no folder `out`.
    """
    path, folder = Path(source), Path(out)
    if folder.exists():
        raise UserError(f"{folder}: is there already; give a folder that is not")
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}")
    if layout is None:
        layout = detect(path)
        tqdm.write(f"{path}: layout {layout}", file=sys.stderr)
    writer, skipped, cameras_there = None, list[str](), list[str]()
    recordings = islice(recorded(path, layout, options), limit)
    try:
        with tqdm(recordings, desc="convert", unit=" episodes", file=sys.stderr, leave=False) as bar:
            for found in bar:
                try:
                    recording = found.read()
                    if writer is None:
                        writer = LeRobotWriter(
                            folder,
                            fps=recording.episode.fps,
                            robot_type=robot_type,
                            video=video,
                            action_names=recording.action_names,
                            state_names=recording.state_names,
                        )
                        cameras_there = list(recording.episode.images)
                    writer.add(recording.episode, found.where)
                except DataError as error:
                    if not skip:
                        raise
                    skipped.append(str(error))
                    tqdm.write(f"left out: {error}", file=sys.stderr)
                    if writer is not None and not len(writer):  # a broken episode does not decide what the first is
                        writer.discard()
                        writer = None
        if writer is None:
            raise DataError(f"{path}: no episodes" + (f" left: {skipped[0]}" if skipped else ""))
        writer.finish()
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    return {
        "folder": str(folder),
        "layout": layout,
        "fps": writer.fps,
        "cameras": cameras_there,
        "episodes": len(writer),
        "frames": writer.frames,
        "skipped": skipped,
    }


def detect(path: Path) -> str:
    """The layout of a file or folder. Raises DataError that names what was found, where it is none or several."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: expected an .hdf5 file, or a folder of episodes")
        return layout_of(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    if (path / "meta" / "info.json").is_file():
        raise DataError(f"{path}: is a LeRobot dataset already; it needs no conversion")
    files = _hdf5_files(path)
    found = {
        f"{len(files)} HDF5 files ({'/'.join(HDF5)})": bool(files),
        "features.json (rlds)": rlds_folder(path) is not None,
        "folders or .npz files with actions (numpy)": is_numpy_folder(path),
    }
    there = [name for name, is_there in found.items() if is_there]
    if len(there) > 1:
        raise DataError(f"{path}: holds {' and '.join(there)}; say which with --layout")
    if not there:
        raise DataError(
            f"{path}: no .hdf5 files, no features.json and no folders with action.npy; "
            f"give the folder right above the episodes (layouts: {', '.join(LAYOUTS)})"
        )
    if not files:
        return "numpy" if is_numpy_folder(path) else "rlds"
    for file in files:
        if is_readable(file):
            return layout_of(file)
    raise DataError(f"{path}: none of {len(files)} HDF5 files can be read")


def recorded(path: Path, layout: str, options: ReadOptions) -> Iterator[Recorded]:
    """The episodes of a source in natural order, unread. Raises ConfigError, DataError."""
    if options.subset is not None and layout not in ("robomimic", "libero"):
        raise ConfigError(f"subset: only robomimic files have a mask; {path} is {layout}")
    if options.split is not None and layout != "rlds":
        raise ConfigError(f"split: only TFDS folders have splits; {path} is {layout}")
    if layout in ("numpy", "rlds") and not path.is_dir():
        raise DataError(f"{path}: no such folder")
    if layout == "numpy":
        yield from numpy_episodes(path, options)
    elif layout == "rlds":
        yield from rlds_episodes(path, options)
    else:
        files = _hdf5_files(path) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: no files {' or '.join(SUFFIXES)}")
        for file in files:
            try:
                yield from hdf5_episodes(file, layout, options)
            except DataError as error:  # a file that cannot be listed counts as one episode that is broken
                yield broken(str(file), error)


def _hdf5_files(folder: Path) -> list[Path]:
    files = (f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file() and not f.name.startswith("."))
    return sorted(files, key=lambda f: natural(f.name))
