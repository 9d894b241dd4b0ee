"""Rows of unequal length run as few full ones: what a model computes stays the same, padding is left out.

Noise is planned and losses are taken on the canvas as it was; only the forward of the backbone sees packed rows, in
which each row is a document of its own, with its own positions and features. So everything that is drawn, counted and
scored is what it is without packing, whatever the objective, and the states come back to their positions.

Shape letters: R rows, L canvas length, K packed rows, N their length, M positions that are attended, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .batch import Batch


@dataclass(frozen=True)
class Packing:
    """Where each position of packed rows comes from.

    at_KN: int64, the position in R * L, 0 on padding. real_KN: bool, False on padding. row_R: the row of the batch
    that each row is a copy of. from_M, to_M: int64, attended positions in R * L and in K * N. padded: whether there is
    padding.
    """

    at_KN: Tensor
    real_KN: Tensor
    row_R: Tensor
    from_M: Tensor
    to_M: Tensor
    padded: bool

    @classmethod
    def of(cls, batch: Batch, row_R: Tensor, length: int) -> Packing | None:
        """Returns how rows are packed, on the CPU; None where that leaves no position out, or attention is drawn.

        row_R: the rows, copy after copy. length: positions of a packed row, unless a row is longer. The longest are
        laid first, each where there is room.
        """
        if not batch.padded or batch.attention is not None:  # what is drawn belongs to the number of a row
            return None
        attend_RL = batch.attend_BL[row_R]
        size_R = attend_RL.sum(1).tolist()
        most, width = max(length, *size_R), attend_RL.shape[1]
        packed: list[list[int]] = []
        capacity: list[int] = []
        for row in sorted(range(len(size_R)), key=lambda r: -size_R[r]):
            found = next((k for k, left in enumerate(capacity) if left >= size_R[row]), None)
            if found is None:
                packed, capacity, found = [*packed, []], [*capacity, most], len(packed)
            packed[found].append(row)
            capacity[found] -= size_R[row]
        long = most - min(capacity)
        if len(packed) * long >= attend_RL.numel():
            return None
        own_R = [attend_RL[row].nonzero().squeeze(1) + row * width for row in range(len(size_R))]
        rows = [torch.cat([own_R[row] for row in found]) for found in packed]
        at_KN = torch.stack([torch.nn.functional.pad(at, (0, long - len(at))) for at in rows])
        real_KN = torch.arange(long) < torch.tensor([len(at) for at in rows])[:, None]
        to_M = real_KN.flatten().nonzero().squeeze(1)
        return cls(at_KN, real_KN, row_R, at_KN.flatten()[to_M], to_M, not bool(real_KN.all()))

    def take(self, values_RL: Tensor) -> Tensor:
        """Returns values (R, L, ...) at their packed positions (K, N, ...)."""
        return values_RL.flatten(0, 1)[self.at_KN]

    def batch(self, batch: Batch) -> Batch:
        """Returns the canvas of the packed rows: what a forward of the backbone reads of a batch."""
        row_R, segments = self.row_R, batch.ids_BL.shape[1]
        document_R1 = torch.arange(len(row_R), device=row_R.device)[:, None] * segments
        slots = {
            kind: self.take(slot_BL[row_R]).masked_fill(~self.real_KN, -1) for kind, slot_BL in batch.slots.items()
        }
        return replace(
            batch,
            ids_BL=self.take(batch.ids_BL[row_R]),
            target_BL=self.take(batch.target_BL[row_R]) & self.real_KN,
            attend_BL=self.real_KN,
            position_ids_BL=self.take(batch.position_ids_BL[row_R]),
            segment_BL=self.take(batch.segment_BL[row_R] + document_R1),
            slots=slots,
            padded=self.padded,
            packed=True,
        )

    def back(self, h_KND: Tensor, ids_RL: Tensor) -> Tensor:
        """Returns states (R, L, D) at the positions that they came from, 0 on padding."""
        flat = h_KND.new_zeros(ids_RL.numel(), h_KND.shape[2])
        moved = flat.index_copy(0, self.from_M, h_KND.flatten(0, 1)[self.to_M])
        return moved.unflatten(0, tuple(ids_RL.shape))


class PackedModel:
    """A model whose forwards of the rows of `packing` are run packed. All else is the model's."""

    def __init__(self, model: Any, packing: Packing) -> None:
        self._model, self._packing = model, packing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hidden(
        self,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        row_R: Tensor,
        media_R: Tensor | None = None,
        memory: Any = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `mmdiff.model.MMDiff.hidden`."""
        packing, model = self._packing, self._model
        if row_R is not packing.row_R or media_R is not None or memory is not None:
            out: Tensor = model.hidden(ids_RL, batch, features, row_R, media_R, memory, extras)
            return out
        rows_K = torch.arange(len(packing.at_KN), device=ids_RL.device)
        beside = {name: packing.take(values_RL) for name, values_RL in (extras or {}).items()}
        h_KND = model.hidden(packing.take(ids_RL), packing.batch(batch), features, rows_K, extras=beside or None)
        return packing.back(h_KND, ids_RL)

    def hidden_copies(
        self,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        copies: int,
        *,
        blockwise: bool = False,
        extras: Mapping[str, Tensor] | None = None,
        layout: Any = None,
    ) -> Tensor:
        """As `mmdiff.model.MMDiff.hidden_copies`; where copies share what is clean, rows are left as they are."""
        model = self._model
        shared = blockwise or (model.attention.one_target_block and model.backbone.caches)
        if shared or len(ids_RL) != len(self._packing.row_R):
            how = {"blockwise": blockwise, "extras": extras, "layout": layout}
            out: Tensor = model.hidden_copies(ids_RL, batch, features, copies, **how)
            return out
        return self.hidden(ids_RL, batch, features, self._packing.row_R, extras=extras)
