"""Masked diffusion beside Gaussian diffusion: a masked position carries a noisy embedding, which clears up.

Shape letters: B samples, R rows of a step, L canvas length, P predicted positions, Z size of a companion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Share
from mmdiff.samplers.blocks import positions
from mmdiff.samplers.rules.state import State
from mmdiff.samplers.step import Settings, Step

from .absorbing import Absorbing


@part
@dataclass(frozen=True)
class Augmented:
    """CADD's noise (arXiv 2510.01329): absorbing, and z ~ N(sqrt(g) e(x), (1 - g) I) at every masked position.

    g = 1 - t at time t (the published schedule was not seen). A generation begins with t = 1, pure noise, in every
    block. A step that commits some positions draws z of those that are still masked from its posterior at the time
    after the step, with an estimate of e(x) in the place of e(x).

    extra: the name of the model's `mmdiff.objectives.extras.companion.Companion`. size: Z, as that extra has it.
    estimate: the embedding of the likeliest id (`hard`) or the mean embedding (`soft`).
    noise: the share of the posterior's standard deviation that is drawn; 0: its mean is taken.
    """

    extra: str = "companion"
    size: AtLeast1 = 32
    estimate: Literal["hard", "soft"] = "hard"
    noise: Share = 1.0
    tokens: Absorbing = field(default_factory=Absorbing)

    proposes: ClassVar[bool] = True

    refuses: ClassVar[tuple[str, ...]] = ("revise",)  # a position that is masked again has no companion

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        self.tokens.start(state, settings, noise)
        settings.extra(self.extra)
        at_P = positions(state.pending_BL, int(noise.count_R.sum()))
        z_BLZ = torch.zeros(*state.ids_BL.shape, self.size, device=state.ids_BL.device)
        state.extras[self.extra] = z_BLZ.index_put(at_P, noise.vectors("companion", self.size).float())

    def live(self, state: GenerationState) -> Tensor:
        return self.tokens.live(state)

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return self.tokens.judged(state, settings)

    def beside(self, rows: State, noise: StepNoise) -> dict[str, Tensor]:
        """Returns {extra: (R, L, Z)}, z at pending positions."""
        return {self.extra: rows.extras[self.extra][rows.row_R] * rows.pending_RL[..., None]}

    def advance(self, step: Step) -> None:
        self.tokens.advance(step)
        rows, state, row_P = step.rows, step.state, step.work.at_P[0]
        steps_R = rows.steps_R.double()
        t_R, s_R = (1 - (rows.step_R - back).double() / steps_R for back in (1, 0))
        t_P1, s_P1 = (x_R.clamp(min=0)[row_P][:, None] for x_R in (t_R, s_R))
        e_PZ = step.settings.extra(self.extra).estimate(step.logits_QV, self.estimate)
        z_PZ = state.extras[self.extra][step.at_P].double()
        mean_PZ, std_P1 = posterior(e_PZ.double(), z_PZ, signal(t_P1), signal(s_P1))
        z_PZ = mean_PZ + self.noise * std_P1 * step.noise.vectors("companion", self.size)
        state.extras[self.extra] = state.extras[self.extra].index_put(step.at_P, z_PZ.float())


def signal(t: Tensor) -> Tensor:
    """Returns g, the share of a companion's variance that is not noise: 1 at t = 0 and 0 at t = 1."""
    return 1 - t


def posterior(e_PZ: Tensor, z_PZ: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean (P, Z) and standard deviation of z at the time after a step, given z before it and e(x).

    before, after: g at the two times, with before <= after (DDPM, arXiv 2006.11239, eq. 7).
    """
    kept = before / after.clamp(min=1e-300)  # of the later signal, by the noise between the two times
    noise = (1 - before).clamp(min=1e-300)
    mean_PZ = after.sqrt() * (1 - kept) / noise * e_PZ + kept.sqrt() * (1 - after) / noise * z_PZ
    return mean_PZ, ((1 - kept) * (1 - after) / noise).clamp(min=0).sqrt()
