"""What the routes share: a session, its batcher, and how a request waits for its canvases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmdiff.config.settings import GenerationConfig
from mmdiff.data.stream import read_media
from mmdiff.errors import UserError
from mmdiff.session import Session

from .batching import Batcher, Draft, Filled, Job
from .canvases import PromptCanvas
from .fields import Fields, read
from .http.guard import BadRequest, Bodies, ErrorBody, short
from .http.numbers import Numbers
from .streams import error_body

if TYPE_CHECKING:
    from starlette.requests import Request

GONE = 499  # nginx's status for a client that has disconnected, and does not read it
M = TypeVar("M", bound=Fields)
T = TypeVar("T")


@dataclass(eq=False)
class Service:
    """A session that is served. name: of the model in /v1/models. seconds: the longest that a request may take. error:
    the form of errors.

    The tokenizer is used in the thread of the event loop only, because it may not be used by two at a time.
    """

    session: Session[Any]
    batcher: Batcher
    bodies: Bodies
    name: str
    seconds: float = 600.0
    error: ErrorBody = error_body
    numbers: Numbers = field(default_factory=Numbers)
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.numbers.watch(self.batcher, self.bodies)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the task's rows."""
        return tuple(getattr(self.session.task, "fields", None) or ())

    def check_model(self, name: str | None) -> None:
        """Raise BadRequest for the name of a model that is not here."""
        if name is not None and name != self.name:
            raise BadRequest(f"model: {short(name)} is not served here, expected {self.name!r}", 404, "model")

    @asynccontextmanager
    async def body(self, request: Request, kind: type[M]) -> AsyncIterator[M]:
        """Yield the body of a request as an object of its kind. Raises BadRequest."""
        async with self.bodies.read(request) as raw:
            found = read(raw, kind)
            self.check_model(getattr(found, "model", None))
            yield found

    async def jobs(
        self, asked: Sequence[PromptCanvas], config: GenerationConfig, seeds: Sequence[int], *, drafts: bool = False
    ) -> list[Job]:
        """Queue canvases. Raises BadRequest where media cannot be read, and where too many requests wait."""
        self.batcher.check(len(asked))
        readers = self.session.model.readers
        made = []
        for one, seed in zip(asked, seeds, strict=True):
            sample = await asyncio.to_thread(read_media, one.sample, readers)
            made.append(Job(sample, one.length, config, seed, drafts=drafts))
        return [self.batcher.submit(job) for job in made]

    async def filled(self, request: Request, jobs: Sequence[Job]) -> list[Filled]:
        """Returns the finished canvases. Raises BadRequest for what cannot be filled, in too long a time, or for a
        client who has left; the jobs then end at their next step."""
        try:
            results: asyncio.Future[list[Filled]] = asyncio.gather(*(job.result() for job in jobs))
            return await self._while_there(request, results)
        finally:
            for job in jobs:
                job.left = True

    async def steps(self, job: Job) -> AsyncIterator[Draft | Filled]:
        """Yield what becomes of a job, step by step; whoever stops listening drops it. Raises BadRequest."""
        end = asyncio.get_running_loop().time() + self.seconds
        try:
            while True:
                left = end - asyncio.get_running_loop().time()
                try:
                    event = await asyncio.wait_for(job.events.get(), max(left, 0.001))
                except TimeoutError:
                    raise BadRequest(f"not done in {self.seconds:g} s", 503) from None
                if isinstance(event, UserError):
                    raise BadRequest(line_of(event), 400)
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Filled):
                    return
        finally:
            job.left = True

    async def call(self, request: Request, function: Callable[[], T]) -> T:
        """Returns what a function makes of the model, in its turn; it is not called for a client who has left before.
        Raises BadRequest as `filled` does."""
        return await self._while_there(request, self.batcher.call(function))

    async def _while_there(self, request: Request, work: asyncio.Future[T]) -> T:
        """Returns the result of `work`, which is cancelled where the client leaves, and where it takes too long."""
        gone = asyncio.ensure_future(_gone(request))
        try:
            waiting: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(waiting, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise BadRequest("client: gone", GONE)
            raise BadRequest(f"not done in {self.seconds:g} s", 503)
        except BadRequest:
            raise
        except UserError as error:
            raise BadRequest(line_of(error), 400) from None
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Return when the client has left; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def line_of(error: UserError) -> str:
    """Returns an error as one line, without the room of settings that a client does not know."""
    return " ".join(str(error).removeprefix("sampler.").split())


def name_of(folder: Path) -> str:
    """Returns what a session is called: the name of its run, or of its folder."""
    parts = folder.resolve().parts
    if parts[-1] == "model" and len(parts) > 1:
        return parts[-2]
    return parts[-3] if len(parts) > 2 and parts[-2] == "checkpoints" else parts[-1]
