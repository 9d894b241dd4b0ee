"""What action tokens save: a context that is run once, and a head of 32 rows, against the plain way, in one run.

    python benchmarks/vla.py [--width 256] [--layers 4] [--context 256] [--chunk 5] [--dims 7] [--steps 10] [--json]

acting: a chunk generated in `steps` steps, with the context's keys and values kept (`prefix_causal`), against all
    positions at every step. The plain step grows with context + chunk, the kept one with the chunk; both give the same
    tokens.
training: four noised copies of a sample behind one context in one row, against four whole rows. The plain cost grows
    with copies x (context + chunk), ours with context + copies x chunk; both give the same loss.
head: the loss of masked positions over the 32 rows of the action tokens, against all rows of the vocabulary with the
    ids that are not allowed there masked. The plain cost grows with the vocabulary; both give the same loss.
Medians of CPU seconds on one torch thread.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kit import Options, medians, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import PrefixCausal
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch

COPIES = 4


def main() -> None:
    options = Options(__doc__)
    for name, value in (("width", 256), ("layers", 4), ("context", 256), ("chunk", 5), ("dims", 7), ("steps", 10)):
        options.number(f"--{name}", value)
    options.number("--vocab", 126464)
    options.number("--batch", 4)
    options.number("--repeat", 5)
    args = options.parse_args()
    torch.set_num_threads(1)
    model = made(args, vocab=64)
    batch = canvases(model, args, filled=False)
    plain = replace_attention(model)

    def generate(kept: bool) -> torch.Tensor:
        return (model if kept else plain).generate(batch, steps=args.steps, temperature=0.0, early_stop=False).ids_BL

    assert torch.equal(generate(True), generate(False)), "the kept context gives other tokens"
    figures = {"acting_ratio": show("acting, one chunk", args.repeat, lambda: generate(False), lambda: generate(True))}

    train = canvases(model, args, filled=True)
    objective = Denoise(denominator="each", copies=COPIES)
    plan = objective.plan(train, NoiseKey(0, 0, "bench"), model.vocab)

    def step(owner: MMDiff) -> float:
        owner.train().zero_grad()
        loss = objective.terms(owner, plan)["denoise"].value / plan.counts["denoise"]
        loss.backward()
        return float(loss.detach())

    assert abs(step(model) - step(plain)) < 1e-4, "copies behind one context give another loss"
    figures["training_ratio"] = show(
        f"training, {COPIES} copies", args.repeat, lambda: step(plain), lambda: step(model)
    )

    large = made(args, vocab=args.vocab, layers=1)
    wide = canvases(large, args, filled=True)
    one = Denoise(denominator="each")
    sliced = one.plan(wide, NoiseKey(0, 0, "bench"), large.vocab)
    whole = replace(sliced, batch=replace(wide, allowed_ids_N=None))
    h_RLD = torch.randn(*wide.ids_BL.shape, args.width, requires_grad=True)

    def head(noised: NoisedBatch) -> float:
        large.zero_grad()
        h_RLD.grad = None
        nll_P = large.score(h_RLD, noised.batch, noised.masked_RL).nll_P
        nll_P.sum().backward()
        return float(nll_P.sum().detach())

    assert abs(head(sliced) - head(whole)) < 1e-2, "the sliced head gives another loss"
    figures["head_ratio"] = show(f"head, {args.vocab} rows", args.repeat, lambda: head(whole), lambda: head(sliced))
    logits = int(sliced.masked_RL.sum()) * 4 / 1e6
    print(f"{'logits of a step':22} plain {logits * args.vocab:8.2f} MB   ours {logits * 32:8.4f} MB")
    write_figures(figures, args.json)


def made(args: Namespace, *, vocab: int, layers: int | None = None) -> MMDiff:
    torch.manual_seed(0)
    backbone = new_backbone(
        tokenizer=word_tokenizer([str(i) for i in range(vocab - 4 - 32)]),
        hidden_size=args.width,
        layers=layers or args.layers,
        heads=4,
        init_std=0.05,
        reserve={"action": 32},
    )
    return MMDiff(backbone, attention=PrefixCausal(), logit_chunk=1 << 20).eval()


class Plain(MMDiff):
    """The same attention without keeping anything: every copy and step runs the whole canvas."""

    def hidden_copies(self, ids_RL: Any, batch: Any, features: Any, copies: int, **_: Any) -> Any:
        return self.hidden(ids_RL, batch, features, torch.arange(len(batch)).repeat(copies))

    def denoiser(self, batch: Batch, **named: Any) -> Any:
        @torch.no_grad()
        def denoise(query: Query) -> Prediction:
            h_RLD = self.hidden(query.ids_RL, batch, {}, query.row_R)
            return Prediction(self.backbone.head(self.gather(h_RLD, *query.at())).float())

        return denoise


def replace_attention(model: MMDiff) -> Plain:
    return Plain(model.backbone, attention=PrefixCausal(), logit_chunk=model.logit_chunk).eval()


def canvases(model: MMDiff, args: Namespace, *, filled: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    low, high = model.vocab.range("action")
    rows = []
    for _ in range(args.batch):
        context = torch.randint(4, 20, (args.context,), generator=generator).tolist()
        ids = torch.randint(low, high, (args.chunk * args.dims,), generator=generator).tolist()
        target = Target(ids, allow=((low, high),)) if filled else Target(length=len(ids), allow=((low, high),))
        rows.append([Text(context), target])
    return collate(rows, model.vocab)


def show(name: str, repeat: int, plain: Callable[[], Any], ours: Callable[[], Any]) -> float:
    """Prints the seconds of both; returns their ratio."""
    a, b = medians(plain, ours, repeats=repeat)
    print(f"{name:22} plain {1000 * a:8.1f} ms   ours {1000 * b:8.1f} ms   ratio {a / b:5.2f}", flush=True)
    return a / b


if __name__ == "__main__":
    main()
