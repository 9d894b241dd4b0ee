"""Left-to-right training: the cross-entropy of every target token given all ids before it.

What a diffusion model is compared with, and what one may begin as: the configuration has
`model.attention: {target: mmdiff.canvas.patterns.Causal}`.

Shape letters: P target positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model.likelihood import next_targets, next_token
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.protocols import Model


@dataclass
class Clean:
    """A batch as it is, for nothing is drawn. counts: its scored target positions."""

    MASKS: ClassVar = ("scored_BL",)

    batch: Batch
    scored_BL: Tensor
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class NextToken:
    """The mean of -log p(token | those before it) over target tokens, in nats (`mmdiff.model.likelihood.next_token`).

    A document begins with context (`Text`): its first token is predicted by nothing. Padding is `ignore`, so that what
    fills a row up is not scored.
    """

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Clean:
        scored_BL = next_targets(batch, vocab)
        return Clean(batch, scored_BL, {"next": float(scored_BL.sum())})

    def terms(self, model: Model, plan: Clean) -> dict[str, Term]:
        nll_P, correct_P, _ = next_token(model, plan.batch, plan.scored_BL)
        count = nll_P.new_full((), float(len(nll_P)))
        sums = {"nll": (nll_P.detach().sum(), count), "accuracy": (correct_P.float().sum(), count)}
        return {"next": Term(nll_P.sum(), sums=sums)}
