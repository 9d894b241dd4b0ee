"""Server-sent events, and errors as OpenAI has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from .batching import Job
from .http.guard import BadRequest

if TYPE_CHECKING:
    from starlette.responses import Response


async def merged(sources: Sequence[AsyncIterator[Any]]) -> AsyncIterator[tuple[int, Any]]:
    """Yield (number of a source, item) of all sources, as items come."""
    queue: asyncio.Queue[tuple[int, Any, BaseException | None]] = asyncio.Queue()

    async def pump(i: int, source: AsyncIterator[Any]) -> None:
        try:
            async for item in source:
                queue.put_nowait((i, item, None))
            queue.put_nowait((i, None, None))
        except Exception as error:
            queue.put_nowait((i, None, error))

    pumps = [asyncio.ensure_future(pump(i, source)) for i, source in enumerate(sources)]
    try:
        left = len(pumps)
        while left:
            i, item, error = await queue.get()
            if error is not None:
                raise error
            if item is None:
                left -= 1
            else:
                yield i, item
    finally:
        for one in pumps:
            one.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def streamed(events: AsyncIterator[dict[str, Any]], jobs: Sequence[Job]) -> Response:
    """Returns a response of server-sent events, whose last is [DONE]; a client who leaves drops the jobs."""
    from starlette.responses import StreamingResponse

    async def body() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield b"data: " + json.dumps(event).encode() + b"\n\n"
        except BadRequest as error:
            yield b"data: " + json.dumps(error_body(str(error), error.status, error.param)).encode() + b"\n\n"
        finally:
            for job in jobs:
                job.left = True
        yield b"data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Returns an error as OpenAI has it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error", 500: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": param, "code": None}}
