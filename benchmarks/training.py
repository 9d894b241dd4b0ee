"""What a training step costs against the plain way, in ratios of one run (one torch thread, medians).

    head     logits on masked positions only, against logits of the whole canvas as published LLaDA code computes them,
             and against the cross-entropy of all positions as dLLM computes it.
             Grows with L * V for the plain way, with (masked positions) * V for ours; the body grows with
             L * D^2 + L^2 * D for both.
    memory   bytes of those logits: the plain way keeps B * L * V floats, ours those of a chunk (`mmdiff.model.scorer`).
    packing  tokens per second of ragged rows: padded as they come, sorted by length, packed (`bucket` and `pack` of a
             stage). Padding grows with the spread of lengths; a packed row pays for a mask of pairs.
    fixed    what the loop adds to a plain step, in CPU milliseconds: `mmdiff train` with its stream, rows, collate,
             noise, log and clipping, against forward, cross-entropy, backward, clipping and AdamW of a batch that is
             there already, on a model so small that little else is left; the tenth percentile of 200 steps of each
             kind.

Run: python benchmarks/training.py [--json [FILE]]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kit import Options, medians, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.canvas.packing import PackedModel, Packing
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.settings import Config, ModelConfig, StageConfig, TrainConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.model import MMDiff
from mmdiff.model.scorer import CHUNK_ELEMENTS
from mmdiff.objectives.denoise import Denoise
from mmdiff.parts import part
from mmdiff.runs.folder import Run
from mmdiff.training.stage import Stage
from mmdiff.training.train import fit, make_accelerator

ROWS = 4
SIZES = ((100, 256), (32_768, 256), (126_464, 256), (126_464, 512))
"""Vocabulary and length of the steps that are compared; 126,464 is LLaDA's."""
cpu_seconds = partial(medians, repeats=5)


def head(vocabulary: int, length: int) -> dict[str, float]:
    """Returns the ratios of a step of a width-256 model whose positions are all targets: half are masked on average."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"w{i}" for i in range(64)])
    backbone = new_backbone(tokenizer=tokenizer, hidden_size=256, layers=4, heads=4, vocab_size=vocabulary)
    model, vocab = MMDiff(backbone), backbone.vocab
    rng = np.random.default_rng(0)
    batch = collate([[Target(t)] for t in rng.integers(4, 60, (ROWS, length)).tolist()], vocab)
    objective = Denoise(Bernoulli(stratified=True))
    noised = objective.plan(batch, NoiseKey(0, batch=ROWS), vocab)
    masked_BL = noised.masked_RL

    def ours() -> float:
        return stepped(model, objective.terms(model, noised)["denoise"].value / noised.counts["denoise"])

    def plain() -> float:
        logits_BLV = backbone(noised.ids_RL)
        nll_P = F.cross_entropy(logits_BLV[masked_BL], batch.ids_BL[masked_BL], reduction="none")
        return stepped(model, (nll_P * noised.weight_RL[masked_BL]).sum() / noised.counts["denoise"])

    def dllm() -> (
        float
    ):  # the cross-entropy of all positions, as its MDLMTrainer takes it, then that of the masked ones
        nll_BL = F.cross_entropy(backbone(noised.ids_RL).transpose(1, 2), batch.ids_BL, reduction="none")
        return stepped(model, (nll_BL * noised.weight_RL * masked_BL).sum() / noised.counts["denoise"])

    values = [ours(), plain(), dllm()]
    assert max(values) - min(values) < 1e-4 * abs(values[0]), values
    fast, slow, slower = cpu_seconds(ours, plain, dllm)
    most = min(CHUNK_ELEMENTS[True] // vocabulary, int(masked_BL.sum()))
    out = {"plain_ratio": slow / fast, "dllm_ratio": slower / fast, "logit_memory_ratio": most / (ROWS * length)}
    print(
        f"head     V={vocabulary}, L={length}: {int(masked_BL.sum())} of {ROWS * length} masked; plain / ours "
        f"{out['plain_ratio']:.2f}x time, dLLM's / ours {out['dllm_ratio']:.2f}x; logits ours / plain "
        f"{out['logit_memory_ratio']:.3f}x memory"
    )
    return out


def stepped(model: MMDiff, loss: torch.Tensor) -> float:
    model.zero_grad()
    loss.backward()
    return float(loss.detach())


def packing(width: int = 128, rows: int = 16, batches: int = 8) -> None:
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"w{i}" for i in range(64)])
    backbone = new_backbone(tokenizer=tokenizer, hidden_size=width, layers=4, heads=4, vocab_size=512)
    model, vocab, objective = MMDiff(backbone), backbone.vocab, Denoise()
    rng = np.random.default_rng(0)
    lengths = np.minimum(8 + rng.geometric(1 / 48, rows * batches), 384)
    samples = [[Text(rng.integers(4, 60, 4).tolist()), Target(rng.integers(4, 60, n).tolist())] for n in lengths]
    by_length = [samples[i] for i in np.argsort(lengths, kind="stable")]

    def steps(order: list[Any], length: int) -> Callable[[], None]:
        made = [collate(order[i : i + rows], vocab) for i in range(0, len(order), rows)]

        def run() -> None:
            for batch in made:
                plan = objective.plan(batch, NoiseKey(0, batch=rows), vocab)
                packed = Packing.of(plan.batch, plan.row_R, length) if length else None
                loss = objective.terms(PackedModel(model, packed) if packed else model, plan)["denoise"]  # type: ignore[arg-type]
                (loss.value / plan.counts["denoise"]).backward()
            model.zero_grad()

        return run

    tokens = int(lengths.sum()) + 4 * len(samples)
    seconds = cpu_seconds(steps(samples, 0), steps(by_length, 0), steps(samples, 256))
    padded, bucketed, packed = (tokens / s for s in seconds)
    print(f"packing  {padded:.0f} tokens/s padded, {bucketed:.0f} sorted by length, {packed:.0f} packed")


@part
class Sequences:
    """Rows of 16 to 48 random words, half of which are to be predicted."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        return {"ids": rng.integers(4, 60, 16 + index % 33).tolist()}


