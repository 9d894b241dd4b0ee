"""Does sorting rows by length cost quality? The same rows, once each, in random order, in buckets and packed.

Rows are of two kinds, which is the hard case: short ones (8 to 24 words) of one random chain of words, long ones (48 to
96) of another, so that a batch of one length is of one kind. All runs have the same steps and the same rows, hence
tokens; the figures are the bound in nats per word of held-out rows, mean and standard deviation over seeds, the entropy
of the chains, and CPU seconds.

Run: python benchmarks/speed/bucketing.py [--seeds 3]
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.settings import Config, ModelConfig, StageConfig, TrainConfig
from mmdiff.parts import part
from mmdiff.runs.folder import Run
from mmdiff.training.train import fit, make_accelerator

WORDS, BATCH, STEPS = 12, 16, 300
WAYS: dict[str, dict[str, int]] = {
    "random order": {},
    "bucket: 16": {"bucket": 16},
    "bucket: 64": {"bucket": 64},
    "pack: 256": {"pack": 256},
}


def chains() -> np.ndarray:
    """Returns (2, WORDS, WORDS), the probabilities of the next word of both kinds."""
    return np.random.default_rng(7).dirichlet(np.full(WORDS, 0.15), (2, WORDS))


@part
class Kinds:
    """n rows, half of them long. A row of both kinds is one draw of (seed, number)."""

    def __init__(self, n: int, seed: int = 0) -> None:
        self.n, self.seed = n, seed
        self.next_2VV = chains().cumsum(2)

    def __len__(self) -> int:
        return self.n

    def length(self, index: int) -> float:
        rng = np.random.default_rng([self.seed, index])
        return int(rng.integers(48, 97) if index % 2 else rng.integers(8, 25))

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index, 1])
        words = [int(rng.integers(WORDS))]
        for u in rng.random(int(self.length(index)) - 1):
            words.append(min(int(np.searchsorted(self.next_2VV[index % 2, words[-1]], u)), WORDS - 1))
        return {"words": words}


@part
class Words:
    def sample(self, row: Any, vocab: Any) -> list[Any]:
        return [Target(vocab.encode(" ".join(f"w{word}" for word in row["words"])))]


@part
def small() -> Any:
    words = word_tokenizer([f"w{i}" for i in range(WORDS)])
    return new_backbone(tokenizer=words, hidden_size=48, layers=2, heads=2)


def entropy(rows: Kinds) -> float:
    """Returns the mean of -log p of a word of these rows, in nats."""
    next_2VV, total, count = chains(), 0.0, 0
    for index in range(len(rows)):
        words = rows[index]["words"]
        total -= np.log(next_2VV[index % 2, words[:-1], words[1:]]).sum() - np.log(WORDS)
        count += len(words)
    return float(total / count)


def trained(way: dict[str, int], seed: int) -> tuple[float, float]:
    """Returns the bound in nats per word after training, and CPU seconds."""
    name = f"benchmarks.speed.{Path(__file__).stem}"
    stage = StageConfig(
        steps=STEPS, batch_size=BATCH, lr=5e-3, warmup=0.1, data={"target": f"{name}.Kinds", "n": STEPS * BATCH},
        objective={"target": "mmdiff.objectives.denoise.Denoise"},
        eval={"target": f"{name}.Kinds", "n": 80, "seed": 1},
        **way,  # type: ignore[arg-type]
    )  # fmt: skip
    settings = TrainConfig(seed=seed, stages={"only": stage}, save_every=10**9, log_every=100, tensorboard=False)
    model = ModelConfig(backbone={"target": f"{name}.small"})
    config = Config(name="rows", model=model, task={"target": f"{name}.Words"}, train=settings)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(open(os.devnull, "w")):
        run = Run(Path(folder))
        fit(config, run, make_accelerator(settings), progress_bar=False)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return next(x["bound_per_token"] for x in lines if "bound_per_token" in x), time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    options = Options(__doc__)
    options.number("--seeds", 3)
    given = options.parse_args()
    figures = {}
    print(f"entropy of the held-out rows: {entropy(Kinds(80, 1)):.3f}", flush=True)
    for name, way in WAYS.items():
        found = [trained(way, seed) for seed in range(given.seeds)]
        bounds = [bound for bound, _ in found]
        spread = statistics.stdev(bounds) if len(bounds) > 1 else 0.0
        seconds = min(second for _, second in found)
        print(f"{name:13} {statistics.mean(bounds):.3f} +- {spread:.3f} nats, {seconds:.0f} s", flush=True)
        figures[name] = {"bound": statistics.mean(bounds), "spread": spread, "seconds": seconds}
    write_figures(figures, given.json)


if __name__ == "__main__":
    main()
