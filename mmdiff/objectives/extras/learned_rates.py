"""Trains mask rates that depend on the token with the model (GenMD4, arXiv 2406.04329, section 5).

With w the power of an id, p the model's law at a masked position and x the token there, the bound is the mean over
times and masks of

    1/t sum over masked positions of [ -w_x log p_x + sum over v of w_v p_v - w_x ]

which for equal powers of 1 is that of the linear schedule. What is masked depends on the powers, too, so their gradient
has a second part, by the score function: with two draws of masks, each is the other's baseline (leave one out).

Shape letters: B samples, L canvas length, R rows = 2 B, P masked positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import by_level, states
from mmdiff.objectives.noising.noised import Masks, NoisedBatch, noised_batch
from mmdiff.objectives.terms import Term, allowed, chunked, extra_of
from mmdiff.parts import part
from mmdiff.parts.ranges import BetweenZeroAndOne
from mmdiff.protocols import Model


@part
@dataclass(frozen=True)
class LearnedRates:
    """The bound above per target token (`denoise`), and a term whose value means nothing and whose gradient is that of
    the powers through the masks (`masks`).

    extra: the name of the model's `mmdiff.objectives.extras.token_rates.TokenRates`. eps: times are drawn from
    [eps, 1], evenly over the samples of a step; what eps leaves out is not bounded. restrict: as for `Denoise`.
    Raises ConfigError for a model without that extra, and where no stage has named the model (`for_model`).
    """

    extra: str = "rates"
    eps: BetweenZeroAndOne = 1e-3
    restrict: bool = True
    model: Any = field(default=None, compare=False, repr=False)

    def for_model(self, model: Model) -> LearnedRates:
        """Returns the same objective, which draws masks at the rates that the model has at a step."""
        extra_of(model, self.extra)
        return replace(self, model=model)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        """`drawn["time"]`: fp32 (R,), the times of the rows; both copies of a sample have the same."""
        if self.model is None:
            raise ConfigError("objective.model: none is given, expected `for_model` before")
        power_V = extra_of(self.model, self.extra).powers().detach().cpu().double().numpy()
        scored_BL = (batch.target_BL & (batch.ids_BL != vocab.mask_id)).numpy()
        ids_BL, rows = batch.ids_BL.numpy(), len(batch)
        t_B, u_2BL = np.zeros(rows), np.zeros((2, *scored_BL.shape))
        for b, sample in enumerate(batch.index_B.tolist()):
            u, *draws = key.uniform(sample, 1 + 2 * int(scored_BL[b].sum()))
            t_B[b] = self.eps + (1 - self.eps) * (sample % key.batch + u) / key.batch
            u_2BL[:, b, scored_BL[b]] = np.array(draws).reshape(2, -1)
        rate_BL = (1 - self.eps) * t_B[:, None] ** power_V[ids_BL]
        masked_RL = ((u_2BL < rate_BL) & scored_BL).reshape(2 * rows, -1)
        group_RL = np.where(np.tile(scored_BL, (2, 1)), np.arange(2 * rows)[:, None], -1)
        time_R = np.tile(t_B, 2)
        weight_RL = np.broadcast_to(1 / time_R[:, None], masked_RL.shape).copy()
        out = noised_batch(batch, Masks(masked_RL, weight_RL, np.tile(rate_BL, (2, 1)), group_RL), vocab.noise_id)
        out.drawn["time"] = torch.from_numpy(time_R).float()
        count = 2.0 * float(scored_BL.sum())
        out.counts = {"denoise": count, "masks": count}
        return out

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        power_V, batch = extra_of(model, self.extra).powers(), plan.batch
        row_P, position_P = where(plan.masked_RL)
        at_P = plan.row_R[row_P], position_P
        allow_KV, set_P = allowed(batch, *at_P, self.restrict)

        def one(h: Tensor, label: Tensor, sets: Tensor) -> Tensor:
            logits = model.backbone.head(h).float()
            if allow_KV is not None:
                logits = logits.masked_fill(~allow_KV[sets], -torch.inf)
            log_p, own = logits.log_softmax(-1), power_V[label]
            nll = -log_p.gather(1, label[:, None]).squeeze(1)
            right = (logits.detach().argmax(-1) == label).float()
            return torch.stack([own * nll + log_p.exp() @ power_V - own, nll.detach(), right], 1)

        h_PD = model.gather(states(model, plan), row_P, position_P)
        made_P3 = chunked(one, model.logit_chunk, h_PD, batch.ids_BL[at_P], set_P).reshape(-1, 3)
        time_R = plan.drawn["time"]
        loss_R = torch.zeros_like(time_R).index_add(0, row_P, made_P3[:, 0] / time_R[row_P])
        sums = by_level(made_P3[:, 1].detach(), made_P3[:, 2] > 0, plan.rate_RL[where(plan.masked_RL)])
        log_q_R = self.log_law(plan, power_V)
        others_R = loss_R.detach().view(2, -1).flip(0).flatten()
        score = ((loss_R.detach() - others_R) * log_q_R).sum()
        return {"denoise": Term(loss_R.sum(), sums=sums), "masks": Term(score)}

    def log_law(self, plan: NoisedBatch, power_V: Tensor) -> Tensor:
        """Returns (R,), the log-probability of the masks of each row at its time, with a gradient to the powers."""
        own_RL = power_V[plan.batch.ids_BL[plan.row_R]]
        log_rate_RL = np.log1p(-self.eps) + own_RL * plan.drawn["time"].log()[:, None]
        log_seen_RL = torch.log(-torch.expm1(log_rate_RL))
        law_RL = torch.where(plan.masked_RL, log_rate_RL, log_seen_RL)
        return law_RL.masked_fill(~plan.scored_RL, 0.0).sum(1)
