"""The figures of a line of metrics.jsonl, against sums by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmdiff.objectives.terms import Term
from mmdiff.training.meters import Meters

ALONE: Any = SimpleNamespace(num_processes=1, device=torch.device("cpu"), gather=lambda value: value)


def term(value: float, coefficient: float = 1.0, **sums: tuple[float, float]) -> Term:
    pairs = {name: (torch.tensor(a), torch.tensor(b)) for name, (a, b) in sums.items()}
    return Term(torch.tensor(value), coefficient=coefficient, sums=pairs)


def test_a_line_has_means_over_steps_and_ratios_over_all_of_them() -> None:
    meters = Meters()
    meters.add({"a": term(6.0, accuracy=(3.0, 4.0)), "b": term(4.0, 0.5)}, {"a": 2.0, "b": 4.0}, tokens=10)
    meters.norm(torch.tensor(3.0))
    meters.step()
    meters.add({"a": term(2.0, accuracy=(0.0, 4.0)), "b": term(0.0, 0.5)}, {"a": 2.0, "b": 4.0}, tokens=20)
    meters.norm(torch.tensor(5.0))
    meters.step()
    line = meters.read(ALONE, seconds=4.0)
    assert line == {
        "loss_a": pytest.approx((3 + 1) / 2), "loss_b": pytest.approx(0.25), "loss": pytest.approx(2.25),
        "accuracy": pytest.approx(3 / 8), "grad_norm": 5.0, "tokens_per_second": 7.5, "seconds": 4.0,
    }  # fmt: skip
    meters.step()
    assert meters.read(ALONE, seconds=1.0) == {"loss": 0.0, "tokens_per_second": 0.0, "seconds": 1.0}


def test_a_ratio_of_nothing_is_none() -> None:
    meters = Meters()
    meters.add({"a": term(1.0, accuracy=(0.0, 0.0))}, {"a": 1.0}, tokens=1)
    meters.step()
    line = meters.read(ALONE, seconds=1.0)
    assert line["accuracy"] is None and line["loss"] == 1.0 and "loss_a" not in line


@pytest.mark.parametrize(("wrong", "ago"), [([], None), ([0], 3), ([1], 2), ([3], 0), ([1, 2], 2)])
def test_how_many_steps_ago_a_loss_was_first_not_finite(wrong: list[int], ago: int | None) -> None:
    for by_norm in (False, True):
        meters = Meters()
        for step in range(4):
            value = math.nan if step in wrong else 1.0
            meters.add({"a": term(1.0 if by_norm else value)}, {"a": 1.0}, tokens=1)
            meters.norm(torch.tensor(value if by_norm else 1.0))
            meters.step()
        assert meters.diverged(ALONE) == ago
    meters = Meters()
    meters.norm(torch.tensor(math.inf), scaled=True)  # fp16's loss scale passes such a step over
    meters.step()
    assert meters.diverged(ALONE) is None
