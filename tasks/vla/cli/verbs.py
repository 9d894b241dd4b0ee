"""Robots: record and convert demonstrations, look at and replay them, and let a run act, here or as a server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.commands.arguments import Output, Verb, overrides_of
from mmdiff.commands.cli import table
from mmdiff.errors import ConfigError, UserError, nearest

if TYPE_CHECKING:
    from mmdiff.session import Session
    from mmdiff.tasks.vla.task import VLA


def record(args: argparse.Namespace) -> Output:
    """record a simulator's scripted expert as a LeRobot data set"""
    from mmdiff.tasks.vla.rollout.record import record_dataset

    out = Path(args.out)
    spec, tasks = _world(args, None)
    counts = record_dataset(
        out,
        spec,
        tasks,
        args.episodes,
        video=args.video,
        seed=args.seed,
        noise=args.noise,
        share=args.share,
        hold=args.hold,
        processes=args.processes,
    )
    return table({"folder": str(out), **{task: f"{good} of {tried}" for task, (good, tried) in counts.items()}})


def convert(args: argparse.Namespace) -> Output:
    """write HDF5 files (robomimic, LIBERO, ALOHA), numpy folders or RLDS as a LeRobot data set"""
    from mmdiff.tasks.vla.convert.convert import convert as run

    result = run(
        args.source,
        args.out,
        layout=args.layout,
        fps=args.fps,
        instruction=args.instruction,
        cameras=_pairs("--camera", args.camera),
        state=args.state,
        action=args.action,
        rotate=args.rotate,
        bgr=args.bgr,
        subset=args.subset,
        split=args.split,
        skip=args.skip,
        limit=args.limit,
        video=args.video,
        robot_type=args.robot,
    )
    return table(result)


def data(args: argparse.Namespace) -> Output:
    """say what is in a LeRobot data set, and check all of its numbers"""
    from mmdiff.tasks.vla.data.dataset import LeRobot

    found = LeRobot(args.dataset)
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


def stats(args: argparse.Namespace) -> Output:
    """compute the statistics of actions and states that a policy is normalised by"""
    import json

    from mmdiff.files import write_text
    from mmdiff.tasks.vla.data.statistics import read_statistics, to_json

    plain = to_json(read_statistics(args.dataset))
    if args.out:
        if Path(args.out).exists():
            raise UserError(f"--out: {args.out} is there already; nothing was overwritten")
        try:
            write_text(Path(args.out), json.dumps(plain) + "\n")
        except OSError as error:
            raise UserError(f"--out: {args.out} cannot be written ({error.strerror})") from None
    brief = {
        key: {role: {k: v for k, v in one.items() if k != "grid"} for role, one in both.items()}
        for key, both in plain.items()
    }
    return table(brief if not args.out else {"statistics": args.out, **brief})


def codec(args: argparse.Namespace) -> Output:
    """fit a codec to a data set: the table of FAST (--out), or the ranges of DCT bins"""
    from mmdiff.tasks.vla.fit_codecs import fit_dct, fit_fast

    binary = tuple(int(d) if d.lstrip("-").isdigit() else d for d in args.binary or ())
    named: dict[str, Any] = {"normalise": args.normalise, "binary": binary}
    if args.kind == "dct":
        return table(fit_dct(args.dataset, args.chunk, args.bins, args.keep, **named))
    if not args.out:
        raise UserError("--out: name the file of FAST's table, which `task.codec.table` then reads")
    return table(fit_fast(args.dataset, args.out, args.chunk, args.vocab, args.scale, **named))


def replay(args: argparse.Namespace) -> Output:
    """send recorded actions through the codec, and into the simulator they were recorded in"""
    from mmdiff.config import build, task_and_sampler
    from mmdiff.tasks.vla.rollout.replay import replay as run

    own, overrides = [w for w in args.words if not w.startswith("world.")], args.words
    if args.run:
        task: VLA = _session(args.run, own).task  # type: ignore[assignment]
    else:
        node = {"target": "mmdiff.tasks.vla.VLA", "statistics": args.dataset}
        task = build(task_and_sampler(node, {}, own)[0], where="task")
    if not args.world and len(own) < len(overrides):
        raise UserError(f"{next(w for w in overrides if w not in own)}: settings of a simulator need --world")
    spec = _spec(args.world, overrides) if args.world else None
    return table(run(args.dataset, task, key=args.key, spec=spec, episodes=args.episodes))


def evaluate(args: argparse.Namespace) -> Output:
    """let a run act in a simulator: success by task with intervals, beside ablations, chance and the expert"""
    from mmdiff.tasks.vla.rollout.evaluate import ABLATIONS, evaluate_policy

    own, _ = _split(args.words)
    session = _session(args.run, own)
    spec, tasks = _world(args, session)
    ablations = ABLATIONS if args.ablations is None else tuple(filter(None, args.ablations.split(",")))
    figures = evaluate_policy(
        session,
        spec,
        tasks,
        out=Path(args.out) if args.out else None,
        episodes=args.episodes,
        seed=args.seed,
        execute=args.execute,
        inpaint=args.inpaint,
        max_steps=args.max_steps,
        ablations=ablations,
        pairs=_pairs("--swap", args.swap),
        videos=args.videos,
        mp4=args.mp4,
        title=f"{args.run} in closed loop",
        **_strategy(args.strategy, session),
    )
    return table(figures)


