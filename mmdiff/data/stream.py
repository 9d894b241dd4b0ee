"""Which sample stands at which position of a stage's stream, and how samples become a batch.

The order is a pure function of (seed, position): sample n of a stage is the same whether training was interrupted, how
many processes share it, or how many batches make a step.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Break, Item, Media, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, UserError, located
from mmdiff.protocols import Reader, Row, Source, Task

from .collate import Padding, collate
from .origin import file_state

unchecked = inspect.unwrap(collate)  # looking at the types of every part of every sample takes a millisecond per batch

CHUNK = 4096  # positions whose mixture is drawn together
OVERHEAD = 2048  # bytes of a cached sample besides its media
IN_A_ROW = 1000  # rows that cannot be used: then it is not the rows
GROUPS = 4  # groups of rows that are shuffled together, where a source reads rows in groups


@dataclass(frozen=True)
class Component:
    """One source of a mixture. weight: its share of the samples, relative to the other components."""

    name: str
    rows: Source
    task: Task
    weight: float = 1.0


class Stream:
    """An endless, shuffled sequence of samples; every row of a component comes once per epoch of that component.

    A source may say that it reads rows in `groups`, a list of their sizes: groups are then shuffled, and the rows of
    `GROUPS` groups at a time among each other. One that is `in_order` is not shuffled. Of one whose `on_error` is
    "skip", a row that cannot be used is named and counted on stderr, and the next row of the source that can be used is
    taken in its stead, whoever asks: the order of all other rows stays.

    cache_bytes: size of the cache of samples, media read, that each data process keeps for later epochs; 0: none.
    batch, bucket: the samples of `bucket` consecutive batches are sorted by their length and dealt out again, so that a
        batch holds samples of about one length and needs little padding; which of these batches comes when is drawn
        (bucket 0: off). The sources then need a `length` (see `mmdiff.protocols.Source`).
    prompts: rows are laid out to be generated (`Task.prompt`), not to be learnt.
    Raises DataError for a component without rows, ConfigError for a weight that is not above 0 and a missing `length`.
    """

    def __init__(
        self,
        components: Sequence[Component],
        *,
        seed: int,
        cache_bytes: int = 0,
        batch: int = 1,
        bucket: int = 0,
        prompts: bool = False,
        longest: int | None = None,
    ) -> None:
        self.prompts, self.longest = prompts, longest
        self._batch, self._bucket = batch, bucket
        self._dealt: dict[int, list[int]] = {}
        self.skipped: set[tuple[int, int]] = set()  # (component, row), those that this process could not use
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
        self._mixed: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the last chunks, see `_chunk`
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def locate(self, position: int) -> tuple[int, int]:
        """Returns (component, row), both by number, of the sample at a position before bucketing."""
        if len(self.components) == 1:
            return 0, self._row(0, position)
        chunk, at = divmod(position, CHUNK)
        choice_C, draw_C = self._mixed.get(chunk) or self._chunk(chunk)
        c = int(choice_C[at])
        return c, self._row(c, int(draw_C[at]))

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for each position of a chunk, its component and how many draws that component had before.

        Two chunks are kept, so that neighbouring positions are found without drawing a chunk anew.
        """
        while len(self._before) <= chunk:
            drawn = np.bincount(self._choices(len(self._before) - 1), minlength=len(self.components))
            self._before.append(self._before[-1] + drawn)
        choice_C = self._choices(chunk)
        draw_C = np.empty(CHUNK, dtype=np.int64)
        for c, before in enumerate(self._before[chunk].tolist()):
            at = (choice_C == c).nonzero()[0]
            draw_C[at] = before + np.arange(len(at))
        self._mixed = {**dict(list(self._mixed.items())[-1:]), chunk: (choice_C, draw_C)}
        return choice_C, draw_C

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
        rows = self.components[component].rows
        epoch, at = divmod(draw, len(rows))
        if getattr(rows, "in_order", False):
            return at
        if (component, epoch) not in self._orders:
            self._orders = {
                k: v for k, v in self._orders.items() if k[0] != component
            }  # one epoch per component is kept
            noise = self._key.fold("shuffle").uniform(epoch, len(rows), copy=component)
            sizes = getattr(rows, "group_sizes", ())
            if len(sizes) > GROUPS:
                groups = self._key.fold("groups").uniform(epoch, len(sizes), copy=component).argsort(kind="stable")
                turn = np.empty(len(sizes), dtype=np.int64)
                turn[groups] = np.arange(len(sizes)) // GROUPS
                self._orders[component, epoch] = np.lexsort((noise, np.repeat(turn, sizes)))
            else:
                self._orders[component, epoch] = noise.argsort(kind="stable")
        return int(self._orders[component, epoch][at])

    def sample(self, position: int, vocab: Vocab, readers: Mapping[str, Reader]) -> Sample:
        """Returns the sample at a position, its media read. Raises DataError that names component and row."""
        c, i = self.locate(self._bucketed(position) if self._bucket else position)
        if (c, i) in self._cache:
            return self._cache[c, i]
        _, sample = self._usable(c, i, vocab, readers)
        size = OVERHEAD + sum(p.data.values.nbytes for p in sample if isinstance(p, Media) and isinstance(p.data, Item))
        if size <= self._cache_budget:
            self._cache_budget -= size
            self._cache[c, i] = sample
        return sample

    def row(self, position: int, vocab: Vocab, readers: Mapping[str, Reader]) -> tuple[Row, Task, str]:
        """Returns the row whose sample stands at a position, its task, and the name of its component."""
        c, i = self.locate(self._bucketed(position) if self._bucket else position)
        component = self.components[c]
        if getattr(component.rows, "on_error", "stop") == "skip":
            i, _ = self._usable(c, i, vocab, readers)
        return component.rows[i], component.task, component.name

    def _usable(self, c: int, i: int, vocab: Vocab, readers: Mapping[str, Reader]) -> tuple[int, Sample]:
        """Returns a row's number and sample, or those of the next one that can be used where its source skips what
        cannot."""
        component = self.components[c]
        count, skip = len(component.rows), getattr(component.rows, "on_error", "stop") == "skip"
        most = min(count, IN_A_ROW)
        for at in (n % count for n in range(i, i + most)):
            if (c, at) in self.skipped:
                continue
            try:
                with located(row_name(component.name, at)):
                    row = component.rows[at]
                    sample = (component.task.prompt if self.prompts else component.task.sample)(row, vocab)
                    with located(row.get("where")):  # the task has named it in errors of its own
                        check_length(sample, self.longest)
                        return at, read_media(sample, readers)
            except DataError as error:
                if not skip:
                    raise
                self.skipped.add((c, at))
                print(f"warning: {error}; skipped ({len(self.skipped)} by this process)", file=sys.stderr)
        where = f"data.{component.name}".rstrip(".")
        raise DataError(f"{where}: none of {most} rows from row {i} on can be used")


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


