"""Collate: samples, which tasks make, become one `Batch`, which the model takes.

Shape letters: B samples, L canvas length, N crops (a picture may be several tiles), M slots of one kind in the whole
batch, K distinct allow-sets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch, MediaBatch, grid_offsets
from mmdiff.canvas.sample import Break, Item, Ranges, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Reader

Padding = Literal["eos", "answer", "ignore"]
T = TypeVar("T")


@typed
def collate(
    samples: Sequence[Sample],
    vocab: Vocab,
    readers: Mapping[str, Reader] | None = None,
    *,
    index: Sequence[int] | None = None,
    padding: Padding = "ignore",
    side: Literal["right", "left"] = "right",
) -> Batch:
    """Returns the samples as one batch, on the CPU, each padded to the longest. `Break`s number the documents of a row.

    readers: how media of each kind are read and how many slots they take (`MMDiff.readers`).
    index: global sample indices, the identity under which noise is drawn; 0, 1, ... when left out.
    padding: "ignore" leaves the positions that fill a row up unattended and unscored. "eos" makes them end-of-sequence
        ids that are masked, scored and attended like any answer (LLaDA's SFT recipe, GUIDELINES.md). "answer" adds such
        ids until all rows end in answers of one length; what a shorter context leaves over is ignored. With "eos" a
        short clip next to a long one would have hundreds of them (Whisper-LLaDA, DIFFA).
    side: where a row is filled up; on the left for generation.
    Raises DataError for an empty sample, an unknown kind of media, ids outside the vocabulary or a target's `allow`,
    ConfigError for padding="eos" on the left.
    """
    readers = readers or {}
    rows = [_Row() for _ in samples]
    items: dict[str, list[Item]] = {}
    n_slots: dict[str, int] = {}
    allow_sets: dict[Ranges | None, int] = {None: 0}
    for b, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        for part in sample:
            if isinstance(part, Text):
                row.add(part.ids, False)
            elif isinstance(part, Target):
                ids = part.ids if part.ids is not None else [vocab.mask_id] * part.length
                row.add(ids, True, allow_sets.setdefault(part.allow, len(allow_sets)))
                if part.steps:
                    row.steps[len(row.ids) - len(ids) :] = part.steps
                    row.stepped = row.stepped or max(part.steps) >= 0
            elif isinstance(part, Break):
                row.end_document()
            else:
                if part.kind not in readers:
                    raise DataError(f"media of kind {part.kind!r}: this model reads {sorted(readers) or 'no media'}")
                reader = readers[part.kind]
                item = part.data if isinstance(part.data, Item) else reader.read(part.data)
                items.setdefault(part.kind, []).append(item)
                start, n = n_slots.get(part.kind, 0), reader.slots(item)
                row.slots.append((part.kind, len(row.ids), start, n))
                grid = reader.grid(item, row.ids[-1] if row.ids else None) if hasattr(reader, "grid") else None
                row.add([vocab.slot_id] * n, False)
                if grid is not None:
                    row.along_axes(*grid)
                n_slots[part.kind] = start + n
        if not row.ids:
            raise DataError(f"sample {b} of the batch is empty")
        known = [i for i, target in zip(row.ids, row.target, strict=True) if not target or i != vocab.mask_id]
        low, high = min(known, default=0), max(known, default=0)
        if low < 0 or high >= vocab.size:
            raise DataError(f"sample {b} of the batch: ids {low}..{high} do not fit a vocabulary of {vocab.size}")
    if padding == "answer":
        longest = max(row.answer() for row in rows)
        for row in rows:
            row.add([vocab.eos_id] * (longest - row.answer()), True)
    length = max(len(row.ids) for row in rows)
    eos = padding == "eos"
    if eos and side == "left":
        raise ConfigError("padding: eos stands behind an answer, so it cannot fill a row up on the left")

    def pad(values: list[T], fill: T) -> list[T]:
        extra = [fill] * (length - len(values))
        return values + extra if side == "right" else extra + values

    size_B1, at_L = torch.tensor([len(row.ids) for row in rows])[:, None], torch.arange(length)
    attend_BL = (at_L < size_B1 if side == "right" else at_L >= length - size_B1) | eos
    ids_BL = torch.tensor([pad(row.ids, vocab.eos_id if eos else vocab.pad_id) for row in rows], dtype=torch.int64)
    slots = {kind: torch.full((len(rows), length), -1, dtype=torch.int64) for kind in items}
    for b, row in enumerate(rows):
        shift = 0 if side == "right" else length - len(row.ids)
        for kind, at, start, n in row.slots:
            slots[kind][b, at + shift : at + shift + n] = torch.arange(start, start + n)
    target_BL = torch.tensor([pad(row.target, eos) for row in rows])
    stepped = any(row.stepped for row in rows)
    segment_BL, first_BL = torch.zeros_like(ids_BL), torch.zeros_like(ids_BL)
    if any(row.document for row in rows):
        segment_BL = torch.tensor([pad(row.segment, row.segment[-1]) for row in rows], dtype=torch.int64)
        first_BL = torch.tensor([pad(row.first, row.first[-1]) for row in rows], dtype=torch.int64)
    position_ids_BL = (attend_BL.cumsum(1) - 1 - first_BL).clamp(min=0)
    if any(row.saved for row in rows):
        position_ids_BL += torch.tensor([pad(row.moved, row.moved[-1] if side == "right" else 0) for row in rows])
    allow_BL, allow_KV = None, None
    if len(allow_sets) > 1:
        allow_BL = torch.tensor([pad(row.allow, 0) for row in rows])
        allow_KV = torch.stack([_allowed(ranges, vocab.size) for ranges in allow_sets])
        stray_BL = target_BL & ~allow_KV[allow_BL, ids_BL] & (ids_BL != vocab.mask_id)
        for b, at in stray_BL.nonzero().tolist():  # its cross-entropy would be infinite
            raise DataError(f"sample {b} of the batch: the target's `allow` leaves out its own id {ids_BL[b, at]}")
    return Batch(
        ids_BL=ids_BL,
        target_BL=target_BL,
        attend_BL=attend_BL,
        position_ids_BL=position_ids_BL,
        segment_BL=segment_BL,
        slots=slots,
        media={kind: _stack(group) for kind, group in items.items()},
        allow_BL=allow_BL,
        allow_KV=allow_KV,
        allowed_ids_N=_common_ids(allow_BL, allow_KV, target_BL),
        index_B=torch.arange(len(rows)) if index is None else torch.as_tensor(list(index), dtype=torch.int64),
        step_BL=torch.tensor([pad(row.steps, -1) for row in rows]) if stepped else None,
        padded=not bool(attend_BL.all()),
        packed=any(row.segment[-1] for row in rows),
    )


class _Row:
    """One row of the canvas while it is being laid out."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.target: list[bool] = []
        self.allow: list[int] = []
        self.steps: list[int] = []
        self.stepped = False  # whether a step is known
        self.slots: list[tuple[str, int, int, int]] = []  # kind, position, first feature, count
        self.segment: list[int] = []  # the document of each position
        self.first: list[int] = []  # where it begins
        self.document, self.begins = 0, 0  # those of the document that is being laid out
        self.moved: list[int] = []  # what a position differs by from its number in the document
        self.behind, self.saved = 0, False  # that of what comes next; whether there is any

    def end_document(self) -> None:
        """Begin another document, unless this one is still empty."""
        if len(self.ids) > self.begins:
            self.document, self.begins, self.behind = self.document + 1, len(self.ids), 0

    def add(self, ids: Sequence[int], target: bool, allow: int = 0) -> None:
        self.ids += map(int, ids)  # of a list, an array or a tensor
        self.target += [target] * len(ids)
        self.allow += [allow] * len(ids)
        self.steps += [-1] * len(ids)
        self.segment += [self.document] * len(ids)
        self.first += [self.begins] * len(ids)
        self.moved += [self.behind] * len(ids)

    def along_axes(self, rows: int, columns: int) -> None:
        """Lay the last rows * columns positions out as a grid; what follows is behind its start by its longer side."""
        count, self.saved = rows * columns, True
        self.moved[-count:] = [self.behind + at - i for i, at in enumerate(grid_offsets(rows, columns))]
        self.behind += max(rows, columns) - count

    def answer(self) -> int:
        """Returns the number of target positions at the end of the row."""
        return next((n for n, target in enumerate(reversed(self.target)) if not target), len(self.target))


def _stack(items: Sequence[Item]) -> MediaBatch:
    """The crops of all items as one tensor, padded with zeros along the last axis where they are of unequal length."""
    crops, layouts = [len(item.values) for item in items], [item.layout for item in items]
    origins = [item.origin for item in items] if any(item.origin for item in items) else []
    if not any(item.lengths for item in items):
        return MediaBatch(torch.cat([item.values for item in items]), crops, layouts, origins=origins)
    longest = max(item.values.shape[-1] for item in items)
    return MediaBatch(
        torch.cat([F.pad(item.values, (0, longest - item.values.shape[-1])) for item in items]),
        crops,
        layouts,
        length_N=torch.tensor([n for item in items for n in item.lengths]),
        tokens=[n for item in items for n in item.tokens],
        origins=origins,
    )


def _allowed(ranges: Ranges | None, size: int) -> Tensor:
    """bool (V,), the ids in `ranges`; None: all."""
    if ranges is None:
        return torch.ones(size, dtype=torch.bool)
    allowed_V = torch.zeros(size, dtype=torch.bool)
    for low, high in ranges:
        if not 0 <= low < high <= size:
            raise DataError(f"allow: the range ({low}, {high}) does not fit a vocabulary of {size}")
        allowed_V[low:high] = True
    return allowed_V


def _common_ids(allow_BL: Tensor | None, allow_KV: Tensor | None, target_BL: Tensor) -> Tensor | None:
    """The ids of `Batch.allowed_ids_N`: those of all targets, where they share one allow-set of at most V / 2 ids."""
    if allow_BL is None or allow_KV is None:
        return None
    kinds = allow_BL[target_BL].unique()
    ids_N = allow_KV[kinds[0]].nonzero().squeeze(1) if len(kinds) == 1 else None
    return ids_N if ids_N is not None and 2 * len(ids_N) <= allow_KV.shape[1] else None
