"""What a sampler asks of a model at one step, and what it is answered.

Shape letters: B samples, L canvas length, R rows of the call, P queried positions of all rows, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .batch import Batch

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class StepInfo:
    """What the sampler knows of the rows of a step, on the CPU, so that a cache or a verifier waits for no device.

    row_R: which row of the batch. copy_R: tells the canvases of one row apart that are asked for in one step (guidance:
    0 with its context, 1 without): a cache keeps keys and values per row *and* copy. block_R: the row's current block.
    step_R: the step within it, from 1. forward_R: the row's steps so far, this one included. block_BL: the block of
    each target position. recent_RL: bool, on the device, the positions that are queried, and those that were pending
    before the last step. recent_R: how many. queried_R: how many positions are queried. changed_R: False where canvas
    and queried positions of the row are those of its last step. given_R: how many steps the row was given.
    """

    seed: int
    row_R: Ints
    copy_R: Ints
    block_R: Ints
    step_R: Ints
    forward_R: Ints
    recent_R: Ints
    block_BL: Ints
    recent_RL: Tensor
    queried_R: Ints
    changed_R: Bools
    given_R: Ints

    def repeat(self, n: int) -> StepInfo:
        """Returns what is known of `n` copies of the rows, copy after copy."""
        return replace(
            self,
            row_R=np.tile(self.row_R, n),
            copy_R=np.tile(self.copy_R, n) * n + np.arange(n).repeat(len(self.row_R)),
            block_R=np.tile(self.block_R, n),
            step_R=np.tile(self.step_R, n),
            forward_R=np.tile(self.forward_R, n),
            recent_R=np.tile(self.recent_R, n),
            recent_RL=self.recent_RL.repeat(n, 1),
            queried_R=np.tile(self.queried_R, n),
            changed_R=np.tile(self.changed_R, n),
            given_R=np.tile(self.given_R, n),
        )

    def picked(self, index_C: Ints, rows_C: Tensor) -> StepInfo:
        """Returns what is known of some rows of a call; rows_C: their numbers on the device."""
        names = ["row_R", "copy_R", "block_R", "step_R", "forward_R", "recent_R", "queried_R", "changed_R", "given_R"]
        picked = {name: getattr(self, name)[index_C] for name in names}
        return replace(self, recent_RL=self.recent_RL[rows_C], **picked)


@dataclass(frozen=True)
class Fresh:
    """The positions that are run at a step; all others keep the keys and values of an earlier one.

    whole_R: rows that are run whole, and whose keys and values are all made anew. run_RL: bool, the positions of the
    other rows: an array, or a tensor of which `count_R` positions per row are True; at_most: or fewer.
    """

    whole_R: Bools
    run_RL: Bools | Tensor
    count_R: Ints
    at_most: bool = False

    def repeat(self, n: int) -> Fresh:
        """Returns the same of `n` copies of the rows, copy after copy."""
        run_RL = self.run_RL.repeat(n, 1) if isinstance(self.run_RL, Tensor) else np.tile(self.run_RL, (n, 1))
        return Fresh(np.tile(self.whole_R, n), run_RL, np.tile(self.count_R, n), self.at_most)


@dataclass(frozen=True)
class Query:
    """Canvases of some rows, and the positions whose logits are asked for.

    Whoever wraps a Denoise changes what differs (`dataclasses.replace`) and passes the rest on.

    ids_RL: the canvases as the model is to see them. predict_RL: bool, the queried positions.
    row_R: the row of `batch` that a canvas belongs to: finished rows are left out, guidance asks twice for a row.
    media_R: bool, False where a row must not see its media; None: all do.
    batch: the layout of the canvases, where it is no longer that which the Denoise was made for: positions were
        inserted or deleted. None: it is.
    step: None where no sampler asks (likelihoods, probes), or its process keeps nothing between steps.
    fresh: what may be left as it was at an earlier step of the generation; None: nothing, unless that changes nothing.
    hidden: whether the hidden states are asked for too.
    extras: tensors (R, L, ...) by the names of extras of the model, which embed them beside the ids
        (`mmdiff.protocols.Extra`). At committed positions they depend on the ids there alone, for caches keep those.
    """

    ids_RL: Tensor
    predict_RL: Tensor
    row_R: Tensor
    media_R: Tensor | None = None
    batch: Batch | None = None
    step: StepInfo | None = None
    fresh: Fresh | None = None
    at_P: tuple[Tensor, Tensor] | None = None  # rows (of R) and positions of what is queried, if they are known
    hidden: bool = False
    extras: dict[str, Tensor] = field(default_factory=dict)

    def at(self) -> tuple[Tensor, Tensor]:
        """Returns int64 (P,) twice, the row (of R) and the position of what is queried, in row-major order."""
        if self.at_P is not None:
            return self.at_P
        row_P, position_P = self.predict_RL.nonzero(as_tuple=True)
        return row_P, position_P


@dataclass(frozen=True)
class Prediction:
    """The answer. logits_PV: fp32; the sampler may overwrite them. hidden_PD: where it was asked for."""

    logits_PV: Tensor
    hidden_PD: Tensor | None = None
