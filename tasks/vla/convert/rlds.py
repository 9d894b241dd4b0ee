"""Episodes of RLDS data in a TFDS folder (Open X-Embodiment, OpenVLA's LIBERO), read without TensorFlow.

    folder/features.json, dataset_info.json, <name>-<split>.tfrecord-00000-of-00016 ...

`folder` may be the one above it, where there is one version. A record is an episode: `steps` is flattened, so that
"steps/action" holds the values of all steps one after the other and "steps/observation/image" a PNG or JPEG per step.
(tfds, core/example_serializer.py) Tensors of encoding "none", "bytes" and "zlib" are read.

Keys are those below `steps` or `steps/observation`: "action", "state", "image". By default the action is `action`, the
state `state` or `proprio`, the instruction `language_instruction` or `natural_language_instruction`, and all pictures
of three colours are cameras. The data do not give their fps. All steps are kept, as OpenVLA does; the action of the
last step of an RLDS episode need not mean anything.

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.tasks.vla.data.reading import read_json

from .options import ReadOptions
from .source import Array, Recorded, Recording, broken, check_unpacked, decoded, reading, recording, stripped
from .tfrecord import example, records

INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction", "observation/language_instruction")
STATE = ("observation/state", "observation/proprio")


@dataclass(frozen=True)
class Feature:
    """One feature of a step. kind: "image", "text", "tensor", or what features.json calls it."""

    kind: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()
    encoding: str = "none"


def rlds_folder(folder: Path) -> Path | None:
    """The folder that holds features.json: `folder`, or its only version; None where there is none.

    Raises DataError for several versions.
    """
    if (folder / "features.json").is_file():
        return folder
    found = sorted(path.parent for path in folder.glob("*/features.json"))
    if len(found) > 1:
        raise DataError(f"{folder}: holds {', '.join(f.name for f in found)}; give one of these folders")
    return found[0] if found else None


def rlds_episodes(folder: Path, options: ReadOptions) -> Iterator[Recorded]:
    """The episodes of a split, shard after shard. Raises ConfigError, and DataError for a folder that is incomplete."""
    at = rlds_folder(folder)
    if at is None:
        raise DataError(f"{folder}: no features.json, expected a folder that TFDS has written")
    options.fps_of(None, str(folder))
    with reading(str(at / "features.json")):
        features = _features(at / "features.json")
        keys = _chosen(features, options, str(folder))
    with reading(str(at / "dataset_info.json")):
        shards = _shards(at, options.split or "train")
    for shard, count in shards:
        number = -1
        for number, record in enumerate(records(shard)):
            where = f"{shard} episode {number}"
            if isinstance(record, DataError):
                yield broken(where, record)
            else:
                yield Recorded(where, partial(_read, record, features, keys, options, where))
        if count is not None and number + 1 < count:
            error = DataError(f"{shard}: {number + 1} records, dataset_info.json says {count}")
            yield broken(str(shard), error)


@dataclass(frozen=True)
class _Keys:
    action: tuple[str, ...]
    state: tuple[str, ...]
    cameras: Mapping[str, str]
    instruction: str | None


def _chosen(features: Mapping[str, Feature], options: ReadOptions, where: str) -> _Keys:
    """Which features are read. Raises ConfigError: features.json holds for all episodes."""
    vectors = [key for key, feature in features.items() if feature.kind == "tensor"]

    def full(what: str, key: str) -> str:
        for name in (key, f"observation/{key}"):
            if name in features:
                return name
        raise ConfigError(f"{what}: {where} has no {key!r}{nearest(key, features)}")

    if options.action is None and "action" not in vectors:
        known = ", ".join(key for key in vectors if key.startswith("action")) or ", ".join(vectors)
        raise ConfigError(f"action: {where} has no tensor 'action'; give its parts in order, out of {known}")
    action = tuple(full("action", key) for key in options.action or ("action",))
    if options.state is not None:
        state = tuple(full("state", key) for key in options.state)
    else:
        state = tuple(key for key in STATE if key in vectors)[:1]
        numbers = [
            key
            for key in vectors
            if key.startswith("observation/") and features[key].dtype.startswith("float") and "embed" not in key
        ]
        if numbers and not state:
            raise ConfigError(
                f"state: {where} has neither 'state' nor 'proprio'; give keys in order, out of {', '.join(numbers)}, "
                "or none"
            )
    pictures = [key for key, f in features.items() if f.kind == "image" and f.shape[-1:] == (3,) and f.dtype == "uint8"]
    names = [stripped(key.removeprefix("observation/")).replace("/", "_") for key in pictures]
    if options.cameras is None:
        cameras = dict(zip(names, pictures, strict=True))
        if len(cameras) < len(pictures):
            raise ConfigError(f"cameras: {where} has {', '.join(pictures)}; name those that are options")
    else:
        cameras = {name: full(f"camera {name}", key) for name, key in options.cameras.items()}
    words = next((key for key in INSTRUCTIONS if key in features), None)
    if words is None:
        options.instruction_of(None, where)
    return _Keys(action, state, cameras, words)


def _read(record: bytes, features: Mapping[str, Feature], keys: _Keys, options: ReadOptions, where: str) -> Recording:
    values = example(record)

    def columns(names: Sequence[str]) -> list[tuple[str, Array]]:
        found = []
        for key in names:
            with reading(key):
                found.append((key, _numbers(values.get(f"steps/{key}", ()), features[key])))
        return found

    def files(key: str) -> list[bytes]:
        found = list(values.get(f"steps/{key}", ()))
        if not all(isinstance(value, bytes) for value in found):
            raise DataError(f"{key}: holds numbers, expected bytes")
        return found

    words = None
    if options.instruction is None and keys.instruction is not None:
        words = _words(files(keys.instruction))
    return recording(
        options,
        where,
        fps=options.fps_of(None, where),
        instruction=options.instruction_of(words, where),
        action=columns(keys.action),
        state=columns(keys.state),
        cameras={camera: _reader(files(key)) for camera, key in keys.cameras.items()},
    )


def _reader(files: Sequence[bytes]) -> tuple[int, Callable[[int], Array]]:
    return len(files), lambda n: decoded(files[n])


def _numbers(values: Sequence[Any], feature: Feature) -> Array:
    """(N, ...) of the feature's shape. Raises DataError, and what a damaged value makes its decoder raise."""
    if feature.kind != "tensor":
        raise DataError(f"a feature of kind {feature.kind}, expected a tensor")
    try:
        dtype = np.dtype(feature.dtype)
    except TypeError:
        raise DataError(f"a tensor of {feature.dtype}, which numpy does not know") from None
    shape = tuple(n for n in feature.shape if n is not None)
    if len(shape) < len(feature.shape):
        raise DataError(f"a tensor of shape {feature.shape}, expected one that is known")
    if not len(values):
        return np.zeros((0, *shape), dtype)
    if feature.encoding != "none":
        size = prod(shape) * dtype.itemsize

        def unpack(value: bytes) -> bytes:
            found = zlib.decompressobj().decompress(value, size + 1) if feature.encoding == "zlib" else bytes(value)
            if len(found) != size:
                raise DataError(f"a tensor of {len(found)} bytes or more, expected {size}")
            return found

        check_unpacked(size * len(values), sum(map(len, values)), "tensors")
        return np.stack([np.frombuffer(unpack(value), dtype).reshape(shape) for value in values])
    flat = np.array(values, dtype)
    if flat.size % max(prod(shape), 1):
        raise DataError(f"{flat.size} values do not fill steps of shape {shape}")
    return flat.reshape(-1, *shape)


