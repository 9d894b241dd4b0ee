"""What a sampling rule is given, and the signatures of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmdiff.samplers.noise import StepNoise


@dataclass(frozen=True)
class State:
    """The whole canvas of the rows of a step, as it stood before the step.

    Shape letters, here and below: R rows of the step, L canvas length, P predicted positions, row after row.
    """

    target_RL: Tensor  # bool
    block_RL: Tensor  # bool, the target positions of the row's current block
    step_RL: Tensor  # int32, the row's own step at which a position was committed; 0 where it was given or is masked
    confidence_RL: Tensor  # fp32, when it was committed; 1 where it was given, 0 where it is masked
    step_R: Tensor  # int64, the step within the block, from 1; beyond `steps_R` where a rule commits below its quota
    steps_R: Tensor  # int64, the steps that the block was given

    @property
    def rank_RL(self) -> Tensor:
        """Returns int64, how many target positions of the row lie before a position."""
        return self.target_RL.cumsum(1) - self.target_RL.long()

    @property
    def progress_R(self) -> Tensor:
        """Returns float64, the share of the block's steps that are done after this one: 1 at the last."""
        return (self.step_R.double() / self.steps_R.clamp(min=1)).clamp(max=1)

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


@dataclass(frozen=True)
class Committed:
    """What the sampler has committed in each row's current block, this step included: what a `Revise` rule is given."""

    committed_RL: Tensor  # bool
    confidence_RL: Tensor  # fp32, when it was committed
    n_masked_R: Tensor  # int64, masked positions of the block before the step
    quota_R: Tensor  # int64, positions a row commits at this step under the schedule
    state: State
    rescored_RL: Tensor | None = None  # fp32, for a rule with `rescore`: the probability at this step, see `Revise`


Score = Callable[[Tensor, Proposal], Tensor]
"""(logits_PV, proposal) -> score_P: the sampler commits the highest score first. Logits of banned ids are -inf."""

Select = Callable[[Tensor, Proposal], Tensor]
"""(score_P, proposal) -> bool_P: the positions to commit now, at least one per row."""

Revise = Callable[[Committed], Tensor]
"""committed -> bool_RL: positions to mask again, in the current block and while it has steps left.

A rule with an attribute `rescore = True` is also given `rescored_RL`: the probability under this step's forward of the
tokens that earlier steps committed in the block, which the model sees as it scores them. Other positions have 1 there.
"""
