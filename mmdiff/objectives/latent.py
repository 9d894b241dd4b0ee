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
from mmdiff.config.ranges import NotNegative
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, nearest
from mmdiff.parts import part
from mmdiff.protocols import Model
from mmdiff.samplers.processes.latent import Variational

from .denoise import Denoise, NoisedBatch
from .terms import Term


@dataclass
class LatentBatch:
    """A noised batch, and the numbers that z is made of. normal_RZ: fp32, of the standard normal distribution."""

    noised: NoisedBatch
    normal_RZ: Tensor
    counts: dict[str, float]

    @property
    def batch(self) -> Batch:
        """The batch that was planned."""
        return self.noised.batch


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

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> LatentBatch:
        noised = self.denoise.plan(batch, key, vocab)
        fold, index = key.fold("latent"), noised.batch.index_B.tolist()
        u_RZ = np.concatenate([fold.uniforms(index, self.process.size, copy) for copy in range(self.denoise.copies)])
        normal_RZ = torch.special.ndtri(torch.from_numpy(u_RZ).clamp(min=2.0**-53)).float()
        counts = noised.counts | {"kl": noised.counts["denoise"]}
        return LatentBatch(noised, normal_RZ, counts)

    def terms(self, model: Model, plan: LatentBatch) -> dict[str, Term]:
        noised = plan.noised
        mean_RZ, log_var_RZ = self.posterior(model, noised)
        z_RZ = mean_RZ + (log_var_RZ / 2).exp() * plan.normal_RZ
        beside = {self.process.extra: z_RZ[:, None] * noised.masked_RL[..., None]}
        kl_R = gaussian_kl(mean_RZ, log_var_RZ) * noised.masked_RL.any(1)
        count = torch.tensor(float(len(kl_R)), device=kl_R.device)
        term = Term((kl_R * noised.weight_R).sum(), self.beta, {"kl": (kl_R.detach().sum(), count)})
        return {"denoise": self.denoise.term(model, noised, **beside), "kl": term}

    def posterior(self, model: Model, noised: NoisedBatch) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance (R, Z) of q. Raises ConfigError."""
        name, batch, row_R = self.process.extra, noised.batch, noised.row_R
        if name not in model.extras:
            raise ConfigError(f"model.extras.{name}: the model has no such extra{nearest(name, model.extras)}")
        latent = model.extras[name]
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
