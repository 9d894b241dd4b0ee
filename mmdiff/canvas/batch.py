"""A batch: samples laid out on one canvas, with their media. The core hands it to the model.

Shape letters: B samples, L canvas length, N crops of media, T features per crop, E encoder width, M slots of one kind
in the whole batch, K distinct allow-sets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .pattern import Pattern
from .vocab import NO_MASK, Vocab

T = TypeVar("T")

AXIS_BITS = 20
"""Of the time of a position, and of how many rows it lies behind; columns have the bits above."""


@dataclass
class MediaBatch:
    """All media of one kind in a batch, in order of appearance.

    crops: crops per item. layouts: `Item.layout` per item. features_NTE: the encoder's output where it was cached, used
    in place of the values. length_N, tokens: `Item.lengths` and `Item.tokens` of all crops; None where all crops are of
    one size. origins: `Item.origin` per item; empty where no item has one.
    """

    values_N: Tensor
    crops: list[int]
    layouts: list[tuple[int, ...]]
    features_NTE: Tensor | None = None
    length_N: Tensor | None = None  # int64
    tokens: list[int] | None = None
    origins: list[bytes] = field(default_factory=list)


@dataclass
class Batch:
    """B rows of one canvas, which `mmdiff.data.collate.collate` makes of samples."""

    ids_BL: Tensor  # int64, clean ids; the mask id at masked target positions; the slot id where features go
    target_BL: Tensor  # bool, the positions that diffusion masks and predicts
    attend_BL: Tensor  # bool, False on padding
    position_ids_BL: (
        Tensor  # int64, 0, 1, ... over the attended positions of a row; of a grid of slots see `along_axes`
    )
    segment_BL: Tensor  # int64, the document a position belongs to (packing); a position attends its own document only
    slots: dict[str, Tensor] = field(default_factory=dict)  # kind -> int64 BL, index of a slot's feature, -1 elsewhere
    media: dict[str, MediaBatch] = field(default_factory=dict)
    allow_BL: Tensor | None = None  # int64, row of allow_KV; None: every id everywhere
    allow_KV: Tensor | None = None  # bool
    allowed_ids_N: Tensor | None = None  # int64, ascending: where all target positions may hold the same few ids, these
    index_B: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # global sample index
    padded: bool = False  # whether attend_BL is False anywhere (known on the CPU, so the device need not be asked)
    step_BL: Tensor | None = None  # int64, `Target.steps`; -1 where none is known
    packed: bool = False  # whether segment_BL has more than one document in a row
    unusable: tuple[tuple[int, int], ...] = ()  # rows (component, number) that were skipped while this one was made
    attention: Pattern | None = None  # who sees whom, where it is not as the model has it (mmdiff.training.annealing)

    def __len__(self) -> int:
        return len(self.ids_BL)


def grid_offsets(rows: int, columns: int) -> list[int]:
    """Returns what is added to the position of a grid's first slot, for each of its slots, row by row."""
    return [(row << AXIS_BITS) + (column << 2 * AXIS_BITS) for row in range(rows) for column in range(columns)]


def along_axes(position_ids_BL: Tensor) -> Tensor:
    """Returns int64 (3, B, L): time, row and column of position ids that lie along three axes (Qwen2-VL).

    They are one number each, so that whatever carries position ids carries them: the time, and above it how many rows
    and columns the slot of a picture lies behind that. Those of text are their time.
    """
    low = (1 << AXIS_BITS) - 1
    time_BL, row_BL = position_ids_BL & low, position_ids_BL >> AXIS_BITS & low
    return torch.stack([time_BL, time_BL + row_BL, time_BL + (position_ids_BL >> 2 * AXIS_BITS)])


def real_NT(tokens: Sequence[int], features_NTE: Tensor) -> Tensor:
    """Returns bool (N, T), the features that are not padding, where crop n has `tokens[n]` of them."""
    count_N = torch.tensor(tokens).to(features_NTE.device, non_blocking=True)
    return torch.arange(features_NTE.shape[1], device=features_NTE.device) < count_N[:, None]


def packed(features_NTE: Tensor, tokens: Sequence[int] | None) -> Tensor:
    """Returns (M, E), the features of all crops without padding. tokens: real features per crop; None: all are."""
    if tokens is None:
        return features_NTE.flatten(0, 1)
    first_N = range(0, features_NTE.shape[0] * features_NTE.shape[1], features_NTE.shape[1])
    at_M = torch.cat([torch.arange(first, first + n) for first, n in zip(first_N, tokens, strict=True)])
    return features_NTE.flatten(0, 1)[at_M.to(features_NTE.device, non_blocking=True)]


def largest(features_NTE: Tensor, tokens: Sequence[int] | None) -> Tensor:
    """Returns (N, E), the largest value of each channel over the features of a crop. tokens: as in `packed`."""
    if tokens is not None:
        features_NTE = features_NTE.masked_fill(~real_NT(tokens, features_NTE)[..., None], -torch.inf)
    return features_NTE.amax(1)


def allow_sets(batch: Batch, vocab: Vocab) -> tuple[Tensor, Tensor]:
    """Returns bool (K, V), the ids of each allow-set, and int64 (B, L), the set of each position; plain text where none
    was named."""
    text_V = torch.zeros(vocab.size, dtype=torch.bool)
    if vocab.tokenizer is None:
        text_V[:] = True
        text_V[[i for i in (vocab.mask_id, vocab.slot_id) if i != NO_MASK]] = False
    else:
        text_V[torch.as_tensor(vocab.text_ids)] = True
    text_V[[vocab.eos_id, *vocab.end_ids]] = True
    text_V = text_V.to(batch.ids_BL.device)
    if batch.allow_KV is None or batch.allow_BL is None:
        return text_V[None], torch.zeros_like(batch.ids_BL)
    return torch.where(batch.allow_KV.all(1, keepdim=True), text_V, batch.allow_KV), batch.allow_BL


def where(mask: Tensor) -> tuple[Tensor, ...]:
    """Returns the indices of a bool tensor's True, one tensor per dimension, in row-major order.

    A device would have to be asked how many there are. Of a mask that `to_device` moved under a dataclass's `MASKS`
    the host found them before, unless it has been changed since.
    """
    version, known = getattr(mask, "_known", (-1, ()))
    return known if known and version == mask._version else mask.nonzero(as_tuple=True)


def to_device(value: T, device: torch.device | str) -> T:
    """Returns a copy on `device` of a tensor, or of a dictionary or dataclass that holds tensors.

    `MASKS` of a dataclass are the names of those bool tensors whose True is to be known there, see `where`.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        moved = replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value)})
        for name in getattr(value, "MASKS", ()):
            mask = getattr(moved, name)
            mask._known = mask._version, tuple(to_device(i, device) for i in where(getattr(value, name)))
        return moved
    return value
