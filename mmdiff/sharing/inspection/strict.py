"""JSON of files that may be anyone's: bounded before it is parsed, no key twice, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError
from mmdiff.files import regular

CONFIG_BYTES = 1024**2
"""Most bytes of a small file, such as config.json; published ones have up to 100 KB."""


def read_object(file: Path, most: int = CONFIG_BYTES, values: int = 100_000) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises ConfigError, in one line that names the file."""
    try:
        regular(file, most)
        text = file.read_bytes()
    except FileNotFoundError:
        kind = "a link that leads nowhere" if file.is_symlink() else "no such file"
        raise ConfigError(f"{file}: {kind}") from None
    return parsed_object(text.removeprefix(b"\xef\xbb\xbf"), values, str(file))  # some editors begin a file so


def parsed_object(text: bytes, values: int, where: str) -> dict[str, Any]:
    """Returns the object that a JSON text is. values: most that may stand in it, counted by brackets and commas.

    Raises ConfigError for anything else, and for a key that is there twice or a number that JSON does not have.
    """
    if text.count(b"{") + text.count(b"[") + text.count(b",") > values:
        raise ConfigError(f"{where}: more than {values:,} values")
    try:
        found = json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_number)
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise ConfigError(f"{where}: not JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: expected an object, found {type(found).__name__}")
    return found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"{name[:80]!r} is there twice")
        out[name] = value
    return out


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
