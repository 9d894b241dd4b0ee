"""The context of a canvas as a prefix: its keys and values are computed once, for all that is predicted behind it.

Where the context, all positions that are not targets, sees itself only (`Pattern.context_first`), its states are the
same at every denoising step and for every noised copy of a sample: one forward per generation, and one per sample and
step of training, without approximation (as in dVLA and UD-VLA). With full attention, keeping the keys and
values of the first step is the prefix cache of Fast-dLLM (arXiv 2505.22618), an approximation that
`sampler.prefix_cache` turns on.

Shape letters: B samples, L canvas length, R rows (copies of samples), n copies, C context positions, T target
positions, N positions of either kind, D backbone width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import visibility
from mmdiff.protocols import Model

if TYPE_CHECKING:
    from mmdiff.backbones.memory import Memory


@dataclass(frozen=True)
class Positions:
    """Some positions of each row, moved together to the left and padded to the longest row.

    at_BN: int64, where on the canvas they stand; L, the canvas length, for padding. real_BN: bool, False on padding.
    """

    at_BN: Tensor
    real_BN: Tensor

    @classmethod
    def of(cls, mask_BL: Tensor) -> Positions:
        count_B = mask_BL.sum(1)
        at_BN = (~mask_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(count_B.max())]
        real_BN = torch.arange(at_BN.shape[1], device=at_BN.device) < count_B[:, None]
        return cls(at_BN.masked_fill(~real_BN, mask_BL.shape[1]), real_BN)

    def rows(self, row_R: Tensor) -> Positions:
        return Positions(self.at_BN[row_R], self.real_BN[row_R])

    def take(self, values_BL: Tensor) -> Tensor:
        """Returns the values (B, N) at these positions; padding takes those of the last position of the canvas."""
        return values_BL.gather(1, self.at_BN.clamp(max=values_BL.shape[1] - 1))


def scatter_to_canvas(at_BN: Tensor, h_BND: Tensor, length: int) -> Tensor:
    """Returns (B, length, D): hidden states at their positions of the canvas, zeros elsewhere."""
    b, _, width = h_BND.shape
    longer_BLD = h_BND.new_zeros(b, length + 1, width)  # the position added at the end takes padding
    return longer_BLD.scatter(1, at_BN[..., None].expand(-1, -1, width), h_BND)[:, :length]


def split(batch: Batch) -> tuple[Positions, Positions]:
    """Returns the context positions and the target positions, padding of the canvas in neither."""
    return Positions.of(batch.attend_BL & ~batch.target_BL), Positions.of(batch.attend_BL & batch.target_BL)


def hidden_copies(model: Model, ids_RL: Tensor, batch: Batch, features: Mapping[str, Tensor], copies: int) -> Tensor:
    """Returns hidden states (R, L, D) of R = copies * B rows, copy after copy; each sample's context is run once.

    The backbone sees one row per sample, `context, copy 1, copy 2, ...`, in which a copy is a stream: it attends to the
    context and to itself. All targets are one block.
    """
    context, target = split(batch)
    b, length = batch.ids_BL.shape
    x_BCD = model.embedded(context.take(batch.ids_BL), features, _slots(context, batch), None)
    ids_BnT = [target.take(ids_BL) for ids_BL in ids_RL.view(copies, b, length)]
    x_BnTD = model.embedded(torch.cat(ids_BnT, 1), {}, {}, None)
    size = target.at_BN.shape[1]
    copy_N = torch.arange(1, copies + 1, device=ids_RL.device).repeat_interleave(size)
    stream_BN = torch.cat([copy_N.new_zeros(context.at_BN.shape[1]), copy_N]).expand(b, -1)
    block_BL = torch.as_tensor(model.attention.blocks(batch.target_BL, batch.attend_BL)).expand(b, length)
    block_BN = torch.cat([context.take(block_BL), target.take(block_BL).repeat(1, copies)], 1)
    visibility = Visibility(model.attention, Coordinates(block=block_BN, stream=stream_BN))
    position_ids_BN = torch.cat(
        [context.take(batch.position_ids_BL), target.take(batch.position_ids_BL).repeat(1, copies)], 1
    )
    real_BN = torch.cat([context.real_BN, target.real_BN.repeat(1, copies)], 1)
    x_BND = torch.cat([x_BCD, x_BnTD], 1)
    h_BND = model.backbone.hidden(x_BND, real_BN, position_ids_BN, visibility)
    h_BCD, *h_nBTD = h_BND.split([context.at_BN.shape[1], *[size] * copies], 1)
    h_RND = torch.cat([torch.cat([h_BCD, h_BTD], 1) for h_BTD in h_nBTD])
    return scatter_to_canvas(torch.cat([context.at_BN, target.at_BN], 1).repeat(copies, 1), h_RND, length)


@dataclass(frozen=True)
class Prefix:
    """The context of a batch after its forward; `hidden` then runs the target positions alone.

    memory: keys and values of the context. h_BCD: its hidden states.
    """

    model: Model
    batch: Batch
    context: Positions
    target: Positions
    memory: Memory
    h_BCD: Tensor

    @classmethod
    def of(cls, model: Model, batch: Batch, features: Mapping[str, Tensor]) -> Prefix:
        """Runs the context alone where it sees no target, else the whole canvas as it is before the first commit."""
        context, target = split(batch)
        rows_B = torch.arange(len(batch), device=batch.ids_BL.device)
        memory = model.backbone.memory()
        if model.attention.context_first:
            x_BCD = model.embedded(context.take(batch.ids_BL), features, _slots(context, batch), None)
            attend_BC = context.real_BN.clone()
            attend_BC[:, 0] = True  # a row without context: what it computes is not read, but must be numbers
            alone = Visibility(model.attention, Coordinates(block=model.attention.blocks(None, attend_BC)))
            h_BCD = model.backbone.hidden(x_BCD, attend_BC, context.take(batch.position_ids_BL), alone, memory)
            return cls(model, batch, context, target, memory.chosen(rows_B), h_BCD)
        attend_BL = batch.attend_BL if batch.padded else None
        x_BLD = model.embedded(batch.ids_BL, features, batch.slots, attend_BL)
        seen = visibility(model.attention, batch, rows_B)
        h_BLD = model.backbone.hidden(x_BLD, attend_BL, batch.position_ids_BL, seen, memory)
        at_BC = context.at_BN.clamp(max=batch.ids_BL.shape[1] - 1)
        h_BCD = h_BLD.gather(1, at_BC[..., None].expand(-1, -1, h_BLD.shape[-1]))
        return cls(model, batch, context, target, memory.chosen(rows_B, at_BC), h_BCD)

    def hidden(self, ids_RL: Tensor, row_R: Tensor) -> Tensor:
        """Returns hidden states (R, L, D). ids_RL may differ from the batch's at target positions only."""
        context, target = self.context.rows(row_R), self.target.rows(row_R)
        x_RTD = self.model.embedded(target.take(ids_RL), {}, {}, None)
        real_RN = torch.cat([context.real_BN, target.real_BN], 1)
        h_RTD = self.model.backbone.hidden(
            x_RTD,
            None if real_RN.all() else real_RN,
            target.take(self.batch.position_ids_BL[row_R]),
            self._visibility(context, target, row_R),
            self.memory.chosen(row_R),
        )
        at_RN = torch.cat([context.at_BN, target.at_BN], 1)
        return scatter_to_canvas(at_RN, torch.cat([self.h_BCD[row_R], h_RTD], 1), ids_RL.shape[1])

    def _visibility(self, context: Positions, target: Positions, row_R: Tensor) -> Visibility | None:
        """Returns who sees whom of the context and, behind it, the targets; None where every target sees all."""
        pattern, batch = self.model.attention, self.batch
        block = pattern.blocks(batch.target_BL, batch.attend_BL)
        if isinstance(block, int) or pattern.one_target_block:
            return None
        block_RL = block[row_R]
        return Visibility(pattern, Coordinates(block=torch.cat([context.take(block_RL), target.take(block_RL)], 1)))


def _slots(positions: Positions, batch: Batch) -> dict[str, Tensor]:
    return {kind: positions.take(slot_BL).masked_fill(~positions.real_BN, -1) for kind, slot_BL in batch.slots.items()}