def act(args: argparse.Namespace) -> Output:
    """answer one observation: pictures, an instruction and a state to a chunk of actions in robot units"""
    import json

    session = _session(args.run, args.words)
    row: dict[str, Any] = {"image": list(args.image or ()), "instruction": args.instruction}
    if args.state:
        try:
            row["state"] = json.loads(args.state)
        except json.JSONDecodeError as error:
            raise UserError(f"--state: {args.state!r:.60} is not JSON ({error}), expected [0.1, 0.2, ...]") from None
    out = session.predict(row, **_strategy(args.strategy, session))
    lines = "\n".join(" ".join(f"{x:+.4f}" for x in action) for action in out["prediction"])
    return {"actions": out["prediction"], "forwards": out["forwards"]}, lines


def serve(args: argparse.Namespace) -> Output:
    """answer POST /act with a run, until Ctrl-C"""
    from mmdiff.tasks.vla.serve.server import serve as run

    run(args.run, *args.words, host=args.host, port=args.port, cameras=args.camera, execute=args.execute)
    return {}, ""


def _session(run: str, overrides: Sequence[str]) -> Session:
    """Raises ConfigError for a run of another task."""
    from mmdiff.session import load

    session = load(run, *overrides)
    if not callable(getattr(session.task, "units", None)):
        found = type(session.task)
        raise ConfigError(f"{run}: its task is {found.__module__}.{found.__qualname__}, expected mmdiff.tasks.vla.VLA")
    return session


