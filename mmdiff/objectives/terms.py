"""What an objective hands to the loop: named sums, their denominators, and what is worth logging."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Term:
    """One term of a loss. value: a sum (with gradient) over this forward's samples, divided by the loop's global count.

    sums: further sums to log, name -> (numerator, count), as detached tensors; ratios are taken after summing.
    """

    value: Tensor
    coefficient: float = 1.0
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
