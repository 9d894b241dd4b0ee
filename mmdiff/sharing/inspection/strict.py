"""JSON of files that may be anyone's: bounded before it is parsed, no key twice, no NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, RowError
from mmdiff.files import json_object, regular

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
    return parsed_object(text, values, str(file))


def parsed_object(text: bytes, values: int, where: str) -> dict[str, Any]:
    """Returns the object that a JSON text is. values: most that may stand in it, counted by brackets and commas.

    Raises ConfigError for anything else, and for a key that is there twice or a number that JSON does not have.
    """
    if text.count(b"{") + text.count(b"[") + text.count(b",") > values:
        raise ConfigError(f"{where}: more than {values:,} values")
    try:
        return json_object(text, nan=False)
    except RowError as error:
        raise ConfigError(f"{where}: {error}") from None
