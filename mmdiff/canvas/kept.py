"""Which keys and values of canvases are kept between the forwards of a generation, and which positions must be run.

Shape letters: B samples, S slots of kept canvases, L canvas length, R rows of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import blocks_of
from mmdiff.canvas.query import Bools, Fresh, Ints, StepInfo


@dataclass
class Kept:
    """Keys and values of the canvases of one layout, and what the CPU must know of them.

    slots: copy * B + row of each canvas, in the order of the rows of a call. block_BL: the blocks of the attention
    pattern; numbered: whether it has any. final_SL: positions whose keys and values can no longer change, by it.
    """

    batch: Batch
    slots: Ints
    memory: Any
    attend_BL: Bools
    target_BL: Bools
    block_BL: Ints
    numbered: bool
    final_SL: Bools

    @classmethod
    def of(cls, model: Any, batch: Batch, slots: Ints) -> Kept:
        block = blocks_of(model.attention, batch)
        return cls(
            batch=batch,
            slots=slots,
            memory=model.backbone.memory(len(slots), batch.ids_BL.shape[1]),
            attend_BL=batch.attend_BL.cpu().numpy(),
            target_BL=batch.target_BL.cpu().numpy(),
            block_BL=torch.as_tensor(block).expand(batch.ids_BL.shape).cpu().numpy(),
            numbered=isinstance(block, Tensor),
            final_SL=np.zeros((len(slots), batch.ids_BL.shape[1]), dtype=np.bool_),
        )

    def leave(self, slots: Ints, device: torch.device) -> None:
        """Forget the canvases of rows that are finished: all but `slots`."""
        order = self.slots.argsort()
        index_S = order[np.searchsorted(self.slots, slots, sorter=order)]
        self.memory.keep(sent(index_S, device))
        self.slots, self.final_SL = slots, self.final_SL[index_S]

    def exact(self, step: StepInfo) -> Fresh:
        """Returns the positions that must be run for an exact answer: those that may have changed since they were run
        last, and that the rows' current blocks see."""
        seen_R = np.where(self._current(step), self.block_BL[step.row_R], -1).max(1)
        run_RL = self.attend_BL[step.row_R] & ~self.final_SL & (self.block_BL[step.row_R] <= seen_R[:, None])
        return Fresh(np.zeros(len(step.row_R), dtype=np.bool_), run_RL, run_RL.sum(1))

    def settle(self, step: StepInfo, run_RL: Bools) -> None:
        """Mark positions as final that were run and that see nothing which is still to change: of earlier blocks than
        every target of the current block and of later ones."""
        later_RL = self.target_BL[step.row_R] & (step.block_BL[step.row_R] >= step.block_R[:, None])
        block_RL = self.block_BL[step.row_R]
        first_R = np.where(later_RL, block_RL, np.iinfo(np.int64).max).min(1)
        self.final_SL |= run_RL & (block_RL < first_R[:, None])

    def with_left(self, fresh: Fresh) -> Fresh:
        """Returns `fresh` with the positions to the left of those that are run: where logits are shifted, their states
        predict."""
        run_RL = fresh.run_RL.cpu().numpy() if isinstance(fresh.run_RL, Tensor) else fresh.run_RL
        left_RL = np.pad(run_RL[:, 1:], ((0, 0), (0, 1))) & self.attend_BL[self.slots % len(self.batch)]
        return Fresh(fresh.whole_R, run_RL | left_RL, (run_RL | left_RL).sum(1))

    def _current(self, step: StepInfo) -> Bools:
        here_RL: Bools = self.target_BL[step.row_R] & (step.block_BL[step.row_R] == step.block_R[:, None])
        return here_RL


def sent(values: Any, device: torch.device) -> Tensor:
    """Returns an array of the CPU on a device, without waiting."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