def _strategy(name: str | None, session: Session) -> dict[str, Any]:
    from mmdiff.tasks.vla.strategies import strategy

    task: VLA = session.task  # type: ignore[assignment]
    return strategy(name, *task.groups) if name else {}


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides of a run, those of the simulator)."""
    other, overrides = overrides_of(words)
    if other:
        raise UserError(f"unknown argument {other[0]!r}")
    return [w for w in overrides if not w.startswith("world.")], [w for w in overrides if w.startswith("world.")]


def _spec(name: str, words: Sequence[str]) -> dict[str, Any]:
    from mmdiff.config import parsed

    spec: dict[str, Any] = {"name": name}
    for key, value in map(parsed, _split(words)[1]):
        spec[key.removeprefix("world.")] = value
    return spec


def _world(args: argparse.Namespace, session: Session | None) -> tuple[dict[str, Any], list[str]]:
    """The simulator, and the tasks in it: of the command line, else those the policy was saved with."""
    from mmdiff.tasks.vla.worlds.world import WORLDS, tasks_of

    saved: Mapping[str, Any] = {} if session is None else session.task.world  # type: ignore[attr-defined]
    spec = {**(saved if args.world in (None, saved.get("name")) else {}), **_spec(args.world or "", args.words)}
    if not args.world:
        spec["name"] = saved.get("name")
        if spec["name"] not in WORLDS:  # a saved folder may come from anyone: it names none of its own
            raise UserError(f"--world: name a simulator{nearest(str(spec['name'] or ''), WORLDS)}")
    told = spec.pop("tasks", [])
    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()] if args.tasks else list(told)
    if not tasks:
        known = tasks_of(spec)
        some = f", such as {', '.join(known[:3])}" if known else ""
        raise UserError(f"--tasks: name tasks of {spec['name']}, with commas between{some}")
    return spec, tasks


def _pairs(option: str, words: Sequence[str] | None) -> dict[str, str] | None:
    pairs = [word.partition("=") for word in words or ()]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UserError(f"{option}: {key + equals + value!r} is not NAME=NAME")
    return {key: value for key, _, value in pairs} or None


# Arguments


def _record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the data set to write; must not exist")
    parser.add_argument("--episodes", type=int, default=30, help="layouts a task (default 30)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first layout (default 1000)")
    parser.add_argument("--noise", type=float, default=0.3, help="std of the disturbance of what is executed")
    parser.add_argument("--share", type=float, default=0.5, help="share of the steps that are disturbed")
    parser.add_argument("--hold", type=int, default=1, help="steps that a disturbance lasts")
    parser.add_argument("--processes", type=int, default=1, help="simulators side by side")
    parser.add_argument("--video", action="store_true", help="pictures as mp4, not one by one")
    _simulator(parser, required=True)
    _words(parser, "world.size=64 ...")


def _simulator(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("--world", required=required, help="metaworld | reach | libero | a dotted path")
    parser.add_argument("--tasks", metavar="A,B", help="tasks of the simulator, with commas between")


def _words(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("words", nargs="*", default=[], metavar="key=value", help=what)


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file or folder: HDF5, numpy or TFDS (RLDS)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the data set to write; must not exist")
    parser.add_argument("--layout", help="robomimic | libero | aloha | numpy | rlds (default: found out)")
    parser.add_argument("--fps", type=float, help="frames a second, where the source does not say")
    parser.add_argument("--instruction", help="of every episode, where the source does not say")
    parser.add_argument("--camera", action="append", metavar="NAME=KEY", help="a camera and its key in the source")
    parser.add_argument("--state", action="append", metavar="KEY", help="a key of the state; may be given again")
    parser.add_argument("--action", action="append", metavar="KEY", help="a key of the action; may be given again")
    parser.add_argument("--rotate", type=int, default=0, help="180: turn pictures round, as LIBERO's need")
    parser.add_argument("--bgr", action="store_true", help="swap red and blue")
    parser.add_argument("--subset", help="a robomimic filter key, as train")
    parser.add_argument("--split", help="of a TFDS folder (default train)")
    parser.add_argument("--skip", action="store_true", help="leave broken episodes out, and list them")
    parser.add_argument("--limit", type=int, help="the first so many episodes")
    parser.add_argument("--video", action="store_true", help="pictures as mp4, not one by one")
    parser.add_argument("--robot", help="the robot's name, to be written down")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="the folder of a LeRobot data set")


def _stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="a LeRobot folder, or a file of statistics")
    parser.add_argument("--out", metavar="FILE", help="write them as JSON, quantiles included")


def _codec(parser: argparse.ArgumentParser) -> None:
    _data(parser)
    parser.add_argument("--kind", choices=["fast", "dct"], default="fast", help="default fast")
    parser.add_argument("--chunk", type=int, default=10, help="actions of a chunk (default 10)")
    parser.add_argument("--normalise", default="quantile", help="quantile | bounds | mean_std | none")
    parser.add_argument(
        "--binary", action="append", metavar="DIM", help="a dimension of two values; may be given again"
    )
    parser.add_argument("--out", metavar="FILE", help="of FAST's table; must not exist")
    parser.add_argument("--vocab", type=int, default=1024, help="FAST: codes (default 1024)")
    parser.add_argument("--scale", type=float, default=10.0, help="FAST: rounding of coefficients (default 10)")
    parser.add_argument("--bins", type=int, default=63, help="dct: bins (default 63)")
    parser.add_argument("--keep", type=int, default=3, help="dct: coefficients a dimension (default 3)")


def _replay(parser: argparse.ArgumentParser) -> None:
    _data(parser)
    parser.add_argument("--run", help="a run, whose codec and statistics are used (default: task.codec=... words)")
    parser.add_argument("--key", help="whose statistics, where there are several")
    parser.add_argument("--world", help="another simulator than the one the data set names")
    parser.add_argument("--episodes", type=int, help="the first so many (default: all)")
    _words(parser, "task.chunk=8 task.codec.target=mmdiff.tasks.vla.codecs.bins.UniformBins task.codec.bins=256 ...")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run, or a saved model folder")
    _simulator(parser)
    parser.add_argument("--episodes", type=int, default=10, help="layouts a task (default 10)")
    parser.add_argument("--seed", type=int, default=5000, help="of the first layout (default 5000)")
    parser.add_argument("--execute", type=int, help="actions of a chunk before the next is asked (default: all)")
    parser.add_argument("--inpaint", action="store_true", help="what is left of a chunk begins the next one")
    parser.add_argument("--max-steps", type=int, help="of an episode (default: the simulator's)")
    parser.add_argument("--ablations", help="of no_image,no_language,swapped,random,expert (default: all)")
    parser.add_argument("--swap", action="append", metavar="TASK=TASK", help="whose instruction `swapped` gives a task")
    parser.add_argument("--videos", type=int, default=1, help="successes and failures a task as GIF (default 1)")
    parser.add_argument("--mp4", action="store_true", help="films as mp4 too")
    parser.add_argument("--out", metavar="FOLDER", help="must not exist (default: beside the run's model)")
    _ways(parser)
    _words(parser, "sampler.steps=5 task.key=... world.size=64 ...")


def _ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strategy", help="one_shot | low_confidence | hierarchical | cosine | time_ordered | remask | sampled"
    )


def _act(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run, or a saved model folder")
    parser.add_argument("--image", action="append", help="a picture; one a camera, in the policy's order")
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--state", metavar="JSON", help="[0.1, 0.2, ...]")
    _ways(parser)
    _words(parser, "sampler.steps=5 task.key=... ...")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run, or a saved model folder")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8777, help="default 8777; 0: a free one")
    parser.add_argument("--camera", action="append", metavar="NAME", help="names of the cameras, in the policy's order")
    parser.add_argument("--execute", type=int, help="actions of a chunk a robot should carry out (default: all)")
    _words(parser, "sampler.steps=5 task.key=... ...")


VERBS = {
    "record": Verb(record, _record),
    "convert": Verb(convert, _convert),
    "data": Verb(data, _data),
    "stats": Verb(stats, _stats),
    "codec": Verb(codec, _codec),
    "replay": Verb(replay, _replay),
    "eval": Verb(evaluate, _evaluate),
    "act": Verb(act, _act),
    "serve": Verb(serve, _serve),
}
