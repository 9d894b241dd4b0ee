"""Several steps of a teacher in one of the student: self-distillation through time (SDTT, arXiv 2410.21035).

From a noised canvas the teacher takes `steps` steps, each of which reveals its part of the masked positions, drawn one
by one. What it predicted for a position when that was revealed is the student's aim there, from the canvas as it was.
A student that has learnt it is the teacher of the next round (`reference` names its folder), and so half the steps do.

Shape letters: R rows, L canvas length, P masked positions, D width, V vocabulary, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.objectives.denoise import Denoise, states
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.policy.reference import Frozen, Reference
from mmdiff.objectives.terms import Term, allowed, chunked
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, PositiveShare
from mmdiff.protocols import Model


@part
@dataclass(frozen=True)
class Distil:
    """The divergence of the student's predictions from the teacher's, per masked position, in nats.

    reference: the teacher (`mmdiff.objectives.policy.reference`); its predictions (P, V) are kept for a step.
    steps: of the teacher. share: of the masked positions that these reveal; what is left takes the predictions of the
        last step. Published are 2 small steps, which double in length from round to round; 1 goes to the end.
    divergence: `reverse`, KL(student || teacher), as published; `forward`, KL(teacher || student).
    denoise: which positions are masked; its weights play no part.
    """

    reference: Reference
    steps: AtLeast1 = 2
    share: PositiveShare = 1.0
    divergence: Literal["reverse", "forward"] = "reverse"
    denoise: Denoise = field(default_factory=Denoise)
    frozen: Frozen | None = field(default=None, init=False, repr=False)

    def for_model(self, model: Model) -> Distil:
        """Returns the same objective with the teacher in memory."""
        out = replace(self)
        object.__setattr__(out, "frozen", self.reference.of(model))
        return out

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        out = self.denoise.plan(batch, key, vocab)
        step_RL, token_RL = np.zeros(out.ids_RL.shape), np.zeros(out.ids_RL.shape)
        pairs = zip(out.batch.index_B[out.row_R].tolist(), out.copy_R.tolist(), strict=True)
        for row, (sample, copy) in enumerate(pairs):
            here_L = out.masked_RL[row].numpy()
            u_2N = key.fold("teacher").uniform(sample, 2 * int(here_L.sum()), copy).reshape(2, -1)
            step_N = np.floor(u_2N[0] / self.share * self.steps).clip(max=self.steps - 1)
            step_RL[row, here_L], token_RL[row, here_L] = step_N, u_2N[1]
        out.drawn |= {"step": torch.from_numpy(step_RL).long(), "token": torch.from_numpy(token_RL)}
        out.counts = {"distil": float(out.masked_RL.sum())}
        return out

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        row_P, position_P = plan.masked_RL.nonzero(as_tuple=True)
        allow_KV, set_P = allowed(plan.batch, plan.row_R[row_P], position_P, self.denoise.restrict)

        def log_p(one: Any, h_PD: Tensor, sets_P: Tensor) -> Tensor:
            logits_PV = one.backbone.head(h_PD).float()
            banned = torch.tensor([i for i in (one.vocab.mask_id, one.vocab.slot_id) if 0 <= i < logits_PV.shape[1]])
            logits_PV = logits_PV.index_fill(1, banned.to(logits_PV.device), -torch.inf)
            if allow_KV is not None:
                logits_PV = logits_PV.masked_fill(~allow_KV[sets_P], -torch.inf)
            out_PV: Tensor = logits_PV.log_softmax(-1).clamp(min=-1e4)
            return out_PV

        def taught(one: Any) -> Tensor:
            now, step_P, token_P = plan, plan.drawn["step"][plan.masked_RL], plan.drawn["token"][plan.masked_RL]
            aim_PV: Tensor | None = None
            for step in range(self.steps):
                h_PD = one.gather(states(one, now), row_P, position_P)
                found_PV = log_p(one, h_PD, set_P)
                here_P = step_P == step
                aim_PV = found_PV if aim_PV is None else torch.where(here_P[:, None], found_PV, aim_PV)
                drawn_P = (found_PV.double().exp().cumsum(1) < token_P[:, None]).sum(1).clamp(max=found_PV.shape[1] - 1)
                ids_RL = now.ids_RL.clone()
                ids_RL[row_P[here_P], position_P[here_P]] = drawn_P[here_P]
                now = replace(now, ids_RL=ids_RL)
            assert aim_PV is not None
            return aim_PV

        aim_PV = (self.frozen or self.reference.of(model))(taught, model)

        def apart(h_PD: Tensor, aim: Tensor, sets_P: Tensor) -> Tensor:
            own = log_p(model, h_PD, sets_P)
            first, second = (own, aim) if self.divergence == "reverse" else (aim, own)
            return (first.exp() * (first - second)).sum(-1)

        h_PD = model.gather(states(model, plan), row_P, position_P)
        kl_P = chunked(apart, model.logit_chunk, h_PD, aim_PV, set_P)
        return {"distil": Term(kl_P.sum())}
