"""Blocks of a canvas and the steps they take, kept on the CPU: the only place where a step waits for the device.

Shape letters: B samples, J blocks of a row, L canvas length, R rows that have work, P predicted positions, Q queried
positions (the predicted ones, and committed ones that are judged again).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.relayout import Relayout

Ints = NDArray[np.int64]
Start = Literal["targets", "row"]


@dataclass(frozen=True)
class Work:
    """What one step does. Arrays `*_R` are on the CPU.

    row_R: the rows that have work. every: they are all rows of the batch, and nothing need be gathered. in_block_RL:
    bool, the current block. predict_RL, query_RL: bool. at_P, at_Q: their rows (of R) and positions.
    recent_RL, recent_R: the positions that were pending before the last step or are queried now, and how many.
    changed_R: whether canvas or queried positions are others than at the last step.
    """

    row_R: Ints
    every: bool
    block_R: Ints
    step_R: Ints
    steps_R: Ints
    start_R: Ints
    predicted_R: Ints
    queried_R: Ints
    recent_R: Ints
    changed_R: NDArray[np.bool_]
    recent_RL: Tensor
    in_block_RL: Tensor
    predict_RL: Tensor
    query_RL: Tensor
    at_P: tuple[Tensor, Tensor]
    at_Q: tuple[Tensor, Tensor]

    def rows(self, values_B: Tensor, index_R: Tensor) -> Tensor:
        """Returns the rows of a tensor; itself where all have work."""
        return values_B if self.every else values_B[index_R]


class Blocks:
    """Which block of each row is filled next, and in how many steps.

    each: the steps of a block, whatever `steps`. steps_BJ: those that each block of a row is given. taken_BJ: those
    it has taken. start_BJ: the predicted positions that it began with.
    """

    def __init__(
        self,
        state: GenerationState,
        steps: int | None,
        block_length: int | None,
        start: Start = "targets",
        each: int | None = None,
    ) -> None:
        counted_BL = state.batch.target_BL if start == "targets" else state.batch.attend_BL
        state.block_BL, steps_BJ = plan(state.pending_BL, counted_BL, steps, block_length)
        self.steps_BJ: Ints = steps_BJ.cpu().numpy()
        if each is not None:
            self.steps_BJ = (self.steps_BJ > 0) * np.int64(each)
        self.taken_BJ, self.start_BJ = np.zeros_like(self.steps_BJ), np.zeros_like(self.steps_BJ)
        self.left_BJ = np.full_like(self.steps_BJ, -1)  # predicted positions at the last step
        self.block_BL: Ints = state.block_BL.cpu().numpy()
        self.recent_BL: Tensor | None = None  # what was pending before the last step
        self.asked_BL: tuple[Tensor, Tensor] | None = None  # the canvas at the last step, and what was queried

    def next(self, state: GenerationState, live_BL: Tensor, rescore: Tensor | None, wrong: Tensor) -> tuple[Work, bool]:
        """Returns the work of the next step, and whether `wrong` (a bool on the device) is True.

        A row's current block is its first one with live positions; a row without any is finished. rescore: bool BL,
        positions that are queried too, where they lie in the current block.
        """
        n_blocks = self.steps_BJ.shape[1]
        block_B = torch.where(live_BL, state.block_BL, n_blocks).amin(1)
        in_block_BL = state.block_BL == block_B[:, None]
        predict_BL = state.pending_BL & in_block_BL
        query_BL = predict_BL if rescore is None else predict_BL | (rescore & in_block_BL)
        recent_BL = (state.pending_BL if self.recent_BL is None else self.recent_BL) | query_BL
        counts = predict_BL.sum(1), query_BL.sum(1), recent_BL.sum(1), self._changed(state.ids_BL, query_BL)
        status = torch.stack([block_B, *counts, wrong.long().expand_as(block_B)])
        block_B, predicted_B, queried_B, recent_B, changed_B, wrong_B = status.cpu().numpy()  # the one wait of a step
        self.recent_BL = state.pending_BL
        row_R = np.flatnonzero(block_B < n_blocks)
        every = len(row_R) == len(block_B)
        block_R, predicted_R, queried_R = block_B[row_R], predicted_B[row_R], queried_B[row_R]
        at = row_R, block_R
        self.taken_BJ[at] += 1
        self.start_BJ[at] = np.where(self.taken_BJ[at] == 1, predicted_R, self.start_BJ[at])
        if not every:
            index_R = torch.from_numpy(row_R).to(live_BL.device, non_blocking=True)
            in_block_BL, predict_BL = in_block_BL[index_R], predict_BL[index_R]
            query_BL = predict_BL if rescore is None else query_BL[index_R]
            recent_BL = recent_BL[index_R]
        at_Q = positions(query_BL, int(queried_R.sum()))
        at_P = at_Q if rescore is None else positions(predict_BL, int(predicted_R.sum()))
        work = Work(
            row_R=row_R,
            every=every,
            block_R=block_R,
            step_R=self.taken_BJ[at],
            steps_R=self.steps_BJ[at],
            start_R=self.start_BJ[at],
            predicted_R=predicted_R,
            queried_R=queried_R,
            recent_R=recent_B[row_R],
            changed_R=changed_B[row_R] > 0,
            recent_RL=recent_BL,
            in_block_RL=in_block_BL,
            predict_RL=predict_BL,
            query_RL=query_BL,
            at_P=at_P,
            at_Q=at_Q,
        )
        return work, bool(wrong_B.any())

    def _changed(self, ids_BL: Tensor, query_BL: Tensor) -> Tensor:
        """Returns how many positions of each row hold another id than at the last step, or are queried at one of the
        two steps only."""
        last, self.asked_BL = self.asked_BL, (ids_BL, query_BL)
        return torch.ones_like(ids_BL[:, 0]) if last is None else ((ids_BL != last[0]) | (query_BL != last[1])).sum(1)

    def relayout(self, state: GenerationState, work: Work, moved: Relayout) -> None:
        """Take over a new layout. A block that was given positions has steps in proportion for them."""
        self.block_BL = np.take_along_axis(self.block_BL, moved.source, 1)
        self.recent_BL = self.asked_BL = None
        at, added_R = (work.row_R, work.block_R), moved.inserted_B[work.row_R]
        self.steps_BJ[at] += -(-added_R * self.steps_BJ[at] // np.maximum(self.start_BJ[at], 1))

    def stuck(self, work: Work, may_wait: bool, growth: int = 0) -> bool:
        """Whether a row has as many predicted positions in its block as a step before, or, under a rule that may wait,
        more steps than it was given. growth: a row that may be given so many more positions has two steps for each."""
        at = work.row_R, work.block_R
        if growth:
            most_R = np.maximum(work.steps_R, work.start_R) + 2 * growth
            return bool((work.step_R > most_R).any())
        before_R, self.left_BJ[at] = self.left_BJ[at], work.predicted_R
        stuck_R = work.step_R > work.steps_R if may_wait else before_R == work.predicted_R
        stuck_R &= work.predicted_R > 0
        return bool(stuck_R.any())


def positions(mask_RL: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns row and position of the `count` positions that are True, in row-major order, without waiting for them."""
    row_P, position_P = torch.nonzero_static(mask_RL, size=count).T.contiguous()
    return row_P, position_P


def plan(masked_BL: Tensor, counted_BL: Tensor, steps: int | None, block_length: int | None) -> tuple[Tensor, Tensor]:
    """Returns block_BL, the block of each target position, and steps_BJ, the steps that each block of a row is given.

    A block is `block_length` of the positions `counted_BL` of a row, in row order wherever they lie. A block without
    masked positions takes no steps. steps: for the whole row; None: one step per masked position.
    """
    rank_BL = (counted_BL.cumsum(1) - 1).clamp(min=0)
    length = block_length or counted_BL.shape[1]
    block_BL = rank_BL // length
    n_masked_BJ = torch.zeros(
        len(masked_BL), -(-counted_BL.shape[1] // length), dtype=torch.int64, device=masked_BL.device
    )
    n_masked_BJ.scatter_add_(1, block_BL, masked_BL.long())
    if steps is None:
        return block_BL, n_masked_BJ
    has_masked_BJ = n_masked_BJ > 0
    steps_each_B = (steps // has_masked_BJ.sum(1).clamp(min=1)).clamp(min=1)
    return block_BL, has_masked_BJ * steps_each_B[:, None]
