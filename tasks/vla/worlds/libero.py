"""LIBERO (Liu et al. 2023) behind the interface of `worlds`, under the protocol that OpenVLA and its successors report.

Assets are the user's: `pip install hf-libero`, and a first `import libero.libero`, which asks for folders
and writes `config.yaml` (in `$LIBERO_CONFIG_PATH`, or `~/.libero`). This adapter is tested against a stand-in of
LIBERO's documented interface, never yet against LIBERO itself.

The protocol (experiments/robot/libero of openvla-oft):

* five suites: libero_spatial, libero_object, libero_goal, libero_10 ("long") of 10 tasks, libero_90 of 90;
* 50 initial states per task, one episode each; the simulator is seeded with 0, the policy with 7;
* 10 steps of the action (0, 0, 0, 0, 0, 0, -1) before the policy acts, while objects fall into place;
* 220, 280, 300, 520 and 400 steps at most, in the order above; success ends an episode;
* pictures of 256 x 256, turned by 180 degrees, as those of the training data are; a policy that was trained on random
  crops is shown the middle 90 % of the area;
* state: position of the hand (3), its rotation as axis times angle (3), both fingers (2);
* gripper: 1 open, 0 closed in OpenVLA's data, made binary and turned into the simulator's -1 open, +1 closed;
* a chunk of 8 actions is executed before the policy gives the next.

Shape letters: D = 7 dimensions of an action (dx, dy, dz, rotations, gripper), S = 8 of the state, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, MissingExtra, nearest, require

from .world import MaxSteps, Pixels, Step, clipped_action

require("gymnasium", "vla")
import gymnasium  # noqa: E402

SUITES: Mapping[str, tuple[int, int]] = {  # tasks, steps per episode
    "libero_spatial": (10, 220),
    "libero_object": (10, 280),
    "libero_goal": (10, 300),
    "libero_10": (10, 520),
    "libero_90": (90, 400),
}
STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # do nothing, gripper open
CAMERAS = ("agentview", "robot0_eye_in_hand")


class Libero(gymnasium.Env):
    """One task: "libero_spatial/0", "libero_spatial/NAME", or NAME alone where one suite has it.

    size: of a picture, H = W.
    cameras: a name or names of `CAMERAS`, in the order a policy gets the pictures; the second is on the wrist.
    openvla_gripper: the last dimension of an action is 1 open, 0 closed, as in the data OpenVLA was tuned on. Otherwise
        it is -1 open, +1 closed, as in LIBERO's own HDF5 files. Either is made binary.
    max_steps: None: the suite's.
    settle: steps of doing nothing before an episode begins.
    success_ends: whether success terminates the episode.

    `reset(seed=s)` starts from initial state s modulo their number (50), so that seeds 0 to 49 are the benchmark's.
    Raises MissingExtra without the package, ConfigError for an unknown task, or where files of LIBERO are missing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    fps = 20.0
    action_names = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    state_names = ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right")

    @typed
    def __init__(
        self,
        task: str,
        size: Pixels = 256,
        cameras: str | Sequence[str] = "agentview",
        openvla_gripper: bool = True,
        max_steps: MaxSteps | None = None,
        settle: Annotated[int, Interval(ge=0, le=1000)] = 10,
        success_ends: bool = True,
    ) -> None:
        self.cameras = [cameras] if isinstance(cameras, str) else list(cameras)
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ConfigError(f'cameras: there is no camera "{camera}"{nearest(camera, CAMERAS)}')
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ConfigError(f"cameras: {cameras!r}, expected one name or several different ones")
        benchmark = _package("libero.libero.benchmark")
        suite_name, number, suite = _find(task, benchmark)
        found = suite.get_task(number)
        self.task, self.task_description = f"{suite_name}/{number}", str(found.language)
        self._bddl = Path(_folder("bddl_files")) / found.problem_folder / found.bddl_file
        states = Path(_folder("init_states")) / found.problem_folder / found.init_states_file
        for path in (self._bddl, states):
            if not path.is_file():
                raise ConfigError(f"{self.task}: LIBERO's {path} is missing, see the paths in {_config_file()}")
        self._initial = _read_states(states)
        self._max_episode_steps = SUITES[suite_name][1] if max_steps is None else max_steps
        self.size, self.openvla_gripper, self.settle, self.success_ends = size, openvla_gripper, settle, success_ends
        self.render_mode = "rgb_array"
        picture = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            pixels=gymnasium.spaces.Dict({camera: picture for camera in self.cameras}),
            agent_pos=gymnasium.spaces.Box(-np.inf, np.inf, (8,), np.float32),
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._env: Any = None
        self._raw: Mapping[str, Any] | None = None  # LIBERO's observation of now
        self._steps = 0

    @staticmethod
    def tasks() -> list[str]:
        return [f"{suite}/{number}" for suite, (tasks, _) in SUITES.items() for number in range(tasks)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        start = int(self.np_random.integers(len(self._initial))) if seed is None else seed % len(self._initial)
        if self._env is None:
            self._env = self._open()
        self._env.seed(0)  # positions of objects depend on it even where the initial state is given
        self._env.reset()
        raw = self._env.set_init_state(self._initial[start])
        for _ in range(self.settle):
            raw = self._env.step(list(STILL))[0]
        self._raw, self._steps = raw, 0
        return self.observe(), {"is_success": False, "initial_state": start}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """action: (D,), clipped to [-1, 1]."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: Any) -> Step:
        """`step` without the observation. LIBERO renders every step, so that this saves little time."""
        self._begun()
        raw, reward, done, info = self._env.step(self.to_simulator(action).tolist())
        self._raw = raw
        self._steps += 1
        success = bool(self._env.check_success())
        terminated = (success and self.success_ends) or (bool(done) and not success)
        return float(reward), terminated, self._steps >= self._max_episode_steps, {**info, "is_success": success}

    def observe(self) -> dict[str, Any]:
        raw = self._begun()
        pixels = {c: np.ascontiguousarray(raw[f"{c}_image"][::-1, ::-1]) for c in self.cameras}
        hand = (raw["robot0_eef_pos"], axis_angle(raw["robot0_eef_quat"]), raw["robot0_gripper_qpos"])
        return {"pixels": pixels, "agent_pos": np.concatenate(hand).astype(np.float32)}

    def to_simulator(self, action: Any) -> np.ndarray:
        """float32 (D,): clipped, the gripper -1 open or +1 closed."""
        action_D = clipped_action(action, 7)
        opens = action_D[6] >= 0.5 if self.openvla_gripper else action_D[6] < 0
        action_D[6] = -1.0 if opens else 1.0
        return action_D

    def expert(self) -> np.ndarray:
        raise ConfigError(f"{self.task}: LIBERO has no scripted expert, its demonstrations are HDF5 files")

    def render(self) -> np.ndarray:
        """uint8 (H, W, 3): what the first camera sees."""
        return next(iter(self.observe()["pixels"].values()))

    def close(self) -> None:
        env, self._env, self._raw = self._env, None, None
        if env is not None:
            env.close()

    def _begun(self) -> Mapping[str, Any]:
        if self._raw is None:
            raise ConfigError(f"{self.task}: reset the world before it is used")
        return self._raw

    def _open(self) -> Any:
        make = _package("libero.libero.envs").OffScreenRenderEnv
        try:
            return make(
                bddl_file_name=str(self._bddl),
                camera_heights=self.size,
                camera_widths=self.size,
                camera_names=list(self.cameras),
            )
        except Exception as error:  # robosuite and MuJoCo raise whatever comes for a mesh that is not there
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(f"{self.task}: LIBERO cannot open it ({why}); are its assets whole?") from error


def axis_angle(quat: Any) -> np.ndarray:
    """A rotation (x, y, z, w) as axis times angle, (3,), the angle in [0, 2 pi] as in LIBERO's data."""
    *axis, w = np.asarray(quat, np.float64)
    w = np.clip(w, -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)  # of half the angle
    return np.zeros(3) if np.isclose(sine, 0.0, rtol=0, atol=1e-9) else np.array(axis) * (2 * np.arccos(w) / sine)


def _find(task: str, benchmark: Any) -> tuple[str, int, Any]:
    """A task's suite by name, its number there, and the suite."""
    name, _, inner = task.rpartition("/")
    if name and name not in SUITES:
        raise ConfigError(f'task: {task!r}: LIBERO has no suite "{name}"{nearest(name, SUITES)}')
    known: list[str] = []
    for suite_name in [name] if name else SUITES:
        suite = benchmark.get_benchmark_dict()[suite_name]()
        names = [suite.get_task(i).name for i in range(suite.get_num_tasks())]
        if name and inner.isdigit() and int(inner) < len(names):
            return suite_name, int(inner), suite
        if inner in names:
            return suite_name, names.index(inner), suite
        known += names
    numbers = f", a number below {len(known)}" if name else ""
    raise ConfigError(
        f"task: {task!r} is not of LIBERO, expected SUITE/NUMBER or a name{numbers}{nearest(inner, known)}"
    )


def _config_file() -> Path:
    return Path(os.environ.get("LIBERO_CONFIG_PATH") or Path.home() / ".libero") / "config.yaml"


def _package(name: str) -> Any:
    """Returns a module of LIBERO. Without its config.yaml LIBERO would ask a question on the terminal: ConfigError."""
    if find_spec("libero") is None:
        raise MissingExtra("libero is not installed: pip install hf-libero")
    if not _config_file().is_file():
        todo = "run `python -c 'import libero.libero'` once, or set LIBERO_CONFIG_PATH to its folder"
        raise ConfigError(f"LIBERO: {_config_file()} is missing: {todo}")
    return import_module(name)


def _folder(key: str) -> str:
    try:
        return str(_package("libero.libero").get_libero_path(key))
    except AssertionError:
        raise ConfigError(f'LIBERO: {_config_file()} gives no path for "{key}"') from None


def _read_states(path: Path) -> np.ndarray:
    """(50, state) of the simulator: an array that torch has pickled. Nothing but arrays is unpickled."""
    import codecs

    import torch
    from torch.serialization import safe_globals

    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    float64 = type(np.dtype(np.float64))
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # numpy 1 and 2
    try:
        with safe_globals([*names, np.ndarray, np.dtype, float64, codecs.encode]):
            states = np.asarray(torch.load(path, weights_only=True))
    except Exception as error:
        raise ConfigError(f"{path}: not a file of initial states ({' '.join(str(error).split()):.200})") from None
    if states.ndim != 2 or not len(states):
        raise ConfigError(f"{path}: holds an array of shape {states.shape}, expected (states, numbers)")
    return states
