"""Ranges of numbers: annotations that the settings, the arguments of parts and the options of commands share.

    def __init__(self, *, copies: AtLeast1 = 1, dropout: BelowOne = 0.0, seconds: Positive | None = None)

A number in a file that lies outside is refused before anything is built, see `mmdiff.config.schema`. The marks are
those of `annotated_types`, so a part from elsewhere may write its own: `Annotated[int, Interval(ge=1, le=9)]`. NaN and
infinity are never in a range, a whole number has at most 64 bits, and a number is one that 32-bit floats hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

Whole: TypeAlias = Annotated[int, Interval(ge=-(2**63), lt=2**63)]
AtLeast0: TypeAlias = Annotated[int, Interval(ge=0, lt=2**63)]
AtLeast1: TypeAlias = Annotated[int, Interval(ge=1, lt=2**63)]
AtLeast2: TypeAlias = Annotated[int, Interval(ge=2, lt=2**63)]
UpTo64: TypeAlias = Annotated[int, Interval(ge=0, le=64)]
UpTo1000: TypeAlias = Annotated[int, Interval(ge=1, le=1000)]
UpToMillion: TypeAlias = Annotated[int, Interval(ge=1, le=10**6)]
Buckets: TypeAlias = Annotated[int, Interval(ge=0, le=10**4)]
Bins: TypeAlias = Annotated[int, Interval(ge=2, le=2**20)]
Pixels: TypeAlias = Annotated[int, Interval(ge=1, le=2**24)]  # of one picture, as it is resized
Processes: TypeAlias = Annotated[int, Interval(ge=0, le=1024)]
Threads: TypeAlias = Annotated[int, Interval(ge=1, le=1024)]

Finite: TypeAlias = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
NotNegative: TypeAlias = Annotated[float, Interval(ge=0, lt=math.inf)]
Positive: TypeAlias = Annotated[float, Interval(gt=0, lt=math.inf)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
SignedShare: TypeAlias = Annotated[float, Interval(gt=-1, lt=1)]
Half: TypeAlias = Annotated[float, Interval(ge=0, le=0.5)]
PositiveShare: TypeAlias = Annotated[float, Interval(gt=0, le=1)]
BelowOne: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
BetweenZeroAndOne: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]

WORDS = {Ge: "of at least", Gt: "above", Le: "up to", Lt: "below"}
BITS = 63
LARGEST = 3.4e38  # what a 32-bit float holds, which most numbers become


def in_range(value: float, marks: Iterable[Any] = ()) -> bool:
    """Whether a number is finite, has at most 64 bits if it is whole, and lies in the range that marks describe."""
    if isinstance(value, int) and not -(2**BITS) <= value < 2**BITS:
        return False
    if not math.isfinite(value) or abs(value) > LARGEST:
        return False
    tests = {Ge: lambda b: value >= b, Gt: lambda b: value > b, Le: lambda b: value <= b, Lt: lambda b: value < b}
    return all(tests[type(mark)](bound) for mark, bound in _bounds(marks))


def expected(kind: type, marks: Iterable[Any] = (), value: float = 0) -> str:
    """Returns the range in words: `a whole number of at least 1`, `a number from 0 to 1`, `a finite number`.

    value: what was given instead.
    """
    if isinstance(value, int) and not in_range(value):
        return "a whole number of 64 bits"
    if LARGEST < abs(value) < math.inf:
        return f"a number of at most {LARGEST:g}, as 32-bit floats hold"
    named = "a whole number" if kind is int else "a number"
    bounds = {type(mark): bound for mark, bound in _bounds(marks) if abs(bound) < 2**BITS}
    if {Ge, Le} <= bounds.keys():
        return f"{named} from {_figures(bounds[Ge])} to {_figures(bounds[Le])}"
    if not bounds:
        return "a finite number" if kind is float else "a whole number of 64 bits"
    return f"{named} {' and '.join(f'{WORDS[mark]} {_figures(bound)}' for mark, bound in bounds.items())}"


def _figures(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _bounds(marks: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    for mark in marks:
        for one in mark if isinstance(mark, GroupedMetadata) else (mark,):
            for kind in WORDS:
                if isinstance(one, kind):
                    yield one, getattr(one, kind.__name__.lower())
