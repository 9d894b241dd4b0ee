"""Absorbing noise on a canvas that grows and shrinks: a committed token may stand for two positions, or for none.

Shape letters: B samples, L canvas length, P predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1
from mmdiff.samplers.step import Settings, Step

from .absorbing import commit


@part
@dataclass(frozen=True)
class Expanding:
    """DreamOn's decoding (Dream-org/DreamOn-v0-7B): answers of unknown length, from any number of masked positions.

    Where `expand` is committed, two masked positions take its place; where `delete` is, the position is gone. Given
    tokens stay.

    expand, delete: tokens by spelling or id. delete: None: EOS, as in the published model.
    most: how many positions may be inserted per row; then `expand` is not proposed any more.
    rest: whether all masked positions of the span behind a deleted one go with it (`pad_delete_to_right` there).
    """

    expand: str | AtLeast0
    delete: str | AtLeast0 | None = None
    most: AtLeast1 = 64
    rest: bool = False

    refuses = ("revise", "constraint", "draft")

    @property
    def growth(self) -> int:
        return self.most

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        self._ids(settings)
        state.extras["used"] = torch.zeros_like(state.ids_BL)  # of `most`, the same at all positions of a row

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def advance(self, step: Step) -> None:
        state, (expand, delete) = step.state, self._ids(step.settings)
        used_B = state.extras["used"].amax(1)
        full_P = used_B[step.at_P[0]] >= self.most
        for logits_PV in {id(step.logits_QV): step.logits_QV, id(step.judged_QV): step.judged_QV}.values():
            logits_PV[:, expand] = logits_PV[:, expand].masked_fill(full_P, -torch.inf)
        waiting_BL = state.pending_BL
        commit(step, step.logits_QV, step.judged_QV)
        now_BL = waiting_BL & ~state.pending_BL
        expand_BL, delete_BL = now_BL & (state.ids_BL == expand), now_BL & (state.ids_BL == delete)
        grown_BL = expand_BL & (used_B[:, None] + expand_BL.long().cumsum(1) <= self.most)
        if self.rest:
            delete_BL = delete_BL | (state.pending_BL & self._behind(delete_BL, state.batch.target_BL))
        used_BL = state.extras["used"] + grown_BL.sum(1, keepdim=True)
        state.extras["used"] = used_BL
        moved = state.relayout(~(delete_BL | expand_BL), expand_BL.long() + grown_BL, step.settings.vocab)
        state.extras["used"] = used_BL.amax(1, keepdim=True).expand(moved.new_BK.shape)

    def _behind(self, mark_BL: Tensor, target_BL: Tensor) -> Tensor:
        """Returns bool BL, the positions of a span of targets that stand behind a marked one."""
        at_L = torch.arange(mark_BL.shape[1], device=mark_BL.device)
        last_mark_BL = torch.where(mark_BL, at_L, -1).cummax(1).values
        last_context_BL = torch.where(target_BL, -1, at_L).cummax(1).values
        return target_BL & (last_mark_BL > last_context_BL)

    def _ids(self, settings: Settings) -> tuple[int, int]:
        vocab, where = settings.vocab, "sampler.process"
        delete = vocab.eos_id if self.delete is None else vocab.id_of(self.delete, f"{where}.delete")
        return vocab.id_of(self.expand, f"{where}.expand"), delete
