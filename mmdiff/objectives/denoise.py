"""Masked denoising: LLaDA pre-training and instruction tuning, and their low-variance forms, by configuration.

    pre-training (arXiv 2502.09992 eq. 3):  levels Bernoulli, denominator tokens, random_length 0.01
    tuning       (eq. 5, GUIDELINES.md):    levels Bernoulli, denominator sequences, stage padding eos
    action tokens (arXiv 2509.06932):       levels Bernoulli, denominator each, restrict
    default here:                           levels ExactCount, denominator tokens

Shape letters: B samples, L canvas length, R rows = B * copies, P masked positions of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.ranges import AtLeast1, Half, Share
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bools, ExactCount, Levels, Masked
from mmdiff.errors import ConfigError, nearest
from mmdiff.parts import part
from mmdiff.protocols import Model

from .terms import Term

BINS = 10  # of mask rate, for the loss in the log


@dataclass
class NoisedBatch:
    """Noised copies of a batch. counts: the local denominator of each term, known before any forward."""

    batch: Batch
    ids_RL: Tensor
    masked_RL: Tensor  # bool, the masked positions
    weight_R: Tensor  # fp32, of each masked position of a row
    rate_R: Tensor  # fp32, mask rate
    row_R: Tensor  # the sample a row is a copy of
    counts: dict[str, float]


Denominator = Callable[[NoisedBatch, Tensor], tuple[Tensor, float]]
"""(noised, size_R) -> (weight_R, count): the weight of each masked position, and what the sum is divided by.

size_R: target positions of each row.
"""


def tokens(noised: NoisedBatch, size_R: Tensor) -> tuple[Tensor, float]:
    """The mean per target token: each token of the data has the same weight."""
    return noised.weight_R, float(size_R.sum())


def sequences(noised: NoisedBatch, size_R: Tensor) -> tuple[Tensor, float]:
    """The mean per sequence, each divided by its own answer length: LLaDA's, LLaDA-V's and MMaDA's tuning loss."""
    return noised.weight_R / size_R.clamp(min=1), float((size_R > 0).sum())


def masked(noised: NoisedBatch, size_R: Tensor) -> tuple[Tensor, float]:
    """The mean per masked token (DiffuLLaMA, MGDM): another functional than the bound, and noisier."""
    return noised.weight_R, float(noised.masked_RL.sum())


def mean(noised: NoisedBatch, size_R: Tensor) -> tuple[Tensor, float]:
    """The plain mean over masked tokens, whatever their level (Whisper-LLaDA): no bound. Against the bound, a level
    weighs in proportion to its mask rate, so that what generation starts from is trained most."""
    return torch.ones_like(noised.weight_R), float(noised.masked_RL.sum())


