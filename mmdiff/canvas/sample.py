"""A sample: the sequence of `Text`, `Media` and `Target` that a task makes of a row, and `Break` between documents.

Shape letters: n crops of one item of media.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmdiff.errors import DataError

LONGEST = 2**17
"""Most positions of one answer: longer ones come of a slip, and would fill the memory before a model could refuse."""
Ranges = tuple[tuple[int, int], ...]
"""Half-open id ranges, ((low, high), ...): the ids a target position may hold."""


@dataclass(frozen=True)
class Text:
    """Context that is attended, never masked and never scored."""

    ids: Sequence[int]


@dataclass(frozen=True)
class Media:
    """One picture, clip or vector, in any form that the encoder of this `kind` reads (path, image, array, Item)."""

    kind: str
    data: object


@dataclass(frozen=True)
class Target:
    """A span that diffusion predicts: `ids` when training, `length` masked positions when generating.

    Positions of `ids` that hold the mask id are masked, all others are given: infilling and drafts need nothing else.
    What is masked in training stays so and is not scored: what lies behind the end of an episode, for example.
    allow: the ids that the span may hold; None: any.
    steps: the step, from 0, at which a recorded generation committed each of `ids`; None: not known.
    """

    ids: Sequence[int] | None = None
    length: int = 0
    allow: Ranges | None = None
    steps: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and (self.ids is None or len(self.steps) != len(self.ids)):
            raise DataError(f"steps of an answer: {len(self.steps)}, expected one for each of its ids")
        if not 0 <= self.length <= LONGEST:
            raise DataError(f"an answer of {self.length} positions, expected 0..{LONGEST}")


@dataclass(frozen=True)
class Break:
    """The end of a document in a row that is packed of several: nothing sees across it, and positions count anew."""


Part = Text | Media | Target | Break
Sample = Sequence[Part]


@dataclass(frozen=True)
class Item:
    """One item of media as numbers: `values` (n, ...) holds its n crops, `layout` any facts that its connector needs.

    Crops of unequal length (sound) are filled up with zeros along the last axis. `lengths` then says how much of each
    is real, and `tokens` how many features the encoder makes of it; both are empty where all crops are of one size.
    origin: what stands for the numbers in a cache: the same origin, read by the same encoder, gives the same numbers.
    It is empty where nothing does but the numbers themselves.
    """

    values: Tensor
    layout: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    origin: bytes = b""


def canvas_length(sample: Sample) -> int:
    """Returns the number of positions that a sample takes, slots of media excluded."""
    texts = [part.ids for part in sample if isinstance(part, Text)]
    targets = [part for part in sample if isinstance(part, Target)]
    return sum(map(len, texts)) + sum(part.length if part.ids is None else len(part.ids) for part in targets)
