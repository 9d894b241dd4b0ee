"""Crops of unequal length for tests of connectors: features, what lies behind their ends, one check for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item

CROP = Item(torch.zeros(1, 1))


def media(tokens: Sequence[int] | None, crops: int = 0) -> MediaBatch:
    """One item a crop. tokens: features of each; None: `crops` crops, all full."""
    n = crops if tokens is None else len(tokens)
    return MediaBatch(torch.zeros(n, 1), [1] * n, [()] * n, tokens=None if tokens is None else list(tokens))


def filled(crops: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """(N, T, E): crops (T, E) of unequal length, filled up with `value`."""
    return nn.utils.rnn.pad_sequence(list(crops), batch_first=True, padding_value=value)


@torch.no_grad()
def check_lengths(connector: Any, width: int, lengths: Sequence[int] = range(1, 201)) -> None:
    """`slots` is what `forward` makes; batch mates, and what fills a crop up, change nothing."""
    torch.manual_seed(0)
    connector.eval()
    tokens = [lengths[i] for i in torch.randperm(len(lengths))]
    crops = [torch.randn(n, width) for n in tokens]
    alone = [connector(crop[None], media(None, 1)) for crop in crops]
    counts = [connector.slots(n, CROP) for n in tokens]
    assert [len(out) for out in alone] == counts
    assert all(counts)
    for value in (0.0, 100.0):
        together = connector(filled(crops, value), media(tokens))
        for n, out, expected in zip(tokens, together.split(counts), alone, strict=True):
            assert torch.allclose(out, expected, atol=1e-5), n
    three = Item(torch.zeros(3, 1))
    assert connector.slots(7, three) == 3 * connector.slots(7, CROP)
