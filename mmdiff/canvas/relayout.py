"""A canvas laid out anew: positions are deleted, and others inserted, each row as its own edits say; or documents of
packed rows become rows.

Shape letters: B samples, L canvas length before, K canvas length after, D documents of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.errors import ConfigError


@dataclass(frozen=True)
class Relayout:
    """Where each position of a new canvas comes from.

    source_BK: int64, the old position; of an inserted one, that which it stands behind. new_BK: bool, it is inserted.
    attend_BK: bool, False on padding, which stands on the right. inserted_B: how many positions each row was given.
    source: `source_BK` on the CPU.
    """

    source_BK: Tensor
    new_BK: Tensor
    attend_BK: Tensor
    inserted_B: NDArray[np.int64]
    source: NDArray[np.int64]

    def carried(self, values_BL: Tensor, new: float) -> Tensor:
        """Returns (B, K, ...): the values at their new positions, `new` at inserted positions and on padding."""
        at_BK = self.source_BK.view(*self.source_BK.shape, *[1] * (values_BL.dim() - 2))
        out = values_BL.gather(1, at_BK.expand(*self.source_BK.shape, *values_BL.shape[2:]))
        none_BK = (self.new_BK | ~self.attend_BK).view(at_BK.shape)
        return out.masked_fill(none_BK, new)


def relayout(
    batch: Batch, keep_BL: Tensor, after_BL: Tensor, *, mask_id: int, pad_id: int, allow_BL: Tensor | None = None
) -> tuple[Batch, Relayout]:
    """Returns the batch on a new canvas, with position ids counted anew, and where its positions come from.

    keep_BL: bool, False at positions to delete. after_BL: int64, how many positions to insert behind each position,
        whether it is kept or not; they are targets that hold the mask id. Both are ignored on padding.
    allow_BL: the allow-sets of what is inserted behind each position; None: that of the position.
    The device is waited for once. Raises ConfigError for rows that are packed of several documents.
    """
    if batch.packed:
        raise ConfigError("rows that are packed of several documents have a fixed length, expected one document each")
    edits_2BL = torch.stack([keep_BL.long(), after_BL]) * batch.attend_BL
    keep_np, after_np = edits_2BL.cpu().numpy()
    count_BL = keep_np + after_np
    end_BL, total_B = count_BL.cumsum(1), count_BL.sum(1)
    length = max(int(total_B.max()), 1)
    rows_B1, at_K = np.arange(len(count_BL))[:, None], np.arange(length)
    width = length + 1  # rows are told apart by an offset, so that one search serves all
    ends_N = (end_BL + rows_B1 * width).ravel()
    source_BK = np.searchsorted(ends_N, at_K + rows_B1 * width, side="right") - rows_B1 * count_BL.shape[1]
    attend_BK = at_K < total_B[:, None]
    source_BK = np.where(attend_BK, source_BK, 0)
    offset_BK = at_K - np.take_along_axis(end_BL - count_BL, source_BK, 1)
    new_BK = attend_BK & (offset_BK >= np.take_along_axis(keep_np, source_BK, 1))
    source, new, attend = (
        torch.from_numpy(v).to(batch.ids_BL.device, non_blocking=True) for v in (source_BK, new_BK, attend_BK)
    )
    moved = Relayout(source, new, attend, after_np.sum(1), source_BK)
    allowed_BK = None
    if batch.allow_BL is not None:
        allowed_BK = batch.allow_BL.gather(1, source)
        if allow_BL is not None:
            allowed_BK = torch.where(new, allow_BL.gather(1, source), allowed_BK)
        allowed_BK = allowed_BK.masked_fill(~attend, 0)
    laid = replace(
        batch,
        ids_BL=moved.carried(batch.ids_BL, mask_id).masked_fill(~attend, pad_id),
        target_BL=moved.carried(batch.target_BL, False) | new,
        attend_BL=attend,
        position_ids_BL=_renumbered(batch, moved),
        segment_BL=torch.zeros_like(source),
        slots={kind: moved.carried(slot_BL, -1) for kind, slot_BL in batch.slots.items()},
        allow_BL=allowed_BK,
        step_BL=None if batch.step_BL is None else moved.carried(batch.step_BL, -1),
        padded=not attend_BK.all(),
    )
    return laid, moved


def _renumbered(batch: Batch, moved: Relayout) -> Tensor:
    """Returns the position ids (B, K), counted anew; along axes they differ from their number by what they did."""
    number_BK = (moved.attend_BK.cumsum(1) - 1).clamp(min=0)
    if not batch.slots:
        return number_BK
    differs_BL = batch.position_ids_BL - (batch.attend_BL.cumsum(1) - 1).clamp(min=0)
    slot_BL = torch.stack([slot_BL >= 0 for slot_BL in batch.slots.values()]).any(0)
    # what is inserted behind the last slot of a grid follows all of it, as what stood there does
    after_BL = torch.where(slot_BL, differs_BL.roll(-1, 1), differs_BL)
    source_BK = moved.source_BK
    differs_BK = torch.where(moved.new_BK, after_BL.gather(1, source_BK), differs_BL.gather(1, source_BK))
    return (number_BK + differs_BK * moved.attend_BK).clamp(min=0)


def by_document(batch: Batch) -> tuple[Batch, Tensor]:
    """Returns a batch of one row per document, row after row in their order, and int64 (D,), the row of each.

    Media are not copied: a slot says which feature it holds, whichever row it stands in. A document has the index of
    its row, so documents of one row draw the same random numbers. batch: on the CPU.
    """
    at_BL = torch.arange(batch.ids_BL.shape[1]).expand_as(batch.ids_BL)
    pairs = [
        (row, at_BL[row][attend_L & (segment_L == document)])
        for row, (attend_L, segment_L) in enumerate(zip(batch.attend_BL, batch.segment_BL, strict=True))
        for document in segment_L[attend_L].unique().tolist()
    ]
    row_D = torch.tensor([row for row, _ in pairs], dtype=torch.int64)
    length = max((len(at) for _, at in pairs), default=0)
    at_DK = torch.zeros(len(pairs), length, dtype=torch.int64)
    attend_DK = torch.zeros(len(pairs), length, dtype=torch.bool)
    for d, (_, at) in enumerate(pairs):
        at_DK[d, : len(at)], attend_DK[d, : len(at)] = at, True

    def taken(values_BL: Tensor, fill: float) -> Tensor:
        return values_BL[row_D[:, None], at_DK].masked_fill(~attend_DK, fill)

    laid = replace(
        batch,
        ids_BL=taken(batch.ids_BL, 0),
        target_BL=taken(batch.target_BL, False),
        attend_BL=attend_DK,
        position_ids_BL=taken(batch.position_ids_BL, 0),
        segment_BL=torch.zeros_like(at_DK),
        slots={kind: taken(slot_BL, -1) for kind, slot_BL in batch.slots.items()},
        allow_BL=None if batch.allow_BL is None else taken(batch.allow_BL, 0),
        step_BL=None if batch.step_BL is None else taken(batch.step_BL, -1),
        index_B=batch.index_B[row_D],
        padded=not bool(attend_DK.all()),
        packed=False,
    )
    return laid, row_D
