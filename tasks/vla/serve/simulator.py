"""A simulated world over HTTP: what is seen after so many actions, for a person or a policy to act on.

    POST /world    {"task": "reach-red", "seed": 3, "actions": [[1, 0, -1], ...], "first": 0}
                   -> {"task", "seed", "names" of the dimensions of an action, "steps" that were executed, "max_steps",
                       "success", "over", "row": what a policy is asked (pictures are base64 of PNG files),
                       "expert": what the scripted expert would do now, "frames": the pictures after action `first` and
                       those behind it, the last 64 at most}

An episode is a function of its task, seed and actions, so the server keeps none: a request has all actions of it, and
those behind the end of the episode are not executed. One simulator is open at a time, in the thread of the model.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from mmdiff.errors import ConfigError, UserError, line_of, nearest, require
from mmdiff.serving.fields import Fields, Seed
from mmdiff.serving.http.guard import BadRequest, short
from mmdiff.serving.service import Service
from mmdiff.tasks.vla.worlds.world import WORLDS, OneWorld, row_of, tasks_of

require("pydantic", "serve")
from pydantic import Field  # noqa: E402

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mmdiff.tasks.vla.task import VLA

log = logging.getLogger(__name__)
FRAMES = 64
"""Most pictures of one response."""
ACTIONS = 100_000
Command = Annotated[float, Field(ge=-1e6, le=1e6)]  # worlds clip it to [-1, 1]


class WorldRequest(Fields):
    """POST /world."""

    task: str | None = None
    seed: Seed = 0
    actions: Annotated[list[list[Command]], Field(max_length=ACTIONS)] = []
    first: Annotated[int, Field(ge=0)] = Field(0, description="the first action after which a picture is returned")


class Simulator:
    """The simulator that a policy is made for. tasks: full or short names, the first is the default.

    Raises ConfigError for a policy without one, or whose simulator needs packages that are missing.
    """

    def __init__(self, task: VLA) -> None:
        spec = dict(task.world)
        named = spec.pop("tasks", [])
        if spec.get("name") not in WORLDS:  # a saved model may come from anyone: it names no class of its own
            raise ConfigError(f"task.world.name: {short(spec.get('name'))}, expected one of {', '.join(WORLDS)}")
        self.tasks = list(named) or tasks_of(spec)
        if not self.tasks:
            raise ConfigError("task.world.tasks: none is named")
        known = tasks_of(spec)
        self.all = list(dict.fromkeys([*self.tasks, *known]))
        self.worlds = OneWorld(spec)
        self.worlds.get(self.tasks[0])  # raises where a package or an option is wrong
        self.worlds.close()  # opened in this thread, it could not draw in the model's

    def after(self, request: WorldRequest) -> dict[str, Any]:
        """Returns what is so after the actions of a request. Raises BadRequest."""
        name = self.tasks[0] if request.task is None else request.task
        if name not in self.all:
            raise BadRequest(f"task: there is no {short(name)} here{nearest(name[:80], self.all)}", 400, "task")
        world = self.worlds.get(name)
        limit = world._max_episode_steps
        if len(request.actions) > limit:
            raise BadRequest(f"actions: {len(request.actions)}, expected at most {limit} of an episode", 400, "actions")
        seen, _ = world.reset(seed=request.seed)
        frames: list[str] = []
        success = over = False
        steps = 0
        for n, action in enumerate(request.actions):
            try:
                _, terminated, truncated, info = world.advance(np.asarray(action, np.float32))
            except ConfigError as error:
                raise BadRequest(f"actions.{n}: {str(error).removeprefix('action: ')}", 400, "actions") from None
            steps += 1
            success = success or bool(info["is_success"])
            over = success or terminated or truncated
            if n >= request.first and len(request.actions) - n <= FRAMES:
                frames.append(png(world.render()))
            if over:
                break
        row = dict(row_of(world.observe() if request.actions else seen, world.task_description))
        image = row["image"]
        row["image"] = [png(one) for one in image] if isinstance(image, list) else png(image)
        if "state" in row:
            row["state"] = row["state"].tolist()
        expert = getattr(world, "expert", None)
        return {
            "task": world.task,
            "seed": request.seed,
            "names": list(getattr(world, "action_names", ())),
            "steps": steps,
            "max_steps": limit,
            "success": success,
            "over": over,
            "row": row,
            "expert": None if expert is None else np.asarray(expert(), np.float64).tolist(),
            "frames": frames,
        }


def png(image_HW3: np.ndarray) -> str:
    """Returns a picture, uint8 (H, W, 3), as base64 of a PNG file, which loses nothing."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HW3)).save(file, "png", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def simulator_of(task: VLA) -> Simulator | None:
    """Returns the simulator of a policy; None where it has none that runs here."""
    if not task.world:
        return None
    try:
        return Simulator(task)
    except UserError as error:
        log.warning("no POST /world: %s", line_of(error))
    except Exception:  # a package of somebody else's, which the server does not depend on
        log.warning("no POST /world: the simulator %s cannot be opened", task.world.get("name"), exc_info=True)
    return None


def acting_in(simulator: Simulator) -> Callable[[Service, Request], Awaitable[Response]]:
    """Returns the function of POST /world."""
    from starlette.responses import JSONResponse

    async def world(service: Service, http: Request) -> Response:
        async with service.body(http, WorldRequest) as request:
            pass
        return JSONResponse(await service.call(http, lambda: simulator.after(request)))

    return world


def facts_of(simulator: Simulator) -> Mapping[str, Any]:
    """Returns what /health says of a simulator."""
    return {"name": simulator.worlds.spec["name"], "tasks": simulator.all}  # type: ignore[index]
