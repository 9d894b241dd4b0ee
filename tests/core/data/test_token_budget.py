"""Batches by budget: everything once, within the budget, and no two batches that would fit into one in their order."""

from __future__ import annotations

import random

import pytest
import torch

from mmdiff.data import token_budget as budget
from mmdiff.data.token_budget import batch_by_tokens


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_thing_is_in_one_batch_that_is_as_full_as_it_can_be(seed: int, rows: int | None) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40) for _ in range(60)]
    batches = batch_by_tokens(lengths, 100, rows)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert max(padded) <= 100 and all(len(batch) <= (rows or 60) for batch in batches)
    for one, after in zip(batches, batches[1:], strict=False):
        assert min(lengths[i] for i in one) >= max(lengths[i] for i in after)
        assert len(one) == rows or (len(one) + 1) * lengths[one[0]] > 100


def test_what_is_longer_than_the_budget_stands_alone_and_equals_keep_their_order() -> None:
    assert batch_by_tokens([5, 200, 5, 5], 10) == [[1], [0, 2], [3]]
    assert batch_by_tokens([], 10) == []


def test_the_budget_is_what_is_asked_for_or_what_suits_the_device() -> None:
    for kind, expected in (("cpu", budget.CPU), ("cuda", budget.GPU)):
        device = torch.device(kind)
        assert budget.token_budget(device) == expected and budget.token_budget(device, 7) == 7
