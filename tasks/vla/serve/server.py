"""A trained policy behind HTTP, in the manner of openvla-oft's deploy.py.

    POST /act      {"image": ..., "instruction": ..., "state": [...]}, see `act_request`
                   -> {"actions": K lists of D numbers in robot units, "names": of these D, "forwards", "seconds",
                       "execute", "seed"}
    GET  /health   what the policy takes and gives, and how long it has been up
    GET  /metrics  requests, errors, p50 and p95 of the last thousand model calls
    anything else, and whatever goes wrong: {"error": one line} with a status of 4xx or 5xx

The model answers one request at a time, in the order they come; a request whose client has gone meanwhile is dropped.
There is no authentication: whoever reaches the port can ask.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdiff.errors import ConfigError, UserError, require
from mmdiff.tasks.vla.task import VLA

from .request import Contract, Refused, read_request

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

    from mmdiff.session import Session

PORT = 8777  # openvla-oft's
MAX_BODY = 32 << 20  # bytes; a 1280 x 720 picture in nested lists takes about 11 MB
MAX_WAITING = 64  # requests; the next one is told to come back
GONE = 499  # nginx's, for a client that has gone; nobody reads it
HINT = 'POST /act {"image": base64 of a PNG or JPEG, "instruction": "open the drawer", "state": [...]}; GET /health'
log = logging.getLogger(__name__)


def contract_of(task: Any, cameras: Sequence[str] | None = None) -> Contract:
    """What a policy takes and gives. cameras: what its pictures are called, in order; the task knows how many.

    Raises ConfigError.
    """
    if not isinstance(task, VLA):
        raise ConfigError(
            f"task: {type(task).__name__} gives no chunks of actions, expected a run of mmdiff.tasks.vla.task"
        )
    if cameras is None:
        cameras = ["image"] if task.cameras == 1 else [f"image{i}" for i in range(task.cameras)]
    if len(cameras) != task.cameras or len(set(cameras)) < len(cameras):
        raise ConfigError(f"cameras: {', '.join(cameras) or 'none'}; expected {task.cameras} different names")
    keys = sorted(task.statistics)
    key = keys[0] if len(keys) == 1 else task.key
    names = task.units(key or keys[0]).action.statistics.names
    return Contract(task.chunk, task.dims, task.state_dims, tuple(cameras), key, tuple(keys), names)


class Answering:
    """A policy that is asked from many threads of control and answers one at a time, in one thread of its own."""

    def __init__(self, session: Session[VLA], contract: Contract, sampler: Mapping[str, Any]) -> None:
        self.contract, self.sampler = contract, dict(sampler)
        one = len(contract.keys) == 1
        self.sessions = {
            key: session if one else replace(session, task=acting_by(session.task, key)) for key in contract.keys
        }
        self.began = time.monotonic()
        self.waiting = self.answered = self.refused = self.failed = 0
        self.seconds: deque[float] = deque(maxlen=1000)
        self._turn = asyncio.Lock()
        # a new thread would compute with another number of threads than this one, and so with other rounding
        self._thread = ThreadPoolExecutor(1, "policy", torch.set_num_threads, (torch.get_num_threads(),))

    async def act(self, body: bytes, request: Request) -> dict[str, Any]:
        """Raises Refused."""
        if self.waiting >= MAX_WAITING:
            raise Refused(f"busy: {self.waiting} requests are waiting; come back later", 503)
        self.waiting += 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise Refused("client: gone before its turn", GONE)
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, body)
        finally:
            self.waiting -= 1

    def _answer(self, body: bytes) -> dict[str, Any]:
        asked = read_request(body, self.contract)
        began = time.perf_counter()
        first = self.answered if asked.seed is None else asked.seed
        try:
            found = self.sessions[asked.row["dataset"]].predict_many([asked.row], first=first, **self.sampler)[0]
        except UserError as error:
            raise Refused(str(error).removeprefix(f"row {first}: ")) from None
        actions_KD = np.asarray(found["prediction"], dtype=np.float64)
        expected = (self.contract.chunk, self.contract.dims)
        if actions_KD.shape != expected or not np.isfinite(actions_KD).all():
            raise RuntimeError(f"the policy's answer has shape {actions_KD.shape}, expected {expected} finite numbers")
        took = time.perf_counter() - began
        self.answered += 1
        self.seconds.append(took)
        return {
            "actions": actions_KD.tolist(),
            "names": list(self.contract.names),
            "forwards": int(found["forwards"]),
            "seconds": round(took, 6),
            "seed": first,
        }

    def metrics(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("answered", "refused", "failed", "waiting")}
        p50, p95 = np.percentile(list(self.seconds), [50, 95]).round(6).tolist() if self.seconds else (None, None)
        return {**counts, "seconds_p50": p50, "seconds_p95": p95}

    def uptime(self) -> float:
        return round(time.monotonic() - self.began, 3)


def acting_by(task: VLA, key: str) -> VLA:
    """The task with another choice of statistics."""
    other = copy.copy(task)
    other.key = key
    return other


def make_app(
    session: Session[VLA],
    *,
    cameras: Sequence[str] | None = None,
    execute: int | None = None,
    max_body: int = MAX_BODY,
    sampler: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The application that answers with a session's policy.

    cameras: what the pictures are called, in order. execute: how many actions of a chunk a client should
    carry out before it asks again; told in /health and with every chunk, which is whole all the same (what is left of
    it may come back as `given`). sampler: fields of GenerationConfig for every call.
    Raises ConfigError, MissingExtra.
    """
    require("fastapi", "serve")
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, PlainTextResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    contract = contract_of(session.task, cameras)
    if execute is not None and not 1 <= execute <= contract.chunk:
        raise ConfigError(f"execute: {execute} is not 1 to {contract.chunk}, the actions of a chunk")
    policy = Answering(session, contract, sampler or {})
    steps = execute or session.task.execute or contract.chunk
    app = FastAPI(title="mmdiff policy", docs_url=None, redoc_url=None, openapi_url=None)

    async def act(request: Request) -> Any:
        try:
            body = await _body(request, max_body)
            return JSONResponse({**await policy.act(body, request), "execute": steps})
        except Refused as error:
            policy.refused += 1
            return JSONResponse({"error": _line(error)}, error.status)
        except ClientDisconnect:
            return JSONResponse({"error": "client: gone"}, GONE)
        except Exception:
            policy.failed += 1
            log.exception("POST /act failed")
            return JSONResponse({"error": "internal error; the server's log says more"}, 500)

    async def health(request: Request) -> Any:
        return JSONResponse(
            {
                "status": "ok",
                "model": str(session.folder),
                "task": type(session.task).__name__,
                "chunk": contract.chunk,
                "execute": steps,
                "dims": contract.dims,
                "names": list(contract.names),
                "state": contract.state,
                "cameras": list(contract.cameras),
                "key": contract.key,
                "keys": list(contract.keys),
                "max_body": max_body,
                "uptime": policy.uptime(),
            }
        )

    async def metrics(request: Request) -> Any:
        return JSONResponse({**policy.metrics(), "uptime": policy.uptime()})

    async def hint(request: Request) -> Any:
        return PlainTextResponse(HINT + "\n")

    async def problem(request: Request, error: Exception) -> Any:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        return JSONResponse({"error": f"{where}: {error.detail}; {HINT}"}, error.status_code, error.headers)

    app.add_route("/act", act, ["POST"])
    app.add_route("/health", health, ["GET"])
    app.add_route("/metrics", metrics, ["GET"])
    app.add_route("/", hint, ["GET"])
    app.add_exception_handler(HTTPException, problem)  # no such path, no such method
    app.state.policy = policy
    return app


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request of JSON. One that is too large is read to a bound and thrown away, so that its client, who
    is still sending, gets to see the answer."""
    kind = request.headers.get("content-type", "")
    if kind.split(";")[0].strip().lower() != "application/json":
        raise Refused(f"content-type: {kind or 'missing'}, expected application/json", 415)
    kept: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limit:
            kept.append(piece)
        else:
            kept.clear()
        if size > 4 * limit:
            break
    if size > limit:
        raise Refused(f"body: more than {limit} bytes; send pictures as base64 of JPEG or PNG files", 413)
    return b"".join(kept)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def serve(
    run: str | Path,
    *overrides: str,
    host: str = "127.0.0.1",
    port: int = PORT,
    cameras: Sequence[str] | None = None,
    execute: int | None = None,
    max_body: int = MAX_BODY,
) -> None:
    """Serve a run until Ctrl-C. port 0 takes a free one; the address is printed once requests are answered.

    Raises ConfigError for a port that is taken, MissingExtra.
    """
    require("fastapi", "serve")
    require("uvicorn", "serve")
    import uvicorn

    from mmdiff.session import load

    listening = listen(host, port)  # before the model is loaded, which may take minutes
    try:
        session = load(run, *overrides, task=VLA)
        app = make_app(session, cameras=cameras, execute=execute, max_body=max_body)
        if not is_local(host):
            print(
                f"warning: {host} is reached from other machines, and there is no authentication",
                file=sys.stderr,
                flush=True,
            )
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=10, ws="none")
        )
        name = f"[{host}]" if ":" in host else host
        print(f"{session.folder}: http://{name}:{listening.getsockname()[1]}/act", file=sys.stderr, flush=True)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has answered what it had, and raises the signal again
            print("mmdiff: stopped", file=sys.stderr, flush=True)
    finally:
        listening.close()


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port: {port} is not 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except socket.gaierror:
        raise ConfigError(f"host: {host} is not an address of this machine") from None
    except OSError as error:
        raise ConfigError(f"port: {host}:{port} cannot be listened at ({error.strerror or error})") from None


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
