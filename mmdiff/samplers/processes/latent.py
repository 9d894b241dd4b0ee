"""Masked diffusion with a latent: what is committed together at a step shares a random vector that the model sees.

Shape letters: B samples, R rows of a step, L canvas length, Z size of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.samplers.rules.state import State
from mmdiff.samplers.step import Settings, Step

from .absorbing import Absorbing


@part
@dataclass(frozen=True)
class Variational:
    """VMD's noise (arXiv 2510.23606): absorbing, and a latent z ~ N(0, I) for every row.

    extra: the name of the model's `mmdiff.objectives.extras.latent.Latent`. size: Z, as that extra has it.
    per: a new z at every `step`, or one for all steps of a `block`.
    """

    extra: str = "latent"
    size: AtLeast1 = 16
    per: Literal["step", "block"] = "step"
    tokens: Absorbing = field(default_factory=Absorbing)

    proposes: ClassVar[bool] = True

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        self.tokens.start(state, settings, noise)

    def live(self, state: GenerationState) -> Tensor:
        return self.tokens.live(state)

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return self.tokens.judged(state, settings)

    def beside(self, rows: State, noise: StepNoise) -> dict[str, Tensor]:
        """Returns {extra: (R, L, Z)}, z at pending positions."""
        z_RZ = torch.special.ndtri(noise.table("latent", self.size)).float()
        z_RLZ = z_RZ[:, None].expand(-1, rows.ids_RL.shape[1], -1)
        if self.per == "block":
            kept_BLZ = rows.extra(self.extra, 0.0, self.size)
            z_RLZ = torch.where((rows.step_R == 1)[:, None, None], z_RLZ, kept_BLZ[rows.row_R])
            rows.extras[self.extra] = kept_BLZ.index_copy(0, rows.row_R, z_RLZ)
        return {self.extra: z_RLZ * rows.pending_RL[..., None]}

    def advance(self, step: Step) -> None:
        self.tokens.advance(step)
