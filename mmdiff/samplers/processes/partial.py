"""Partial masking: a token's digits are masked, and revealed, one by one (MDM-Prime, arXiv 2505.18495).

Shape letters: B samples, R rows of a step, L canvas length, P predicted positions, N digits of an id, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.digits import base_of, consistent, to_digits
from mmdiff.diffusion.draw import confidence
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.samplers.rules.state import State
from mmdiff.samplers.rules.timed import times
from mmdiff.samplers.step import Settings, Step


@part
@dataclass(frozen=True)
class Partial:
    """Masks each of the `count` digits of a token by itself, so that a position may be known in part.

    A step draws tokens that agree with the digits revealed so far, and reveals each masked digit of theirs with
    probability 1 - s/t, t being the time before the step and s after it, 0 at a block's last. A token is committed with
    its last digit. With one digit it is absorbing noise under `mmdiff.samplers.rules.timed.Ancestral`.

    extra: the name of the model's `mmdiff.objectives.extras.digits.DigitEmbeddings`. count: N, as that extra has it.
    """

    extra: str = "digits"
    count: AtLeast1 = 2

    bounded = True  # it takes the steps it was given, whatever is committed

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        shape, base = (*state.ids_BL.shape, self.count), base_of(settings.vocab.size, self.count)
        state.extras[self.extra] = torch.full(shape, base, device=state.ids_BL.device)

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def beside(self, rows: State, noise: StepNoise) -> dict[str, Tensor]:
        """Returns {extra: int64 (R, L, N)}, the digits of pending positions; others are all masked there."""
        return {self.extra: rows.extras[self.extra][rows.row_R]}

    def advance(self, step: Step) -> None:
        settings, state, row_P = step.settings, step.state, step.work.at_P[0]
        size, late_X = settings.vocab.size, settings.late_ids_X
        base, digits_PN = base_of(size, self.count), state.extras[self.extra][step.at_P]
        fits_PV = consistent(digits_PN, size, base)
        ids_P = step.propose(step.logits_QV.masked_fill(~fits_PV, -torch.inf))
        late_P = torch.isin(ids_P, late_X)
        judged_PV = step.judged_QV.masked_fill(~fits_PV, -torch.inf).index_fill(1, late_X, -torch.inf)
        confidence_P = confidence(judged_PV, ids_P).masked_fill(late_P, 0.0)
        t_R, s_R = times(step.rows)
        p_P = (1 - s_R / t_R)[row_P]
        noises = [step.noise if n == 0 else step.noise.fold(f"digit{n}") for n in range(self.count)]
        shown_PN = torch.stack([noise.uniform("select") < p_P for noise in noises], 1)
        digits_PN = torch.where((digits_PN == base) & shown_PN, to_digits(ids_P, base, self.count), digits_PN)
        whole_P = (digits_PN != base).all(1)
        state.commit(step.at_P, whole_P, ids_P, confidence_P)
        left_PN = digits_PN.masked_fill(whole_P[:, None], base)  # a committed token's digits are those of its id
        state.extras[self.extra] = state.extras[self.extra].index_put(step.at_P, left_PN)
