"""Masked denoising: LLaDA pre-training and instruction tuning, and their low-variance forms, by configuration.

    pre-training (arXiv 2502.09992 eq. 3):  levels Bernoulli, denominator tokens, random_length 0.01
    tuning       (eq. 5, GUIDELINES.md):    levels Bernoulli, denominator sequences, stage padding eos
    action tokens (arXiv 2509.06932):       levels Bernoulli, denominator each, restrict
    default here:                           levels ExactCount, denominator tokens

What is noised is decided by small parts, one after another: `scopes` say which targets may be, `levels` and `spread`
which of them are, `changes` what else becomes of the copies. docs/objectives.md lists the recipes of papers.

Shape letters: B samples, L canvas length, R rows = B * copies, P masked positions of all rows, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import ExactCount, Levels
from mmdiff.diffusion.spread import Spread
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Half, Share
from mmdiff.protocols import Model

from .noising.change import Change, Replaced
from .noising.emphasis import Emphasis
from .noising.noised import Masks, NoisedBatch, draw_masks, noised_batch
from .noising.scope import Scope, Scoped
from .terms import Term

BINS = 10  # of mask rate, for the loss in the log

Denominator = Callable[[NoisedBatch], tuple[Tensor, float]]
"""noised -> (weight_RL, count): the weight of each masked position, and what the sum is divided by.

A sequence is a group: a document, where a row is packed of several.
"""


def tokens(noised: NoisedBatch) -> tuple[Tensor, float]:
    """The mean per target token: each token of the data has the same weight."""
    return noised.weight_RL, float(noised.scored_RL.sum())


def sequences(noised: NoisedBatch) -> tuple[Tensor, float]:
    """The mean per sequence, each divided by its own answer length: LLaDA's, LLaDA-V's and MMaDA's tuning loss."""
    size_RL, count = _by_group(noised, noised.scored_RL)
    return noised.weight_RL / size_RL.clamp(min=1), count


def masked(noised: NoisedBatch) -> tuple[Tensor, float]:
    """The mean per masked token (DiffuLLaMA, MGDM): another functional than the bound, and noisier."""
    return noised.weight_RL, float(noised.masked_RL.sum())


def mean(noised: NoisedBatch) -> tuple[Tensor, float]:
    """The plain mean over masked tokens, whatever their level (Whisper-LLaDA): no bound. Against the bound, a level
    weighs in proportion to its mask rate, so that what generation starts from is trained most."""
    return torch.ones_like(noised.weight_RL), float(noised.masked_RL.sum())


def each(noised: NoisedBatch) -> tuple[Tensor, float]:
    """The mean over the masked tokens of each sequence, then over sequences: LLaDA-VLA's localized special-token
    classification, with `restrict` (arXiv 2509.06932), and DD-VLA's loss."""
    size_RL, count = _by_group(noised, noised.masked_RL)
    return 1 / size_RL.clamp(min=1), count


def _by_group(noised: NoisedBatch, marked_RL: Tensor) -> tuple[Tensor, float]:
    """Returns how many positions of a position's group are marked, fp32 (R, L), and how many groups have one."""
    size_G = torch.bincount(noised.group_RL[marked_RL], minlength=int(noised.group_RL.max()) + 1).float()
    size_G = torch.cat([size_G, size_G.new_zeros(1)])  # of what is in no group, -1
    return size_G[noised.group_RL], float((size_G > 0).sum())


DENOMINATORS: dict[str, Denominator] = {
    "tokens": tokens,
    "sequences": sequences,
    "masked": masked,
    "mean": mean,
    "each": each,
}


@part
@dataclass(frozen=True)
class Denoise:
    """The weighted cross-entropy of masked positions.

    levels: how many positions are masked, and which (`mmdiff.diffusion.mask_rates`, `spans`, `token_rates`).
    denominator: tokens | sequences | masked | mean | each; papers give all of them one name, so it is a field.
    copies: noised copies of each sample; its media are encoded once for all of them.
    random_length: the share of samples that are cut to a length uniform in 1..L (LLaDA pre-training: 0.01).
    corrupt: the mean share of visible target tokens that are replaced by random ones (end ids are left alone), so that
        the model learns that what it sees is not always right; for drafts that are to be corrected.
    restrict: the softmax runs over the ids that a target position may hold (`Target.allow`) only. Where these are the
        same few for all positions, the other rows of the head are not multiplied.
    spread: how levels lie in a step (`mmdiff.diffusion.spread`); None: evenly or one by one, as `levels.stratified` has
        it. scopes, changes: `mmdiff.objectives.noising`, in the order in which they are made.
    emphasis: a factor on the cross-entropy of a token that depends on how well it is predicted
        (`mmdiff.objectives.noising.emphasis`).
    Raises ConfigError for values out of range.
    """

    levels: Levels = field(default_factory=ExactCount)
    denominator: Literal["tokens", "sequences", "masked", "mean", "each"] = "tokens"
    copies: AtLeast1 = 1
    random_length: Share = 0.0
    corrupt: Half = 0.0
    restrict: bool = True
    spread: Spread | None = None
    scopes: Sequence[Scope] = ()
    changes: Sequence[Change] = ()
    emphasis: Emphasis | None = None

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        return self.noised(batch, key, vocab)[0]

    def noised(self, batch: Batch, key: NoiseKey, vocab: Vocab, parts: int = 1) -> tuple[NoisedBatch, Tensor]:
        """Returns a noised batch, and bool (R, L, parts), which parts of a token are masked; a token is if one is."""
        if self.random_length:
            batch = cut(batch, key.fold("length"), self.random_length)
        scope = Scoped.of(batch, vocab)
        for one in self.scopes:
            scope = one(scope, key.fold("scope"), vocab)
        batch, scored_BL = scope.batch, scope.scored_BL.numpy()
        masks = draw_masks(
            self.levels, self.spread, scored_BL.repeat(parts, axis=1), batch.segment_BL.numpy().repeat(parts, axis=1),
            batch.index_B.tolist(), key, self.copies, batch.ids_BL.numpy().repeat(parts, axis=1),
        )  # fmt: skip
        part_RLN = torch.from_numpy(masks.masked_RL).unflatten(1, (-1, parts))
        if parts > 1:
            first = slice(None, None, parts)
            weight_RL, rate_RL, group_RL = masks.weight_RL[:, first], masks.rate_RL[:, first], masks.group_RL[:, first]
            masks = Masks(part_RLN.any(2).numpy(), weight_RL, rate_RL, group_RL)
        out = noised_batch(batch, masks, vocab.noise_id)
        out.ids_RL = out.ids_RL.masked_fill(scope.hidden_BL.repeat(self.copies, 1), vocab.mask_id)
        corrupted: list[Change] = [Replaced(self.corrupt)] if self.corrupt else []
        for change in (*corrupted, *self.changes):
            out = change(out, key.fold(change.stream), vocab)
        out.weight_RL, count = DENOMINATORS[self.denominator](out)
        out.counts["denoise"] = count
        return out, part_RLN

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        return {"denoise": self.term(model, plan)}

    def term(self, model: Model, plan: NoisedBatch, **extras: Tensor) -> Term:
        """Returns the weighted cross-entropy. extras: what extras of the model embed beside the ids, (R, L, ...)."""
        h_RLD = states(model, plan, **extras)
        return scored(model, plan, h_RLD, self.emphasis, restrict=self.restrict)