def check_length(sample: Sample, most: int | None) -> None:
    """Raise DataError for a document whose text alone has more positions than a model may be given."""
    count = 0
    for one in sample if most is not None else ():
        if isinstance(one, Break):
            count = 0
        elif isinstance(one, Text | Target):
            count += getattr(one, "length", 0) if one.ids is None else len(one.ids)
        if most is not None and count > most:
            raise DataError(f"a canvas of {count} positions, expected at most {most} of this backbone")


def read_media(sample: Sample, readers: Mapping[str, Reader]) -> Sample:
    """Returns `sample` with its media as Items; kinds that no reader reads are left for `collate` to refuse."""
    return [
        Media(p.kind, _read(p.data, readers[p.kind]))
        if isinstance(p, Media) and p.kind in readers and not isinstance(p.data, Item)
        else p
        for p in sample
    ]


def _read(data: object, reader: Reader) -> Item:
    """Returns an item with its origin, unless its file was changed while it was read."""
    before = file_state(data)
    item = reader.read(data)
    return replace(item, origin=before) if before and not item.origin and file_state(data) == before else item


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
        before = set(self.stream.skipped)
        samples = [self.stream.sample(n, self.vocab, self.readers) for n in positions]
        side: Literal["left", "right"] = "left" if self.stream.prompts else "right"
        batch: Batch = unchecked(samples, self.vocab, self.readers, index=positions, padding=self.padding, side=side)
        batch.unusable = tuple(sorted(self.stream.skipped - before))
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