def _words(steps: Sequence[bytes]) -> str:
    """Returns the instruction of an episode, which every step repeats."""
    texts = list(dict.fromkeys(step.decode("utf-8", errors="replace").strip() for step in steps))
    if len(texts) > 1:
        raise DataError(f"the instruction changes from {texts[0]!r:.80} to {texts[1]!r:.80}; expected one")
    if not any(texts):  # other episodes of the data set have one: this one is broken
        raise DataError("empty instruction")
    return texts[0]


def _features(path: Path) -> dict[str, Feature]:
    """Path below `steps` -> feature. Raises DataError."""
    tree = read_json(path)
    steps = _inner(tree).get("steps", {}).get("sequence", {}).get("feature")
    if not isinstance(steps, dict):
        raise DataError(f"{path}: no `steps`, expected episodes as RLDS has them (TFDS 4.5 or later)")
    found: dict[str, Feature] = {}

    def walk(node: Mapping[str, Any], name: str) -> None:
        if "featuresDict" in node:
            for key, child in _inner(node).items():
                walk(child, f"{name}/{key}" if name else key)
            return
        kind = next((k for k in node if k != "pythonClassName"), "unknown")
        content = node.get(kind) or {}
        numbers = (content.get("shape") or {}).get("dimensions", [])
        shape = tuple(int(n) if int(n) >= 0 else None for n in numbers)
        dtype = content.get("dtype", "")
        kind = "text" if dtype in ("string", "object") else kind
        found[name] = Feature(kind, dtype, shape, content.get("encoding") or "none")

    walk(steps, "")
    return found


def _inner(node: Mapping[str, Any]) -> dict[str, Any]:
    return dict((node.get("featuresDict") or {}).get("features") or {})


def _shards(folder: Path, split: str) -> list[tuple[Path, int | None]]:
    """The files of a split in order, with how many records each should have. Raises ConfigError, DataError."""
    info = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else {}
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(f"{folder}: files of format {info['fileFormat']}, expected tfrecord")
    names = {path: match for path in folder.iterdir() if (match := re.search(_SHARD, path.name))}
    lengths = {s.get("name"): [int(n) for n in s.get("shardLengths", [])] for s in info.get("splits", [])}
    known = {match["split"] for match in names.values()} | set(lengths)
    if split not in known:
        raise ConfigError(f"split: {folder} has no {split!r}{nearest(split, known)}")
    of = {int(match["shard"]): path for path, match in names.items() if match["split"] == split}
    totals = {int(match["of"]) for match in names.values() if match["split"] == split}
    counts = lengths.get(split) or []
    total = len(counts) or max(totals, default=0)
    missing = [n for n in range(total) if n not in of]
    if missing or totals != {total}:
        which = f"shard {missing[0]}" if missing else f"one count of shards (found of {sorted(totals)})"
        raise DataError(f"{folder}: split {split} lacks {which} of {total}")
    return [(of[n], counts[n] if counts else None) for n in range(total)]


_SHARD = r"^.+-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d+)-of-(?P<of>\d+)$"
