"""Masked denoising of tokens whose digits are masked one by one (MDM-Prime, arXiv 2505.18495).

Shape letters: B samples, L canvas length, R rows = B * copies, P positions with a masked digit, N digits of an id, V
vocabulary, D backbone width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.digits import base_of, consistent, to_digits
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.objectives.denoise import Denoise, states, weighted
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, allowed, chunked, extra_of
from mmdiff.parts import part
from mmdiff.protocols import Model
from mmdiff.samplers.processes.partial import Partial


@part
@dataclass(frozen=True)
class PartialDenoise:
    """The weighted cross-entropy of tokens with a masked digit, over the ids that agree with their other digits.

    process: the noise, as in `sampler.process`. denoise: how many digits are masked, and how a row weighs; of one digit
    it is the loss itself. Raises ConfigError, at the first step, for a model without that extra.
    """

    process: Partial = field(default_factory=Partial)
    denoise: Denoise = field(default_factory=Denoise)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        """`drawn["digits"]` are the digits of masked positions, int64 (R, L, N): the base where a digit is masked."""
        noised, part_RLN = self.denoise.noised(batch, key, vocab, self.process.count)
        base = base_of(vocab.size, self.process.count)
        clean_RL = noised.batch.ids_BL[noised.row_R]
        digits_RLN = to_digits(clean_RL, base, self.process.count).masked_fill(part_RLN, base)
        noised.drawn["digits"] = digits_RLN.masked_fill(~noised.masked_RL[..., None], base)
        return noised

    def terms(self, model: Model, noised: NoisedBatch) -> dict[str, Term]:
        batch, name, digits_RLN = noised.batch, self.process.extra, noised.drawn["digits"]
        extra_of(model, name)
        h_RLD = states(model, noised, **{name: digits_RLN})
        row_P, position_P = where(noised.masked_RL)
        at_P = noised.row_R[row_P], position_P
        h_PD, digits_PN = model.gather(h_RLD, row_P, position_P), digits_RLN[row_P, position_P]
        allow_KV, sets_P = allowed(batch, *at_P, self.denoise.restrict)
        size = model.vocab.size
        base = base_of(size, self.process.count)

        def one(h: Tensor, digits: Tensor, sets: Tensor, label: Tensor) -> Tensor:
            logits = model.backbone.head(h).float().masked_fill(~consistent(digits, size, base), -torch.inf)
            if allow_KV is not None:
                logits = logits.masked_fill(~allow_KV[sets], -torch.inf)
            right = logits.detach().argmax(-1) == label
            return torch.stack([F.cross_entropy(logits, label, reduction="none"), right.float()], 1)

        made_P2 = chunked(one, model.logit_chunk, h_PD, digits_PN, sets_P, batch.ids_BL[at_P]).reshape(-1, 2)
        return {"denoise": weighted(noised, made_P2[:, 0], made_P2[:, 1] > 0, self.denoise.emphasis)}
