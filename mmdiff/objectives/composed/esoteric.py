"""Between diffusion and left to right (Eso-LM, arXiv 2506.01928): some tokens by diffusion, the others in order.

At time 0 of the diffusion, a share alpha_0 of the targets can be seen, drawn one by one; those that are still masked
are predicted from left to right, each given all that can be seen and the masked ones before it:

    bound = E over times of weight * cross-entropy of masked positions  +  E over sets of -log p(masked ones, in order)

alpha_0 = 1 is masked diffusion, 0 the likelihood from left to right, and of a model whose conditionals agree every
bound is -log p.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import BlockCausal
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.diffusion.schedule import Linear, Partly, Schedule
from mmdiff.diffusion.spread import Stratified
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise, scored
from mmdiff.objectives.noising.noised import Masks, noised_batch
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.parts.ranges import BetweenZeroAndOne, Share
from mmdiff.protocols import Model

from .together import Plans

ORDER = BlockCausal(1, "targets")
"""Blocks of one position: what is no target is seen by all, each target by those behind it."""


@part
@dataclass(frozen=True)
class Esoteric:
    """The bound above per target token: its terms are `diffusion` and `sequential`, and add up.

    share: alpha_0. schedule: of the diffusion, from 1 to 0 before it is multiplied with `share`. eps: as for
    `mmdiff.diffusion.mask_rates.Bernoulli`. restrict: as for `mmdiff.objectives.denoise.Denoise`.

    The model has `attention: {target: mmdiff.canvas.patterns.BlockCausal, size: 1, start: targets}`. In the diffusion's
    forward all positions count as context, so it is bidirectional; in the other one only masked ones are targets, which
    are run behind the clean ids of those before them. (The paper runs diffusion in a causal order, too, for its cache.)
    Raises ConfigError, at the first step, for a model of another pattern.
    """

    share: Share = 0.5
    schedule: Schedule = field(default_factory=Linear)
    eps: BetweenZeroAndOne = 1e-3
    restrict: bool = True

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Plans:
        levels = Bernoulli(Partly(self.share, self.schedule), self.eps)
        diffusion = Denoise(levels=levels, spread=Stratified()).plan(batch, key.fold("diffusion"), vocab)
        diffusion.batch = replace(batch, target_BL=torch.zeros_like(batch.target_BL))
        scored_BL = diffusion.scored_RL.numpy()
        masked_BL, fold = np.zeros_like(scored_BL), key.fold("sequential")
        for b, sample in enumerate(batch.index_B.tolist()):
            masked_BL[b, scored_BL[b]] = fold.uniform(sample, int(scored_BL[b].sum())) >= self.share
        one_BL = np.ones(masked_BL.shape)
        masks = Masks(
            masked_BL, one_BL, one_BL * (1 - self.share), np.where(scored_BL, np.arange(len(batch))[:, None], -1)
        )
        in_order = noised_batch(replace(batch, target_BL=torch.from_numpy(masked_BL)), masks, vocab.noise_id)
        count = float(scored_BL.sum())
        plans = {"diffusion": diffusion, "sequential": in_order}
        return Plans(batch, plans, {"diffusion": count, "sequential": count})

    def terms(self, model: Model, plan: Plans) -> dict[str, Term]:
        if model.attention != ORDER:
            raise ConfigError(f"model.attention: {model.attention}, expected {ORDER}")
        features, out = model.encode(plan.batch.media), {}
        for name, noised in plan.plans.items():
            if name == "diffusion":
                h_RLD = model.hidden(noised.ids_RL, noised.batch, features, noised.row_R)
            elif bool(noised.masked_RL.any()):
                h_RLD = model.hidden_copies(noised.ids_RL, noised.batch, features, 1, blockwise=True)
            out[name] = scored(model, noised, h_RLD, restrict=self.restrict)
        return out
