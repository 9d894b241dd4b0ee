"""Meta-World (Yu et al. 2019, v3): 50 tasks of a Sawyer arm, with pictures that a machine without a GPU draws quickly.

The simulation is Meta-World's own: states, rewards and success are those of its environment. The pictures are not. They
are drawn without the 4096 x 4096 shadow map, reflections and multi-sampling that make a software renderer 15 times
slower, and without the coloured goal sites, which would tell a policy what only the instruction should.

Layouts follow the seed alone. Goals are part of the scripted experts' observation, never of `agent_pos`.

Shape letters: D = 4 dimensions of an action (dx, dy, dz of the hand in centimetres, gripper effort), S = 4 of the state
(the hand's position in metres, how far the fingers are apart in [0, 1]), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, nearest, require
from mmdiff.parts import part

from .rendering import import_mujoco, new_renderer, quiet
from .world import Pixels, Step, clipped_action

require("gymnasium", "vla")
import gymnasium  # noqa: E402

TASKS: Mapping[str, str] = {  # the instruction of every task, as lerobot words them
    "assembly-v3": "Pick up a nut and place it onto a peg",
    "basketball-v3": "Dunk the basketball into the basket",
    "bin-picking-v3": "Grasp the puck from one bin and place it into another bin",
    "box-close-v3": "Grasp the cover and close the box with it",
    "button-press-topdown-v3": "Press a button from the top",
    "button-press-topdown-wall-v3": "Bypass a wall and press a button from the top",
    "button-press-v3": "Press a button",
    "button-press-wall-v3": "Bypass a wall and press a button",
    "coffee-button-v3": "Push a button on the coffee machine",
    "coffee-pull-v3": "Pull a mug from a coffee machine",
    "coffee-push-v3": "Push a mug under a coffee machine",
    "dial-turn-v3": "Rotate a dial 180 degrees",
    "disassemble-v3": "Pick a nut out of a peg",
    "door-close-v3": "Close a door with a revolving joint",
    "door-lock-v3": "Lock the door by rotating the lock clockwise",
    "door-open-v3": "Open a door with a revolving joint",
    "door-unlock-v3": "Unlock the door by rotating the lock counter-clockwise",
    "drawer-close-v3": "Push and close a drawer",
    "drawer-open-v3": "Open a drawer",
    "faucet-close-v3": "Rotate the faucet clockwise",
    "faucet-open-v3": "Rotate the faucet counter-clockwise",
    "hammer-v3": "Hammer a screw on the wall",
    "hand-insert-v3": "Insert the gripper into a hole",
    "handle-press-side-v3": "Press a handle down sideways",
    "handle-press-v3": "Press a handle down",
    "handle-pull-side-v3": "Pull a handle up sideways",
    "handle-pull-v3": "Pull a handle up",
    "lever-pull-v3": "Pull a lever down 90 degrees",
    "peg-insert-side-v3": "Insert a peg sideways",
    "peg-unplug-side-v3": "Unplug a peg sideways",
    "pick-out-of-hole-v3": "Pick up a puck from a hole",
    "pick-place-v3": "Pick and place a puck to a goal",
    "pick-place-wall-v3": "Pick a puck, bypass a wall and place the puck",
    "plate-slide-back-side-v3": "Get a plate from the cabinet sideways",
    "plate-slide-back-v3": "Get a plate from the cabinet",
    "plate-slide-side-v3": "Slide a plate into a cabinet sideways",
    "plate-slide-v3": "Slide a plate into a cabinet",
    "push-back-v3": "Push the puck to a goal",
    "push-v3": "Push the puck to a goal",
    "push-wall-v3": "Bypass a wall and push a puck to a goal",
    "reach-v3": "Reach a goal position",
    "reach-wall-v3": "Bypass a wall and reach a goal",
    "shelf-place-v3": "Pick and place a puck onto a shelf",
    "soccer-v3": "Kick a soccer into the goal",
    "stick-pull-v3": "Grasp a stick and pull a box with the stick",
    "stick-push-v3": "Grasp a stick and push a box using the stick",
    "sweep-into-v3": "Sweep a puck into a hole",
    "sweep-v3": "Sweep a puck off the table",
    "window-close-v3": "Push and close a window",
    "window-open-v3": "Push and open a window",
}

LONGEST = 500  # Meta-World's own limit
FREE = {"front": {"lookat": (0.0, 0.68, 0.1), "distance": 0.95, "azimuth": -60.0, "elevation": -35.0}}
FIXED = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")  # of the models
CORNER2 = (0.75, 0.075, 0.7)  # where lerobot moves it, after arXiv 2206.14244
UPSIDE_DOWN = ("corner2",)

Cameras = str | Sequence[str] | Mapping[str, Any]


@part
def tokenizer() -> Any:
    """A transformers tokenizer for small backbones: the words of all 50 instructions, in alphabetical order."""
    return word_tokenizer(sorted({word for text in TASKS.values() for word in text.lower().split()}))


class MetaWorld(gymnasium.Env):
    """One task, seen by one or more cameras.

    task: one of `TASKS`, with or without "-v3".
    size: of a picture, H = W.
    cameras: a name or names, in the order a policy gets the pictures: "front" (free, from the left above), or one of
        the models' own in `FIXED`, "corner2" being where lerobot has it and upright. A mapping gives names of one's
        own: to one of those, or to {lookat: [x, y, z], distance, azimuth, elevation} (metres, degrees).
    max_steps: an episode is truncated there; 500 is the benchmark's.
    success_ends: whether success terminates the episode.
    goals: draw the coloured goal sites. They give the task away, but where a goal is a point in the air or on the table
        (reach, push, pick-place) nothing else shows it.

    Nothing is drawn, and no graphics library needed, before the first observation. A world draws in the thread that it
    first drew in. Raises ConfigError for an unknown task or camera, and where no graphics library can be loaded.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}
    fps = 80.0
    action_names = ("dx", "dy", "dz", "gripper")
    state_names = ("x", "y", "z", "gripper")

    @typed
    def __init__(
        self,
        task: str,
        size: Pixels = 64,
        cameras: Cameras = "front",
        max_steps: Annotated[int, Interval(ge=1, le=LONGEST)] = 150,
        success_ends: bool = True,
        goals: bool = False,
    ) -> None:
        self.task = _known(task)
        views, self.goals = _views(cameras), goals
        require("metaworld", "metaworld")
        require("packaging", "metaworld")  # Meta-World imports it without saying so
        self._mujoco = import_mujoco()
        with quiet():
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP

            self._env = ALL_V3_ENVIRONMENTS[self.task]()
        self._env._partially_observable = False  # as in the multi-task benchmarks: the experts see the goal
        vars(self._env).pop("sawyer_observation_space", None)  # cached for the other case
        self._env._set_task_called = True  # the next line replaces a list of 50 layouts by one layout per seed
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self._policy: Any = ENV_POLICY_MAP[self.task]

        self.task_description = TASKS[self.task]
        self.render_mode = "rgb_array"
        self._max_episode_steps, self.success_ends, self.size = max_steps, success_ends, size
        space = self._env.sawyer_observation_space
        picture = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._low_S, self._high_S = (space.low[:4].astype(np.float32), space.high[:4].astype(np.float32))
        self.observation_space = gymnasium.spaces.Dict(
            pixels=gymnasium.spaces.Dict({name: picture for name in views}),
            agent_pos=gymnasium.spaces.Box(self._low_S, self._high_S, dtype=np.float32),
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._views = {name: self._camera(view) for name, view in views.items()}
        self._renderer: Any = None
        self._pixels: dict[str, np.ndarray] | None = None  # of now, once drawn
        self._obs: np.ndarray | None = None  # Meta-World's own, 39 numbers
        self._steps = 0

    @staticmethod
    def tasks() -> list[str]:
        return sorted(TASKS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The layout of a seed; without one, a seed is drawn from the last."""
        super().reset(seed=seed)
        layout = int(self.np_random.integers(2**31)) if seed is None else seed
        self._env.seed(layout)
        obs, _ = self._env.reset()
        # Meta-World moves objects after the last forward pass of a reset, and reports them where they were before.
        self._mujoco.mj_kinematics(self._env.model, self._env.data)
        obs[:18] = obs[18:36] = self._env._get_curr_obs_combined_no_goal()
        self._obs, self._pixels, self._steps = obs, None, 0
        return self.observe(), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """action: (D,), clipped to [-1, 1]."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: Any) -> Step:
        """`step` that renders nothing."""
        self._begun()
        if self._steps >= LONGEST:
            raise ConfigError(f"{self.task}: {LONGEST} steps are all that Meta-World makes, reset the world")
        obs, reward, _, _, info = self._env.step(clipped_action(action, 4))
        self._obs, self._pixels = obs, None
        self._steps += 1
        success = bool(info["success"] > 0)
        info = {**info, "is_success": success}
        return float(reward), success and self.success_ends, self._steps >= self._max_episode_steps, info

    def observe(self) -> dict[str, Any]:
        obs = self._begun()
        if self._pixels is None:
            self._pixels = {name: self._draw(*view) for name, view in self._views.items()}
        state_S = np.clip(obs[:4].astype(np.float32), self._low_S, self._high_S)
        return {"pixels": dict(self._pixels), "agent_pos": state_S}

    def expert(self) -> np.ndarray:
        """float32 (D,): Meta-World's scripted policy, which knows the goal, clipped to [-1, 1]."""
        with quiet():
            action_D = self._policy().get_action(self._begun())
        return np.clip(action_D, -1.0, 1.0).astype(np.float32)

    def render(self) -> np.ndarray:
        """uint8 (H, W, 3): what the first camera sees."""
        return next(iter(self.observe()["pixels"].values()))

    def close(self) -> None:
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()
        self._env.close()

    def _begun(self) -> np.ndarray:
        if self._obs is None:
            raise ConfigError(f"{self.task}: reset the world before it is used")
        return self._obs

    def _camera(self, view: str | Mapping[str, Any]) -> tuple[Any, bool]:
        """A camera of MuJoCo, and whether its picture stands on its head."""
        mujoco, model = self._mujoco, self._env.model
        camera = mujoco.MjvCamera()
        if isinstance(view, str):
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = model.camera(view).id
            if view == "corner2":
                model.cam_pos[camera.fixedcamid] = CORNER2
            return camera, view in UPSIDE_DOWN
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view["lookat"]
        camera.distance, camera.azimuth, camera.elevation = view["distance"], view["azimuth"], view["elevation"]
        return camera, False

    def _draw(self, camera: Any, upside_down: bool) -> np.ndarray:
        if self._renderer is None:
            self._renderer = new_renderer(self._mujoco, self._env.model, self.size)
        shown = self._mujoco.MjvOption()
        if not self.goals:
            shown.sitegroup[:] = 0
        self._renderer.update_scene(self._env.data, camera=camera, scene_option=shown)
        image_HW3 = self._renderer.render()
        return np.ascontiguousarray(image_HW3[::-1, ::-1]) if upside_down else image_HW3


def _known(task: str) -> str:
    for name in (task, f"{task}-v3"):
        if name in TASKS:
            return name
    raise ConfigError(f'task: Meta-World has no "{task}"{nearest(task if "-v" in task else f"{task}-v3", TASKS)}')


def _views(cameras: Cameras) -> dict[str, str | dict[str, Any]]:
    """Name -> a fixed camera, or where a free one stands."""
    if isinstance(cameras, str):
        cameras = [cameras]
    named = dict(cameras) if isinstance(cameras, Mapping) else {name: name for name in cameras}
    if not named or not isinstance(cameras, Mapping) and len(named) != len(cameras):
        raise ConfigError(f"cameras: {cameras!r}, expected one name or several different ones")
    views: dict[str, str | dict[str, Any]] = {}
    for name, view in named.items():
        if isinstance(view, str) and view in FREE:
            view = FREE[view]
        if isinstance(view, Mapping):
            for field in view:
                if field not in FREE["front"]:
                    raise ConfigError(
                        f"cameras.{name}.{field}: a camera has no such field{nearest(field, FREE['front'])}"
                    )
            views[name] = {**FREE["front"], **view}
            _check_camera(name, views[name])
        elif view in FIXED:
            views[name] = str(view)
        else:
            raise ConfigError(f'cameras: there is no camera "{view}"{nearest(str(view), (*FREE, *FIXED))}')
    return views


def _check_camera(name: str, view: Any) -> None:
    for field, value in view.items():
        numbers = value if field == "lookat" and isinstance(value, Sequence) else [value]
        if not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
            raise ConfigError(f"cameras.{name}.{field}: {value!r}, expected a number")
        if field == "lookat" and len(numbers) != 3:
            raise ConfigError(f"cameras.{name}.lookat: {value!r}, expected 3 numbers")
