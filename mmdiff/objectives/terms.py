"""What an objective hands to the loop: named sums, their denominators, and what is worth logging.

Also what objectives share in making them. Shape letters: P positions, K allow-sets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.batch import Batch
from mmdiff.errors import ConfigError, nearest
from mmdiff.protocols import Model


@dataclass
class Term:
    """One term of a loss. value: a sum (with gradient) over this forward's samples, divided by the loop's global count.

    sums: further sums to log, name -> (numerator, count), as detached tensors; ratios are taken after summing.
    """

    value: Tensor
    coefficient: float = 1.0
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def chunked(function: Callable[..., Tensor], chunk: int, h_PD: Tensor, *others_P: Tensor) -> Tensor:
    """Returns `function(h, *others)` of all positions, (P, ...), or (0,) where there is none.

    It is called for at most `chunk` positions at a time, and again in the backward pass: the logits that it makes exist
    for so many positions only.
    """
    if not len(h_PD):
        return h_PD.sum(1)
    if len(h_PD) <= chunk:
        return function(h_PD, *others_P)
    parts = zip(*(x.split(chunk) for x in (h_PD, *others_P)), strict=True)
    return torch.cat([checkpoint(function, *some, use_reentrant=False) for some in parts])


def allowed(batch: Batch, row_P: Tensor, position_P: Tensor, restrict: bool) -> tuple[Tensor | None, Tensor]:
    """Returns bool (K, V), allow-sets, and int64 (P,), the set of each position; None where the softmax is over all."""
    if not restrict or batch.allow_KV is None or batch.allow_BL is None:
        return None, torch.zeros_like(row_P)
    return batch.allow_KV, batch.allow_BL[row_P, position_P]


def extra_of(model: Model, name: str) -> Any:
    """Returns the extra of that name. Raises ConfigError for a model without it."""
    if name not in model.extras:
        raise ConfigError(f"model.extras.{name}: the model has no such extra{nearest(name, model.extras)}")
    return model.extras[name]
