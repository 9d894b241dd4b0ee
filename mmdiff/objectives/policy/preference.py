"""Preferences: of two answers to the same prompt, the one that people chose is made likelier (VRPO, arXiv 2505.19223).

With B an estimate of log p, of the model or of a frozen reference, a pair of answers w (chosen) and l (rejected) has

    margin = (B_model(w) - B_reference(w)) - (B_model(l) - B_reference(l))     loss = -log sigmoid(beta * margin)

which is DPO (arXiv 2305.18290) with bounds in place of likelihoods. The margin is unbiased, the log of its sigmoid is
not: the error grows with the variance of the margin. Model and reference therefore see the same masks (of a model that
still is its reference the margin is 0 to the bit), and so do both answers, as far as both reach.

Shape letters: B pairs, D = 2 B answers, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.relayout import by_document
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.model.likelihood.elbo import Elbo
from mmdiff.model.likelihood.passes import Estimator
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.parts.ranges import Half, NotNegative, Positive
from mmdiff.protocols import Model

from .estimate import Forwards, nll_of, planned
from .reference import AdaptersOff, Frozen, Reference


class PairLoss(Protocol):
    """The loss of a pair of answers, of which one is preferred."""

    def __call__(self, margin_B: Tensor, beta: float) -> Tensor:
        """Returns the loss of each pair, of its margin in nats."""
        ...


@part
@dataclass(frozen=True)
class Logistic:
    """-log sigmoid(beta * margin) (DPO). smoothing: the share of pairs that are labelled the wrong way round (cDPO)."""

    smoothing: Half = 0.0

    def __call__(self, margin_B: Tensor, beta: float) -> Tensor:
        right, wrong = -F.logsigmoid(beta * margin_B), -F.logsigmoid(-beta * margin_B)
        return (1 - self.smoothing) * right + self.smoothing * wrong


@part
@dataclass(frozen=True)
class Squared:
    """(margin - 1 / (2 beta)) ** 2 (IPO, arXiv 2310.12036): a margin that is large enough grows no further."""

    def __call__(self, margin_B: Tensor, beta: float) -> Tensor:
        return (margin_B - 1 / (2 * beta)) ** 2


class Known(NamedTuple):
    """What of a model an objective has to know before it plans."""

    attention: Pattern
    reference: Frozen | None


@part
@dataclass(frozen=True)
class Preference:
    """The mean loss of pairs, whose rows are those of `mmdiff.tasks.dialogue.preferences.Preferences`.

    estimator: of log p; one that is unbiased makes an unbiased margin. `Elbo(8)` spreads eight counts over 1..n, which
        varies less than VRPO's eight times of `mmdiff.model.likelihood.drawn.Drawn`.
    beta: how strongly the model is held to the reference, per nat; 0.1 is our choice.
    loss: of a margin. reference: None leaves it out (SimPO, arXiv 2405.14734, with `per_token`).
    per_token: margins are of nats per target of an answer, so that a long one does not count more.
    chosen: the weight of `chosen`, the bound of chosen answers per target, which keeps them likely (RPO).
    restrict: the softmax runs over the ids that a target position may hold (`Target.allow`) only.
    Raises DataError for a sample that is no pair, ConfigError where a reference is asked of a model that has none.
    """

    estimator: Estimator = field(default_factory=lambda: Elbo(8))
    beta: Positive = 0.1
    loss: PairLoss = field(default_factory=Logistic)
    reference: Reference | None = field(default_factory=AdaptersOff)
    per_token: bool = False
    chosen: NotNegative = 0.0
    restrict: bool = True
    known: Known | None = field(default=None, init=False, repr=False)

    def for_model(self, model: Model) -> Preference:
        """Returns the same objective with the model's attention and the reference of this model."""
        out = replace(self)
        frozen = None if self.reference is None else self.reference.of(model)
        object.__setattr__(out, "known", Known(model.attention, frozen))
        return out

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Forwards:
        answers, row_D = by_document(batch)
        count_B = torch.bincount(row_D, minlength=len(batch))
        count_D = answers.target_BL.sum(1)
        for row in (count_B != 2).nonzero()[:, 0].tolist():
            raise DataError(f"sample {row} of the batch: {int(count_B[row])} answers, expected a chosen and a rejected")
        for answer in (count_D == 0).nonzero()[:, 0].tolist():
            what = ("chosen", "rejected")[answer % 2]
            raise DataError(f"sample {answer // 2} of the batch: the {what} answer has no target")
        out = planned(answers, self.estimator, key.fold("estimate"), vocab, self.known and self.known.attention)
        out.drawn["tokens"] = count_D.float()
        out.counts = {"preference": float(len(batch))}
        if self.chosen:
            out.counts["chosen"] = float(count_D[::2].sum())
        return out

    def terms(self, model: Model, plan: Forwards) -> dict[str, Term]:
        reference = self.known and self.known.reference

        def log_p(one: Model) -> Tensor:
            return -nll_of(one, plan, restrict=self.restrict).sum(1)

        base_D = reference(log_p, model) if reference else torch.zeros(())
        own_D = log_p(model)
        gain_D = own_D - base_D
        if self.per_token:
            gain_D = gain_D / plan.drawn["tokens"]
        margin_B = gain_D[::2] - gain_D[1::2]
        known, count = margin_B.detach(), torch.tensor(float(len(margin_B)), device=margin_B.device)
        sums = {
            "preferred": ((known > 0).float().sum() + (known == 0).float().sum() / 2, count),
            "margin": (known.sum(), count),
            "chosen_gain": (gain_D[::2].detach().sum(), count),
            "rejected_gain": (gain_D[1::2].detach().sum(), count),
        }
        out = {"preference": Term(self.loss(margin_B, self.beta).sum(), sums=sums)}
        if self.chosen:
            out["chosen"] = Term(-own_D[::2].sum(), self.chosen)
        return out
