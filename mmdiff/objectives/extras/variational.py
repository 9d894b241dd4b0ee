"""Variational masked diffusion (VMD, arXiv 2510.23606): tokens that are predicted together depend on each other.

    p(x0 | x_t) = E over z ~ N(0, I) of the product over masked positions of p(x0_i | x_t, z)

The loss of a noised copy is w (sum over masked positions of -log p(x0_i | x_t, z) + beta KL(q || N(0, I))), with z
drawn from q(z | x0, x_t): at beta 1 an upper bound of w times -log p of the masked tokens together. The published
weights of the two parts were not seen; that both have the copy's weight w is our choice.

Shape letters: B samples, L canvas length, R rows = B * copies, Z size of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, extra_of
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative
from mmdiff.protocols import Model
from mmdiff.samplers.processes.latent import Variational


@part
@dataclass(frozen=True)
class LatentDenoise:
    """Cross-entropy given a latent (`denoise`), and what the latent may know of the clean ids (`kl`, nats per row).

    process: the noise, as in `sampler.process`. denoise: what is masked, and how it weighs. beta: the weight of `kl`.
    Raises ConfigError, at the first step, for a model without that extra.
    """

    process: Variational = field(default_factory=Variational)
    denoise: Denoise = field(default_factory=Denoise)
    beta: NotNegative = 1.0

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        """`drawn["latent"]` is what z is made of, fp32 (R, Z), of the standard normal distribution."""
        noised, fold = self.denoise.plan(batch, key, vocab), key.fold("latent")
        rows = zip(noised.batch.index_B[noised.row_R].tolist(), noised.copy_R.tolist(), strict=True)
        u_RZ = torch.from_numpy(np.stack([fold.uniform(i, self.process.size, copy) for i, copy in rows]))
        noised.drawn["latent"] = torch.special.ndtri(u_RZ.clamp(min=2.0**-53)).float()
        noised.counts["kl"] = noised.counts["denoise"]
        return noised

    def terms(self, model: Model, noised: NoisedBatch) -> dict[str, Term]:
        mean_RZ, log_var_RZ = self.posterior(model, noised)
        z_RZ = mean_RZ + (log_var_RZ / 2).exp() * noised.drawn["latent"]
        beside = {self.process.extra: z_RZ[:, None] * noised.masked_RL[..., None]}
        kl_R = gaussian_kl(mean_RZ, log_var_RZ) * noised.masked_RL.any(1)
        count = kl_R.new_full((), float(len(kl_R)))
        term = Term((kl_R * noised.weight_R).sum(), self.beta, {"kl": (kl_R.detach().sum(), count)})
        return {"denoise": self.denoise.term(model, noised, **beside), "kl": term}

    def posterior(self, model: Model, noised: NoisedBatch) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance (R, Z) of q. Raises ConfigError."""
        batch, row_R = noised.batch, noised.row_R
        latent = extra_of(model, self.process.extra)
        if latent.size != self.process.size:
            raise ConfigError(
                f"objective.process.size: {self.process.size}, expected {latent.size}, as the extra has it"
            )
        clean_BLD = model.backbone.embed(batch.ids_BL, batch.attend_BL if batch.padded else None).detach()
        attend_RL, position_RL = batch.attend_BL[row_R], batch.position_ids_BL[row_R]
        out: tuple[Tensor, Tensor] = latent.posterior(clean_BLD[row_R], noised.masked_RL, attend_RL, position_RL)
        return out


def gaussian_kl(mean_RZ: Tensor, log_var_RZ: Tensor) -> Tensor:
    """Returns KL(N(mean, var) || N(0, I)) in nats, (R,)."""
    return (mean_RZ.square() + log_var_RZ.exp() - 1 - log_var_RZ).sum(1) / 2
