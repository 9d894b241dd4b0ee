"""The bound by drawn levels, as it is trained on: times, and masks of each time.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, Levels
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1

from .passes import Pass, Targets


@part
@dataclass(frozen=True)
class Drawn:
    """The mean over `times` levels and `masks` maskings of each; unbiased where the levels are those of a bound.

    LLaDA 1.5 (VRPO, arXiv 2505.19223) shows that of one budget, many times of one mask each vary least: 8 and 1.
    `mmdiff.model.likelihood.elbo.Elbo` varies less again, for it spreads the counts evenly.
    """

    levels: Levels = field(default_factory=Bernoulli)
    times: AtLeast1 = 8
    masks: AtLeast1 = 1

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        level_BT2 = key.fold("times").uniforms(targets.index, 2 * self.times).reshape(-1, self.times, 2)
        for time in range(self.times):
            for mask in range(self.masks):
                order_BL = targets.uniforms(key, time * self.masks + mask)
                level_B, coin_B = level_BT2[:, time].T
                found = self.levels.mask(targets.target_BL, level_B, coin_B, order_BL)
                weight_BL = np.broadcast_to(found.weight_BL, found.masked_BL.shape) / (self.times * self.masks)
                yield Pass(found.masked_BL, found.masked_BL * weight_BL)
