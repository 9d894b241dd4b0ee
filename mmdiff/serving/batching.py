"""Many requests, one model: canvases that wait are filled together, each as it would be alone.

Requests with equal settings make one batch; noise is drawn under a request's own seed, so that its neighbours change
nothing. The model runs in one thread. A request whose client has left takes part in no further step.

Shape letters: B requests of a batch, L canvas length.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.sample import Sample
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.data.token_budget import token_budget
from mmdiff.model import MMDiff

from .http.guard import BadRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """The target positions of a canvas between two steps, in order. steps: when each was committed, 0 where given."""

    step: int
    ids: list[int]
    pending: list[bool]
    steps: list[int]
    confidence: list[float]


@dataclass(frozen=True)
class Filled:
    """A finished canvas: its target positions, the forwards it took part in, how many requests shared the batch."""

    draft: Draft
    forwards: int
    together: int
    seconds: float


@dataclass(eq=False)
class Job:
    """A canvas of so many positions that a client waits for. seed: its noise. drafts: whether it is told of every step.

    `events` yields a Draft a step where it is, and at the end a Filled or an exception.
    """

    sample: Sample
    length: int
    config: GenerationConfig
    seed: int
    drafts: bool = False
    left: bool = False  # the client has
    events: asyncio.Queue[Draft | Filled | BaseException] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def tell(self, event: Draft | Filled | BaseException) -> None:
        """Hand an event to the client's side, from the thread of the model."""
        if not self.left:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def result(self) -> Filled:
        """Returns the finished canvas. Raises what went wrong."""
        while True:
            event = await self.events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Filled):
                return event


class Batcher:
    """A model that many requests reach at a time.

    rows: most requests of a batch; where they are two or more, they have at most `token_budget` positions, padding
    included. waiting: most requests that wait; the next is refused. `batches` holds the sizes of the last batches,
    `forwards` the forwards of all requests.
    """

    def __init__(self, model: MMDiff, *, rows: int = 64, waiting: int = 256) -> None:
        self.model, self.rows, self.most = model, rows, waiting
        self.positions = token_budget(model.device)
        self.queue: deque[Job] = deque()
        self.calls: set[Future[Any]] = set()
        self.running = 0
        self.batches: deque[int] = deque(maxlen=1000)
        self.forwards = 0
        # a new thread would compute with another number of threads than this one, and so with other rounding
        self.thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (torch.get_num_threads(),))

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(not job.left for job in list(self.queue)) + sum(not call.running() for call in list(self.calls))

    def submit(self, job: Job) -> Job:
        """Queue a job. Raises BadRequest where too many wait. To be called in the thread of the event loop."""
        self.check()
        self.queue.append(job)
        self.thread.submit(self._next)
        return job

    def check(self, more: int = 1) -> None:
        """Raise BadRequest unless so many more may wait."""
        if self.waiting + more > self.most:
            raise BadRequest(f"busy: {self.waiting} requests are waiting; come back later", 503)

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Queue a function that runs the model. Cancelled before its turn, it is not called.

        Raises BadRequest where too many requests wait. To be called in the thread of the event loop.
        """
        self.check()
        call = self.thread.submit(function)
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        return asyncio.wrap_future(call)

    def close(self) -> None:
        """Stop: what runs ends at its next step, what waits is not begun."""
        for job in list(self.queue):
            job.left = True
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        """Fill the oldest canvas that waits, and others that go with it; nothing, if an earlier batch took them all."""
        jobs = self._take()
        if not jobs:
            return
        self.running = len(jobs)
        try:
            self._fill(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].tell(error)
            for job in jobs if len(jobs) > 1 else []:  # one of them is at fault: the others are not to suffer for it
                try:
                    self._fill([job])
                except Exception as own:
                    job.tell(own)
        finally:
            self.running = 0

    def _take(self) -> list[Job]:
        """Returns the oldest job that waits, and those with its settings whose lengths are nearest to its own."""
        waiting = list(self.queue)  # a copy, in one step of the interpreter: requests come meanwhile
        for job in [job for job in waiting if job.left]:
            self.queue.remove(job)
            waiting.remove(job)
        if not waiting:
            return []
        first = waiting[0]
        like = [job for job in waiting if job.config == first.config]
        like.sort(key=lambda job: (job is not first, abs(job.length - first.length)))
        jobs: list[Job] = []
        longest = 0
        for job in like[: self.rows]:
            longest = max(longest, job.length)
            if jobs and longest * (len(jobs) + 1) > self.positions:
                break
            jobs.append(job)
        for job in jobs:
            self.queue.remove(job)
        return jobs

    def _fill(self, jobs: list[Job]) -> None:
        began = time.perf_counter()
        model = self.model
        index = [job.seed for job in jobs]
        batch = collate([job.sample for job in jobs], model.vocab, model.readers, index=index, side="left")
        out = model.generate(batch, generation_config=jobs[0].config, streamer=Watcher(jobs))
        seconds = time.perf_counter() - began
        ids_BL, step_BL, confidence_BL = out.ids_BL.cpu(), out.step_BL.cpu(), out.confidence_BL.cpu()
        target_BL, forwards = out.target_BL.cpu(), out.forwards_B.tolist()
        self.batches.append(len(jobs))
        self.forwards += sum(forwards)
        for b, job in enumerate(jobs):
            at_L = target_BL[b]
            steps = step_BL[b][at_L].tolist()
            sure = confidence_BL[b][at_L].tolist()
            draft = Draft(out.calls, ids_BL[b][at_L].tolist(), [False] * len(steps), steps, sure)
            job.tell(Filled(draft, forwards[b], len(jobs), seconds))


class Watcher:
    """The streamer of a batch: hands drafts to the jobs that are told of them, and drops those whose client left."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs

    def put_draft(self, value: Tensor, *, step: int, state: GenerationState, **named: Any) -> None:
        rows = [b for b, job in enumerate(self.jobs) if job.drafts and not job.left]
        if not rows:
            return
        kinds = (value, state.pending_BL, state.step_BL, state.confidence_BL, state.batch.target_BL)
        ids_BL, pending_BL, step_BL, confidence_BL, target_BL = (kind[rows].cpu() for kind in kinds)
        for i, b in enumerate(rows):
            at_L = target_BL[i]
            of_row = (found[i][at_L].tolist() for found in (ids_BL, pending_BL, step_BL, confidence_BL))
            self.jobs[b].tell(Draft(step, *of_row))

    def put(self, ids_BL: Tensor) -> None:
        """Nothing: the batcher tells of finished canvases."""

    def end(self) -> None:
        """Nothing."""

    def dropped(self) -> Tensor | None:
        """Returns bool (B,), the requests whose clients have left; None where all are there."""
        left = [job.left for job in self.jobs]
        return torch.tensor(left) if any(left) else None
