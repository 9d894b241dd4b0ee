"""A trained policy behind HTTP, with the interface of openvla-oft's deploy.py.

    POST /act      {"image": ..., "instruction": ..., "state": [...]}, see `request.py`
                   -> {"actions": K lists of D numbers in robot units, "names": of these D, "forwards", "seconds",
                       "execute", "seed"}
    GET  /health   the policy's inputs and outputs, and its uptime in seconds
    GET  /metrics  requests, errors, p50 and p95 of the last thousand model calls
    anything else, and whatever goes wrong: {"error": one line} with a status of 4xx or 5xx

The model answers one request at a time, in order; a request whose client has disconnected meanwhile is dropped.
Requests have a size, a time and a number (`guard.py`). With a token, only clients that bear it are served; without one,
every client that reaches the port is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError, line_of, require
from mmdiff.serving.http.guard import (
    CLOSE,
    BadRequest,
    Bodies,
    ErrorBody,
    Gate,
    Limits,
    is_local,
    line_only,
    read_token,
)
from mmdiff.serving.http.listening import LIMITS, listen, settings
from mmdiff.serving.http.listening import run as answer
from mmdiff.tasks.vla.task import VLA

from .policy import GONE, PolicyServer, contract_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

    from mmdiff.session import Session

PORT = 8777  # openvla-oft's
HINT = 'POST /act {"image": base64 of a PNG or JPEG, "instruction": "open the drawer", "state": [...]}; GET /health'
UNREAD = (408, 413, 415, 503)  # statuses of requests whose client may be sending still
log = logging.getLogger(__name__)


def make_app(
    session: Session[VLA],
    *,
    cameras: Sequence[str] | None = None,
    execute: int | None = None,
    limits: Limits = LIMITS,
    sampler: Mapping[str, Any] | None = None,
    token: str | None = None,
    local: bool = False,
) -> Starlette:
    """The application that answers with a session's policy.

    cameras: names of the pictures, in order. sampler: fields of GenerationConfig for every call.
    execute: how many actions of a chunk a client should execute before it sends the next request; /health and every
        response give it. Chunks are whole all the same (the rest of one may be sent back as `given`).
    token, local: see `Gate`.
    Raises ConfigError, MissingExtra.
    """
    require("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, PlainTextResponse

    contract = contract_of(session.task, cameras)
    if execute is not None and not 1 <= execute <= contract.chunk:
        raise ConfigError(f"execute: {execute} is not 1 to {contract.chunk}, the actions of a chunk")
    policy, bodies = PolicyServer(session, contract, sampler or {}), Bodies(limits)
    steps = execute or session.task.execute or contract.chunk
    app = Starlette()

    async def health(request: Request) -> Any:
        return JSONResponse(
            {
                "status": "ok",
                "model": str(session.folder),
                "task": type(session.task).__name__,
                **asdict(contract),
                "execute": steps,
                "max_body": limits.body,
                "uptime": policy.uptime(),
            }
        )

    async def metrics(request: Request) -> Any:
        return JSONResponse({**policy.metrics(), "uptime": policy.uptime()})

    async def hint(request: Request) -> Any:
        return PlainTextResponse(HINT + "\n")

    async def problem(request: Request, error: Exception) -> Any:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"[:80]
        return JSONResponse({"error": f"{where}: {error.detail}; {HINT}"}, error.status_code, error.headers)

    app.add_route("/act", acting(policy, bodies, steps), ["POST"])
    app.add_route("/health", health, ["GET"])
    app.add_route("/metrics", metrics, ["GET"])
    app.add_route("/", hint, ["GET"])
    app.add_exception_handler(HTTPException, problem)  # no such path, no such method
    app.add_middleware(Gate, bodies=bodies, token=token, local=local)
    app.state.policy = policy
    return app


def acting(
    policy: PolicyServer, bodies: Bodies, execute: int, error_of: ErrorBody = line_only
) -> Callable[[Request], Awaitable[Any]]:
    """Returns the function of POST /act. error_of: the form of errors."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse

    async def act(request: Request) -> Any:
        try:
            async with bodies.read(request) as body:
                return JSONResponse({**await policy.act(body, request), "execute": execute})
        except BadRequest as error:
            policy.refused += 1
            headers = CLOSE if error.status in UNREAD else None
            return JSONResponse(error_of(line_of(error), error.status), error.status, headers)
        except ClientDisconnect:
            return JSONResponse(error_of("client: gone", GONE), GONE)
        except Exception:
            policy.failed += 1
            log.exception("POST /act failed")
            return JSONResponse(error_of("internal error; see the server's log", 500), 500)

    return act


def served(app: Any, service: Any) -> tuple[dict[str, Any], dict[str, tuple[Any, str]]]:
    """Add POST /act, and POST /world where the policy has a simulator, to the application of `mmdiff serve`.

    Returns what /health says besides, and what the description needs of each route: the class of its body, a summary.
    """
    from mmdiff.serving.app import guarded
    from mmdiff.serving.streams import error_body

    from .request import ActRequest
    from .simulator import WorldRequest, acting_in, facts_of, simulator_of

    session = service.session
    contract = contract_of(session.task)
    steps = session.task.execute or contract.chunk
    policy = PolicyServer(session, contract, {}, service.batcher.thread)
    app.add_route("/act", acting(policy, service.bodies, steps, error_body), ["POST"])
    routes: dict[str, tuple[Any, str]] = {"/act": (ActRequest, "The next actions of the policy.")}
    world = {}
    if (simulator := simulator_of(session.task)) is not None:
        app.add_route("/world", guarded(service, "/world", acting_in(simulator)), ["POST"])
        world = {"world": facts_of(simulator)}
        routes["/world"] = (WorldRequest, "What the simulator shows after some actions.")
    return {**asdict(contract), "execute": steps, **world}, routes


def serve(
    run: str | Path,
    *overrides: str,
    host: str = "127.0.0.1",
    port: int = PORT,
    cameras: Sequence[str] | None = None,
    execute: int | None = None,
    limits: Limits = LIMITS,
    token_file: str | Path | None = None,
) -> None:
    """Serve a run until Ctrl-C. port 0 takes a free one; the address is printed once requests are answered.

    token_file: see `read_token`. Raises ConfigError for a port that is taken, MissingExtra.
    """
    for package in ("starlette", "uvicorn", "pydantic"):
        require(package, "serve")

    from mmdiff.session import load

    token = read_token(token_file)
    listening = listen(host, port)  # before the model is loaded, which may take minutes
    try:
        session = load(run, *overrides, task=VLA)
        local = is_local(host)
        app = make_app(session, cameras=cameras, execute=execute, limits=limits, token=token, local=local)
        config = settings(app, limits)
        answer(app, listening, path="/act", name=str(session.folder), config=config, token=token)
    finally:
        listening.close()
