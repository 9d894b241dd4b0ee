"""Which code base laid a multimodal checkpoint out, and what of its folder belongs to it besides config.json.

LLaVA's (`llava.py`), Dream-VL's (`dreamvl.py`) and DiffusionGemma's (`gemma.py`). Each names the parts of a folder, the
tensors of these, and the part that a tensor is of. Torch is not imported, for who looks at a folder need not wait.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from mmdiff.backbones.shares import Published
from mmdiff.backbones.weights import INDEX, SINGLE, read_json
from mmdiff.errors import ConfigError
from mmdiff.files import regular

from . import dreamvl, gemma, llava
from .layout import BESIDE
from .llava import Shapes

FILES = ("preprocessor_config.json", "processor_config.json", "generation_config.json")
"""What is said of pictures and of generation beside config.json; kept with it, and written back as it was."""
FILE_BYTES, HEAD_BYTES = 1 << 16, 1 << 24


class Layout(Protocol):
    """A module of this room that knows how a code base publishes its models."""

    def parts(self, raw: Mapping[str, Any], shapes: Shapes | None) -> dict[str, Any]:
        """Returns the parts as `described.read_config` returns those of a saved model. shapes: None: of a toy twin."""
        ...

    def names_of_parts(
        self, raw: Mapping[str, Any], theirs: Published, tiled: bool, tower: Iterable[str], connector: Iterable[str]
    ) -> Published:
        """Returns {published tensor: what of an MMDiff it holds}, of all tensors of a folder."""
        ...

    def part_of(self, name: str) -> str:
        """Returns what of a model a published tensor is of."""
        ...


def layout_of(raw: Mapping[str, Any]) -> Layout:
    """Returns how a multimodal checkpoint is laid out, by its config.json."""
    found = {dreamvl.FAMILY: dreamvl, gemma.FAMILY: gemma}.get(str(raw.get("model_type")), llava)
    return cast(Layout, found)


def is_multimodal(raw: Mapping[str, Any], tensors: Path | Collection[str]) -> bool:
    """Returns whether a config.json is of a folder with a vision tower beside its language model.

    tensors: the folder, or the names of its tensors, which decide where a config.json describes a tower in any case.
    """
    if "mmdiff_format" in raw:
        return False
    if raw.get("mm_vision_tower") is not None:
        return True
    tower = {dreamvl.FAMILY: dreamvl.TOWER, gemma.FAMILY: gemma.TOWER}.get(str(raw.get("model_type")))
    if tower is None:
        return False
    return any(name.startswith(tower) for name in (_names_in(tensors) if isinstance(tensors, Path) else tensors))


def is_published(folder: Path) -> bool:
    """Returns whether a folder is a published multimodal checkpoint. Raises ConfigError for a config.json that is no
    JSON."""
    return (folder / "config.json").is_file() and is_multimodal(read_json(folder / "config.json"), folder)


def with_files(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a config.json with what `FILES` of its folder hold under `BESIDE`; that of LLaVA's code base as it is.

    Raises ConfigError for one that has such a field of its own.
    """
    if layout_of(raw) is llava:
        return dict(raw)
    if BESIDE in raw:
        raise ConfigError(f"config.json: {BESIDE}: {raw['model_type']} has no such field, its effect is unknown")
    there = {name: _small(folder / name) for name in FILES if (folder / name).exists()}
    return {**raw, BESIDE: there} if there else dict(raw)


def without_files(raw: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Returns the fields of config.json alone, and the content of the files beside it."""
    return {name: value for name, value in raw.items() if name != BESIDE}, raw.get(BESIDE) or {}


def _small(file: Path) -> dict[str, Any]:
    regular(file, FILE_BYTES)
    return read_json(file)


def _names_in(folder: Path) -> Collection[str]:
    """Returns the names of a folder's tensors, as its index or the head of its file has them; () for none."""
    try:
        if (folder / INDEX).is_file():
            found = read_json(folder / INDEX).get("weight_map")
        else:
            with open(folder / SINGLE, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                found = json.loads(file.read(length)) if length <= HEAD_BYTES else None
    except (OSError, ValueError, RecursionError, ConfigError):  # who reads the tensors says what is wrong
        return ()
    return found if isinstance(found, dict) else ()
