"""Recorded actions through the codec and back: an upper limit for a policy with these tokens.

The error of the round trip is measured on every frame. Where the data set names which simulator and which layouts it
comes from (`meta/world.json`, written with recorded demonstrations), recorded and decoded actions are both executed
there, which separates the error of the tokens from that of a policy.

Shape letters: N frames, D dimensions of an action, K actions of a chunk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.codecs.bins import ActionCodec
from mmdiff.tasks.vla.codecs.normalise import Normaliser
from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.task import VLA
from mmdiff.tasks.vla.worlds.world import WORLDS, OneWorld, World

from .record import disturbances
from .rollout import Rollout
from .success import rate

Floats = NDArray[np.float64]
NEAR = 1e-3  # in units of the state: farther away, a raw replay did not repeat the recorded episode


@dataclass(frozen=True)
class Recording:
    """The origin of a data set: the simulator, and (task, seed) of every episode.

    noise, share, hold: how the expert was disturbed, see `record`; its clean actions are recorded.
    """

    spec: Mapping[str, Any]
    layouts: Sequence[tuple[str, int]]
    noise: float = 0.0
    share: float = 0.0
    hold: int = 1


class Errors:
    """The errors of a round trip by dimension, in robot units, summed over episodes."""

    def __init__(self, dims: int) -> None:
        self.dims, self.frames = dims, 0
        self.total_D, self.max_D, self.clipped_D = np.zeros(dims), np.zeros(dims), np.zeros(dims, int)

    def add(self, raw_ND: Floats, back_ND: Floats, normaliser: Normaliser) -> None:
        away_ND = np.abs(raw_ND - back_ND)
        self.frames += len(raw_ND)
        self.total_D += away_ND.sum(0)
        self.max_D = np.maximum(self.max_D, away_ND.max(0))
        self.clipped_D += normaliser.clipped(raw_ND)

    def figures(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns by dimension `mean`, `max`, and `clipped`, the number of values outside the range of the tokens."""
        columns = {"mean": self.total_D / max(1, self.frames), "max": self.max_D, "clipped": self.clipped_D}
        names = names or [str(d) for d in range(self.dims)]
        return {name: {key: of[d].item() for key, of in columns.items()} for d, name in enumerate(names)}


