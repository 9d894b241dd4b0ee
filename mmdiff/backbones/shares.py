"""What the tensors of a published file hold: parameters under other names, several in one, or parts of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Share(NamedTuple):
    """What of a parameter a published tensor holds.

    ours: the parameter, or buffer. at: which part of it: (), the whole; (i,): its i-th; (i, first, last): of that the
    rows from `first` up to, but without, `last`. rows: the same of the tensor that belongs to it, where a tensor holds
    several parameters one below the other; None: all of it.
    """

    ours: str
    at: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """Returns the part of the parameter, as a view."""
        part = parameter[self.at[0]] if self.at else parameter
        return part[self.at[1] : self.at[2]] if len(self.at) > 1 else part


@dataclass(frozen=True)
class Outline:
    """A tensor without numbers, for who compares names and shapes and need not wait for torch."""

    shape: tuple[int, ...]
    floats: bool = True
    dtype: str = ""

    def numel(self) -> int:
        return prod(self.shape)

    def is_floating_point(self) -> bool:
        return self.floats

    def __getitem__(self, at: int | slice) -> Outline:
        first = self.shape[1:] if isinstance(at, int) else (len(range(self.shape[0])[at]), *self.shape[1:])
        return replace(self, shape=first)


Published = Mapping[str, tuple[Share, ...]]
"""Published tensor -> what it holds."""


def per_layer(layers: int, names: Mapping[str, str], theirs: str, ours: str) -> dict[str, tuple[Share, ...]]:
    """Returns {`theirs`.format(layer, name): its parameter} for tensors that a layer has under another name."""
    return {f"{theirs.format(i)}{a}": (Share(f"{ours.format(i)}{b}"),) for i in range(layers) for a, b in names.items()}


def experts(at: str, count: int, wide: int) -> dict[str, tuple[Share, ...]]:
    """Returns the tensors of the experts of one layer, three each, and where transformers keeps them, in two.

    at: the beginning of their names. wide: the feed-forward's width.
    """
    out: dict[str, tuple[Share, ...]] = {}
    for e in range(count):
        out[f"{at}{e}.gate_proj.weight"] = (Share(f"{at}gate_up_proj", (e, 0, wide)),)
        out[f"{at}{e}.up_proj.weight"] = (Share(f"{at}gate_up_proj", (e, wide, 2 * wide)),)
        out[f"{at}{e}.down_proj.weight"] = (Share(f"{at}down_proj", (e,)),)
    return out
