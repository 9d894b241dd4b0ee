"""Editing by inversion (DICE, arXiv 2410.08207): what the model lacks of a given text is recorded, then added again.

Noise is put on the text in ever more positions, and at each level it is recorded by how much the model misses it. The
generation goes the levels back and adds a share of that to what the model says, under another prompt perhaps.

Shape letters: B samples, R rows of a step, L canvas length, P target positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.query import Query
from mmdiff.diffusion.draw import confidence
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import Positive, PositiveShare, Share
from mmdiff.samplers.step import Settings, Step

LEAST = -1e4
"""What a recorded log-probability counts at least: a residual is a number."""


@dataclass(frozen=True)
class Recorded:
    """source_BL: the text. order_BL: at which of the levels a position is masked first. log_p: at each level, from the
    first, what the model said of all target positions (P, V)."""

    source_BL: Tensor
    order_BL: Tensor
    log_p: list[Tensor]

    def masked(self, level: int) -> Tensor:
        """Returns bool (B, L), the positions that are masked at a level, from 0: none."""
        return self.order_BL <= level


@part
@dataclass(frozen=True)
class Inverted:
    """Edits answers that are given whole, in `sampler.steps` steps.

    With x_t the text masked at level t, y its log one-hot and z_t = y - log p(. | x_t, source), a step takes every
    target position to the likeliest id of `log p(. | x_t, prompt) + keep z_t`, or draws it at `sampler.temperature`
    (the published Gumbel noise, of that weight), and masks what level t - 1 masks. With keep=1, temperature 0 and
    source=prompt that is the text again, exactly.

    Each level is recorded by one call of the model, without links (`Generation.checks`); log-probabilities of all
    levels, target positions and ids are kept.

    keep: at the first step, and keep_end at the last, linear between them; None: keep.
    depth: the share of the target positions that the last level masks.
    floor: the log one-hot is -floor at all other ids, in nats.
    source: what the text is inverted under: `nothing`, the context masked and media left out, or the `prompt` itself.
    """

    keep: Share = 1.0
    keep_end: Share | None = None
    depth: PositiveShare = 1.0
    floor: Positive = 10.0
    source: Literal["nothing", "prompt"] = "nothing"

    bounded = True  # it takes the steps it was given, whatever is committed
    refuses = ("constraint", "draft", "block_length")

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        levels, target_BL = settings.config.steps, state.batch.target_BL
        if levels is None:
            raise ConfigError("sampler.steps: Inverted takes as many steps back as forth, expected a number")
        if bool(state.pending_BL.any()):
            raise DataError("sampler.process: Inverted edits answers that are given whole, a row has masked positions")
        rank_BL = (target_BL.cumsum(1) - 1).clamp(min=0)
        u_BL = noise.table("order", target_BL.shape[1]).gather(1, rank_BL).masked_fill(~target_BL, torch.inf)
        order_rank_BL = u_BL.argsort(dim=1, stable=True).argsort(dim=1) + 1
        most_B1 = self.depth * target_BL.sum(1, keepdim=True)
        # the first level at which floor(most * level / levels) positions reach this one
        order_BL = (order_rank_BL * levels / most_B1.clamp(min=1e-9) - 1e-6).ceil().long()
        order_BL = order_BL.masked_fill(~target_BL, levels + 1)
        recorded = Recorded(state.ids_BL, order_BL, [])
        row_P, position_P = target_BL.nonzero(as_tuple=True)
        query = self._source(state, settings)
        for level in range(1, levels + 1):
            ids_BL = query.ids_RL.masked_fill(recorded.masked(level), settings.vocab.mask_id)
            logits_PV = settings.model(replace(query, ids_RL=ids_BL)).logits_PV.float()
            state.count_call(logits_PV)
            log_p_PV = settings.allowed.ban(logits_PV, (row_P, position_P), own=True).log_softmax(-1)
            recorded.log_p.append(log_p_PV.clamp(min=LEAST))
        settings.kept["inversion"] = recorded
        state.remask(target_BL, settings.vocab.mask_id)
        state.ids_BL = recorded.source_BL.masked_fill(recorded.masked(levels), settings.vocab.mask_id)

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def advance(self, step: Step) -> None:
        recorded: Recorded = step.settings.kept["inversion"]
        rows, at_P, state = step.rows, step.work.at_P, step.state
        level = len(recorded.log_p) - int(step.work.step_R[0]) + 1  # all rows take the same steps
        source_P1 = recorded.source_BL[step.at_P][:, None]
        one_hot_PV = torch.full_like(step.logits_QV, -self.floor).scatter_(1, source_P1, 0.0)
        last = self.keep if self.keep_end is None else self.keep_end
        keep_P1 = rows.between(self.keep, last)[at_P[0]][:, None].float()
        log_p_PV = step.logits_QV.log_softmax(-1)
        ids_P = step.propose(log_p_PV + keep_P1 * (one_hot_PV - recorded.log_p[level - 1]))
        masked_P = recorded.masked(level - 1)[step.at_P]
        new_P = torch.where(masked_P, step.settings.vocab.mask_id, ids_P)
        state.ids_BL = state.ids_BL.index_put(step.at_P, new_P)
        last_P = (rows.step_R >= rows.steps_R)[at_P[0]]
        state.commit(step.at_P, last_P, new_P, confidence(step.judged_QV, ids_P))

    def _source(self, state: GenerationState, settings: Settings) -> Query:
        """Returns the query of the target positions under what the text is inverted under."""
        batch, row_B = state.batch, torch.arange(len(state.ids_BL), device=state.ids_BL.device)
        if self.source == "prompt":
            return Query(state.ids_BL, batch.target_BL, row_B, batch=batch)
        context_BL = batch.attend_BL & ~batch.target_BL
        bare_BL = state.ids_BL.masked_fill(context_BL, settings.vocab.mask_id)
        return Query(bare_BL, batch.target_BL, row_B, torch.zeros_like(row_B, dtype=torch.bool), batch=batch)
