"""Batches of things of many lengths, by what they cost with their padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CPU, GPU = 1024, 32768


def token_budget(device: torch.device, tokens: int | None = None) -> int:
    """Positions of a batch, its padding among them. None: what suits the device.

    A CPU is fastest while a batch stays in its caches (512 to 2,048 positions at widths of 64 to 640:
    `benchmarks/protein.py`); for a GPU the figure is an estimate.
    """
    if tokens is not None:
        return tokens
    return CPU if device.type == "cpu" else GPU


def batch_by_tokens(lengths: Sequence[float], budget: float, rows: int | None = None) -> list[list[int]]:
    """Numbers of things that are about as long, a batch each: at most `rows` of them, and as many as `budget` holds
    when all are padded to the longest. What is longer than the budget is a batch of its own.

    The longest come first, so that what does not fit into memory shows at once; of equals the first.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = batches[-1] if batches else []
        if last and len(last) != rows and (len(last) + 1) * lengths[last[0]] <= budget:
            last.append(i)
        else:
            batches.append([i])
    return batches
