"""Bounds of noise that replaces tokens: GIDD (arXiv 2503.04482) and D3PM (arXiv 2107.03006). Every target is scored.

Shape letters: B samples, L canvas length, P target positions, N ids that all of them may hold, S states of a matrix,
V vocabulary, D backbone width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch, allow_sets, where
from mmdiff.canvas.vocab import NO_MASK, Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mixing import rates, shares
from mmdiff.errors import DataError
from mmdiff.objectives.terms import Term, chunked
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, BetweenZeroAndOne, NotNegative, Positive
from mmdiff.protocols import Model
from mmdiff.samplers.processes.hybrid import Hybrid, pick
from mmdiff.samplers.processes.matrix import Matrix, States


@dataclass
class Noised:
    """A noised batch. ids_BL: noised ids. scored_BL: bool. t_B: float64, the time of each sample."""

    MASKS: ClassVar = ("scored_BL",)

    batch: Batch
    ids_BL: Tensor
    scored_BL: Tensor
    t_B: Tensor
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class HybridBound:
    """An upper bound of -log p per target token, in nats, under the noise of `process` (GIDD, eq. 11).

    The model's distribution is read as that of a token given all *other* positions (`Hybrid.given` = others).

    eps: times are drawn from [eps, 1 - eps], evenly over the samples of a step. most: weights are cut there (those of
        the bound grow beyond all limits towards both ends; GIDD cuts likewise).
    """

    process: Hybrid = field(default_factory=Hybrid)
    eps: BetweenZeroAndOne = 1e-3
    most: Positive = 1e6

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Noised:
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)
        u_BL2 = np.zeros((*scored_BL.shape, 2))
        t_B = np.zeros(len(batch))
        for b, sample in enumerate(batch.index_B.tolist()):
            here_L = (scored_BL[b] | (batch.ids_BL[b] == NO_MASK)).numpy()
            u, *draws = key.uniform(sample, 1 + 2 * int(here_L.sum()))
            t_B[b] = self.eps + (1 - 2 * self.eps) * (sample % key.batch + u) / key.batch
            u_BL2[b, here_L] = np.array(draws).reshape(-1, 2)
        noise_BL2, t = torch.from_numpy(u_BL2), torch.from_numpy(t_B)
        _, masked_B, replaced_B = shares(t, self.process.uniform)
        allow_KV, allow_BL = allow_sets(batch, vocab)
        rank_BL = (noise_BL2[..., 1] * allow_KV.sum(1)[allow_BL]).floor().long()
        by_rank_KV = (~allow_KV).to(torch.uint8).argsort(dim=1, stable=True)  # the ids of an allow-set first, ascending
        other_BL = by_rank_KV[allow_BL, rank_BL.clamp(max=allow_KV.shape[1] - 1)]
        coin_BL, masked_B1 = noise_BL2[..., 0], masked_B[:, None]
        ids_BL = torch.where(coin_BL < masked_B1 + replaced_B[:, None], other_BL, batch.ids_BL)
        if self.process.masks:
            ids_BL = torch.where(coin_BL < masked_B1, vocab.noise_id, ids_BL)
        # an empty position stays empty, and is noise where there is no mask
        drawn_BL = scored_BL | (batch.ids_BL == NO_MASK)
        ids_BL = torch.where(drawn_BL, torch.where(batch.ids_BL == NO_MASK, other_BL, ids_BL), batch.ids_BL)
        return Noised(batch, ids_BL, scored_BL, t, {"hybrid": float(scored_BL.sum())})

    def terms(self, model: Model, plan: Noised) -> dict[str, Term]:
        batch, vocab = plan.batch, model.vocab
        rows_B = torch.arange(len(batch), device=plan.ids_BL.device)
        h_BLD = model.hidden(plan.ids_BL, batch, model.encode(batch.media), rows_B)
        row_P, position_P = where(plan.scored_BL)
        h_PD = model.gather(h_BLD, row_P, position_P)
        allow_KV, allow_BL = allow_sets(batch, vocab)
        set_P, label_P = allow_BL[row_P, position_P], batch.ids_BL[row_P, position_P]
        now_P, t_P = plan.ids_BL[row_P, position_P], plan.t_B[row_P]

        def one(h: Tensor, at: Tensor) -> Tensor:
            logits = model.backbone.head(h).float().masked_fill(~allow_KV[set_P[at]], -torch.inf)
            masked = now_P[at] == vocab.mask_id
            return self.loss(logits, allow_KV[set_P[at]], label_P[at], now_P[at], masked, t_P[at])

        at_P = torch.arange(len(row_P), device=row_P.device)
        return {"hybrid": Term(chunked(one, model.logit_chunk, h_PD, at_P).sum())}

    def loss(
        self, logits_PV: Tensor, allow_PV: Tensor, label_P: Tensor, now_P: Tensor, masked_P: Tensor, t_P: Tensor
    ) -> Tensor:
        """Returns the bound's integrand (P,) at one time: rate * (KL(q(.|x) || q(.|p)) + IS(q(z|x) || q(z|p)))."""
        kept, masked, replaced = (share.float()[:, None] for share in shares(t_P, self.process.uniform))
        into_mask_P, into_any_P = (rate.float() for rate in rates(t_P, self.process.uniform))
        floor_PV = allow_PV * replaced / allow_PV.sum(1, keepdim=True)  # what replaced tokens give every id
        x_PV = kept * F.one_hot(label_P, logits_PV.shape[1]) + floor_PV
        p_PV = kept * logits_PV.softmax(-1) + floor_PV
        tiny = torch.finfo(x_PV.dtype).tiny
        kl_P = (x_PV * (x_PV.clamp(min=tiny).log() - p_PV.clamp(min=tiny).log())).sum(1)
        now_P1 = now_P[:, None]
        x_now_P, p_now_P = x_PV.gather(1, now_P1).squeeze(1), p_PV.gather(1, now_P1).squeeze(1)
        ratio_P = torch.where(masked_P, 1.0, x_now_P / p_now_P.clamp(min=tiny)).clamp(min=tiny)
        rate_P = torch.where(
            masked_P, into_mask_P / masked[:, 0].clamp(min=tiny), into_any_P / allow_PV.sum(1) / x_now_P.clamp(min=tiny)
        )
        return rate_P.clamp(max=self.most) * (kl_P + ratio_P - ratio_P.log() - 1)


