"""A canvas as it stands at a step: which targets are noised now, where finished blocks are context.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .batch import Batch
from .query import Ints, StepInfo


@dataclass(frozen=True)
class Now:
    """A layout whose targets are those of the rows' current blocks (`Pattern.finished_is_context`).

    batch: the layout that it is of. block_B: the current block of each row. seen: `batch` with these targets.
    """

    batch: Batch
    block_B: Ints
    seen: Batch

    @classmethod
    def of(cls, batch: Batch, step: StepInfo, last: Now | None = None) -> Now:
        """Returns that of a step; `last` itself while no row of the step is in another block."""
        if last is not None and last.batch is batch and (last.block_B[step.row_R] == step.block_R).all():
            return last
        block_B = np.zeros(len(batch), dtype=np.int64)
        block_B[step.row_R] = step.block_R
        current_BL = torch.from_numpy(step.block_BL == block_B[:, None])
        current_BL = current_BL.to(batch.target_BL.device, non_blocking=True)
        return cls(batch, block_B, replace(batch, target_BL=batch.target_BL & current_BL))
