"""Pairs (k, k + 1 mod 10): the smallest text whose tokens are uniform one by one and certain given each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmdiff.backbones import new_backbone
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import Full
from mmdiff.canvas.query import Query
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config

DIGITS, FIRST = 10, 4  # the words of a tokenizer begin behind its four special tokens
KEY = NoiseKey(0, 0, "x", batch=64)


WIDTH = 32


def model_with(extras: Any = None, layers: int = 2, attention: Any = None) -> MMDiff:
    """extras: a function that makes them, after the backbone, of the size of its vocabulary."""
    torch.manual_seed(0)
    words = word_tokenizer([str(digit) for digit in range(DIGITS)])
    backbone = new_backbone(tokenizer=words, hidden_size=WIDTH, layers=layers, heads=2)
    made = {} if extras is None else extras(backbone.vocab.size)
    return MMDiff(backbone, extras=made, attention=attention or Full())


def pairs(vocab: Vocab, rows: int, first: int = 0) -> Batch:
    """(k, k + 1 mod 10): each half of a pair is uniform, and says all of the other."""
    made = [[Text([FIRST]), Target([FIRST + k % DIGITS, FIRST + (k + 1) % DIGITS])] for k in range(first, first + rows)]
    batch = collate(made, vocab)
    batch.index_B = torch.arange(first, first + rows)
    return batch


def empty(rows: int, vocab: Vocab) -> Batch:
    batch = collate([[Text([FIRST]), Target(length=2)]] * rows, vocab)
    batch.index_B = torch.arange(rows)
    return batch


def valid(ids_BL: Tensor) -> float:
    a_B, b_B = (ids_BL[:, -2:] - FIRST).unbind(1)
    return float((((a_B + 1) % DIGITS == b_B) & (a_B >= 0) & (a_B < DIGITS)).float().mean())


def fit(one: MMDiff, stages: list[tuple[Any, float, int]], batch: Batch | None = None) -> None:
    """stages: objective, learning rate, steps. batch: of 40 rows; None: pairs."""
    batch, step = batch or pairs(one.vocab, 40), 0
    optimiser = torch.optim.AdamW(one.parameters(), weight_decay=0.0)
    for objective, lr, steps in stages:
        optimiser.param_groups[0]["lr"] = lr
        for _ in range(steps):
            step += 1
            plan = objective.plan(batch, replace(KEY, step=step, batch=40), one.vocab)
            terms = objective.terms(one, plan)
            loss: Any = sum(term.coefficient * term.value / plan.counts[name] for name, term in terms.items())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


class Spy:
    """A Denoise that keeps the queries of another. step: whether they may be answered from what is kept."""

    def __init__(self, denoise: Any, step: bool = True) -> None:
        self.denoise, self.step, self.queries, self.seen = denoise, step, list[Query](), list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoise, name)

    def __call__(self, query: Query) -> Any:
        self.queries.append(query)
        out = self.denoise(query if self.step else replace(query, step=None, fresh=None))
        self.seen.append(out.logits_PV.clone())
        return out


def sampled(one: MMDiff, batch: Batch, *, step: bool = True, **options: Any) -> tuple[Tensor, Spy]:
    spy = Spy(one.denoiser(batch), step)
    config = generation_config(**{"early_stop": False, "temperature": 1.0, "seed": 5, **options})
    return sample(spy, batch, one.vocab, config).ids_BL, spy


def longer(one: MMDiff, row: int | None = None) -> Batch:
    """Three rows of unequal context and six masked positions, or one of them."""
    chosen = range(3) if row is None else [row]
    batch = collate([[Text([FIRST] * (1, 3, 2)[n]), Target(length=6)] for n in chosen], one.vocab)
    batch.index_B = torch.tensor(list(chosen))
    return batch
