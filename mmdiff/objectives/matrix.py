"""The bound of noise by a matrix of transitions: D3PM (arXiv 2107.03006, eq. 1). Every target position is scored.

Shape letters: B samples, L canvas length, P target positions, N ids, S states, D backbone width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.ranges import AtLeast1, NotNegative
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.protocols import Model
from mmdiff.samplers.processes.hybrid import pick
from mmdiff.samplers.processes.matrix import Matrix, States

from .terms import Term


@dataclass
class Noised:
    """A noised batch. ids_BL: noised ids. scored_BL: bool. t_B: float64, the time of each sample."""

    batch: Batch
    ids_BL: Tensor
    scored_BL: Tensor
    t_B: Tensor
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class MatrixBound:
    """An upper bound of -log p per target token, in nats, of a generation in `steps` even steps of noise `process`.

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
        row_P, position_P = plan.scored_BL.nonzero(as_tuple=True)
        h_PD, ids_N = model.gather(h_BLD, row_P, position_P), states.ids_S[: states.ids]
        x_P, now_P = (states.state_V[ids_BL[plan.scored_BL]] for ids_BL in (batch.ids_BL, plan.ids_BL))

        def one(h: Tensor, at: Tensor) -> Tensor:
            logits_PN = model.backbone.head(h, ids_N).double()
            nll_P = F.cross_entropy(logits_PN, x_P[at], reduction="none")
            return torch.stack([self.loss(logits_PN, x_P[at], now_P[at], plan.t_B[row_P[at]], states), nll_P])

        chunks = torch.arange(len(row_P), device=row_P.device).split(model.logit_chunk)
        parts = [checkpoint(one, h_PD[at], at, use_reentrant=False) for at in chunks]
        sums_2 = torch.cat(parts, 1).sum(1).float() if parts else (h_PD.sum() * 0).expand(2)
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
