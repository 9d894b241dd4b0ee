"""The plain procedure of `benchmarks/protein.py` must do the same work as ours, or their ratio means nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.protein import Size, canvas, dsm, published_steps, session, watched
from mmdiff.tasks.protein.design.generate import generate
from mmdiff.tasks.protein.residues import CANONICAL, MASKED, Residues

SIZE = Size(width=16, layers=1, heads=2, rows=0, plain_rows=0, steps=0, residues=0)


@pytest.fixture(scope="module")
def model() -> Any:
    return session(SIZE)


def rows() -> list[dict[str, Any]]:
    return [{"sequence": MASKED * n} for n in (5, 17, 9)] + [{"sequence": "__ACD____E_"}]


@pytest.mark.parametrize("steps", [1, 3, 20])  # of one, with a remainder, more than a row has masks
def test_plain_and_ours_agree_at_temperature_0(model: Any, steps: int) -> None:
    vocab = model.model.vocab
    banned = [i for i in range(vocab.size) if i not in Residues(vocab).encode(CANONICAL)]
    plain = dsm(model.model, [canvas(model, row) for row in rows()], steps, 0.0, torch.Generator(), banned)
    named = {"temperature": 0.0, "remasking": "low_confidence", "steps": steps, "guard": None}
    ours = [record["sequence"] for record in generate(model, rows(), **named)]
    assert [model.task.parse(ids[1:-1], vocab) for ids in plain] == ours


def test_plain_writes_every_mask_and_keeps_what_is_given(model: Any) -> None:
    canvases = [canvas(model, row) for row in rows()] * 8
    mask_id = model.model.vocab.mask_id
    filled = dsm(model.model, canvases, 4, 1.0, torch.Generator().manual_seed(0), [mask_id])
    for before, after in zip(canvases, filled, strict=True):
        assert len(before) == len(after) and mask_id not in after
        assert all(b == a for b, a in zip(before, after, strict=True) if b != mask_id)


def test_published_steps_count_the_masks_of_the_batch() -> None:
    assert published_steps([200] * 32, 10) == 640
    assert published_steps([200], 10) == 20
    assert published_steps([5], 10) == 1


def test_forwards_and_positions_are_counted(model: Any) -> None:
    canvases = [canvas(model, row) for row in rows()]
    banned = list(range(4)) + [model.model.vocab.mask_id]  # a drawn mask would take a forward more
    with watched(model.model) as work:
        dsm(model.model, canvases, 3, 1.0, torch.Generator().manual_seed(0), banned)
    longest = max(map(len, canvases))
    size = len(canvases) * longest
    assert (work.forwards, work.positions, work.logits) == (3, 3 * size, size * model.model.vocab.size)
    with watched(model.model) as work:
        generate(model, [{"sequence": MASKED * 6}] * 2, guard=None, steps=3)
    assert (work.forwards, work.positions, work.logits) == (3, 3 * 2 * 8, 2 * 6 * model.model.vocab.size)
