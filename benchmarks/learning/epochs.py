"""The same few documents again and again: where does masked diffusion stand beside training from left to right?

    python benchmarks/learning/epochs.py [--documents 24] [--steps 1280] [--json FILE] [--png FILE]

The recipe of `mmdiff demo text`, both ways (`text-demo`, `text-demo-causal`), with a few documents of the standard
library and a constant learning rate, so that all points are of one run. From left to right there is no stage `near`,
which helps masked diffusion alone. 32 times on the way both are measured on the held-out documents of that recipe:
bits per byte, exact from left to right, an upper bound of the masked model. Both ways see the same tokens; masked
diffusion learns of about half of them in a step. Finished runs are taken as they are; some 20 minutes of one core.
The question: Diffusion Beats Autoregressive in Data-Constrained Settings (arXiv 2507.15857), Diffusion Language
Models are Super Data Learners (arXiv 2511.03276).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, write_figures
from mmdiff.config import build, load_config
from mmdiff.session import load
from mmdiff.tasks.text import PlainText
from mmdiff.tasks.text.bits import causal_bits, masked_bits, size_of
from mmdiff.tasks.text.data.documents import texts_of
from mmdiff.training.train import train

RUNS, POINTS = Path("runs"), 32
BATCH, LENGTH = 16, 128  # tokens of a step, in both stages
WAYS = {"masked": "text-demo", "left to right": "text-demo-causal"}


def documents_of(count: int) -> Path:
    """Writes so many of the documents that the packaged recipe trains on as JSON lines, evenly; returns the file."""
    source = build(load_config("text-demo").train.stages["fit"].data["documents"], where="documents")
    texts = [text for _, text in texts_of(source)]
    RUNS.mkdir(exist_ok=True)
    file = RUNS / f"epochs-{count}.jsonl"
    lines = (json.dumps({"text": text}) + "\n" for text in texts[:: max(1, len(texts) // count)][:count])
    file.write_text("".join(lines), encoding="utf-8")
    return file


def curve(way: str, file: Path, steps: int, fresh: bool) -> dict[str, Any]:
    """Trains one way; returns the tokens it learns from, and at each point (epochs, bits per byte of held-out text)."""
    rows = json.dumps({"target": "mmdiff.tasks.text.data.documents.Documents", "path": str(file)})
    settings = [
        f"name={file.stem}-{steps}-{WAYS[way]}",
        f"train.save_every={steps // POINTS}",
        f"train.keep={POINTS + 1}",
    ]
    stages, steps_of_fit = ("near", "fit"), steps - load_config(WAYS[way]).train.stages["near"].steps
    if way == "left to right":
        stages, steps_of_fit = ("fit",), steps
        settings.append("train.stages.near=null")
    settings.append(f"train.stages.fit.steps={steps_of_fit}")
    for stage in stages:
        settings += [f"train.stages.{stage}.data.documents={rows}", f"train.stages.{stage}.lr_schedule=constant"]
    config = load_config(WAYS[way], settings)
    train(config, fresh=fresh)
    windows, node = build(config.train.stages["fit"].data, where="data"), config.eval.data["heldout"]
    held = build(node, where="eval.data.heldout")
    size = size_of([text for _, text in texts_of(build(node["documents"], where="documents"))])
    points = []
    for folder in sorted((RUNS / str(config.name) / "checkpoints").glob("step-*")):
        session = load(folder, task=PlainText)
        bits = (causal_bits if way == "left to right" else masked_bits)(session.model, session.task, held, size)
        seen = int(folder.name.removeprefix("step-")) * BATCH * LENGTH
        points.append((seen / len(windows.ids_T), bits.bpb))
        print(f"{way:14} {points[-1][0]:6.1f} epochs {bits.bpb:7.3f} bits per byte", flush=True)
    return {"tokens": len(windows.ids_T), "points": points}


def draw(curves: dict[str, Any], file: Path) -> None:
    """Draws both curves against epochs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for way, found in curves.items():
        axes.plot(*zip(*found["points"], strict=True), marker="o", label=way)
    axes.set(xscale="log", xlabel="epochs", ylabel="held-out bits per byte")
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main() -> None:
    options = Options(__doc__)
    options.number("--documents", 24, "that both learn from")
    options.number("--steps", 1280, "of 2,048 tokens")
    options.add_argument("--fresh", action="store_true", help="train anew")
    options.add_argument("--png", type=Path, help="draw the points there")
    given = options.parse_args()
    file = documents_of(given.documents)
    curves = {way: curve(way, file, given.steps, given.fresh) for way in WAYS}
    lowest = {way: min(found["points"], key=lambda point: point[1]) for way, found in curves.items()}
    for way, (epochs, bits) in lowest.items():
        print(
            f"{way:14} is lowest after {epochs:.1f} epochs: {bits:.3f}; at the end {curves[way]['points'][-1][1]:.3f}"
        )
    write_figures(curves, given.json)
    if given.png:
        draw(curves, given.png)


if __name__ == "__main__":
    main()