@part
class Halves:
    def sample(self, row: Any, vocab: Any) -> list[Any]:
        ids = row["ids"]
        return [Text(ids[: len(ids) // 2]), Target(ids[len(ids) // 2 :])]


@part
def small() -> Any:
    words = word_tokenizer([f"w{i}" for i in range(64)])
    return new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2)


def fixed(steps: int = 400, rows: int = 8) -> dict[str, float]:
    """Returns CPU milliseconds per step of the loop and of a plain step, which taken in turn, and their difference."""
    made, source, task = MMDiff(small()), Sequences(), Halves()
    batch = collate([task.sample(source[i], made.vocab) for i in range(rows)], made.vocab)
    noised = Denoise().plan(batch, NoiseKey(0, batch=rows), made.vocab)
    optimizer = torch.optim.AdamW(made.parameters(), fused=True)

    def plain() -> None:
        logits_BLV = made.backbone(noised.ids_RL, batch.attend_BL)
        nll_P = F.cross_entropy(logits_BLV[noised.masked_RL], batch.ids_BL[noised.masked_RL], reduction="none")
        ((nll_P * noised.weight_RL[noised.masked_RL]).sum() / noised.counts["denoise"]).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    times: list[float] = []
    step = Stage._step

    def marked(self: Stage, window: list[Any]) -> None:
        step(self, window)
        times.append(time.process_time())
        plain()
        times.append(time.process_time())

    name = f"benchmarks.{Path(__file__).stem}"
    stage = StageConfig(
        steps=steps, batch_size=rows, data={"target": f"{name}.Sequences"},
        objective={"target": "mmdiff.objectives.denoise.Denoise"},
    )  # fmt: skip
    model = ModelConfig(backbone={"target": f"{name}.small"})
    settings = TrainConfig(stages={"only": stage}, save_every=10**9, log_every=50, tensorboard=False)
    config = Config(name="fixed", model=model, task={"target": f"{name}.Halves"}, train=settings)
    with tempfile.TemporaryDirectory() as folder:
        Stage._step = marked  # type: ignore[method-assign]
        fit(config, Run(Path(folder)), make_accelerator(settings), progress_bar=False)
        Stage._step = step  # type: ignore[method-assign]
    spent = 1e3 * np.diff(times[steps // 2 :]).reshape(-1)  # the first ones warm up
    own, loop = (float(np.quantile(spent[first::2], 0.1)) for first in range(2))
    return {"loop_ms": loop, "plain_ms": own, "fixed_ms": loop - own}


def main() -> None:
    torch.set_num_threads(1)
    given = Options(__doc__).parse_args()
    out = {f"{vocabulary}/{length}": head(vocabulary, length) for vocabulary, length in SIZES}
    costs = fixed()
    print("fixed    " + ", ".join(f"{name} {value:.2f}" for name, value in costs.items()))
    figures = {**out["126464/256"], **costs, "by_size": out}
    packing()
    write_figures(figures, given.json)


if __name__ == "__main__":
    main()
