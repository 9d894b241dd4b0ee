"""Ablations: rows without pictures, without an instruction, or with that of another task.

An ablation changes a row before the policy sees it. Random actions and the scripted expert are other policies, on the
same layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, nearest
from mmdiff.tasks.vla.worlds.world import make_world, tasks_of

ABLATIONS = ("no_image", "no_language", "swapped", "random", "expert")
GREY = 128


def without_image(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the row with grey pictures; a row of a policy without cameras has none."""
    if "image" not in row:
        return row
    image = row["image"]
    several = isinstance(image, list | tuple)
    grey = [np.full_like(picture, GREY) for picture in (image if several else [image])]
    return {**row, "image": grey if several else grey[0]}


def without_language(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a row with an empty instruction."""
    return {**row, "instruction": ""}


def instructions(spec: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, str]:
    """Returns full name -> instruction of tasks, in order. Raises ConfigError for none, and double or unknown ones."""
    if not tasks:
        raise ConfigError(f"tasks: none is named{nearest('', tasks_of(spec))}")
    instruction_of: dict[str, str] = {}
    for name in tasks:
        world = make_world(spec, name)
        if world.task in instruction_of:
            raise ConfigError(f'tasks: "{world.task}" is named twice')
        instruction_of[world.task] = world.task_description
        world.close()
    return instruction_of


def swaps(
    spec: Mapping[str, Any], instruction_of: Mapping[str, str], pairs: Mapping[str, str] | None
) -> dict[str, tuple[str, str]]:
    """Returns task -> another task and its instruction: the one in `pairs`, else the next. Empty for a single task.

    instruction_of: full name -> instruction. Raises ConfigError for a pair of one task, and a task not
    evaluated.
    """
    names = list(instruction_of)
    after = dict(zip(names, names[1:] + names[:1], strict=True))
    found = {task: (other, instruction_of[other]) for task, other in after.items() if task != other}
    for task, other in (pairs or {}).items():
        (a, _), (b, instruction) = (next(iter(instructions(spec, [name]).items())) for name in (task, other))
        if a not in instruction_of:
            raise ConfigError(f'pairs: "{task}" is not evaluated{nearest(task, instruction_of)}')
        if a == b:
            raise ConfigError(f'pairs: "{task}" is given its own instruction')
        found[a] = b, instruction
    return found
