"""Noise that masks and replaces (GIDD, uniform diffusion): a token may be noised again and again until the last step.

Shape letters: B samples, L canvas length, P predicted positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.config.ranges import Share
from mmdiff.diffusion.mixing import shares
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.samplers.blocks import positions
from mmdiff.samplers.step import Settings, Step


@part
@dataclass(frozen=True)
class Hybrid:
    """Mask and uniform noise (GIDD, arXiv 2503.04482). A step draws every position of the block anew.

    With s the time after the step and t the time before, it draws z_s in proportion to
    `q(z_t | z_s) * sum over x of p(x) q_s(z_s | x)`. A block takes exactly `sampler.steps` of its share, and its tokens
    are committed at the last of them. `sampler.temperature` is that of the model's distribution p.

    uniform: the share of tokens that are replaced rather than masked, as in training (`mmdiff.diffusion.mixing`).
    given: what p is a distribution given: `others`, all positions but the token's own (the optimum of GIDD's bound), or
        `all`, the token's own noised id included (the optimum of plain cross-entropy, D3PM's).
    """

    uniform: Share = 0.2
    given: Literal["others", "all"] = "others"

    bounded = True  # it takes the steps it was given, whatever is committed

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        if self.uniform < 1:  # at time 1 every token is the mask
            return
        at_P = positions(state.pending_BL, int(noise.count_R.sum()))
        allow_PV = settings.allowed.of_positions(at_P).expand(len(at_P[0]), -1)
        rank_P1 = (noise.uniform("start") * allow_PV.sum(1)).floor().long()[:, None]
        ids_P = torch.searchsorted(allow_PV.long().cumsum(1), rank_P1, right=True).squeeze(1)
        state.ids_BL = state.ids_BL.index_put(at_P, ids_P)

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def advance(self, step: Step) -> None:
        rows, row_P = step.rows, step.work.at_P[0]
        t_P, s_P = times(step)
        now_P, mask_id = rows.ids_RL[step.work.at_P], step.settings.vocab.mask_id
        p_PV = step.law(step.logits_QV)
        allow_PV = step.settings.allowed.of_positions(step.at_P)
        weight_PV, weight_P = self._posterior(p_PV, allow_PV, now_P == mask_id, now_P, t_P, s_P)
        weight_PS = torch.cat([weight_PV, weight_P[:, None]], 1)
        ids_P = pick(weight_PS, step.noise.uniform("token"))
        ids_P = torch.where(ids_P >= weight_PV.shape[1], mask_id, ids_P)
        sure_P = weight_PS.sum(1) == 0  # without uniform noise a token is sure, whatever p makes of it
        ids_P = torch.where(sure_P, now_P, ids_P)
        last_P = (rows.step_R >= rows.steps_R)[row_P]
        sure_P = p_PV.gather(1, ids_P[:, None]).squeeze(1)
        state = step.state
        state.ids_BL = state.ids_BL.index_put(step.at_P, ids_P)
        state.write(step.at_P, last_P, ids_P, sure_P)

    def _posterior(
        self, p_PV: Tensor, allow_PV: Tensor, masked_P: Tensor, now_P: Tensor, t_P: Tensor, s_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns weights (P, V) of the ids and (P,) of the mask, for the token at time s, not normalised."""
        before, after = shares(t_P, self.uniform), shares(s_P, self.uniform)
        n_P = allow_PV.sum(1).double().expand(len(p_PV))
        step_kept_P = before.kept / after.kept
        step_replaced_P = (before.replaced - step_kept_P * after.replaced).clamp(min=0)
        step_masked_P = (before.masked - step_kept_P * after.masked).clamp(min=0)
        now_PV = torch.zeros_like(p_PV).scatter(1, now_P[:, None], (~masked_P).double()[:, None])
        if self.given == "all":  # p(x | all) / q_t(z_t | x) is what the other positions say of x
            seen_PV = now_PV * before.kept[:, None] + (before.replaced / n_P)[:, None]
            p_PV = torch.where(masked_P[:, None] | (seen_PV == 0), p_PV, p_PV / seen_PV)
            p_PV = p_PV / p_PV.sum(1, keepdim=True)
        at_s_PV = p_PV * after.kept[:, None] + (after.replaced / n_P)[:, None] * allow_PV
        to_P = torch.where(masked_P, step_masked_P, step_replaced_P / n_P)
        weight_PV = at_s_PV * (to_P[:, None] + now_PV * step_kept_P[:, None])
        stays_P = torch.where(masked_P, step_kept_P + step_masked_P, step_replaced_P / n_P)  # the mask is kept, too
        return weight_PV, after.masked * stays_P


def times(step: Step) -> tuple[Tensor, Tensor]:
    """Returns float64 (P,) twice, the time before a step and that after it: from 1 down to 0 at a block's last step."""
    row_P, rows = step.work.at_P[0], step.rows
    steps_P = rows.steps_R.double()[row_P]
    return 1 - (rows.step_R[row_P] - 1) / steps_P, (1 - rows.step_R[row_P] / steps_P).clamp(min=0)


def pick(weight_PS: Tensor, u_P: Tensor) -> Tensor:
    """Returns int64 (P,), states drawn in proportion to weights, by float64 numbers strictly between 0 and 1."""
    mass_PS = weight_PS.cumsum(1)
    total_P = mass_PS[:, -1]
    at_P = torch.minimum(u_P * total_P, total_P.nextafter(torch.zeros_like(total_P)))
    return torch.searchsorted(mass_PS, at_P[:, None].contiguous(), right=True).squeeze(1)
