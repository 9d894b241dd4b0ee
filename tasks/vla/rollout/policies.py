"""Policies: a model, random actions, or the simulator's scripted expert.

A row is what `row_of` makes of an observation. A rollout adds `index`, the number under which noise is drawn, and
`world`, the simulator, which only the expert may use.

Shape letters: K actions of a chunk, D dimensions of an action.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.errors import ConfigError, located
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.vla.task import VLA

Chunk = NDArray[np.float64]
"""(K, D) actions in robot units."""


class Policy(Protocol):
    """A policy predicts chunks of actions.

    chunk: K, actions per chunk. sees: whether it needs an observation; none is rendered for one that does not, and its
    rows hold the instruction only.
    """

    chunk: int
    sees: bool

    def act(self, rows: Sequence[Row]) -> list[Chunk]:
        """Returns one chunk per row, in one batch. A row's chunk must not depend on the other rows of the batch."""
        ...


class ModelPolicy:
    """The policy of a saved model. named: fields of GenerationConfig for every call (`steps=5`, `temperature=1.0`).

    Noise is drawn under a row's `index`, so that it does not depend on the other rows of a batch; without one, under
    the number of rows so far. calls, rows, forwards and seconds are totals over calls.
    """

    sees = True

    def __init__(self, session: Session[VLA], **named: Any) -> None:
        if not isinstance(session.task, VLA):
            raise ConfigError(f"{session.folder}: its task {type(session.task).__name__} gives no chunks of actions")
        self.session, self.named, self.chunk = session, named, session.task.chunk
        self.calls = self.rows = self.forwards = 0
        self.seconds = 0.0

    def act(self, rows: Sequence[Row]) -> list[Chunk]:
        start = time.perf_counter()
        model, task = self.session.model, self.session.task
        samples = []
        for i, row in enumerate(rows):
            with located(f"row {i}"):
                samples.append(read_media(task.prompt(row, model.vocab), model.readers))
        index = [row.get("index", self.rows + i) for i, row in enumerate(rows)]
        batch = collate(samples, model.vocab, model.readers, index=index, side="left")
        out = model.generate(batch, generation_config=self.session.sampler, **self.named)
        chunks = [np.asarray(task.parse(ids, model.vocab), dtype=np.float64) for ids in out.targets()]
        self.calls += 1
        self.rows += len(rows)
        self.forwards += int(out.forwards_B.sum())
        self.seconds += time.perf_counter() - start
        return chunks


class RandomPolicy:
    """Actions drawn uniformly from a bounded action space (a Gymnasium Box) by (seed, a row's `index`)."""

    chunk, sees = 1, False

    def __init__(self, action_space: Any, seed: int = 0) -> None:
        self.low_D, self.high_D = (np.asarray(v, np.float64) for v in (action_space.low, action_space.high))
        if not (np.isfinite(self.low_D).all() and np.isfinite(self.high_D).all()):
            raise ConfigError(f"random policy: {action_space} has no bounds to draw between")
        self.seed = seed

    def act(self, rows: Sequence[Row]) -> list[Chunk]:
        rngs = [np.random.default_rng([self.seed, row["index"]]) for row in rows]
        return [rng.uniform(self.low_D, self.high_D)[None] for rng in rngs]


class ExpertPolicy:
    """The simulator's scripted expert, called at every step. Raises ConfigError where a simulator has none."""

    chunk, sees = 1, False

    def act(self, rows: Sequence[Row]) -> list[Chunk]:
        return [np.asarray(self._expert(row["world"]), np.float64)[None] for row in rows]

    def _expert(self, world: Any) -> Any:
        expert = getattr(world, "expert", None)
        if expert is None:
            raise ConfigError(f"{type(world).__name__}: this simulator has no scripted expert")
        return expert()
