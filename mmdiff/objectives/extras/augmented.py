"""Masked denoising with companions (CADD, arXiv 2510.01329): the plain loss, given noisy embeddings of masked tokens.

Shape letters: B samples, L canvas length, R rows = B * copies, P masked positions of all rows, Z size of a companion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, extra_of
from mmdiff.parts import part
from mmdiff.protocols import Model
from mmdiff.samplers.processes.companion import Augmented, signal


@part
@dataclass(frozen=True)
class AugmentedDenoise:
    """The cross-entropy of masked positions, each with a companion of the noise at its row's mask rate.

    process: the noise, as in `sampler.process`. denoise: what is masked, and how it weighs.
    Raises ConfigError, at the first step, for a model without that extra.
    """

    process: Augmented = field(default_factory=Augmented)
    denoise: Denoise = field(default_factory=Denoise)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        """`drawn["companion"]` is the noise, fp32 (P, Z), of masked positions in row-major order."""
        noised, fold, size = self.denoise.plan(batch, key, vocab), key.fold("companion"), self.process.size
        rows = zip(noised.batch.index_B[noised.row_R].tolist(), noised.copy_R.tolist(), strict=True)
        counts = noised.masked_RL.sum(1).tolist()
        u_R = [fold.uniform(i, n * size, copy) for (i, copy), n in zip(rows, counts, strict=True)]
        u_P = torch.from_numpy(np.concatenate([np.zeros(0), *u_R]))
        noised.drawn["companion"] = torch.special.ndtri(u_P.clamp(min=2.0**-53)).float().view(-1, size)
        return noised

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        return {"denoise": self.denoise.term(model, plan, **{self.process.extra: self.companions(model, plan)})}

    def companions(self, model: Model, noised: NoisedBatch) -> Tensor:
        """Returns fp32 (R, L, Z), the companions of masked positions; 0 elsewhere. Raises ConfigError."""
        table_VZ = extra_of(model, self.process.extra).table
        if table_VZ.shape[1] != self.process.size:
            raise ConfigError(
                f"objective.process.size: {self.process.size}, expected {table_VZ.shape[1]}, as the extra has it"
            )
        row_P, position_P = where(noised.masked_RL)
        e_PZ = table_VZ[noised.batch.ids_BL[noised.row_R[row_P], position_P]].float()
        g_P1 = signal(noised.rate_RL[row_P, position_P])[:, None]
        z_RLZ = e_PZ.new_zeros(*noised.ids_RL.shape, self.process.size)
        return z_RLZ.index_put((row_P, position_P), g_P1.sqrt() * e_PZ + (1 - g_P1).sqrt() * noised.drawn["companion"])
