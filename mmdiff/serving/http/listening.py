"""An application behind a port, with bounds on its connections."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError

from .guard import TOKEN, ErrorBody, Limits, is_local, line_only, protocol

if TYPE_CHECKING:
    import uvicorn

LIMITS = Limits()
"""Bounds of a server that nobody gave any."""


def settings(app: Any, limits: Limits = LIMITS, error: ErrorBody = line_only) -> uvicorn.Config:
    """Returns uvicorn's settings for an application. error: see `mmdiff.serving.http.guard.Gate`."""
    import uvicorn

    connection: Any = protocol(limits, error)
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        log_level="error",  # a request that is none is refused, which is no news
        timeout_graceful_shutdown=10,
        timeout_keep_alive=max(1, round(limits.head / 2)),
        h11_max_incomplete_event_size=1 << 16,
    )


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. port 0 takes a free one. Raises ConfigError."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port: {port} is not 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except socket.gaierror:
        raise ConfigError(f"host: {host} is not an address of this machine") from None
    except OSError as error:
        raise ConfigError(f"port: {host}:{port} cannot be listened at ({error.strerror or error})") from None


def run(app: Any, listening: socket.socket, *, path: str, name: str, config: Any, token: str | None) -> None:
    """Answer until a signal comes; the address of `path` is printed first. After a signal what runs is finished, and
    the signal is raised again."""
    import uvicorn

    host, port = listening.getsockname()[:2]
    if not is_local(host) and token is None:
        line = f"warning: {host} is reached from other machines, and there is no authentication (set {TOKEN})"
        print(line, file=sys.stderr, flush=True)
    shown = f"[{host}]" if ":" in host else host
    print(f"{name}: http://{shown}:{port}{path}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])
