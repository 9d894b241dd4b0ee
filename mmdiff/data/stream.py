"""Which sample stands at which position of a stage's stream, and how samples become a batch.

The order is a pure function of (seed, position): sample n of a stage is the same whether training was interrupted, how
many processes share it, or how many batches make a step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Item, Media, Sample
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, UserError, located
from mmdiff.protocols import Reader, Row, Source, Task

from .collate import Padding, collate

unchecked = inspect.unwrap(collate)  # looking at the types of every part of every sample takes a millisecond per batch

CHUNK = 4096  # positions whose mixture is drawn together
OVERHEAD = 2048  # bytes of a cached sample besides its media


@dataclass(frozen=True)
class Component:
    """One source of a mixture. weight: its share of the samples, relative to the other components."""

    name: str
    rows: Source
    task: Task
    weight: float = 1.0


class Stream:
    """An endless, shuffled sequence of samples; every row of a component comes once per epoch of that component.

    cache_bytes: size of the cache of samples, media read, that each data process keeps for later epochs; 0: none.
    batch, bucket: the samples of `bucket` consecutive batches are sorted by their length and dealt out again, so that a
        batch holds samples of about one length and needs little padding; which of these batches comes when is drawn
        (bucket 0: off). The sources then need a `length` (see `mmdiff.protocols.Source`).
    Raises DataError for a component without rows, ConfigError for a weight that is not above 0 and a missing `length`.
    """

    def __init__(
        self, components: Sequence[Component], *, seed: int, cache_bytes: int = 0, batch: int = 1, bucket: int = 0
    ) -> None:
        self._batch, self._bucket = batch, bucket
        self._dealt: dict[int, list[int]] = {}
        self._cache: dict[tuple[int, int], Sample] = {}
        self._cache_budget = cache_bytes or -1  # bytes that are left; -1: not even an empty sample fits
        self.components = list(components)
        for c in self.components:
            if not len(c.rows):
                raise DataError(f"data.{c.name}: no rows")
            if not c.weight > 0:
                raise ConfigError(f"data.{c.name}.weight: {c.weight} is not above 0")
            if bucket and not callable(getattr(c.rows, "length", None)):
                name = type(c.rows).__name__
                raise ConfigError(f"data.{c.name}: {name} does not say how long its rows are, as `bucket` needs")
        share = np.array([c.weight for c in self.components])
        self._edges = np.cumsum(share / share.sum())
        self._key = NoiseKey(seed, stream="order")
        self._before: list[np.ndarray] = [np.zeros(len(share), dtype=np.int64)]  # draws of each component by chunk
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def locate(self, position: int) -> tuple[int, int]:
        """Returns (component, row), both by number, of the sample at a position before bucketing."""
        if len(self.components) == 1:
            return 0, self._row(0, position)
        chunk, at = divmod(position, CHUNK)
        while len(self._before) <= chunk:
            drawn = np.bincount(self._choices(len(self._before) - 1), minlength=len(self.components))
            self._before.append(self._before[-1] + drawn)
        choices = self._choices(chunk)
        c = int(choices[at])
        return c, self._row(c, int(self._before[chunk][c] + (choices[:at] == c).sum()))

    def _bucketed(self, position: int) -> int:
        """Returns the stream position whose sample is served at `position`, after bucketing by length."""
        size = self._batch * self._bucket
        window, at = divmod(position, size)
        if window not in self._dealt:
            every = range(window * size, (window + 1) * size)
            rows = {n: self.locate(n) for n in every}
            by_length = sorted(every, key=lambda n: (self.components[rows[n][0]].rows.length(rows[n][1]), n))  # type: ignore[attr-defined]
            order = self._key.fold("bucket").uniform(window, self._bucket).argsort(kind="stable")
            dealt = [by_length[b * self._batch : (b + 1) * self._batch] for b in order.tolist()]
            self._dealt = {window: [n for batch in dealt for n in batch]}
        return self._dealt[window][at]

    def _choices(self, chunk: int) -> np.ndarray:
        return np.searchsorted(self._edges[:-1], self._key.fold("mix").uniform(chunk, CHUNK), side="right")

    def _row(self, component: int, draw: int) -> int:
        epoch, at = divmod(draw, len(self.components[component].rows))
        if (component, epoch) not in self._orders:
            self._orders = {
                k: v for k, v in self._orders.items() if k[0] != component
            }  # one epoch per component is kept
            noise = self._key.fold("shuffle").uniform(epoch, len(self.components[component].rows), copy=component)
            self._orders[component, epoch] = noise.argsort(kind="stable")
        return int(self._orders[component, epoch][at])

    def sample(self, position: int, vocab: Vocab, readers: Mapping[str, Reader]) -> tuple[Sample, str]:
        """Returns the sample at a position, its media read, and the name of its component.

        Raises DataError that names component and row.
        """
        c, i = self.locate(self._bucketed(position) if self._bucket else position)
        component = self.components[c]
        if (c, i) in self._cache:
            return self._cache[c, i], component.name
        with located(row_name(component.name, i)):
            sample = read_media(component.task.sample(component.rows[i], vocab), readers)
        size = OVERHEAD + sum(p.data.values.nbytes for p in sample if isinstance(p, Media) and isinstance(p.data, Item))
        if size <= self._cache_budget:
            self._cache_budget -= size
            self._cache[c, i] = sample
        return sample, component.name


def check_source(rows: Any, where: str) -> None:
    """Raise ConfigError for what is no source of rows. A first row that cannot be read is named when it is used."""
    kind = f"{type(rows).__module__}.{type(rows).__qualname__}"
    try:
        row = rows[0] if len(rows) else {}
    except UserError:
        return
    except (TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{where}: {kind} is no source of rows: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: {kind} is no source of rows, its first is a {type(row).__name__}, no mapping")


def read_media(sample: Sample, readers: Mapping[str, Reader]) -> Sample:
    """Returns `sample` with its media as Items; kinds that no reader reads are left for `collate` to refuse."""
    return [
        Media(p.kind, readers[p.kind].read(p.data))
        if isinstance(p, Media) and p.kind in readers and not isinstance(p.data, Item)
        else p
        for p in sample
    ]


def row_name(name: str, row: int) -> str:
    """How errors name a row: `data train row 7`, or `row 7` of data without a name."""
    return f"data {name} row {row}" if name else f"row {row}"


@dataclass(frozen=True)
class Batches:
    """A map-style data set of batches, each asked for by its positions in the stream. Data processes run it."""

    stream: Stream
    vocab: Vocab
    readers: Mapping[str, Reader]
    padding: Padding = "ignore"

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        pairs = [self.stream.sample(n, self.vocab, self.readers) for n in positions]
        samples, sources = [s for s, _ in pairs], [name for _, name in pairs]
        batch: Batch = unchecked(
            samples, self.vocab, self.readers, index=positions, source=sources, padding=self.padding
        )
        return batch


def samples_of(step: int, micro: int, rank: int, *, batch: int, accumulate: int, world: int) -> list[int]:
    """Returns the positions of one forward. A step has `accumulate * world * batch` of them, divided in order."""
    first = ((step * accumulate + micro) * world + rank) * batch
    return list(range(first, first + batch))


def canvases(
    rows: Sequence[Row], task: Task, vocab: Vocab, readers: Mapping[str, Reader], *, first: int = 0, name: str = ""
) -> Batch:
    """Returns the batch of canvases to generate, padded on the left. first: global index of the first row."""
    samples = []
    for i, row in enumerate(rows):
        with located(row_name(name, first + i)):
            samples.append(read_media(task.prompt(row, vocab), readers))
    return collate(samples, vocab, readers, index=range(first, first + len(rows)), side="left")