@part
@dataclass(frozen=True)
class MatrixBound:
    """An upper bound of -log p per target token, in nats, of a generation in `steps` even steps (D3PM).

    One of the steps is drawn for each sample, evenly over the samples of a step of training, and counts `steps` times:
    KL(q(z_s | z_t, x) || p(z_s | z_t)), which at the last step is -log p(x | z). The KL at time 1 is 0, for nothing of
    x is left there.

    auxiliary: weight of the cross-entropy of x, which D3PM adds (0.001 in a published re-implementation).
    """

    process: Matrix = field(default_factory=Matrix)
    steps: AtLeast1 = 1000
    auxiliary: NotNegative = 0.0

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Noised:
        states = States.of(batch, vocab, self.process.transition)
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)
        if (batch.ids_BL == NO_MASK).any():
            raise DataError("a target has an empty position, and the model no mask: expected HybridBound, or no gap")
        if not torch.isin(batch.ids_BL[scored_BL], states.ids_S[: states.ids]).all():
            raise DataError("a target holds an id that its allow-set does not, which no noise leads to")
        u_BL, t_B = np.zeros(scored_BL.shape), np.zeros(len(batch))
        for b, sample in enumerate(batch.index_B.tolist()):
            here_L = scored_BL[b].numpy()
            u, *draws = key.uniform(sample, 1 + int(here_L.sum()))
            t_B[b] = (np.floor(self.steps * (sample % key.batch + u) / key.batch) + 1) / self.steps
            u_BL[b, here_L] = draws
        t, row_P = torch.from_numpy(t_B), scored_BL.nonzero()[:, 0]
        x_PS = F.one_hot(states.state_V[batch.ids_BL[scored_BL]], len(states.ids_S)).double()
        noised_P = pick(states.spectrum.forward(x_PS, 1 - t[row_P]), torch.from_numpy(u_BL)[scored_BL])
        ids_BL = batch.ids_BL.masked_scatter(scored_BL, states.ids_S[noised_P])
        count = float(scored_BL.sum())
        counts = {"matrix": count} | ({"auxiliary": count} if self.auxiliary else {})
        return Noised(batch, ids_BL, scored_BL, t, counts)

    def terms(self, model: Model, plan: Noised) -> dict[str, Term]:
        batch, vocab = plan.batch, model.vocab
        states = States.of(batch, vocab, self.process.transition)
        rows_B = torch.arange(len(batch), device=plan.ids_BL.device)
        h_BLD = model.hidden(plan.ids_BL, batch, model.encode(batch.media), rows_B)
        row_P, position_P = where(plan.scored_BL)
        h_PD, ids_N = model.gather(h_BLD, row_P, position_P), states.ids_S[: states.ids]
        x_P, now_P = (states.state_V[ids_BL[row_P, position_P]] for ids_BL in (batch.ids_BL, plan.ids_BL))

        def one(h: Tensor, at: Tensor) -> Tensor:
            logits_PN = model.backbone.head(h, ids_N).double()
            nll_P = F.cross_entropy(logits_PN, x_P[at], reduction="none")
            return torch.stack([self.loss(logits_PN, x_P[at], now_P[at], plan.t_B[row_P[at]], states), nll_P], 1)

        at_P = torch.arange(len(row_P), device=row_P.device)
        sums_2 = chunked(one, model.logit_chunk, h_PD, at_P).reshape(-1, 2).sum(0).float()
        terms = {"matrix": Term(sums_2[0])}
        return terms | ({"auxiliary": Term(sums_2[1], self.auxiliary)} if self.auxiliary else {})

    def loss(self, logits_PN: Tensor, x_P: Tensor, now_P: Tensor, t_P: Tensor, states: States) -> Tensor:
        """Returns float64 (P,), the summand of the bound at the step that ends at times t, times the number of steps.

        logits_PN: of the ids, without the mask. x_P, now_P: states of the token, and of its noised id.
        """
        s_P = (t_P - 1 / self.steps).clamp(min=0)
        x_PN = F.one_hot(x_P, states.ids).double()
        p_PN = logits_PN.double().softmax(-1)
        true_PS = states.spectrum.posterior(x_PN, now_P, t_P, s_P)
        own = self.process.given == "all"
        model_PS = states.spectrum.posterior(p_PN, now_P, t_P, s_P, own=own)
        tiny = torch.finfo(torch.float64).tiny
        ratio_PS = true_PS.clamp(min=tiny).log() - model_PS.clamp(min=tiny).log()
        return self.steps * (true_PS * ratio_PS).sum(1)
