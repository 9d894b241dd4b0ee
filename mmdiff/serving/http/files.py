"""The files of the page, as a browser is given them: read once, at fixed paths, under a policy of their own.

The policy lets the page load and ask nothing but this server (and the servers that it is told of), so that no text of a
model can have a browser fetch or run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from mmdiff.errors import ConfigError

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FIRST = "index.html"


@dataclass(frozen=True)
class File:
    """The bytes of a file of the page, and what a browser is told of them."""

    body: bytes
    kind: str
    headers: Mapping[str, str]


def page(folder: str, asks: Iterable[str] = ()) -> dict[str, File]:
    """Returns path -> file: "/" is `index.html`, all others are /page/NAME.

    folder: a package and a folder in it, "mmdiff.serving/page". asks: other servers that the page may ask, as origins.
    """
    package, _, inside = folder.partition("/")
    headers = {"content-security-policy": policy(asks), "x-content-type-options": "nosniff"}
    headers |= {"referrer-policy": "no-referrer", "cache-control": "no-cache"}
    found = {}
    for one in files(package).joinpath(inside).iterdir():
        kind = KINDS.get(f".{one.name.rpartition('.')[2]}")
        if kind is not None:
            found["/" if one.name == FIRST else f"/page/{one.name}"] = File(one.read_bytes(), kind, headers)
    return found


def policy(asks: Iterable[str] = ()) -> str:
    """Returns the Content-Security-Policy: scripts and styles are files of this server, pictures and sounds may also be
    what a person has chosen."""
    own = "'self'"
    rules = {
        "default-src": "'none'",
        "script-src": own,
        "style-src": own,
        "img-src": f"{own} data: blob:",
        "media-src": "blob:",
        "connect-src": " ".join([own, *asks]),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {where}" for name, where in rules.items())


def origin_of(address: str) -> str:
    """Returns the origin of a server's address, as browsers write it. Raises ConfigError for anything else."""
    line = f"beside: {address!r:.80}, expected the address of a server, such as http://127.0.0.1:8001"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise ConfigError(line) from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    host = parts.hostname or ""
    letters = all(letter.isalnum() or letter in ".-:" for letter in host) and host.isascii()
    if parts.scheme not in ("http", "https") or not host or not plain or not letters:
        raise ConfigError(line)
    shown = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{shown}" + ("" if port in (None, usual) else f":{port}")


def allow_pages_of(app: Any, origin: str) -> None:
    """Let the page of another server ask this one (CORS); of one at this machine, under both of its names."""
    from starlette.middleware.cors import CORSMiddleware

    names = {origin, origin.replace("//127.0.0.1", "//localhost"), origin.replace("//localhost", "//127.0.0.1")}
    headers = ["authorization", "content-type"]
    app.add_middleware(
        CORSMiddleware, allow_origins=sorted(names), allow_methods=["GET", "POST"], allow_headers=headers
    )
