"""Absorbing noise: a token becomes the mask id, and a committed token stays unless a rule masks it again.

Shape letters: B samples, R rows of a step, L canvas length, P predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.draw import confidence
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.parts import part
from mmdiff.samplers.rules.state import Committed, Proposal
from mmdiff.samplers.step import Settings, Step


@part
@dataclass(frozen=True)
class Absorbing:
    """Masked diffusion (MDLM, LLaDA): pending positions hold the mask id, and a step commits some of them for good."""

    # a grammar, an energy or a verifier may choose the tokens of its steps
    proposes: ClassVar[bool] = True

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        """Do nothing: pending positions hold the mask id already."""

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return (state.step_BL > 0) & ~state.pending_BL if settings.rules.rescore else None

    def advance(self, step: Step) -> None:
        parts = step.split()
        commit(step, parts.logits_PV, parts.judged_PV)
        if step.settings.rules.revise is not None:
            none = parts.judged_SV is None or parts.at_S is None
            _revise(step, None if none else step.rescored(parts.judged_SV, parts.at_S))  # type: ignore[arg-type]


def commit(step: Step, logits_PV: Tensor, judged_PV: Tensor) -> Tensor:
    """Propose a token for each predicted position, score and select, and write what was selected: bool (P,)."""
    rules, late_X = step.settings.rules, step.settings.late_ids_X
    ids_P, commit_P = step.offer(logits_PV)
    late_P = torch.isin(ids_P, late_X)
    if len(late_X):
        judged_PV = judged_PV.index_fill(1, late_X, -torch.inf)
    confidence_P = confidence(judged_PV, ids_P).masked_fill(late_P, 0.0)
    if commit_P is None:
        proposal = Proposal(*step.work.at_P, ids_P, confidence_P, step.quota_R, step.noise, step.rows)
        score_P = rules.score(judged_PV, proposal).masked_fill(late_P, -torch.inf)
        commit_P = rules.select(score_P, proposal)
    step.state.commit(step.at_P, commit_P, ids_P, confidence_P)
    return commit_P


def _revise(step: Step, rescored_RL: Tensor | None) -> None:
    """Mask committed positions of the block again, while it has steps left (so that every block ends)."""
    state, rules, rows, row_R = step.state, step.settings.rules, step.rows, step.row_R
    committed_RL = step.work.in_block_RL & (step.work.rows(state.step_BL, row_R) > 0)
    committed = Committed(
        committed_RL=committed_RL,
        confidence_RL=step.work.rows(state.confidence_BL, row_R),
        n_masked_R=step.work.predict_RL.sum(1),
        quota_R=step.quota_R,
        state=rows,
        rescored_RL=rescored_RL,
        noise=step.noise,
    )
    assert rules.revise is not None
    again_RL = rules.revise(committed) & committed_RL & (rows.step_R < rows.steps_R)[:, None]
    state.remask(step.rows_of_batch(again_RL), step.settings.vocab.mask_id)
