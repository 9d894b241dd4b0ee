"""A trained policy behind HTTP, with the interface of openvla-oft's deploy.py.

    POST /act      {"image": ..., "instruction": ..., "state": [...]}, see `request.py`
                   -> {"actions": K lists of D numbers in robot units, "names": of these D, "forwards", "seconds",
                       "execute", "seed"}
    GET  /health   the policy's inputs and outputs, and its uptime in seconds
    GET  /metrics  requests, errors, p50 and p95 of the last thousand model calls
    anything else, and whatever goes wrong: {"error": one line} with a status of 4xx or 5xx

The model answers one request at a time, in order; a request whose client has disconnected meanwhile is dropped.
There is no authentication: every client that reaches the port is served.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError, require
from mmdiff.tasks.vla.task import VLA

from .arrays import BadRequest
from .policy import GONE, PolicyServer, contract_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

    from mmdiff.session import Session

PORT = 8777  # openvla-oft's
MAX_BODY = 32 << 20  # bytes; a 1280 x 720 picture in nested lists takes about 11 MB
HINT = 'POST /act {"image": base64 of a PNG or JPEG, "instruction": "open the drawer", "state": [...]}; GET /health'
log = logging.getLogger(__name__)


def make_app(
    session: Session[VLA],
    *,
    cameras: Sequence[str] | None = None,
    execute: int | None = None,
    max_body: int = MAX_BODY,
    sampler: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The application that answers with a session's policy.

    cameras: names of the pictures, in order. sampler: fields of GenerationConfig for every call.
    execute: how many actions of a chunk a client should execute before it sends the next request; /health and every
        response give it. Chunks are whole all the same (the rest of one may be sent back as `given`).
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
    policy = PolicyServer(session, contract, sampler or {})
    steps = execute or session.task.execute or contract.chunk
    app = FastAPI(title="mmdiff policy", docs_url=None, redoc_url=None, openapi_url=None)

    async def act(request: Request) -> Any:
        try:
            body = await _body(request, max_body)
            return JSONResponse({**await policy.act(body, request), "execute": steps})
        except BadRequest as error:
            policy.refused += 1
            return JSONResponse({"error": _line(error)}, error.status)
        except ClientDisconnect:
            return JSONResponse({"error": "client: gone"}, GONE)
        except Exception:
            policy.failed += 1
            log.exception("POST /act failed")
            return JSONResponse({"error": "internal error; see the server's log"}, 500)

    async def health(request: Request) -> Any:
        return JSONResponse(
            {
                "status": "ok",
                "model": str(session.folder),
                "task": type(session.task).__name__,
                **asdict(contract),
                "execute": steps,
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
        raise BadRequest(f"content-type: {kind or 'missing'}, expected application/json", 415)
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
        raise BadRequest(f"body: more than {limit} bytes; send pictures as base64 of JPEG or PNG files", 413)
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
