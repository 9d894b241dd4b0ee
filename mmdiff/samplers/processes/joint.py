"""Absorbing noise, undone one token at a time within a call: a sampler layer sees each before the next is drawn.

Shape letters: R rows of a step, N predicted positions of the longest of them, P those of all, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.samplers.rules.select import order
from mmdiff.samplers.rules.state import Proposal
from mmdiff.samplers.step import Settings, Step

from .absorbing import Absorbing, commit


@part
@dataclass(frozen=True)
class Joint:
    """ADJUST (arXiv 2509.22738): a call commits `count` tokens per row, best score first, each given those before it.

    After each, the layer makes new states, and so logits, of the positions that are still masked; `sampler.steps` plays
    no part. With a count of 1 the layer is never asked.

    extra: the name of the model's `mmdiff.objectives.extras.sampler_layer.SamplerLayer`.
    """

    extra: str = "sampler"
    count: AtLeast1 = 4
    tokens: Absorbing = field(default_factory=Absorbing)

    hidden: ClassVar[bool] = True
    # what else selects, and what mixes logits, of which no single hidden state is the source
    refuses: ClassVar[tuple[str, ...]] = ("schedule", "threshold", "select", "revise", "guidance_scale", "denoise")

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        self.tokens.start(state, settings, noise)
        settings.extra(self.extra)

    def live(self, state: GenerationState) -> Tensor:
        return self.tokens.live(state)

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def advance(self, step: Step) -> None:
        logits_PV, judged_PV = step.logits_QV, step.judged_QV
        new_P = torch.zeros(len(logits_PV), dtype=torch.bool, device=logits_PV.device)
        for number in range(min(self.count, int(step.work.predicted_R.max()))):
            if number:
                logits_PV, judged_PV = self._again(step, new_P)
                step = replace(step, noise=step.noise.fold(f"token{number}"))
            rules = replace(step.settings.rules, select=Best(~new_P))
            one = replace(step, settings=replace(step.settings, rules=rules))
            new_P = new_P | commit(one, logits_PV, judged_PV)

    def _again(self, step: Step, new_P: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of the step given the tokens that it has committed, and what they are judged by."""
        settings, work, (row_P, position_P) = step.settings, step.work, step.work.at_P
        layer, model, device = settings.extra(self.extra), settings.model, row_P.device
        first_R = torch.from_numpy(np.cumsum(work.predicted_R) - work.predicted_R).to(device, non_blocking=True)
        column_P = torch.arange(len(row_P), device=device) - first_R[row_P]
        size = len(work.row_R), int(work.predicted_R.max())

        def laid(values_P: Tensor) -> Tensor:
            return values_P.new_zeros(*size, *values_P.shape[1:]).index_put((row_P, column_P), values_P)

        assert step.hidden_QD is not None
        tokens_PD = model.embed(step.state.ids_BL[step.at_P])
        padding_RN = ~laid(torch.ones_like(new_P))
        h_RND = layer(laid(step.hidden_QD), laid(tokens_PD), laid(new_P), laid(position_P), padding_RN)
        raw_PV = model.logits(h_RND[row_P, column_P])
        whole = settings.config.confidence == "vocabulary"
        logits_PV = settings.allowed.ban(raw_PV, step.at_P, own=not whole)
        return logits_PV, raw_PV if whole else logits_PV


@dataclass(frozen=True)
class Best:
    """Selects the position of a row with the best score, of those that are left."""

    left_P: Tensor

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        rank_P = order(score_P, proposal.row_P).double()  # scores may be -inf, ranks of those left are not
        return (order((-rank_P).masked_fill(~self.left_P, -torch.inf), proposal.row_P) < 1) & self.left_P
