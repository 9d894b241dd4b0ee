"""What a sampling rule is given, and the signatures of rules.

A rule must not wait for the device: no `.item()`, no boolean indexing, no `nonzero`. A test counts the waits of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdiff.diffusion.step_noise import StepNoise


@dataclass(frozen=True)
class State:
    """The whole canvas of the rows of a step, as it stood before the step.

    Shape letters, here and below: R rows of the step, L canvas length, P predicted positions, row after row, B rows of
    the batch.
    """

    target_RL: Tensor  # bool
    block_RL: Tensor  # bool, the target positions of the row's current block
    ids_RL: Tensor  # int64
    pending_RL: Tensor  # bool, still to be filled
    step_RL: Tensor  # int32, the row's own step at which a position was committed; 0 where it was given or is pending
    confidence_RL: Tensor  # fp32, when it was committed; 1 where it was given, 0 where it is pending
    step_R: Tensor  # int64, the step within the block, from 1; beyond `steps_R` where a rule commits below its quota
    steps_R: Tensor  # int64, the steps that the block was given
    n_start_R: Tensor  # int64, pending positions that the block began with
    forward_R: Tensor  # int64, the row's steps so far, this one included
    row_R: Tensor  # int64, which of the B rows
    row_steps_R: Tensor  # int64, the steps that all blocks of the row were given
    end_ids_X: Tensor  # int64, the ids that end an answer
    n_rows: int  # B
    extras: dict[str, Tensor] = field(default_factory=dict)  # (B, L, ...), what a rule keeps between steps, by name

    @property
    def rank_RL(self) -> Tensor:
        """Returns int64, how many target positions of the row lie before a position."""
        return self.target_RL.cumsum(1) - self.target_RL.long()

    @property
    def progress_R(self) -> Tensor:
        """Returns float64, the share of the block's steps that are done after this one: 1 at the last."""
        return (self.step_R.double() / self.steps_R.clamp(min=1)).clamp(max=1)

    def extra(self, name: str, fill: float, *width: int) -> Tensor:
        """Returns what a rule keeps under a name, (B, L, *width); `fill` before it keeps anything.

        It is kept by `state.extras[name] = ...`: a tensor is replaced, not changed.
        """
        if name not in self.extras:
            shape = (self.n_rows, self.target_RL.shape[1], *width)
            self.extras[name] = torch.full(shape, fill, device=self.target_RL.device)
        return self.extras[name]

    def between(self, first: float, last: float) -> Tensor:
        """Returns float64 (R,): `first` at the first step of a block, `last` at its last, linear between them."""
        part_R = (self.step_R - 1).double() / (self.steps_R - 1).clamp(min=1)
        return first + (last - first) * part_R.clamp(max=1)


@dataclass(frozen=True)
class Proposal:
    """What one step may commit: a token for each predicted position, in row-major order."""

    row_P: Tensor  # int64, which of the R rows
    position_P: Tensor  # int64, position on the canvas
    ids_P: Tensor  # int64
    confidence_P: Tensor  # fp32, probability of ids_P at temperature 1
    quota_R: Tensor  # int64, positions a row commits at this step under the schedule
    noise: StepNoise
    state: State

    def canvas(self, values_P: Tensor, elsewhere: float) -> Tensor:
        """Returns (R, L): values at the predicted positions, `elsewhere` at all others."""
        out_RL = torch.full(self.state.target_RL.shape, elsewhere, dtype=values_P.dtype, device=values_P.device)
        return out_RL.index_put((self.row_P, self.position_P), values_P)


@dataclass(frozen=True)
class Committed:
    """What the sampler has committed in each row's current block, this step included: what a `Revise` rule is given."""

    committed_RL: Tensor  # bool
    confidence_RL: Tensor  # fp32, when it was committed
    n_masked_R: Tensor  # int64, pending positions of the block before the step
    quota_R: Tensor  # int64, positions a row commits at this step under the schedule
    state: State
    rescored_RL: Tensor | None = None  # fp32, for a rule with `rescore`: the probability at this step, see `Revise`
    noise: StepNoise | None = None


Score = Callable[[Tensor, Proposal], Tensor]
"""(logits_PV, proposal) -> score_P: the sampler commits the highest score first. Logits of banned ids are -inf."""

Select = Callable[[Tensor, Proposal], Tensor]
"""(score_P, proposal) -> bool_P: the positions to commit now, at least one per row.

A rule with an attribute `may_wait = True` may commit nothing in a row at a step; it must have committed all by the last
step of a block.
"""

Revise = Callable[[Committed], Tensor]
"""committed -> bool_RL: positions to mask again, in the current block and while it has steps left.

A rule with an attribute `rescore = True` is also given `rescored_RL`: the probability under this step's forward of the
tokens that earlier steps committed in the block, which the model sees as it scores them. Other positions have 1 there.
"""
