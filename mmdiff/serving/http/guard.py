"""What stands between a network and a model: who may ask, how long it may take, and how many bytes are under way."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
import reprlib
import sys
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError, DataError
from mmdiff.files import regular

if TYPE_CHECKING:
    from starlette.requests import Request

TOKEN = "MMDIFF_TOKEN"
"""The variable of the environment that holds a server's token, for servers and for `ActClient`."""
OLD_TOKEN = "MMDIFF_VLA_TOKEN"
"""The same, as robots' servers called it."""
SHORT = reprlib.Repr()  # of what was sent, however large or deep it is
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 50
CLOSE = {"connection": "close"}  # after an answer, to a client that may be sending still


ErrorBody = Callable[..., dict[str, Any]]
"""An error line, a status of HTTP, and the field that is wrong or None -> the body of the response."""


def line_only(line: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Returns the body of a response that has an error line and nothing else, as openvla-oft's clients expect it."""
    return {"error": line}


class BadRequest(DataError):
    """A request is refused. status: of HTTP. param: the field that is wrong, where there is one."""

    def __init__(self, message: str, status: int = 422, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


def short(value: Any) -> str:
    """Returns what was sent, as an error line shows it."""
    return "nothing" if value is None else SHORT.repr(value)


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    body: bytes of one request. in_all: bytes of all bodies that are under way or wait for their turn.
    stall: seconds between two pieces of a body. seconds: for a whole body.
    head: seconds in which a connection has to send the head of a request. connections: at a time.
    """

    body: int = 32 << 20  # a 1280 x 720 picture in nested lists takes about 11 MB
    in_all: int = 64 << 20
    stall: float = 5.0
    seconds: float = 60.0
    head: float = 10.0
    connections: int = 256


class Bodies:
    """Reads the bodies of requests; `held` is the number of bytes of all that are in memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def read(self, request: Request, expected: str = "application/json") -> AsyncIterator[bytearray]:
        """Yield the body of a request of the expected kind, which counts as held until the end. Raises BadRequest.

        What is refused is read to a bound and thrown away, so that its client, who is still sending, gets to see why.
        """
        kind = request.headers.get("content-type", "")
        refusal = None
        if kind.split(";")[0].strip().lower() != expected:
            refusal = BadRequest(f"content-type: {short(kind) if kind else 'missing'}, expected {expected}", 415)
        body = bytearray()
        size = held = 0
        try:
            try:
                async for piece in self._pieces(request):
                    size += len(piece)
                    refusal = refusal or self._too_much(size, len(piece))
                    if refusal is None:
                        body += piece
                        held += len(piece)
                        self.held += len(piece)
                    else:
                        self.held, held = self.held - held, 0
                        body.clear()
                    if size > 4 * self.limits.body:
                        break
            except BadRequest as late:
                refusal = refusal or late
            if refusal is not None:
                raise refusal
            yield body
        finally:
            self.held -= held

    def _too_much(self, size: int, more: int) -> BadRequest | None:
        if size > self.limits.body:
            line = f"body: more than {self.limits.body} bytes; send pictures as base64 of JPEG or PNG files"
            return BadRequest(line, 413)
        if self.held + more > self.limits.in_all:
            line = f"busy: bodies of {self.held} bytes are under way, at most {self.limits.in_all} may be"
            return BadRequest(line, 503)
        return None

    async def drain(self, request: Request) -> None:
        """Throw a body away, up to a bound."""
        size = 0
        with suppress(BadRequest):
            async for piece in self._pieces(request):
                size += len(piece)
                if size > 4 * self.limits.body:
                    break

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        limits, loop = self.limits, asyncio.get_running_loop()
        end = loop.time() + limits.seconds
        pieces = request.stream().__aiter__()
        while True:
            left = min(limits.stall, end - loop.time())
            try:
                piece = await asyncio.wait_for(pieces.__anext__(), max(left, 0.001))
            except StopAsyncIteration:
                return
            except TimeoutError:
                what = (
                    f"nothing for {limits.stall:g} s" if left == limits.stall else f"not whole in {limits.seconds:g} s"
                )
                raise BadRequest(f"body: {what}", 408) from None
            yield piece


class Gate:
    """An ASGI application in front of another one: requests without the token, or of another host, are refused.

    token: that requests must bear (`Authorization: Bearer ...`); None: none. local: whether the `Host` of a request has
    to be this machine. A page in a browser can have a name of its own lead to 127.0.0.1 (DNS rebinding), and would
    otherwise read what is served here. error: what a line and a status are as JSON.
    free: paths that need no token.
    """

    def __init__(
        self,
        app: Any,
        *,
        bodies: Bodies,
        token: str | None,
        local: bool,
        error: ErrorBody = line_only,
        free: Collection[str] = (),
    ) -> None:
        self.free = free
        self.app, self.bodies, self.token, self.local, self.error = app, bodies, token, local, error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import JSONResponse

        if scope["type"] == "http":
            request = Request(scope, receive)
            try:
                self._check(request)
            except BadRequest as error:
                with suppress(ClientDisconnect):
                    await self.bodies.drain(request)
                headers = {"www-authenticate": "Bearer", **CLOSE} if error.status == 401 else CLOSE
                await JSONResponse(self.error(str(error), error.status), error.status, headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, request: Request) -> None:
        if self.local:
            hosts = request.headers.getlist("host")
            if len(hosts) != 1 or not is_local(name_of(hosts[0])):
                shown = ", ".join(map(short, hosts)) or "missing"
                raise BadRequest(f"host: {shown}, expected localhost or 127.0.0.1, where this server listens", 421)
        if self.token is not None and request.url.path not in self.free:
            sent = request.headers.getlist("authorization")
            kind, _, token = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
            right = hmac.compare_digest(token.strip().encode(), self.token.encode())
            if not right or kind.lower() != "bearer":
                raise BadRequest("authorization: not the token of this server, expected 'Bearer ' and the token", 401)


def protocol(limits: Limits, error: ErrorBody = line_only) -> type[asyncio.Protocol]:
    """Returns the class of uvicorn's connections, which close one that sends no request, and refuse in JSON."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        """A connection whose client is not answered for longer than it sends."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.idle = self.loop.time()
            self.watch = self.loop.call_later(limits.head / 4, self.look)
            if len(self.connections) > limits.connections:
                self.refuse(503, f"busy: {limits.connections} connections are open")

        def connection_lost(self, exc: Exception | None) -> None:
            self.watch.cancel()
            super().connection_lost(exc)

        def look(self) -> None:
            """Close the connection if it has waited too long for the head of a request."""
            now = self.loop.time()
            if self.cycle is not None and not self.cycle.response_complete:
                self.idle = now
            elif self.transport.is_closing() or now - self.idle > 2 * limits.head:
                self.transport.abort()  # a client who does not read what was sent either
                return
            elif now - self.idle > limits.head:
                self.refuse(408, f"request: its head is not whole in {limits.head:g} s")
            self.watch = self.loop.call_later(limits.head / 4, self.look)

        def refuse(self, status: int, line: str) -> None:
            body = json.dumps(error(line, status)).encode()
            head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self.refuse(
                400, f"request: no HTTP, or a head of more than {self.config.h11_max_incomplete_event_size} bytes"
            )

    return Connection


def read_token(file: str | Path | None) -> str | None:
    """Returns the token in a file, else in the environment (`MMDIFF_TOKEN`); None where there is neither.

    Command lines are seen by all users of a machine, so that a token is never an argument. Raises ConfigError.
    """
    if file is None:
        where = TOKEN if TOKEN in os.environ or OLD_TOKEN not in os.environ else OLD_TOKEN
        found = os.environ.get(where)
        if found is None:
            return None
    else:
        path, where = Path(file), f"token file {file}"
        try:
            regular(path, 4096)
            found = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{where}: no such file") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
        if path.stat().st_mode & 0o077:
            print(f"warning: {where} can be read by other users; chmod 600 {file}", file=sys.stderr, flush=True)
    token = found.strip()
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(f"{where}: is {'empty' if not token else 'no word of ASCII letters'}, expected a token")
    return token


def name_of(host: str) -> str:
    """The name in the field `Host`: `[::1]:8777` -> `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
