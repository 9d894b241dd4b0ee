"""Answers that do not depend on how many masks stand behind them (Masks Can Be Distracting, arXiv 2511.21338).

Shape letters: R rows, L canvas length, P masked positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.objectives.denoise import Denoise, scored
from mmdiff.objectives.noising.change import lengthened
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, allowed, chunked
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, NotNegative
from mmdiff.protocols import Model

from .together import Plans


@part
@dataclass(frozen=True)
class MaskAgnostic:
    """Cross-entropy of two copies with the same masks and other numbers of masks behind them, and how far they differ.

    `denoise` is the mean of both losses. `tv` is the sum over masked targets of the total variation between the two
    predictions, times the mask rate, per target. Media are encoded once. Published is that cross-entropy alone does
    not help; the weights of the two were not seen, so that both are 1 is our choice.

    denoise: what is masked, and how it weighs. most: masks behind the answer, uniform in 0..most for each copy.
    tv: the weight of `tv`. Raises ConfigError for rows that are packed of several documents.
    """

    denoise: Denoise = field(default_factory=Denoise)
    most: AtLeast1 = 64
    tv: NotNegative = 1.0

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Plans:
        noised = self.denoise.plan(batch, key, vocab)
        index_R, copy_R = noised.batch.index_B[noised.row_R].tolist(), noised.copy_R.tolist()
        rows = zip(index_R, copy_R, strict=True)
        fold = key.fold("masks")
        u_R2 = torch.tensor([fold.uniform(i, 2, copy).tolist() for i, copy in rows], dtype=torch.float64)
        count_R2 = (u_R2 * (self.most + 1)).long()
        plans = {str(n): lengthened(noised, count_R2[:, n], vocab) for n in range(2)}
        counts = {"denoise": noised.counts["denoise"], "tv": float(noised.scored_RL.sum())}
        return Plans(noised.batch, plans, counts)

    def terms(self, model: Model, plan: Plans) -> dict[str, Term]:
        features = model.encode(plan.batch.media)
        states, sums = [], {}
        losses: list[Tensor] = []
        for noised in plan.plans.values():
            h_RLD = model.hidden(noised.ids_RL, noised.batch, features, noised.row_R)
            term = scored(model, noised, h_RLD, self.denoise.emphasis, restrict=self.denoise.restrict)
            losses, sums = [*losses, term.value], term.sums
            states.append(model.gather(h_RLD, *where(noised.masked_RL)))
        tv = self.variation(model, plan.plans["0"], states)
        return {"denoise": Term(torch.stack(losses).sum() / 2, sums=sums), "tv": Term(tv, self.tv)}

    def variation(self, model: Model, noised: NoisedBatch, h_2PD: list[Tensor]) -> Tensor:
        """Returns the sum of rate * total variation of the predictions of two states of each masked position."""
        row_P, position_P = where(noised.masked_RL)
        allow_KV, set_P = allowed(noised.batch, row_P, position_P, self.denoise.restrict)

        def one(first: Tensor, second: Tensor, sets: Tensor) -> Tensor:
            p_2PV = []
            for h in (first, second):
                logits = model.backbone.head(h).float()
                if allow_KV is not None:
                    logits = logits.masked_fill(~allow_KV[sets], -torch.inf)
                p_2PV.append(logits.softmax(-1))
            return (p_2PV[0] - p_2PV[1]).abs().sum(-1) / 2

        return (chunked(one, model.logit_chunk, *h_2PD, set_P) * noised.rate_RL[where(noised.masked_RL)]).sum()
