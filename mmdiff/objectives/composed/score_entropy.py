"""Denoising score entropy (SEDD, arXiv 2310.16834; RADD's t-DSE, arXiv 2406.03736): logits are log ratios themselves.

Shape letters: P masked positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.objectives.denoise import Denoise, states, weighted
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, allowed, chunked
from mmdiff.parts import part
from mmdiff.protocols import Model


@part
@dataclass(frozen=True)
class ScoreEntropy:
    """weight * (sum of exp(logits) - logit of the token - 1), over masked positions.

    That is the cross-entropy plus Z - log Z - 1, Z the sum of exp(logits): never below the bound of `denoise`, and
    equal to it where the model's logits are normalised, which this trains them to be.

    denoise: what is masked, and how it weighs; `Bernoulli` levels for the published loss.
    """

    denoise: Denoise = field(default_factory=lambda: Denoise(levels=Bernoulli()))

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        return self.denoise.plan(batch, key, vocab)

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        row_P, position_P = where(plan.masked_RL)
        at_P = plan.row_R[row_P], position_P
        allow_KV, set_P = allowed(plan.batch, *at_P, self.denoise.restrict)

        def one(h: Tensor, label: Tensor, sets: Tensor) -> Tensor:
            logits = model.backbone.head(h).float()
            if allow_KV is not None:
                logits = logits.masked_fill(~allow_KV[sets], -torch.inf)
            own, right = logits.gather(1, label[:, None]).squeeze(1), logits.detach().argmax(-1) == label
            return torch.stack([logits.exp().sum(-1) - own - 1, right.float()], 1)

        h_PD = model.gather(states(model, plan), row_P, position_P)
        made_P2 = chunked(one, model.logit_chunk, h_PD, plan.batch.ids_BL[at_P], set_P).reshape(-1, 2)
        return {"denoise": weighted(plan, made_P2[:, 0], made_P2[:, 1] > 0, self.denoise.emphasis)}
