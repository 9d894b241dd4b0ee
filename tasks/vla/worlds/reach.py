"""Reaching for a coloured disc on a flat table: a world of a few lines of numpy, for tests and for trying things out.

Four discs, one of each colour, lie on a table; the arm is a round tip. Where they lie is a function of the seed alone,
so that one picture goes with four instructions. The tip has to be on the named disc with its gripper closed.

Shape letters: D = 3 dimensions of an action (dx, dy of the tip, gripper: above 0 is closed), S = 2 of the state (the
tip's position on a table of [-1, 1] x [-1, 1], y down), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, nearest, require

from .world import MaxSteps, Step, clipped_action

require("gymnasium", "vla")
import gymnasium  # noqa: E402

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
}
TABLE, OPEN, CLOSED = (120, 110, 100), (255, 255, 255), (0, 0, 0)  # the tip is white while it is open
STRIDE = 0.1  # how far an action of 1 takes the tip
DISC, TIP = 0.2, 0.1  # radii
TOUCH = 0.1  # how near to the middle of its disc a closed tip has succeeded
EDGE = 0.75  # discs lie within


class Reach(gymnasium.Env):
    """One task: "reach-red", or "red" for short. Raises ConfigError for an unknown one.

    size: of a picture, H = W.
    max_steps: an episode is truncated there; the longest way takes 15 steps.
    success_ends: whether success terminates the episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    fps = 10.0
    action_names = ("dx", "dy", "gripper")
    state_names = ("x", "y")

    @typed
    def __init__(
        self,
        task: str,
        size: Annotated[int, Interval(ge=8, le=4096)] = 32,
        max_steps: MaxSteps = 40,
        success_ends: bool = True,
    ) -> None:
        self.goal = task.removeprefix("reach-")
        if self.goal not in COLORS:
            raise ConfigError(f'task: there is no "{task}"{nearest(f"reach-{self.goal}", self.tasks())}')
        self.task = f"reach-{self.goal}"
        self.task_description = f"reach the {self.goal} disc"
        self.render_mode = "rgb_array"
        self.size, self._max_episode_steps, self.success_ends = size, max_steps, success_ends
        self.observation_space = gymnasium.spaces.Dict(
            pixels=gymnasium.spaces.Dict(front=gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)),
            agent_pos=gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self._middle = (np.arange(size) + 0.5) * 2 / size - 1  # of every pixel, along either side
        self._disc: dict[str, tuple[float, float]] = {}
        self._table = np.empty((size, size, 3), np.uint8)  # the picture without the tip
        self._x = self._y = 0.0
        self._closed, self._steps = False, 0

    @staticmethod
    def tasks() -> list[str]:
        return [f"reach-{color}" for color in COLORS]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The layout of a seed; without one, a seed is drawn from the last."""
        super().reset(seed=seed)
        rng = np.random.default_rng(int(self.np_random.integers(2**31)) if seed is None else seed)
        discs: list[tuple[float, float]] = []
        while len(discs) < len(COLORS):
            x, y = rng.uniform(-EDGE, EDGE, 2)
            if all((x - u) ** 2 + (y - v) ** 2 > (2 * DISC + TIP) ** 2 for u, v in discs):
                discs.append((float(x), float(y)))
        self._disc = dict(zip(COLORS, discs, strict=True))
        self._x, self._y = (float(v) for v in rng.uniform(-0.9, 0.9, 2))
        self._closed, self._steps = False, 0
        self._table[:] = TABLE
        for color, disc in self._disc.items():
            self._table[self._inside(*disc, DISC)] = COLORS[color]
        return self.observe(), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """action: (D,), clipped to [-1, 1]."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: Any) -> Step:
        """`step` that draws nothing. The reward is 1 where the tip has succeeded, else 0."""
        goal_x, goal_y = self._goal()
        dx, dy, gripper = clipped_action(action, 3).tolist()
        self._x = min(max(self._x + STRIDE * dx, -1.0), 1.0)
        self._y = min(max(self._y + STRIDE * dy, -1.0), 1.0)
        self._closed = gripper > 0
        self._steps += 1
        near = (self._x - goal_x) ** 2 + (self._y - goal_y) ** 2 <= TOUCH**2
        success = near and self._closed
        ended = success and self.success_ends
        return float(success), ended, self._steps >= self._max_episode_steps, {"is_success": success}

    def observe(self) -> dict[str, Any]:
        return {"pixels": {"front": self.render()}, "agent_pos": np.array((self._x, self._y), np.float32)}

    def expert(self) -> np.ndarray:
        """float32 (D,): straight to the middle of the disc, the gripper closed on the step that comes close."""
        goal_x, goal_y = self._goal()
        away_x, away_y = goal_x - self._x, goal_y - self._y
        far = max(abs(away_x), abs(away_y))
        shorter = 1 / max(far, STRIDE)  # a whole stride, or what is left of the way
        return np.array((away_x * shorter, away_y * shorter, 1.0 if far <= STRIDE else -1.0), np.float32)

    def render(self) -> np.ndarray:
        """uint8 (H, W, 3)"""
        self._goal()
        image_HW3 = self._table.copy()
        image_HW3[self._inside(self._x, self._y, TIP)] = CLOSED if self._closed else OPEN
        return image_HW3

    def _goal(self) -> tuple[float, float]:
        if not self._disc:
            raise ConfigError(f"{self.task}: reset the world before it is used")
        return self._disc[self.goal]

    def _inside(self, x: float, y: float, radius: float) -> np.ndarray:
        """bool (H, W): the pixels of a disc; its middle is always one of them, however small it is."""
        return ((self._middle - x) ** 2)[None] + ((self._middle - y) ** 2)[:, None] <= max(radius, 1.5 / self.size) ** 2
