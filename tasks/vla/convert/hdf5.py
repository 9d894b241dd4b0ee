"""Episodes in HDF5 files, in the three layouts that are common.

robomimic: many episodes per file, data/demo_i with `actions` and `obs/*`; pictures are `<camera>_image`, upright.
    `mask/<name>` lists episodes of a subset (filter keys). No instruction. (robomimic.github.io, "Datasets")
libero: the same tree with `problem_info` (the instruction) beside it; pictures are `agentview_rgb` and
    `eye_in_hand_rgb`, stored upside down: rotate=180 gives what policies of LIBERO are trained on. (LIBERO,
    scripts/create_dataset.py)
aloha: one episode a file, `action`, `observations/qpos`, `observations/images/<camera>`: raw, or JPEG bytes padded with
    zeros. Neither fps nor instruction are in the file; ALOHA records at 50. (ACT, record_episodes.py)

The default state is end effector and gripper (robomimic, libero), or `qpos` (aloha). Keys of cameras and states are
those in `obs`, `observations/images` and `observations`; keys of actions those of the demo, or of the file (aloha:
action=["action", "base_action"] for a moving base). robomimic and LIBERO give their fps (`control_freq`).

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmdiff.encoders.media.images import MAX_PIXELS
from mmdiff.errors import ConfigError, DataError, nearest, require
from mmdiff.tasks.vla.data.reading import check_regular

from .options import ReadOptions
from .source import Array, Recorded, Recording, check_unpacked, decoded, natural, reading, recording, stripped

LAYOUTS = ("robomimic", "libero", "aloha")
SUFFIXES = (".hdf5", ".h5")
STATE = {
    "robomimic": ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
    "libero": ("ee_states", "gripper_states"),
    "aloha": ("qpos",),
}
BLOCK_BYTES = 1 << 28
BLOCK = 32  # frames read together: chunks of a compressed dataset span several


def layout_of(path: Path) -> str:
    """The layout of a file. Raises DataError that names what was found, where it is none or two of them."""
    with reading(str(path)):
        return _layout_of(path)


def _layout_of(path: Path) -> str:
    file = _file(path)
    demos = _is_group(file, "data") and any(_is_group(demo) and "actions" in demo for demo in file["data"].values())
    single = "action" in file and _is_group(file, "observations")
    if demos and not single:
        return "libero" if "problem_info" in file["data"].attrs else "robomimic"
    if single and not demos:
        return "aloha"
    found = ", ".join(sorted(file)) or "nothing"
    if demos:
        raise DataError("data/*/actions, and action with observations; give --layout robomimic, libero or aloha")
    raise DataError(
        f"holds {found}; expected data/demo_0/actions (robomimic, libero) or action and observations (aloha)"
    )


def is_readable(path: Path) -> bool:
    """Returns whether a file can be read as HDF5."""
    try:
        _open(path)
    except DataError:
        return False
    return True


def hdf5_episodes(path: Path, layout: str, options: ReadOptions) -> Iterator[Recorded]:
    """The episodes of a file, in natural order. An episode's pictures keep the file open.

    Raises DataError for a file that cannot be listed, ConfigError for a subset that is not there; what is wrong with
    one episode is raised by its `read`.
    """
    if layout == "aloha":
        where = str(path)
        yield Recorded(where, partial(_aloha, path, options))
        return
    with reading(str(path)):
        file = _file(path)
        if not _is_group(file, "data"):
            raise DataError("no group data")
        data = file["data"]
        names = sorted(data, key=natural) if options.subset is None else _subset(file, options.subset, path)
    for name in names:
        where = f"{path} episode {name}"
        yield Recorded(where, partial(_demo, data, name, layout, options, path, where))


def _demo(data: Any, name: str, layout: str, options: ReadOptions, path: Path, where: str) -> Recording:
    demo = data.get(name)
    if not _is_group(demo) or not _is_group(demo, "obs"):
        raise DataError(f"no group {name}/obs; from raw states, observations must first be extracted")
    obs = demo["obs"]
    _check_cameras(obs, options)
    cameras = options.pictures({stripped(k): k for k in obs if _is_raw(obs[k])}, obs)
    return recording(
        options,
        where,
        fps=options.fps_of(_number(_json(data, "env_args"), "env_kwargs", "control_freq"), str(path)),
        instruction=options.instruction_of(_instruction(data, demo), str(path)),
        action=_columns(demo, options.action or ("actions",), "action"),
        state=_columns(obs, STATE[layout] if options.state is None else options.state, "state"),
        cameras={camera: _reader(obs[key], camera) for camera, key in cameras.items()},
    )


def _aloha(path: Path, options: ReadOptions) -> Recording:
    file, where = _file(path), str(path)
    if not _is_group(file, "observations"):
        raise DataError("no group observations")
    seen = file["observations"]
    images = seen["images"] if _is_group(seen, "images") else {}
    cameras = options.pictures({key: key for key in images}, images)
    return recording(
        options,
        where,
        fps=options.fps_of(None, where),
        instruction=options.instruction_of(None, where),
        action=_columns(file, options.action or ("action",), "action"),
        state=_columns(seen, STATE["aloha"] if options.state is None else options.state, "state"),
        cameras={camera: _reader(images[key], camera) for camera, key in cameras.items()},
    )


def _columns(group: Any, keys: Sequence[str], what: str) -> list[tuple[str, Array]]:
    for key in keys:
        if key not in group or _is_group(group[key]):
            known = [k for k in group if not _is_group(group[k]) and group[k].ndim <= 2]
            raise DataError(f"{what}: no dataset {key!r}{nearest(key, known)}")
    for key in keys:
        _check_dataset(group[key], f"{what} {key!r}")
    return [(key, group[key][()]) for key in keys]


def _check_dataset(dataset: Any, what: str) -> None:
    """Raise DataError for a dataset whose values are in other files, and for one that unpacks to very much."""
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{what}: its values are in other files, which a file of a stranger may name at will")
    check_unpacked(dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size(), what)


def _reader(dataset: Any, camera: str) -> tuple[int, Callable[[int], Array]]:
    """Returns the number of pictures, and a reader of one: out of raw pixels, or of the bytes of a picture file."""
    if _is_group(dataset) or dataset.ndim == 0:
        raise DataError(f"camera {camera!r} is no dataset of frames")
    if dataset.external or dataset.is_virtual:
        _check_dataset(dataset, f"camera {camera!r}")
    if _is_raw(dataset) and dataset.shape[1] * dataset.shape[2] > MAX_PIXELS:
        raise DataError(f"camera {camera!r} has pictures of {dataset.shape[1:]}, expected {MAX_PIXELS} pixels at most")
    if _is_raw(dataset):
        return len(dataset), _Blocks(dataset)
    # Padding may stay: decoders stop at a picture's own end. (The rows of `compress_len` stand in the order of the
    # recording's cameras, which the file does not name.)
    if dataset.ndim == 2 and dataset.dtype == "uint8" or dataset.ndim == 1 and dataset.dtype.kind in "OSV":
        return len(dataset), lambda n: decoded(dataset[n].tobytes() if dataset.ndim == 2 else _bytes(dataset[n]))
    found = f"{dataset.dtype} {dataset.shape}"
    raise DataError(f"camera {camera!r} is {found}, expected uint8 (N, H, W, 3) or the bytes of pictures")


class _Blocks:
    """Frame by frame out of blocks: in a compressed file, reading one frame unpacks its neighbours too."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.start = dataset, -1
        self.size = min(BLOCK, max(1, BLOCK_BYTES // max(1, 3 * dataset.shape[1] * dataset.shape[2])))
        self.block: Any = None

    def __call__(self, frame: int) -> Array:
        start = frame - frame % self.size
        if start != self.start:
            self.block, self.start = self.dataset[start : start + self.size], start
        image: Array = self.block[frame - start]
        return image


def _check_cameras(obs: Any, options: ReadOptions) -> None:
    """Raise DataError for a dataset that is named like a camera but holds no pictures."""
    for key in obs if options.cameras is None else ():
        if stripped(key) != key and not _is_raw(obs[key]):
            kind = "a group" if _is_group(obs[key]) else f"{obs[key].dtype} {obs[key].shape}"
            raise DataError(f"camera {key!r} is {kind}, expected uint8 (N, H, W, 3)")


def _subset(file: Any, subset: str, path: Path) -> list[str]:
    known = list(file["mask"]) if _is_group(file, "mask") else []
    if subset not in known:
        raise ConfigError(f"subset: {path} has no mask/{subset}{nearest(subset, known)}")
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in file["mask"][subset][()]]
    return sorted(names, key=natural)


def _instruction(data: Any, demo: Any) -> str | None:
    """LIBERO's `problem_info`, else `ep_meta` of an episode (robosuite, RoboCasa)."""
    words = _json(data, "problem_info").get("language_instruction") or _json(demo, "ep_meta").get("lang")
    if isinstance(words, list):  # some of LIBERO's files hold pieces
        words = "".join(map(str, words))
    return words.strip().strip('"') if isinstance(words, str) else None


def _json(group: Any, name: str) -> dict[str, Any]:
    text = group.attrs.get(name, "{}")
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        raise DataError(f"attribute {name} is not JSON: {str(text)!r:.60}") from None
    return value if isinstance(value, dict) else {}


def _number(tree: Any, *keys: str) -> float | None:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return float(tree) if isinstance(tree, int | float) and tree > 0 else None


def _open(path: Path) -> Any:
    """Returns the file, open until nothing refers to it. Raises DataError, which names it."""
    with reading(str(path)):
        return _file(path)


def _file(path: Path) -> Any:
    require("h5py", "vla")
    import h5py

    if not path.is_file():
        raise DataError("no such file")
    check_regular(path)
    file = h5py.File(path, "r")
    if found := file.visititems_links(_elsewhere):
        raise DataError(f"{found}, which a file of a stranger may name at will")
    return file


def _elsewhere(name: str, link: Any) -> str | None:
    """What stands in a file but leads into another one; a visit ends there."""
    import h5py

    return f"{name:.80} is a link into the file {link.filename!r:.80}" if isinstance(link, h5py.ExternalLink) else None


def _is_group(item: Any, name: str | None = None) -> bool:
    import h5py

    if name is not None:
        item = item.get(name)
    return isinstance(item, h5py.Group)


def _is_raw(item: Any) -> bool:
    return hasattr(item, "ndim") and item.dtype == "uint8" and item.ndim == 4 and item.shape[3] == 3


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(value.tobytes())