def states(model: Model, plan: NoisedBatch, **extras: Tensor) -> Tensor:
    """Returns hidden states (R, L, D) of the noised copies. extras: as for `Denoise.term`."""
    features = model.encode(plan.batch.media)
    copies, beside = len(plan.ids_RL) // len(plan.batch), {"extras": extras} if extras else {}
    if copies == 1:
        return model.hidden(plan.ids_RL, plan.batch, features, plan.row_R, **beside)  # type: ignore[arg-type]
    shared: dict[str, Any] = {**beside, "layout": plan.layout}
    return model.hidden_copies(plan.ids_RL, plan.batch, features, copies, **shared)


def scored(
    model: Model, plan: NoisedBatch, h_RLD: Tensor, emphasis: Emphasis | None = None, *, restrict: bool = True
) -> Term:
    """Returns the weighted sum of the cross-entropies that the hidden states of the noised copies predict."""
    if emphasis is not None:  # whose weights follow from the cross-entropies
        nll_P, correct_P, _ = model.score(h_RLD, plan.batch, plan.masked_RL, plan.row_R, restrict=restrict)
        return weighted(plan, nll_P, correct_P, emphasis)
    weight_P = plan.weight_RL[where(plan.masked_RL)]
    how = {"weight_P": weight_P, "restrict": restrict}
    nll_P, correct_P, total = model.score(h_RLD, plan.batch, plan.masked_RL, plan.row_R, **how)
    return Term(total, sums=by_level(nll_P, correct_P, plan.rate_RL[where(plan.masked_RL)]))


def weighted(plan: NoisedBatch, nll_P: Tensor, correct_P: Tensor, emphasis: Emphasis | None = None) -> Term:
    """Returns the weighted sum of the cross-entropies (P,) of masked positions, with what is logged of them."""
    by_rate = by_level(nll_P.detach(), correct_P, plan.rate_RL[where(plan.masked_RL)])
    weight_P = plan.weight_RL[where(plan.masked_RL)]
    if emphasis is not None:
        weight_P = weight_P * emphasis.factor(nll_P.detach())
    return Term((nll_P * weight_P).sum(), sums=by_rate)


def cut(batch: Batch, key: NoiseKey, share: float) -> Batch:
    """Returns the batch with `share` of the samples cut to a length uniform in 1..L.

    What lies beyond is neither attended nor scored.
    """
    length = batch.ids_BL.shape[1]
    keep_B = [length] * len(batch)
    for b, sample in enumerate(batch.index_B.tolist()):
        coin, u = key.uniform(sample, 2)
        if coin < share:
            keep_B[b] = 1 + int(u * int(batch.attend_BL[b].sum()))
    keep_BL = batch.attend_BL.cumsum(1) <= torch.tensor(keep_B)[:, None]
    attend_BL = batch.attend_BL & keep_BL
    padded = not bool(attend_BL.all())
    return replace(batch, attend_BL=attend_BL, target_BL=batch.target_BL & keep_BL, padded=padded)


def by_level(nll_P: Tensor, correct_P: Tensor, rate_P: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns sums of unweighted cross-entropy (nats) and accuracy, in ten bins of the mask rate and overall.

    The weighted loss mostly shows which levels were drawn; these show what was learnt.
    """
    bin_P = (rate_P * BINS).ceil().long().clamp(1, BINS) - 1
    zeros = torch.zeros(BINS, device=nll_P.device)
    count = zeros.index_add(0, bin_P, torch.ones_like(nll_P))
    return {
        "nll_by_rate": (zeros.index_add(0, bin_P, nll_P), count),
        "accuracy_by_rate": (zeros.index_add(0, bin_P, correct_P.float()), count),
        "nll": (nll_P.sum(), count.sum()),
        "accuracy": (correct_P.float().sum(), count.sum()),
    }
