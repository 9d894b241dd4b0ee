"""Noise that replaces tokens (GIDD, uniform diffusion): a token may be noised again and again until the last step.

Shape letters: B samples, R rows of a step, L canvas length, P predicted positions, V vocabulary, D backbone width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.draw import confidence
from mmdiff.diffusion.mixing import shares
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, NotNegative, Share
from mmdiff.samplers.blocks import positions
from mmdiff.samplers.rules.score import NegativeEntropy
from mmdiff.samplers.rules.state import Proposal, State
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

    @property
    def masks(self) -> bool:
        """Whether noise ever puts the mask id at a position."""
        return self.uniform < 1

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        if self.masks:  # at time 1 every token is the mask
            return
        fill(state, settings, noise)

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
        certain_P = weight_PS.sum(1) == 0  # without uniform noise a token is certain, whatever p makes of it
        ids_P = torch.where(certain_P, now_P, ids_P)
        last_P = (rows.step_R >= rows.steps_R)[row_P]
        confidence_P = p_PV.gather(1, ids_P[:, None]).squeeze(1)
        state = step.state
        state.ids_BL = state.ids_BL.index_put(step.at_P, ids_P)
        state.commit(step.at_P, last_P, ids_P, confidence_P)

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
        kept_P = torch.where(masked_P, step_kept_P + step_masked_P, step_replaced_P / n_P)  # the mask is kept, too
        return weight_PV, after.masked * kept_P


@part
@dataclass(frozen=True)
class Renoising:
    """Uniform noise of which a step takes back what the model is sure of (DiffusionGemma's sampler).

    A step draws a token for every position of the block; the rules (`sampler.select`, `sampler.remasking`) choose those
    that stay for the next step, and all others are any id again. Scores are of the model's distribution at the step's
    temperature. At the end of a block its likeliest tokens are committed, not those drawn.

    steps: of a block, at most; None: its share of `sampler.steps`.
    stable, confident: a block ends early when its likeliest tokens are those of the last `stable` steps too, and the
        mean entropy of its positions is below `confident`, in nats. confident: None: it takes all its steps.
    conditioning: whether the model is given what it predicted at the step before (`Backbone.soft`).
    """

    steps: AtLeast1 | None = None
    stable: AtLeast0 = 1
    confident: NotNegative | None = None
    conditioning: bool = False

    bounded: ClassVar[bool] = True
    ruled: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    refuses: ClassVar[tuple[str, ...]] = ("revise",)

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        if len(settings.late_ids_X):
            raise ConfigError("sampler.eos_policy: last: Renoising commits a block at once, expected none or suppress")
        fill(state, settings, noise)
        state.extras["likeliest"] = torch.full_like(state.ids_BL, -1)
        state.extras["stable_steps"] = torch.zeros_like(state.ids_BL)
        if self.conditioning:
            backbone = settings.extra("backbone")
            backbone.soft(torch.zeros(0, settings.vocab.size, device=state.ids_BL.device))
            state.extras["soft"] = torch.zeros(*state.ids_BL.shape, backbone.dim, device=state.ids_BL.device)

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def beside(self, rows: State, noise: StepNoise) -> dict[str, Tensor]:
        """Returns {"backbone": (R, L, D)}, the mean embedding of the last prediction at pending positions."""
        if not self.conditioning:
            return {}
        return {"backbone": rows.extras["soft"][rows.row_R] * rows.pending_RL[..., None]}

    def advance(self, step: Step) -> None:
        state, rows, rules, logits_PV = step.state, step.rows, step.settings.rules, step.logits_QV
        at_P, row_P = step.at_P, step.work.at_P[0]
        ids_P, best_P = step.propose(logits_PV), logits_PV.argmax(-1)
        temperature_P, scaled_PV = step.temperature(logits_PV), logits_PV
        if temperature_P is not None:
            scaled_PV = logits_PV / temperature_P.where(temperature_P > 0, 1.0).to(logits_PV.dtype)[:, None]
        confidence_P = confidence(step.judged_QV, ids_P)
        proposal = Proposal(*step.work.at_P, ids_P, confidence_P, step.quota_R, step.noise, rows)
        commit_P = rules.select(rules.score(scaled_PV, proposal), proposal)
        any_P = step.settings.allowed.any_id(at_P, step.noise.uniform("renoise"))
        state.ids_BL = state.ids_BL.index_put(at_P, torch.where(commit_P, ids_P, any_P))
        stable_P = torch.where(best_P == state.extras["likeliest"][at_P], state.extras["stable_steps"][at_P] + 1, 0)
        new = {"likeliest": best_P, "stable_steps": stable_P}
        if self.conditioning:
            new["soft"] = step.settings.extra("backbone").soft(scaled_PV).float()
        for name, values_P in new.items():
            state.extras[name] = state.extras[name].index_put(at_P, values_P)
        done_R = rows.step_R >= rows.steps_R
        if self.confident is not None:
            entropy_RL = proposal.canvas(-NegativeEntropy()(scaled_PV, proposal), 0.0)
            mean_R = entropy_RL.sum(1) / step.work.predict_RL.sum(1).clamp(min=1)
            stable_R = proposal.canvas(stable_P >= self.stable, True).all(1)
            done_R = done_R | (stable_R & (mean_R < self.confident))
        state.commit(at_P, done_R[row_P], best_P, confidence(step.judged_QV, best_P))


def fill(state: GenerationState, settings: Settings, noise: StepNoise) -> None:
    """Put an id that may stand there, each as likely, at every pending position."""
    at_P = positions(state.pending_BL, int(noise.count_R.sum()))
    state.ids_BL = state.ids_BL.index_put(at_P, settings.allowed.any_id(at_P, noise.uniform("start")))


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
