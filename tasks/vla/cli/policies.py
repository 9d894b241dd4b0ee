"""Verbs that run a policy or its codec: replay, eval, act, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiff.commands.arguments import AtLeast0, AtLeast1, Output
from mmdiff.commands.cli import table
from mmdiff.errors import UserError

from .options import SAVED, Dataset, PolicyRun, Simulator, Strategy, decoding, pairs, split, world_of


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
    """Evaluate a run in a simulator: success by task with intervals, beside ablations, random actions and the expert.

    Args:
        words: settings, such as sampler.steps=5 task.key=... world.size=64.
        episodes: layouts per task.
        seed: seed of the first layout.
        execute: actions of a chunk that are executed before the next chunk (default: all).
        inpaint: begin a chunk with the rest of the last one.
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
    shown = {name: figures[name] for name in ("success", "success_low", "success_high", "successes", "n")}
    shown["ablations"] = {name: of["success"] for name, of in figures["ablations"].items()}
    return figures, table({**shown, "report": figures["report"]})[1]  # costs and settings are in the report


def act(
    run: PolicyRun,
    /,
    *words: str,
    instruction: str,
    image: list[str] | None = None,
    state: str | None = None,
    strategy: Strategy = None,
) -> Output:
    """Predict a chunk of actions, in robot units, for one observation: pictures, an instruction and a state.

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
    token_file: Path | None = None,
) -> Output:
    """Answer POST /act with a run, until Ctrl-C.

    Args:
        words: settings, such as sampler.steps=5 task.key=...
        host: the address to listen at.
        port: the port to listen at; 0: a free one.
        camera: a camera's name, in the policy's order; may be given again.
        execute: actions of a chunk that a robot should execute (default: all).
        token_file: a file with the token that requests must bear (default: MMDIFF_TOKEN of the environment).
    """
    from mmdiff.tasks.vla.serve.server import serve as answer

    answer(run, *words, host=host, port=port, cameras=camera, execute=execute, token_file=token_file)
    return {}, ""
