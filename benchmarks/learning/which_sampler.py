"""Which sampler when: tokens per forward against accuracy, on three tasks whose right answers are known by rule.

    python benchmarks/learning/which_sampler.py [--puzzles 400] [--tasks sudoku countdown chain] [--json FILE]

One small model per task is trained from nothing (`puzzles.py`; some minutes of one core; a finished run under runs/
is taken as it is), then every sampler fills the same puzzles at several budgets, and `--png` draws them. Figures:

    tokens    masked positions per forward of a row, over all puzzles
    right     the share of puzzles whose whole answer is right, with a 95 % interval (Wilson)
    likely    chain only: of the transitions of right paths, the share that is the likelier one; the law has 0.6

Sudoku and Countdown are filled at temperature 0; Countdown counts any way that makes the goal, and its problems are
those of the training. Paths of the chain are drawn at temperature 1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, write_figures
from benchmarks.learning.puzzles import TASKS
from mmdiff import load, train
from mmdiff.config.settings import Config, ModelConfig, StageConfig, TrainConfig
from mmdiff.experiments.comparison.intervals import wilson

STEPS = {"sudoku": 5000, "countdown": 3500, "chain": 600}
WIDTH = {"sudoku": 64, "countdown": 96, "chain": 64}
BUDGETS: list[dict[str, Any]] = [{"steps": n} for n in (16, 8, 4, 2)]
RULES, PUZZLES = "mmdiff.samplers.rules", "benchmarks.learning.puzzles"


def settings(target: str, name: str, *values: float, **named: Any) -> list[dict[str, Any]]:
    return [{"select": {"target": f"{RULES}.{target}", name: value}, **named} for value in values]


SAMPLERS: dict[str, list[dict[str, Any]]] = {
    "random": [{"remasking": "random", **budget} for budget in BUDGETS],
    "left to right": [{"remasking": "left_to_right", **budget} for budget in BUDGETS],
    "low confidence": BUDGETS,
    "margin": [{"remasking": "margin", **budget} for budget in BUDGETS],
    "threshold": settings("select.Threshold", "threshold", 0.95, 0.8, 0.6, 0.4),
    "factor": settings("select.Factor", "factor", 0.1, 0.4, 0.8, 1.5),
    "entropy bound": settings("adaptive.EntropyBound", "bound", 0.02, 0.2, 1.0, 3.0, remasking="entropy"),
    "dilated": settings("spaced.Dilated", "base", 2, 4),
    "running confidence": [{"revise": f"{RULES}.revise.RunningConfidence", **budget} for budget in BUDGETS],
}


def config(name: str) -> Config:
    task = f"{PUZZLES}.{TASKS[name].__name__}"
    width = WIDTH[name]
    backbone = {
        "target": "mmdiff.backbones.new_backbone", "tokenizer": {"target": f"{PUZZLES}.tokenizer"},
        "hidden_size": width, "layers": 3, "heads": 4, "rope_theta": 1e4, "init_std": width**-0.5,
    }  # fmt: skip
    stage = StageConfig(
        steps=STEPS[name],
        batch_size=64,
        lr=3e-3,
        lr_end=0.02,
        data={"target": task, "n": 10**6, "seed": 1},
        objective={"target": "mmdiff.objectives.denoise.Denoise"},
    )
    return Config(
        name=f"which-sampler-{name}",
        model=ModelConfig(backbone=backbone),
        task={"target": task},
        train=TrainConfig(
            stages={"only": stage}, threads=1, tensorboard=False, save_every=10**6, log_every=500, betas=(0.9, 0.98)
        ),
    )


def measure(name: str, puzzles: int) -> list[dict[str, Any]]:
    start = time.process_time()
    train(config(name))
    spent, start = time.process_time() - start, time.process_time()
    session, task = load(f"runs/which-sampler-{name}"), TASKS[name](puzzles, seed=5, test=True)
    rows = [task[i] for i in range(puzzles)]
    masked = [sum(i == session.model.vocab.mask_id for i in _target(task, row, session.model.vocab)) for row in rows]
    out = []
    for sampler, points in SAMPLERS.items():
        for named in points:
            found = session.predict_many(rows, early_stop=False, temperature=float(name == "chain"), **named)
            scores = [task.score(one["prediction"], row) for one, row in zip(found, rows, strict=True)]
            right = sum(int(score["right"]) for score in scores)
            low, high = wilson(right, puzzles)
            likely = [score["likely"] for score in scores if "likely" in score]
            out.append(
                {
                    "task": name,
                    "sampler": sampler,
                    "setting": ", ".join(_shown(named)),
                    "tokens": sum(masked) / sum(one["forwards"] for one in found),
                    "right": right / puzzles,
                    "low": low,
                    "high": high,
                    "likely": sum(likely) / len(likely) if len(likely) >= 20 else None,
                }
            )
    print(f"{name}: {spent:.0f} s of training, {time.process_time() - start:.0f} s of sampling, one core")
    return out


def _target(task: Any, row: Any, vocab: Any) -> list[int]:
    target = task.prompt(row, vocab)[-1]
    return list(target.ids) if target.ids is not None else [vocab.mask_id] * target.length


def _shown(named: dict[str, Any]) -> list[str]:
    node = named.get("select")
    if isinstance(node, dict):
        return [f"{key} {value:g}" for key, value in node.items() if key != "target"]
    return [f"steps {named['steps']}"]


def table(points: list[dict[str, Any]]) -> str:
    lines = []
    for sampler in SAMPLERS:
        own = [point for point in points if point["sampler"] == sampler]
        for setting in dict.fromkeys(point["setting"] for point in own):
            cells = [f"{sampler:18s}", f"{setting:14s}"]
            for point in own:
                if point["setting"] == setting:
                    cells.append("{tokens:4.1f}: {right:.2f} ({low:.2f}-{high:.2f})".format(**point))
                    cells += [f"{point['likely']:.2f}" if point["likely"] else "    "] * (point["task"] == "chain")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(points: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point["task"] for point in points))
    figure = Figure(figsize=(3.9 * len(names) + 1.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for sampler, marker in zip(SAMPLERS, "o^sDvPX*h", strict=True):
            own = sorted(
                (p for p in points if (p["task"], p["sampler"]) == (name, sampler)), key=lambda p: float(p["tokens"])
            )
            error = [[p["right"] - p["low"] for p in own], [p["high"] - p["right"] for p in own]]
            x, y = [p["tokens"] for p in own], [p["right"] for p in own]
            axes.errorbar(x, y, error, label=sampler, marker=marker, markersize=5, linewidth=1, elinewidth=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("tokens per forward")
        axes.set_title(name)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.supylabel("share of answers that are right")
    figure.savefig(file, dpi=110)


def main() -> None:
    options = Options(__doc__)
    options.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options.number("--puzzles", 400)
    options.add_argument("--png", type=Path, help="draw the figures there")
    given = options.parse_args()
    torch.set_num_threads(1)
    points = [point for name in given.tasks for point in measure(name, given.puzzles)]
    print(table(points))
    write_figures(points, given.json)
    if given.png:
        draw(points, given.png)


if __name__ == "__main__":
    main()
