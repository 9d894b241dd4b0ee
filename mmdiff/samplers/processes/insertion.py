"""Insertion: a text begins empty and grows by one token per step, wherever the model puts it.

Shape letters: B samples, R rows of a step, L canvas length, Q queried positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.draw import confidence, draw, kept
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import PositiveShare, Share
from mmdiff.samplers.step import Settings, Step

CARRIED = ("left", "run", "allow")


@part
@dataclass(frozen=True)
class Insertion:
    """Insertion language models (ILM, arXiv 2505.05755), trained by
    `mmdiff.objectives.replacing.insertion.InsertionLoss`.

    Masked positions are taken off the canvas first: a run of n of them is a gap that gets at most n tokens. A step
    draws, for each row, the position behind which a token is inserted, then the token, from one softmax over all pairs
    of the two, at `sampler.temperature`; at temperature 0 it takes the likeliest position, and there the likeliest
    token. A row ends when its gaps are full, or when the model ends it: when the sigmoid of the logit of EOS at the
    row's first position is above `stop`.

    gap_top_p: the position is drawn from the fewest that together have this probability.
    """

    stop: Share = 0.9
    gap_top_p: PositiveShare = 0.5

    bounded = True
    keeps_nothing = True  # every step lays the canvas out anew, and asks about given positions
    refuses = (
        "constraint",
        "draft",
        "steps",
        "block_length",
        "block_start",
        "temperature_end",
        "eos_policy",
        "end_rule",
    )

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        """Delete the masked positions. Raises DataError for one that no position stands before."""
        batch, pending_BL = state.batch, state.pending_BL
        first_BL = pending_BL & batch.attend_BL & (batch.position_ids_BL == 0)
        if bool(first_BL.any()):
            row = int(first_BL.any(1).nonzero()[0])
            raise DataError(
                f"row {row} begins with a masked position; tokens are inserted behind another: give it a BOS"
            )
        n_BL = _followers(pending_BL) * ~pending_BL
        at_L = torch.arange(1, pending_BL.shape[1] + 1, device=pending_BL.device)
        state.extras["left"] = n_BL  # how many tokens may yet be inserted behind a position
        state.extras["run"] = at_L * (n_BL > 0)  # a number for the gap that it stands in; 0: in none
        state.extras["allow"] = settings.allowed.allow_BL.roll(-1, 1) * (n_BL > 0)
        state.relayout(~pending_BL, torch.zeros_like(state.ids_BL), settings.vocab)

    def live(self, state: GenerationState) -> Tensor:
        return state.extras["left"] > 0

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return self.live(state) | (state.batch.attend_BL & (state.batch.position_ids_BL == 0))

    def advance(self, step: Step) -> None:
        state, vocab = step.state, step.settings.vocab
        gap_R, ids_R, confidence_R, goes_on_R = self._drawn(step)
        after_RL = torch.zeros_like(step.rows.ids_RL).scatter(1, gap_R[:, None], goes_on_R.long()[:, None])
        old = {name: state.extras[name] for name in CARRIED}
        after_BL = step.rows_of_batch(after_RL)
        moved = state.relayout(torch.ones_like(state.pending_BL), after_BL, vocab, allow_BL=old["allow"])
        new_BK, rows_B = moved.new_BK, torch.zeros_like(state.forwards_B)
        state.ids_BL = torch.where(new_BK, rows_B.index_put((step.row_R,), ids_R)[:, None], state.ids_BL)
        confidence_B = torch.zeros_like(rows_B, dtype=torch.float32).index_put((step.row_R,), confidence_R.float())
        state.confidence_BL = torch.where(new_BK, confidence_B[:, None], state.confidence_BL)
        state.step_BL = torch.where(new_BK, state.forwards_B[:, None].int(), state.step_BL)
        state.pending_BL = state.pending_BL & ~new_BK
        for name in CARRIED:  # what is inserted belongs to the gap of the position that it stands behind
            values_BK = old[name].gather(1, moved.source_BK)
            state.extras[name] = torch.where(moved.attend_BK, values_BK, 0)
        run_BK = state.extras["run"]
        filled_BK = run_BK == (run_BK * new_BK).amax(1, keepdim=True)
        goes_on_B = torch.ones_like(rows_B).index_put((step.row_R,), goes_on_R.long())
        state.extras["left"] = (state.extras["left"] - filled_BK.long()).clamp(min=0) * goes_on_B[:, None]

    def _drawn(self, step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns per row the position, the token behind it, its probability there, and whether the row goes on."""
        config, settings, at_Q = step.settings.config, step.settings, step.work.at_Q
        row_Q, position_Q = at_Q
        index_Q, index_R = (
            torch.arange(len(row_Q), device=row_Q.device),
            torch.arange(len(step.row_R), device=row_Q.device),
        )
        left_Q = step.work.rows(step.state.extras["left"], step.row_R)[at_Q]
        first_R = torch.full_like(index_R, len(row_Q)).scatter_reduce(0, row_Q, index_Q, "amin")
        goes_on_R = step.logits_QV[first_R, settings.vocab.eos_id].sigmoid() <= self.stop
        logits_QV = step.logits_QV.index_fill(1, settings.end_ids_X, -torch.inf)
        if settings.allowed.banned_N is None:
            allow_Q = step.work.rows(step.state.extras["allow"], step.row_R)[at_Q]
            logits_QV = logits_QV.masked_fill(~settings.allowed.allow_KV[allow_Q], -torch.inf)
        scale = config.temperature or 1.0
        mass_Q = (logits_QV / scale).logsumexp(1).masked_fill(left_Q == 0, -torch.inf)
        mass_RL = torch.full(step.rows.ids_RL.shape, -torch.inf, device=mass_Q.device).index_put(at_Q, mass_Q)
        heat_R = torch.full((len(index_R),), 1.0 if config.temperature else 0.0, device=mass_Q.device)
        gap_R = draw(kept(mass_RL, None, self.gap_top_p), heat_R, step.noise.row_uniform("gap"))
        at_RL = torch.zeros_like(step.rows.ids_RL).index_put(at_Q, index_Q)
        logits_RV = logits_QV[at_RL[index_R, gap_R]]
        tokens_RV = kept(logits_RV, config.top_k, config.top_p)
        ids_R = draw(tokens_RV, heat_R * config.temperature, step.noise.row_uniform("token"))
        return gap_R, ids_R, confidence(logits_RV, ids_R), goes_on_R


def _followers(mask_BL: Tensor) -> Tensor:
    """Returns int64 BL, how many positions of `mask_BL` follow each position without another between."""
    at_L, length = torch.arange(mask_BL.shape[1], device=mask_BL.device), mask_BL.shape[1]
    end_BL = torch.where(mask_BL, length, at_L).flip(1).cummin(1).values.flip(1)  # the first one from here on outside
    behind_BL = torch.full_like(end_BL, length)
    behind_BL[:, :-1] = end_BL[:, 1:]
    return behind_BL - at_L - 1
