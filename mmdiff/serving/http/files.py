"""The files of the page, as a browser is given them: read once, at fixed paths, under a policy of their own.

The policy lets the page load and ask nothing but this server (and the servers that it is told of), so that no text of a
model can have a browser fetch or run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

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
