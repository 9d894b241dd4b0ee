"""What a generation leaves behind: the canvas, and when and how surely each position of it was committed.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Generation:
    """A canvas and its step map, `step_BL`: at which step of its row a position was committed; 0 if it was given.

    A row's steps are the forwards it took part in, counted from 1; finished rows take part in none.
    """

    ids_BL: Tensor  # int64, the canvas
    target_BL: Tensor  # bool, the target positions, those that were given included
    step_BL: Tensor  # int32
    confidence_BL: Tensor  # fp32, probability when committed; 1 where given, or filled up after an end id
    forwards_B: Tensor  # int64
    calls: int = 0  # of denoise, for the whole batch; a draft rule's probes are not among them

    def masked(self, mask_id: int) -> Tensor:
        """Returns bool BL, the target positions that are still masked; none once the sampler is done."""
        return self.target_BL & (self.ids_BL == mask_id)

    def targets(self) -> list[list[int]]:
        """Returns the ids of each row's target positions, in order."""
        return [ids_L[target_L].tolist() for ids_L, target_L in zip(self.ids_BL, self.target_BL, strict=True)]