def each(noised: NoisedBatch, size_R: Tensor) -> tuple[Tensor, float]:
    """The mean over the masked tokens of each sequence, then over sequences: LLaDA-VLA's localized special-token
    classification, with `restrict` (arXiv 2509.06932), and DD-VLA's loss."""
    count_R = noised.masked_RL.sum(1).float()
    return 1 / count_R.clamp(min=1), float((count_R > 0).sum())


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

    levels: how many positions are masked (`mmdiff.diffusion.mask_rates`).
    denominator: tokens | sequences | masked | mean | each; papers give all of them one name, so it is a field.
    copies: noised copies of each sample; its media are encoded once for all of them.
    random_length: the share of samples that are cut to a length uniform in 1..L (LLaDA pre-training: 0.01).
    corrupt: the mean share of visible target tokens that are replaced by random ones (end ids are left alone), so that
        the model learns that what it sees is not always right; for drafts that are to be corrected.
    restrict: the softmax runs over the ids that a target position may hold (`Target.allow`) only. Where these are the
        same few for all positions, the other rows of the head are not multiplied.
    Raises ConfigError for values out of range.
    """

    levels: Levels = field(default_factory=ExactCount)
    denominator: str = "tokens"
    copies: AtLeast1 = 1
    random_length: Share = 0.0
    corrupt: Half = 0.0
    restrict: bool = True

    def __post_init__(self) -> None:
        if self.denominator not in DENOMINATORS:
            raise ConfigError(f"objective.denominator: {self.denominator!r}{nearest(self.denominator, DENOMINATORS)}")
        if self.copies < 1:
            raise ConfigError(f"objective.copies: {self.copies} is below 1")
        if not 0 <= self.corrupt <= 0.5:
            raise ConfigError(f"objective.corrupt: {self.corrupt} is not a share between 0 and 0.5")

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        return self.noised(batch, key, vocab)[0]

    def noised(self, batch: Batch, key: NoiseKey, vocab: Vocab, parts: int = 1) -> tuple[NoisedBatch, Tensor]:
        """Returns a noised batch, and bool (R, L, parts), which parts of a token are masked; a token is if one is."""
        if self.random_length:
            batch = cut(batch, key.fold("length"), self.random_length)
        n = self.copies
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)  # an empty position stays empty
        ids_BL, target_BL = batch.ids_BL.numpy(), scored_BL.numpy()
        part_BN = target_BL.repeat(parts, axis=1)
        copies = [self._mask(batch.index_B.tolist(), part_BN, key, copy) for copy in range(n)]
        part_RLN = torch.from_numpy(np.concatenate([v.masked_BL for v in copies])).unflatten(1, (-1, parts))
        masked_RL = part_RLN.any(2)
        out = NoisedBatch(
            batch=batch,
            ids_RL=torch.from_numpy(np.tile(ids_BL, (n, 1))).masked_fill(masked_RL, vocab.mask_id),
            masked_RL=masked_RL,
            weight_R=torch.from_numpy(np.concatenate([v.weight_B for v in copies])).float(),
            rate_R=torch.from_numpy(np.concatenate([v.rate_B for v in copies])).float(),
            row_R=torch.arange(len(batch)).repeat(n),
            counts={},
        )
        if self.corrupt:
            out.ids_RL = replaced(out, key.fold("corrupt"), self.corrupt, vocab)
        size_R = scored_BL.sum(1).repeat(n).float()
        out.weight_R, count = DENOMINATORS[self.denominator](out, size_R)
        out.counts["denoise"] = count
        return out, part_RLN

    def _mask(self, index: list[int], target_BL: Bools, key: NoiseKey, copy: int) -> Masked:
        """Returns one masking. Two uniforms decide a row's level, then one per target position its order."""
        size_B = target_BL.sum(1)
        position_BL = np.zeros(target_BL.shape)
        level_B, coin_B = np.empty(len(index)), np.empty(len(index))
        for b, sample in enumerate(index):
            draws = key.uniform(sample, 2 + int(size_B[b]), copy)
            level_B[b], coin_B[b], position_BL[b, target_BL[b]] = draws[0], draws[1], draws[2:]
        if self.levels.stratified:  # sample i of a step draws from the i-th of `batch` equal parts of its copy's share
            rank_B = copy * key.batch + np.array([sample % key.batch for sample in index])
            level_B = (rank_B + level_B) / (key.batch * self.copies)
        return self.levels.mask(target_BL, level_B, coin_B, position_BL)

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        return {"denoise": self.term(model, plan)}

    def term(self, model: Model, plan: NoisedBatch, **extras: Tensor) -> Term:
        """Returns the weighted cross-entropy. extras: what extras of the model embed beside the ids, (R, L, ...)."""
        h_RLD = states(model, plan, **extras)
        nll_P, correct_P = model.score(h_RLD, plan.batch, plan.masked_RL, plan.row_R, restrict=self.restrict)
        return weighted(plan, nll_P, correct_P)


def states(model: Model, plan: NoisedBatch, **extras: Tensor) -> Tensor:
    """Returns hidden states (R, L, D) of the noised copies. extras: as for `Denoise.term`."""
    features = model.encode(plan.batch.media)
    copies, beside = len(plan.ids_RL) // len(plan.batch), {"extras": extras} if extras else {}
    if copies == 1:
        return model.hidden(plan.ids_RL, plan.batch, features, plan.row_R, **beside)  # type: ignore[arg-type]
    return model.hidden_copies(plan.ids_RL, plan.batch, features, copies, **beside)  # type: ignore[arg-type]


def weighted(plan: NoisedBatch, nll_P: Tensor, correct_P: Tensor) -> Term:
    """Returns the weighted sum of the cross-entropies (P,) of masked positions, with what is logged of them."""
    row_P = plan.masked_RL.nonzero()[:, 0]
    by_rate = by_level(nll_P.detach(), correct_P, plan.rate_R[row_P])
    return Term((nll_P * plan.weight_R[row_P]).sum(), sums=by_rate)


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


def replaced(noised: NoisedBatch, key: NoiseKey, share: float, vocab: Vocab) -> Tensor:
    """Returns the ids (R, L) with some visible target tokens replaced. A row's share is uniform in 0..2 * `share`.

    A replacement is uniform over plain text, or over the ids that the position may hold (`Target.allow`).
    """
    batch, ids_RL = noised.batch, noised.ids_RL.clone()
    ends = torch.tensor([vocab.eos_id, *vocab.end_ids])
    choices: dict[int, np.ndarray] = {0: vocab.text_ids}
    for r, parent in enumerate(noised.row_R.tolist()):
        free_L = batch.target_BL[parent] & (ids_RL[r] != vocab.mask_id) & ~torch.isin(ids_RL[r], ends)
        positions = free_L.nonzero().squeeze(1).tolist()
        rate, *draws = key.uniform(int(batch.index_B[parent]), 1 + 2 * len(positions), r // len(batch)).tolist()
        for i, position in enumerate(positions):
            if draws[2 * i] < 2 * share * rate:
                k = 0 if batch.allow_BL is None else int(batch.allow_BL[parent, position])
                if k not in choices and batch.allow_KV is not None:
                    choices[k] = batch.allow_KV[k].nonzero().squeeze(1).numpy()
                ids_RL[r, position] = int(choices[k][int(draws[2 * i + 1] * len(choices[k]))])
    return ids_RL


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
