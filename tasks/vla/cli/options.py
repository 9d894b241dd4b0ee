"""Options that several verbs of `mmdiff vla` share, and how their values are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter

from mmdiff.commands.arguments import overrides_of
from mmdiff.errors import UserError, nearest
from mmdiff.tasks.vla.strategies import STRATEGIES, strategy

if TYPE_CHECKING:
    from mmdiff.tasks.vla.task import VLA

Dataset: TypeAlias = Annotated[str, Parameter(help="the folder of a LeRobot data set.")]
NewFolder: TypeAlias = Annotated[str, Parameter(help="the data set to write; must not exist.")]
PolicyRun: TypeAlias = Annotated[str, Parameter(help="a run, or a saved model folder.")]
Mp4: TypeAlias = Annotated[bool, Parameter(help="store pictures as mp4, not one by one.")]
Strategy: TypeAlias = Annotated[str | None, Parameter(help=" | ".join(STRATEGIES))]


@Parameter(name="*")
@dataclass(frozen=True)
class Simulator:
    """The simulator and the tasks in it; those a policy was saved with are the default.

    Attributes:
        world: metaworld | reach | libero | a dotted path.
        tasks: tasks of the simulator, with commas between.
    """

    world: str | None = None
    tasks: str | None = None

    def resolve(self, words: Sequence[str], saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Returns (simulator, its tasks). words: settings, `world.` ones among them. saved: the policy's simulator."""
        from mmdiff.tasks.vla.worlds.world import WORLDS, tasks_of

        spec = {**(saved if self.world in (None, saved.get("name")) else {}), **world_of(self.world or "", words)}
        if not self.world:
            spec["name"] = saved.get("name")
            if spec["name"] not in WORLDS:  # a saved folder may come from anyone: it names none of its own
                raise UserError(f"--world: name a simulator{nearest(str(spec['name'] or ''), WORLDS)}")
        default = spec.pop("tasks", [])
        tasks = [task.strip() for task in self.tasks.split(",") if task.strip()] if self.tasks else list(default)
        if not tasks:
            known = tasks_of(spec)
            some = f", such as {', '.join(known[:3])}" if known else ""
            raise UserError(f"--tasks: name tasks of {spec['name']}, with commas between{some}")
        return spec, tasks


SAVED = Simulator()


def world_of(name: str, words: Sequence[str]) -> dict[str, Any]:
    """A simulator by name, with its settings among `words`."""
    from mmdiff.config import parsed

    spec: dict[str, Any] = {"name": name}
    for key, value in map(parsed, split(words)[1]):
        spec[key.removeprefix("world.")] = value
    return spec


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings of a run, those of the simulator)."""
    other, overrides = overrides_of(words)
    if other:
        raise UserError(f"unknown argument {other[0]!r}")
    return [w for w in overrides if not w.startswith("world.")], [w for w in overrides if w.startswith("world.")]


def pairs(option: str, words: Sequence[str] | None) -> dict[str, str] | None:
    """`--swap a=b` as {a: b}; None where the option is not given."""
    split_words = [word.partition("=") for word in words or ()]
    for key, equals, value in split_words:
        if not (key and equals and value):
            raise UserError(f"{option}: {key + equals + value!r} is not NAME=NAME")
    return {key: value for key, _, value in split_words} or None


def decoding(name: str | None, task: VLA) -> dict[str, Any]:
    """Fields of GenerationConfig of `--strategy`."""
    return strategy(name, *task.groups) if name else {}
