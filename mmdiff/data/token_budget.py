"""Batches of items of many lengths, by what they cost with their padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CPU, GPU = 1024, 32768


def token_budget(device: torch.device, tokens: int | None = None) -> int:
    """Returns how many positions, padding included, a batch may have: `tokens`, or what suits the device.

    A CPU is fastest while a batch stays in its caches (512 to 2,048 positions at widths of 64 to 640:
    `benchmarks/protein.py`); for a GPU the figure is an estimate.
    """
    if tokens is not None:
        return tokens
    return CPU if device.type == "cpu" else GPU


def batch_by_tokens(lengths: Sequence[float], budget: float, rows: int | None = None) -> list[list[int]]:
    """Returns batches of indices into `lengths`, each of items that are about as long.

    A batch has at most `rows` items, and at most `budget` positions when all are padded to the longest; an item longer
    than the budget is a batch of its own. The longest come first, so that what does not fit into memory fails at once;
    items of equal length keep their order.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = batches[-1] if batches else []
        if last and len(last) != rows and (len(last) + 1) * lengths[last[0]] <= budget:
            last.append(i)
        else:
            batches.append([i])
    return batches
