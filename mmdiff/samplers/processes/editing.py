"""Absorbing noise with token editing: a committed token of the block is replaced when the model is surer of another.

Shape letters: B samples, R rows of a step, L canvas length, P predicted positions, S committed positions of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.draw import confidence
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, Share
from mmdiff.samplers.step import Settings, Step

from .absorbing import commit


@part
@dataclass(frozen=True)
class Editing:
    """LLaDA2.1's decoding: masked positions are committed by the rules (`sampler.threshold`), committed ones edited.

    A token that an earlier step committed is replaced by the likeliest one where that is another and its probability
    is above `threshold`. A block ends when it has no pending position and a step changed nothing, or after `most` steps
    without a pending position. Given tokens are never edited. A model that was trained on masked positions only never
    learnt to judge what it can see.
    """

    threshold: Share = 0.9
    most: AtLeast0 = 16

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        state.extras["unsettled"] = torch.zeros_like(state.pending_BL)
        state.extras["steps_after"] = torch.zeros_like(state.step_BL)

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL | state.extras["unsettled"]

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return (state.step_BL > 0) & ~state.pending_BL

    def advance(self, step: Step) -> None:
        parts, state = step.split(), step.state
        commit_P = commit(step, parts.logits_PV, parts.judged_PV)
        changed_RL = torch.zeros_like(step.work.predict_RL).index_put(step.work.at_P, commit_P)
        if parts.at_S is not None and parts.logits_SV is not None and parts.judged_SV is not None:
            row_S, position_S = parts.at_S
            at_S = (row_S if step.work.every else step.row_R[row_S]), position_S
            ids_S = parts.logits_SV.argmax(-1)
            confidence_S = confidence(parts.judged_SV, ids_S)
            edit_S = (ids_S != state.ids_BL[at_S]) & (confidence_S > self.threshold)
            state.commit(at_S, edit_S, ids_S, confidence_S)
            changed_RL = changed_RL.index_put(parts.at_S, edit_S)
        self._settle(step, changed_RL.any(1))

    def _settle(self, step: Step, changed_R: Tensor) -> None:
        """A block stays live while its last step changed something."""
        state, rows, work = step.state, step.rows, step.work
        pending_R = (work.rows(state.pending_BL, step.row_R) & work.in_block_RL).any(1)
        after_RL = work.rows(state.extras["steps_after"], step.row_R) + (rows.block_RL & ~pending_R[:, None]).int()
        again_RL = rows.block_RL & changed_R[:, None] & (after_RL <= self.most)
        if work.every:
            state.extras["unsettled"], state.extras["steps_after"] = again_RL, after_RL
            return
        for name, values_RL in (("unsettled", again_RL), ("steps_after", after_RL)):
            state.extras[name] = state.extras[name].index_copy(0, step.row_R, values_RL)
