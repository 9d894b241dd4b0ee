"""A trained policy behind HTTP, with the interface of openvla-oft's deploy.py: routes of the one server.

    POST /act      {"image": ..., "instruction": ..., "state": [...]}, see `request.py`
                   -> {"actions": K lists of D numbers in robot units, "names": of these D, "forwards", "seconds",
                       "execute", "seed"}
    POST /world    where the policy is made for a simulator, see `simulator.py`
    GET  /health   says besides what the policy's inputs and outputs are

`mmdiff vla serve` gives errors the form that openvla-oft's clients expect, {"error": one line}, and this port.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError
from mmdiff.serving import server
from mmdiff.serving.http.guard import Limits, line_only
from mmdiff.serving.http.listening import LIMITS
from mmdiff.tasks.vla.task import VLA

from .policy import PolicyServer, contract_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mmdiff.serving.service import Service

PORT = 8777  # openvla-oft's
WAITING = 64  # requests; the next one is refused


def served(
    app: Any, service: Service, *, cameras: Sequence[str] | None = None, execute: int | None = None
) -> tuple[dict[str, Any], dict[str, tuple[Any, str]]]:
    """Add POST /act, and POST /world where the policy has a simulator, to the application of a server.

    cameras: names of the pictures, in order. execute: how many actions of a chunk a client should execute before it
    sends the next request; /health and every response give it. Chunks are whole all the same (the rest of one may be
    sent back as `given`). Returns what /health says besides, and what the description needs of each route: the class of
    its body, a summary. Raises ConfigError.
    """
    from starlette.responses import JSONResponse

    from mmdiff.serving.app import guarded

    from .request import ActRequest
    from .simulator import WorldRequest, acting_in, facts_of, simulator_of

    task = service.session.task
    contract = contract_of(task, cameras)
    if execute is not None and not 1 <= execute <= contract.chunk:
        raise ConfigError(f"execute: {execute} is not 1 to {contract.chunk}, the actions of a chunk")
    policy, steps = PolicyServer(service.session, contract), execute or task.execute or contract.chunk

    async def act(service: Service, http: Request) -> Response:
        async with service.bodies.read(http) as body:
            return JSONResponse({**await service.call(http, lambda: policy.answer(body)), "execute": steps})

    app.add_route("/act", guarded(service, "/act", act), ["POST"])
    routes: dict[str, tuple[Any, str]] = {"/act": (ActRequest, "The next actions of the policy.")}
    world = {}
    if (simulator := simulator_of(task)) is not None:
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
    """Serve a run until Ctrl-C, as `mmdiff.serving.server.serve` does. cameras, execute: see `served`."""
    own = {"cameras": cameras, "execute": execute}
    at: dict[str, Any] = {"host": host, "port": port, "limits": limits, "token_file": token_file, "waiting": WAITING}
    server.serve(run, overrides, path="/act", task=VLA, error=line_only, own=own, **at)
