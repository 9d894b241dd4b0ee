"""Approximate caches of keys and values: each is a choice of the positions that are run again at a step.

All others keep the keys and values of the last step that ran them, as if nothing had been committed since. Exact caches
need no link: where the attention pattern says which positions can no longer change, they are not run again.

Shape letters: B samples, R rows, L canvas length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Bools, Fresh, Ints, Prediction, Query, StepInfo
from mmdiff.canvas.vocab import Vocab
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1
from mmdiff.protocols import Denoise


@runtime_checkable
class Cache(Protocol):
    """A link that chooses the positions that are run. There can be one of them."""

    keeps: ClassVar[bool]


@dataclass(frozen=True)
class Rows:
    """The rows of a step on the CPU. block_RL: bool, the current block. start_R, end_R: where it begins, and ends."""

    attend_RL: Bools
    block_RL: Bools
    start_R: Ints
    end_R: Ints

    def between(self, first_R: Ints, last_R: Ints) -> Bools:
        """Returns bool RL, the attended positions from `first_R` up to, but without, `last_R`."""
        position_L = np.arange(self.attend_RL.shape[1])
        out_RL: Bools = self.attend_RL & (position_L >= first_R[:, None]) & (position_L < last_R[:, None])
        return out_RL


def cached(denoise: Denoise, batch: Batch, whole: Callable[[StepInfo], Bools], run: Callable[[Rows], Bools]) -> Denoise:
    """Returns a Denoise that runs the rows `whole` says as a whole, and of the others the positions `run` says."""
    layout = batch
    attend_BL, target_BL = batch.attend_BL.cpu().numpy(), batch.target_BL.cpu().numpy()

    def chosen(query: Query) -> Prediction:
        nonlocal layout, attend_BL, target_BL
        step = query.step
        if step is None:
            return denoise(query)
        if query.batch is not None and query.batch is not layout:
            layout = query.batch
            attend_BL, target_BL = layout.attend_BL.cpu().numpy(), layout.target_BL.cpu().numpy()
        at_R = step.row_R
        block_RL = target_BL[at_R] & (step.block_BL[at_R] == step.block_R[:, None])
        end_R = block_RL.shape[1] - block_RL[:, ::-1].argmax(1)
        run_RL = run(Rows(attend_BL[at_R], block_RL, block_RL.argmax(1), end_R))
        return denoise(replace(query, fresh=Fresh(whole(step), run_RL, run_RL.sum(1))))

    return chosen


def block_start(step: StepInfo, refresh: int) -> Bools:
    """Whether a row is at a block's first step, or at one of every `refresh` steps of it (0: at no other)."""
    done_R = step.step_R - 1
    start_R: Bools = done_R % refresh == 0 if refresh else done_R == 0
    return start_R


@part
@dataclass(frozen=True)
class Prefix:
    """Fast-dLLM's prefix cache (arXiv 2505.22618): what lies before the block keeps its keys and values.

    refresh: all positions are run at the first step of a block, and then at every so many steps; 0: at the first only.
    """

    refresh: AtLeast0 = 0

    keeps: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        def behind(rows: Rows) -> Bools:
            return rows.between(rows.start_R, np.full_like(rows.start_R, rows.attend_RL.shape[1]))

        return cached(denoise, batch, lambda step: block_start(step, self.refresh), behind)


@part
@dataclass(frozen=True)
class Dual:
    """Fast-dLLM's dual cache: all but the block keeps its keys and values. refresh: as in `Prefix`."""

    refresh: AtLeast0 = 0

    keeps: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        return cached(denoise, batch, lambda step: block_start(step, self.refresh), lambda rows: rows.block_RL)


@part
@dataclass(frozen=True)
class Vicinity:
    """dInfer's vicinity refresh (arXiv 2510.08666): the block and its neighbours are run.

    before, after: how many neighbours. refresh: as in `Prefix`.
    """

    before: AtLeast0 = 16
    after: AtLeast0 = 16
    refresh: AtLeast0 = 0

    keeps: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        def near(rows: Rows) -> Bools:
            return rows.between(rows.start_R - self.before, rows.end_R + self.after)

        return cached(denoise, batch, lambda step: block_start(step, self.refresh), near)


@part
@dataclass(frozen=True)
class FreeCache:
    """FreeCache (arXiv 2505.21467): as `Prefix`, but what lies before a block is never run again after the first step.

    The cheapest and most approximate. No rule may mask positions of an earlier block again; none does.
    """

    keeps: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        def behind(rows: Rows) -> Bools:
            return rows.between(rows.start_R, np.full_like(rows.start_R, rows.attend_RL.shape[1]))

        return cached(denoise, batch, lambda step: step.forward_R == 1, behind)


@part
@dataclass(frozen=True)
class Delayed:
    """dKV-Cache's decode variant (arXiv 2505.15781): a committed token is run once more, and then keeps its keys.

    The positions that are run are those that were pending before the last step, and committed ones that a rule judges
    again. refresh: all positions are run at the first step of a block, and then at every so many steps.
    """

    refresh: AtLeast1 = 8

    keeps: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        def delayed(query: Query) -> Prediction:
            step = query.step
            if step is None:
                return denoise(query)
            return denoise(replace(query, fresh=Fresh(block_start(step, self.refresh), step.recent_RL, step.recent_R)))

        return delayed
