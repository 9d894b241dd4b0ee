"""Certainty, so that more tokens can be committed at once (dParallel, arXiv 2509.26488).

Shape letters: P masked positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.diffusion.schedule import Linear
from mmdiff.objectives.denoise import Denoise, states, weighted
from mmdiff.objectives.noising.change import Complement
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.noising.scope import OneBlock
from mmdiff.objectives.terms import Term, allowed, chunked
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative, Positive
from mmdiff.protocols import Model


def one_block() -> Denoise:
    """Returns what dParallel noises: one block of 32 in two complementary copies, at the plain mean."""
    changes = [Complement()]
    return Denoise(levels=Bernoulli(Linear()), denominator="mean", scopes=[OneBlock(32)], changes=changes)


@part
@dataclass(frozen=True)
class Certain:
    """`denoise`, and `entropy`: that of the predictions, in nats, of masked tokens that are predicted right.

    Published are rows that the model generated itself, LoRA, and a block half of which is masked.
    denoise: what is masked, and how it weighs. beta: the weight of `entropy`; 2 for LLaDA, 1 for Dream. temperature: of
    the distribution whose entropy it is.
    """

    denoise: Denoise = field(default_factory=one_block)
    beta: NotNegative = 2.0
    temperature: Positive = 0.5

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        out = self.denoise.plan(batch, key, vocab)
        out.counts["entropy"] = float(out.masked_RL.sum())
        return out

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        row_P, position_P = plan.masked_RL.nonzero(as_tuple=True)
        at_P = plan.row_R[row_P], position_P
        allow_KV, set_P = allowed(plan.batch, *at_P, self.denoise.restrict)

        def one(h: Tensor, label: Tensor, sets: Tensor) -> Tensor:
            logits = model.backbone.head(h).float()
            if allow_KV is not None:
                logits = logits.masked_fill(~allow_KV[sets], -torch.inf)
            nll = -logits.log_softmax(-1).gather(1, label[:, None]).squeeze(1)
            right = logits.detach().argmax(-1) == label
            p = (logits / self.temperature).softmax(-1)
            entropy = -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)
            return torch.stack([nll, right.float(), torch.where(right, entropy, 0.0)], 1)

        h_PD = model.gather(states(model, plan), row_P, position_P)
        made_P3 = chunked(one, model.logit_chunk, h_PD, plan.batch.ids_BL[at_P], set_P).reshape(-1, 3)
        nll_P, right_P, entropy_P = made_P3.unbind(1)
        out = {"denoise": weighted(plan, nll_P, right_P > 0, self.denoise.emphasis)}
        sums = {"entropy": (entropy_P.detach().sum(), right_P.detach().sum())}
        out["entropy"] = Term(entropy_P.sum(), self.beta, sums)
        return out
