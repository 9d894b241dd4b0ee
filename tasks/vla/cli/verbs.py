"""Robots: record and convert demonstrations, look at and replay them, and let a run act, here or as a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mmdiff.commands.arguments import AtLeast0, AtLeast1, Output, Share, Verb
from mmdiff.commands.cli import table
from mmdiff.errors import UserError

from .options import (
    SAVED,
    Dataset,
    Mp4,
    NewFolder,
    PolicyRun,
    Simulator,
    Strategy,
    decoding,
    pairs,
    split,
    world_of,
)


def record(
    *words: str,
    out: NewFolder,
    simulator: Simulator = SAVED,
    episodes: AtLeast1 = 30,
    seed: AtLeast0 = 1000,
    noise: float = 0.3,
    share: Share = 0.5,
    hold: AtLeast1 = 1,
    processes: AtLeast1 = 1,
    video: Mp4 = False,
) -> Output:
    """Record a simulator's scripted expert as a LeRobot data set.

    Args:
        words: settings of the simulator, such as world.size=64.
        episodes: layouts per task.
        seed: seed of the first layout.
        noise: standard deviation of the disturbance of what is executed.
        share: share of the steps that are disturbed.
        hold: steps that a disturbance lasts.
        processes: simulators side by side.
    """
    from mmdiff.tasks.vla.rollout.record import record_dataset

    spec, tasks = simulator.resolve(words, {})
    disturbed: dict[str, Any] = {"noise": noise, "share": share, "hold": hold}
    counts = record_dataset(out, spec, tasks, episodes, video=video, seed=seed, processes=processes, **disturbed)
    return table({"folder": out, **{task: f"{good} of {tried}" for task, (good, tried) in counts.items()}})


def convert(
    source: str,
    /,
    *,
    out: NewFolder,
    layout: str | None = None,
    fps: float | None = None,
    instruction: str | None = None,
    camera: list[str] | None = None,
    state: list[str] | None = None,
    action: list[str] | None = None,
    rotate: int = 0,
    bgr: bool = False,
    subset: str | None = None,
    split: str | None = None,
    skip: bool = False,
    limit: AtLeast1 | None = None,
    video: Mp4 = False,
    robot: str | None = None,
) -> Output:
    """Write HDF5 files (robomimic, LIBERO, ALOHA), numpy folders or RLDS as a LeRobot data set.

    Args:
        source: a file or folder: HDF5, numpy or TFDS (RLDS).
        layout: robomimic | libero | aloha | numpy | rlds (default: found out).
        fps: frames per second, where the source does not say.
        instruction: the instruction of every episode, where the source does not say.
        camera: a camera and its key in the source, NAME=KEY; may be given again.
        state: a key of the state; may be given again.
        action: a key of the action; may be given again.
        rotate: 180 turns pictures round, as LIBERO's need.
        bgr: swap red and blue.
        subset: a robomimic filter key, such as train.
        split: split of a TFDS folder (default: train).
        skip: leave broken episodes out, and list them.
        limit: the first so many episodes.
        robot: the robot's name, which the data set records.
    """
    from mmdiff.tasks.vla.convert.convert import convert as run

    read: dict[str, Any] = {"fps": fps, "instruction": instruction, "cameras": pairs("--camera", camera)}
    read |= {"state": state, "action": action, "rotate": rotate, "bgr": bgr, "subset": subset, "split": split}
    return table(run(source, out, layout=layout, skip=skip, limit=limit, video=video, robot_type=robot, **read))


def data(dataset: Dataset, /) -> Output:
    """Describe a LeRobot data set, and check all of its numbers."""
    from mmdiff.tasks.vla.data.dataset import LeRobot

    found = LeRobot(dataset)
    found.check()
    return table(
        {
            "episodes": len(found),
            "frames": found.frames,
            "fps": found.fps,
            "cameras": list(found.cameras),
            "action": list(found.action_names or ()) or found.actions().shape[1],
            "state": list(found.state_names or ()) or (0 if (s := found.states()) is None else s.shape[1]),
            "instructions": list(found.tasks),
        }
    )


def stats(dataset: str, /, *, out: Path | None = None) -> Output:
    """Compute the statistics of actions and states that a policy is normalised by.

    Args:
        dataset: a LeRobot folder, or a file of statistics.
        out: a file for them as JSON, quantiles included; must not exist.
    """
    import json

    from mmdiff.files import write_text
    from mmdiff.tasks.vla.data.statistics import read_statistics, to_json

    plain = to_json(read_statistics(dataset))
    if out is not None:
        if out.exists():
            raise UserError(f"--out: {out} is there already; nothing was overwritten")
        try:
            write_text(out, json.dumps(plain) + "\n")
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written ({error.strerror})") from None
    brief = {
        key: {role: {k: v for k, v in one.items() if k != "grid"} for role, one in both.items()}
        for key, both in plain.items()
    }
    return table(brief if out is None else {"statistics": str(out), **brief})


def codec(
    dataset: Dataset,
    /,
    *,
    kind: Literal["fast", "dct"] = "fast",
    chunk: AtLeast1 = 10,
    normalise: str = "quantile",
    binary: list[str] | None = None,
    out: str | None = None,
    vocab: int = 1024,
    scale: float = 10.0,
    bins: int = 63,
    keep: int = 3,
) -> Output:
    """Fit a codec to a data set: the table of FAST (--out), or the ranges of DCT bins.

    Args:
        kind: the codec.
        chunk: actions per chunk.
        normalise: quantile | bounds | mean_std | none.
        binary: a dimension of two values, by number or name; may be given again.
        out: the file of FAST's table; must not exist.
        vocab: codes of FAST.
        scale: rounding of FAST's coefficients.
        bins: bins of dct.
        keep: coefficients of dct per dimension.
    """
    from mmdiff.tasks.vla.fit_codecs import fit_dct, fit_fast

    dims = tuple(int(d) if d.lstrip("-").isdigit() else d for d in binary or ())
    named: dict[str, Any] = {"normalise": normalise, "binary": dims}
    if kind == "dct":
        return table(fit_dct(dataset, chunk, bins, keep, **named))
    if not out:
        raise UserError("--out: name the file of FAST's table, which `task.codec.table` then reads")
    return table(fit_fast(dataset, out, chunk, vocab, scale, **named))


def replay(
    dataset: Dataset,
    /,
    *words: str,
    run: str | None = None,
    key: str | None = None,
    world: str | None = None,
    episodes: AtLeast1 | None = None,
) -> Output:
    """Send recorded actions through the codec, and into the simulator they were recorded in.

    Args:
        words: settings, such as task.chunk=8 task.codec.target=mmdiff.tasks.vla.codecs.bins.UniformBins.
        run: a run, whose codec and statistics are used (default: those of the settings).
        key: the statistics to use, where there are several.
        world: another simulator than the one the data set names.
        episodes: the first so many (default: all).
    """
    from mmdiff.config import build, task_and_sampler
    from mmdiff.session import load
    from mmdiff.tasks.vla.rollout.replay import replay as send
    from mmdiff.tasks.vla.task import VLA

    own, of_world = split(words)
    if run:
        task = load(run, *own, task=VLA).task
    else:
        node = {"target": "mmdiff.tasks.vla.VLA", "statistics": dataset}
        task = build(task_and_sampler(node, {}, own)[0], where="task")
    if of_world and not world:
        raise UserError(f"{of_world[0]}: settings of a simulator need --world")
    return table(send(dataset, task, key=key, spec=world_of(world, words) if world else None, episodes=episodes))


def evaluate(
    run: PolicyRun,
    /,
    *words: str,
    simulator: Simulator = SAVED,
    episodes: AtLeast1 = 10,
    seed: AtLeast0 = 5000,
    execute: int | None = None,
    inpaint: bool = False,
    max_steps: int | None = None,
    ablations: str | None = None,
    swap: list[str] | None = None,
    videos: AtLeast0 = 1,
    mp4: bool = False,
    out: Path | None = None,
    strategy: Strategy = None,
) -> Output:
    """Let a run act in a simulator: success by task with intervals, beside ablations, chance and the expert.

    Args:
        words: settings, such as sampler.steps=5 task.key=... world.size=64.
        episodes: layouts per task.
        seed: seed of the first layout.
        execute: actions of a chunk before the next is asked for (default: all).
        inpaint: what is left of a chunk begins the next one.
        max_steps: steps per episode (default: the simulator's).
        ablations: some of no_image,no_language,swapped,random,expert (default: all).
        swap: whose instruction `swapped` gives a task, TASK=TASK; may be given again.
        videos: successes and failures per task that are filmed as GIF.
        mp4: films as mp4 too.
        out: the folder of results; must not exist (default: beside the run's model).
    """
    from mmdiff.session import load
    from mmdiff.tasks.vla.rollout.evaluate import ABLATIONS, evaluate_policy
    from mmdiff.tasks.vla.task import VLA

    session = load(run, *split(words)[0], task=VLA)
    spec, tasks = simulator.resolve(words, session.task.world)
    figures = evaluate_policy(
        session,
        spec,
        tasks,
        out=out,
        episodes=episodes,
        seed=seed,
        execute=execute,
        inpaint=inpaint,
        max_steps=max_steps,
        ablations=ABLATIONS if ablations is None else tuple(filter(None, ablations.split(","))),
        pairs=pairs("--swap", swap),
        videos=videos,
        mp4=mp4,
        title=f"{run} in closed loop",
        **decoding(strategy, session.task),
    )
    return table(figures)


def act(
    run: PolicyRun,
    /,
    *words: str,
    instruction: str,
    image: list[str] | None = None,
    state: str | None = None,
    strategy: Strategy = None,
) -> Output:
    """Answer one observation: pictures, an instruction and a state to a chunk of actions in robot units.

    Args:
        words: settings, such as sampler.steps=5 task.key=...
        instruction: what the robot is to do.
        image: a picture; one per camera, in the policy's order.
        state: JSON, [0.1, 0.2, ...].
    """
    import json

    from mmdiff.session import load
    from mmdiff.tasks.vla.task import VLA

    session = load(run, *words, task=VLA)
    row: dict[str, Any] = {"image": image or [], "instruction": instruction}
    if state:
        try:
            row["state"] = json.loads(state)
        except json.JSONDecodeError as error:
            raise UserError(f"--state: {state!r:.60} is not JSON ({error}), expected [0.1, 0.2, ...]") from None
    out = session.predict(row, **decoding(strategy, session.task))
    lines = "\n".join(" ".join(f"{x:+.4f}" for x in action) for action in out["prediction"])
    return {"actions": out["prediction"], "forwards": out["forwards"]}, lines


def serve(
    run: PolicyRun,
    /,
    *words: str,
    host: str = "127.0.0.1",
    port: int = 8777,
    camera: list[str] | None = None,
    execute: int | None = None,
) -> Output:
    """Answer POST /act with a run, until Ctrl-C.

    Args:
        words: settings, such as sampler.steps=5 task.key=...
        host: the address to listen at.
        port: the port to listen at; 0: a free one.
        camera: a camera's name, in the policy's order; may be given again.
        execute: actions of a chunk that a robot should carry out (default: all).
    """
    from mmdiff.tasks.vla.serve.server import serve as answer

    answer(run, *words, host=host, port=port, cameras=camera, execute=execute)
    return {}, ""


VERBS: dict[str, Verb] = {
    "record": record,
    "convert": convert,
    "data": data,
    "stats": stats,
    "codec": codec,
    "replay": replay,
    "eval": evaluate,
    "act": act,
    "serve": serve,
}
