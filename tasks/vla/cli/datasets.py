"""Verbs that make or read data sets of robots: record, convert, data, stats, codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmdiff.commands.arguments import AtLeast0, AtLeast1, Output, Share
from mmdiff.commands.cli import table
from mmdiff.errors import UserError
from mmdiff.tasks.vla.convert.options import ReadOptions

from .options import SAVED, Dataset, Mp4, NewFolder, Simulator, pairs

ALL = ReadOptions()


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
    options: ReadOptions = ALL,
    camera: list[str] | None = None,
    layout: str | None = None,
    skip: bool = False,
    limit: AtLeast1 | None = None,
    video: Mp4 = False,
    robot: str | None = None,
) -> Output:
    """Write HDF5 files (robomimic, LIBERO, ALOHA), numpy folders or RLDS as a LeRobot data set.

    Args:
        source: a file or folder: HDF5, numpy or TFDS (RLDS).
        camera: a camera and its key in the source, NAME=KEY; may be given again (default: all that look like pictures).
        layout: robomimic | libero | aloha | numpy | rlds (default: found out).
        skip: leave broken episodes out, and list them.
        limit: the first so many episodes.
        robot: the robot's name, which the data set records.
    """
    from mmdiff.tasks.vla.convert.convert import convert as run

    options = replace(options, cameras=pairs("--camera", camera))
    return table(run(source, out, options, layout=layout, skip=skip, limit=limit, video=video, robot_type=robot))


def data(dataset: Dataset, /) -> Output:
    """Describe a LeRobot data set; check all of its numbers, and that the frames of videos are those of the rows."""
    from mmdiff.commands.terminal import log
    from mmdiff.tasks.vla.codecs.normalise import Normaliser, Statistics
    from mmdiff.tasks.vla.data.dataset import LeRobot

    found = LeRobot(dataset)
    found.check()
    found.check_videos()
    rare = Normaliser(Statistics.of(found.actions(), found.action_names)).lost()
    for line in rare:
        log(f"warning: actions: {line}")
    return table(
        {
            "episodes": len(found),
            "frames": found.frames,
            "fps": found.fps,
            "cameras": list(found.cameras),
            "action": list(found.action_names or ()) or found.actions().shape[1],
            "state": list(found.state_names or ()) or (0 if (s := found.states()) is None else s.shape[1]),
            "instructions": list(found.tasks),
            **({"rare": rare} if rare else {}),
        }
    )


def stats(dataset: str, /, *, out: Path | None = None) -> Output:
    """Compute the statistics of actions and states that a policy is normalised by.

    Args:
        dataset: a LeRobot folder, or a file of statistics.
        out: a file for them as JSON, quantiles included; must not exist.
    """
    import json

    from mmdiff.files import make_folder, output_file, write_text
    from mmdiff.tasks.vla.data.statistics import read_statistics, to_json

    output_file("--out", out, new=True)
    plain = to_json(read_statistics(dataset))
    if out is not None:
        make_folder("--out", out)
        write_text(out, json.dumps(plain) + "\n")
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
    from mmdiff.files import make_folder, output_file
    from mmdiff.tasks.vla.fit_codecs import fit_dct, fit_fast

    dims = tuple(int(d) if d.lstrip("-").isdigit() else d for d in binary or ())
    named: dict[str, Any] = {"normalise": normalise, "binary": dims}
    if kind == "dct":
        return table(fit_dct(dataset, chunk, bins, keep, **named))
    if not out:
        raise UserError("--out: name the file of FAST's table, which `task.codec.table` then reads")
    make_folder("--out", output_file("--out", out, new=True))
    return table(fit_fast(dataset, out, chunk, vocab, scale, **named))
