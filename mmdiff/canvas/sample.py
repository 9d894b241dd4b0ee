"""What a task hands to the core: a sample is a sequence of `Text`, `Media` and `Target`.

Shape letters: n crops of one item of media.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Ranges = tuple[tuple[int, int], ...]
"""Half-open id ranges, ((low, high), ...): the ids a target position may hold."""


@dataclass(frozen=True)
class Text:
    """Clean context; attended, never masked, never scored."""

    ids: Sequence[int]


@dataclass(frozen=True)
class Media:
    """One picture, clip or vector, in any form the encoder of this `kind` reads (path, image, array, Item)."""

    kind: str
    data: object


@dataclass(frozen=True)
class Target:
    """The span that diffusion writes: `ids` when training, `length` empty positions when generating.

    Ids that equal the mask id are empty positions, all others are given: infilling and drafts need nothing else. Positions
    that are empty in training stay so, and are not scored: what is behind the end of an episode, for example.
    """

    ids: Sequence[int] | None = None
    length: int = 0
    allow: Ranges | None = None


Part = Text | Media | Target
Sample = Sequence[Part]


@dataclass(frozen=True)
class Item:
    """What a reader makes of one media: `values` (n, ...) holds its n crops, `layout` any facts its connector needs.

    NoisedBatch of unequal length (sound) are filled up with zeros along the last axis. `lengths` then says how much of each
    is real, and `tokens` how many features the encoder makes of it; both empty where all crops are of one size.
    """

    values: Tensor
    layout: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


def canvas_length(sample: Sample) -> int:
    """How many a canvas has, slots of media left out."""
    texts = [part.ids for part in sample if isinstance(part, Text)]
    targets = [part for part in sample if isinstance(part, Target)]
    return sum(map(len, texts)) + sum(part.length if part.ids is None else len(part.ids) for part in targets)
