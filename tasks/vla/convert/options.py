"""What is read of recorded episodes; the options of `mmdiff vla convert` are the fields of `ReadOptions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from mmdiff.errors import ConfigError, DataError, nearest


@Parameter(name="*")
@dataclass(frozen=True)
class ReadOptions:
    """What is read of a source's episodes, and how. Raises ConfigError.

    Attributes:
        fps: frames per second, where the source does not give it.
        instruction: the instruction of every episode, where the source gives none.
        cameras: name of a camera -> its key in the source, in order; None: all that look like pictures.
        state: a key of the state, whose columns are joined; may be given again (default: what the layout is known for).
        action: a key of the action, as of the state.
        rotate: 180 turns pictures round, as those of LIBERO's files need.
        bgr: swap red and blue.
        subset: name under `mask` of a robomimic file, such as train.
        split: split of a TFDS folder (default: train).
    """

    fps: float | None = None
    instruction: str | None = None
    cameras: Annotated[Mapping[str, str] | None, Parameter(parse=False)] = None  # by `--camera NAME=KEY`
    state: Sequence[str] | None = None
    action: Sequence[str] | None = None
    rotate: int = 0
    bgr: bool = False
    subset: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ConfigError(f"fps: {self.fps} is not a number of frames per second above 0")
        if self.instruction is not None and not self.instruction.strip():
            raise ConfigError("instruction: empty, expected a sentence")
        if self.rotate not in (0, 180):
            raise ConfigError(f"rotate: {self.rotate}, expected 0 or 180")
        if self.action is not None and not self.action:
            raise ConfigError("action: no keys, expected at least one")
        for name in ("state", "action"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name}: {getattr(self, name)!r} is a string, expected a list of keys")

    def fps_of(self, stated: float | None, where: str) -> float:
        if self.fps is not None:
            return float(self.fps)
        if stated is None:
            raise ConfigError(f"fps: {where} does not say how many frames per second it has; give it (--fps)")
        return stated

    def instruction_of(self, stated: str | None, where: str) -> str:
        words = (self.instruction or stated or "").strip()
        if not words:
            raise ConfigError(f"instruction: {where} holds none; give one (--instruction)")
        return words

    def pictures(self, found: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
        """Name -> key. found: what there is by default; known: every key there is. Raises DataError."""
        if self.cameras is None:
            return dict(found)
        known = set(known)
        for name, key in self.cameras.items():
            if key not in known:
                raise DataError(f"camera {name}: no {key!r}{nearest(key, known)}")
        return dict(self.cameras)
