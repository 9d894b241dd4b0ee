"""Trains a sampler layer: what one call and a few tokens say, against what the model says of the canvas with them.

ADJUST (arXiv 2509.22738). Shape letters: B samples, L canvas length, R rows = B * copies, N masked positions of the
longest row, P masked positions of all rows, V vocabulary, D backbone width, K tokens of a roll-out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, allow_sets
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.draw import draw
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, chunked, extra_of
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast2
from mmdiff.protocols import Model


@part
@dataclass(frozen=True)
class AdjustLayer:
    """KL(model's next-token law || layer's), in nats, mean over the still masked positions of roll-outs.

    A roll-out draws count - 1 tokens from the model's own law, one call for each, at masked positions in random order.
    The layer gets the states of the first call and those tokens. Only the layer is trained: a stage's `params` freeze
    all else (`{match: extras.sampler}`, `{match: "*", train: false}`).

    extra: the layer's name. count: tokens per call that it is trained for. denoise: what a roll-out begins with.
    Raises ConfigError, at the first step, for a model without that extra.
    """

    extra: str = "sampler"
    count: AtLeast2 = 4
    denoise: Denoise = field(default_factory=Denoise)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        """What is committed to the copies, token by token, is drawn, too.

        `drawn["rank"]`: int64 (R, L), when a masked position is committed, from 0; -1 elsewhere. `drawn["token"]`:
        float64 (R, K), what draws its token.
        """
        noised, fold, k = self.denoise.plan(batch, key, vocab), key.fold("roll-out"), self.count - 1
        masked_RL, index_R = noised.masked_RL.numpy(), noised.batch.index_B[noised.row_R].tolist()
        rank_RL = np.full(masked_RL.shape, -1)
        u_RK, count = np.zeros((len(masked_RL), k)), 0
        for r, masked_L in enumerate(masked_RL):
            n = int(masked_L.sum())
            draws = fold.uniform(index_R[r], k + n, int(noised.copy_R[r]))
            u_RK[r] = draws[:k].clip(min=2.0**-53)
            rank_RL[r, masked_L] = draws[k:].argsort().argsort()
            count += sum(max(0, n - number) for number in range(1, self.count))
        noised.drawn |= {"rank": torch.from_numpy(rank_RL), "token": torch.from_numpy(u_RK)}
        noised.counts = {"adjust": float(count)}
        return noised

    def terms(self, model: Model, noised: NoisedBatch) -> dict[str, Term]:
        layer, batch, row_R = extra_of(model, self.extra), noised.batch, noised.row_R
        allow_KV, allow_BL = allow_sets(batch, model.vocab)
        masked_RL, ids_RL = noised.masked_RL, noised.ids_RL
        n = max(int(masked_RL.sum(1).max()), 1)
        at_RN = (~masked_RL).to(torch.uint8).argsort(dim=1, stable=True)[:, :n]
        rank_RL, u_RK = noised.drawn["rank"], noised.drawn["token"]
        real_RN, rank_RN, set_RN = (x_RL.gather(1, at_RN) for x_RL in (masked_RL, rank_RL, allow_BL[row_R]))
        row_R1 = torch.arange(len(ids_RL), device=ids_RL.device)[:, None]
        with torch.no_grad():
            features = model.encode(batch.media)
            first_RND = now_RND = self._states(model, ids_RL, batch, features, row_R, at_RN)
        # rows of one masked position have no second token; the sum then has a gradient of zero
        total = torch.stack([parameter.float().sum() for parameter in layer.parameters()]).sum() * 0
        for number in range(1, min(self.count, n)):
            with torch.no_grad():
                here_RN = rank_RN == number - 1
                row_P, column_P = here_RN.nonzero(as_tuple=True)
                logits_PV = model.backbone.head(now_RND[row_P, column_P]).float()
                logits_PV = logits_PV.masked_fill(~allow_KV[set_RN[row_P, column_P]], -torch.inf)
                drawn_P = draw(logits_PV, torch.ones(len(row_P), device=row_P.device), u_RK[row_P, number - 1])
                ids_RL = ids_RL.index_put((row_P, at_RN[row_P, column_P]), drawn_P)
                now_RND = self._states(model, ids_RL, batch, features, row_R, at_RN)
                tokens_RND = model.backbone.embed(ids_RL)[row_R1, at_RN]
            new_RN = (rank_RN >= 0) & (rank_RN < number)
            made_RND = layer(first_RND, tokens_RND, new_RN, at_RN, ~real_RN)
            still_P = (real_RN & ~new_RN).nonzero(as_tuple=True)
            total = total + self._divergence(model, now_RND[still_P], made_RND[still_P], allow_KV, set_RN[still_P])
        return {"adjust": Term(total)}

    def _states(self, model: Model, ids_RL: Tensor, batch: Batch, features: dict[str, Tensor], *at: Tensor) -> Tensor:
        """Returns the states (R, N, D) that predict the masked positions."""
        row_R, at_RN = at
        h_RLD = model.hidden(ids_RL, batch, features, row_R)
        row_P = torch.arange(len(at_RN), device=at_RN.device).repeat_interleave(at_RN.shape[1])
        return model.gather(h_RLD, row_P, at_RN.flatten()).view(*at_RN.shape, -1)

    def _divergence(self, model: Model, true_PD: Tensor, made_PD: Tensor, allow_KV: Tensor, set_P: Tensor) -> Tensor:
        """Returns the sum over positions of KL(p of the model || p of the layer), over the ids that may stand there."""

        def one(true: Tensor, made: Tensor, sets: Tensor) -> Tensor:
            banned = ~allow_KV[sets]
            true_NV, made_NV = (model.backbone.head(h).float().masked_fill(banned, -torch.inf) for h in (true, made))
            log_p, log_q = true_NV.detach().log_softmax(-1), made_NV.log_softmax(-1)
            divergence_N: Tensor = (log_p.exp() * (log_p - log_q).masked_fill(banned, 0.0)).sum(1)
            return divergence_N

        return chunked(one, model.logit_chunk, true_PD, made_PD, set_P).sum()
