"""Simulated worlds behind one interface, Gymnasium's: names of tasks, observations, success.

A world is named by a mapping, `{name: metaworld, size: 64}`: `name` is one of `WORLDS` or the dotted path of a class,
everything else goes to its constructor.

Shape letters: D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from annotated_types import Interval

from mmdiff.config import build, locate
from mmdiff.errors import ConfigError, nearest

if TYPE_CHECKING:  # torch, which a process that only simulates does not need
    from mmdiff.protocols import Row

WORLDS = {
    "metaworld": "mmdiff.tasks.vla.worlds.metaworld.MetaWorld",
    "reach": "mmdiff.tasks.vla.worlds.reach.Reach",
    "libero": "mmdiff.tasks.vla.worlds.libero.Libero",
}

Pixels: TypeAlias = Annotated[int, Interval(ge=1, le=4096)]
MaxSteps: TypeAlias = Annotated[int, Interval(ge=1, le=100_000)]
"""Bounds on what a saved world may ask for: sides of a picture, steps of an episode."""

Step = tuple[float, bool, bool, dict[str, Any]]  # reward, terminated, truncated, info with "is_success"


@runtime_checkable
class World(Protocol):
    """What a rollout needs of a simulator; the first nine members are those that lerobot's evaluation uses too.

    `reset(seed=s)` gives the same layout, picture and course whatever was done before it. An observation is
    `{"pixels": {camera: uint8 (H, W, 3)}, "agent_pos": float32 (S,)}`. `step` and `advance` take an action of D floats
    within [-1, 1]; what lies outside is clipped.
    """

    task: str  # "faucet-open-v3"
    task_description: str  # the instruction
    fps: float  # control steps per second
    _max_episode_steps: int
    action_space: Any
    observation_space: Any

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]: ...
    def render(self) -> np.ndarray: ...  # uint8 (H, W, 3), the first camera
    def close(self) -> None: ...
    def advance(self, action: Any) -> Step: ...  # `step` that renders nothing
    def observe(self) -> dict[str, Any]: ...  # the observation of now
    def expert(self) -> np.ndarray: ...  # float32 (D,): the scripted expert's action now


def make_world(spec: Mapping[str, Any] | str, task: str) -> Any:
    """A world of one task. Raises ConfigError for an unknown name, task or option, MissingExtra without its package."""
    name, options = _split(spec)
    if _names_targets(options):  # what a data set or a saved model says of its simulator must not have anything called
        raise ConfigError("world: `target` is no option, and none in one; options are plain values")
    return build({"target": _path(name), **options}, where="world", task=task)


class OneWorld:
    """The worlds of a simulator, one at a time: a world is closed when another task is requested."""

    def __init__(self, spec: Mapping[str, Any] | str) -> None:
        self.spec, self.task, self.world = spec, "", None

    def get(self, task: str) -> Any:
        if task != self.task or self.world is None:
            self.close()
            self.world, self.task = make_world(self.spec, task), task
        return self.world

    def close(self) -> None:
        world, self.world = self.world, None
        if world is not None:
            world.close()


def tasks_of(spec: Mapping[str, Any] | str) -> list[str]:
    """The tasks a world knows by name, those of a `tasks()` of its class; an empty list where it has none."""
    tasks = getattr(locate(_path(_split(spec)[0]), "world.name"), "tasks", None)
    return list(tasks()) if callable(tasks) else []


def row_of(obs: Mapping[str, Any], instruction: str) -> Row:
    """An observation as a row to be answered: "image" (a list where there are several), "state", "instruction"."""
    pictures = list(obs["pixels"].values())
    row: dict[str, Any] = {"image": pictures[0] if len(pictures) == 1 else pictures, "instruction": instruction}
    if "agent_pos" in obs:
        row["state"] = np.asarray(obs["agent_pos"], np.float32)
    return row


def clipped_action(action: Any, dims: int) -> np.ndarray:
    """float32 (dims,) within [-1, 1], so that a recorded action does what it did. Raises ConfigError for another shape
    or a value that is not finite."""
    action_D = np.asarray(action, np.float32)
    if action_D.shape != (dims,):
        raise ConfigError(f"action: has shape {action_D.shape}, expected ({dims},)")
    if not np.isfinite(action_D).all():
        raise ConfigError(f"action: {action_D.tolist()} is not finite")
    return np.clip(action_D, -1.0, 1.0)


def _split(spec: Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"world.name: {name!r}, expected a simulator{nearest('', WORLDS)}")
    return name, options


def _names_targets(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "target" in value or any(map(_names_targets, value.values()))
    return isinstance(value, list | tuple) and any(map(_names_targets, value))


def _path(name: str) -> str:
    if name in WORLDS:
        return WORLDS[name]
    if "." in name:
        return name
    raise ConfigError(f'world.name: there is no simulator "{name}"{nearest(name, WORLDS)}')