def replay(
    dataset: str | Path,
    task: VLA,
    *,
    key: str | None = None,
    spec: Mapping[str, Any] | str | None = None,
    episodes: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Returns figures of a LeRobot folder's actions after a round trip through the tokens of `task`.

    key: whose statistics of the task's. spec: the simulator, instead of the one the data set names.
    episodes: the first so many, or their numbers; None: all.
    `error`: see `Errors.figures`; `mae` is the mean over all of it, `clipped` the sum. `raw` and `codec`: success rates
    of the recorded and the decoded actions at the recorded layouts; absent, with a line in `notes`, where those are not
    known. `drift`: the largest distance between the last states of raw replay and recording; 0 for the same layouts.
    Raises ConfigError and DataError.
    """
    from mmdiff.tasks.vla.data.dataset import LeRobot

    data = LeRobot(dataset)
    units = task.units(key)
    chosen = list(range(len(data)) if episodes is None else range(episodes) if isinstance(episodes, int) else episodes)
    if not chosen or min(chosen) < 0 or max(chosen) >= len(data):
        raise ConfigError(f"episodes: {episodes!r}, expected some of 0..{len(data) - 1} of {dataset}")
    recording, notes = source(Path(dataset), len(data)), []
    if recording is None:
        notes.append("nothing is simulated: the data set does not name its simulator and layouts")
    elif spec is None:
        if (name := recording.spec.get("name")) not in WORLDS:  # a data set may come from anyone
            raise ConfigError(f"{dataset}: its simulator is {name!r}; name it with --world if you trust it")
    else:
        spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        recording = replace(recording, spec=spec)
    errors = Errors(units.action.dims)
    done: dict[str, list[Rollout]] = {"raw": [], "codec": []}
    drift = 0.0
    with closing(OneWorld(recording.spec if recording is not None else {})) as worlds:
        for number in tqdm(chosen, desc="replay", file=sys.stderr, leave=False):
            episode = data.episode(number)
            raw_ND = np.asarray(episode.action, np.float64)
            if raw_ND.shape[1] != units.action.dims:
                found = f"actions of {raw_ND.shape[1]} dimensions, the policy's have {units.action.dims}"
                raise DataError(f"{dataset} episode {number}: {found}")
            back_ND = round_trip(raw_ND, units.action, units.codec, task.chunk)
            errors.add(raw_ND, back_ND, units.action)
            if recording is None:
                continue
            name, seed = recording.layouts[number]
            world = worlds.get(name)
            added_ND = disturbance(world.task, seed, recording, raw_ND.shape)
            for label, actions_ND in (("raw", raw_ND), ("codec", back_ND)):
                run, far = execute(world, seed, actions_ND + added_ND, episode)
                done[label].append(run)
                drift = max(drift, far) if label == "raw" else drift
    by_name = errors.figures(data.action_names)
    figures: dict[str, Any] = {
        "episodes": len(chosen),
        "frames": errors.frames,
        "tokens": units.codec.tokens(task.chunk, units.action.dims),
        "mae": float(errors.total_D.sum() / max(1, errors.frames) / errors.dims),
        "clipped": int(errors.clipped_D.sum()),
        "error": by_name,
    }
    if recording is not None:
        figures |= {label: rate(of) for label, of in done.items()} | {"drift": drift}
        if drift > NEAR:
            notes.append(f"recorded actions end {drift:.3g} from the recorded state: this is not the recorded layout")
    return {**figures, "notes": notes}


def round_trip(raw_ND: Floats, normaliser: Normaliser, codec: ActionCodec, chunk: int) -> Floats:
    """Returns the actions after encoding and decoding by chunks; the last chunk is padded with the last action."""
    short = -len(raw_ND) % chunk
    full_ND = np.concatenate([raw_ND, np.repeat(raw_ND[-1:], short, 0)])
    dims = normaliser.dims
    parts = [
        codec.decode(codec.encode(normaliser.forward(part_KD)), chunk, dims)
        for part_KD in full_ND.reshape(-1, chunk, dims)
    ]
    return normaliser.inverse(np.concatenate(parts))[: len(raw_ND)]


def execute(world: World, seed: int, actions_ND: Floats, episode: Episode) -> tuple[Rollout, float]:
    """Execute all actions at the layout of a seed, also those after a success.

    Returns the episode, and the largest difference between the state before the last action and the recorded one."""
    world.reset(seed=seed)
    run = Rollout(world.task, seed, actions_ND=actions_ND)
    far = 0.0
    for n, action_D in enumerate(actions_ND):
        if n == len(actions_ND) - 1 and episode.state is not None:
            far = float(np.abs(world.observe()["agent_pos"] - episode.state[n]).max())
        reward, _, _, info = world.advance(action_D)
        run.sum_reward += float(reward)
        run.max_reward = max(run.max_reward, float(reward))
        if info["is_success"] and not run.success:
            run.success, run.steps = True, n + 1
    run.steps = run.steps or len(actions_ND)
    return run, far


def disturbance(task: str, seed: int, recording: Recording, shape_ND: tuple[int, ...]) -> Floats:
    """Returns (N, D): the noise that `record` added to the expert's actions, drawn again."""
    n, dims = shape_ND
    return np.stack(list(islice(disturbances(task, seed, recording.noise, recording.share, dims, recording.hold), n)))


def source(dataset: Path, episodes: int) -> Recording | None:
    """Returns the origin in `meta/world.json`; None where there is no such file. Raises DataError."""
    file = dataset / "meta" / "world.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        layouts = [(str(task), int(seed)) for task, seed in found["layouts"]]
        if any(seed < 0 for _, seed in layouts):
            raise ValueError("a seed below 0")
        recording = Recording(
            dict(found["world"]), layouts, float(found["noise"]), float(found["share"]), int(found.get("hold", 1))
        )
    except (ValueError, KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise DataError(f"{file}: {what}; expected world, layouts, noise, share") from None
    if len(layouts) != episodes:
        raise DataError(f"{file}: {len(layouts)} layouts, but the data set has {episodes} episodes")
    return recording
