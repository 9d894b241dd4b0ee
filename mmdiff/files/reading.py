"""Reads small files of people one does not know: only regular files, of a bounded size and depth.

A link to /dev/zero never ends, a FIFO waits for ever, and JSON that is nested deeply enough ends the interpreter.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, DataError, line_of

from .json_text import parse_json

YAML_VALUES = 10**5
"""Most values of a YAML file; one of a few lines stands for billions where its aliases name each other."""
JSON_BYTES = 64 * 1024**2
"""Most bytes of a JSON file that is read whole; the tokenizer.json of a large vocabulary has about 20 MB."""


def regular(file: Path, at_most: int | None = None) -> int:
    """Returns the size in bytes of a regular file, or of one that a link leads to.

    Raises ConfigError for devices, pipes, sockets, folders, and files of more than `at_most` bytes; FileNotFoundError
    where there is nothing.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        raise
    except OSError as error:  # a link that leads to itself, a name that is too long, a folder without permission
        raise ConfigError(f"{str(file)[:200]}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or pipe"
        raise ConfigError(f"{file}: is {kind}, expected a file")
    if at_most is not None and found.st_size > at_most:
        raise ConfigError(f"{file}: has {found.st_size:,} bytes, expected at most {at_most:,}")
    return found.st_size


def unreadable(path: str | Path) -> str | None:
    """Returns why a path from a row cannot be opened, in a few words without the path; None for a regular file.

    It may be anything but a path, such as a whole file in base64.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except ValueError:  # a zero byte, or what cannot be a file's name
        return "not a path"
    except OSError as error:
        return (
            f"not a path of {len(str(path))} characters" if error.errno == errno.ENAMETOOLONG else str(error.strerror)
        )
    return None if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or pipe, expected a file"


def read_text(file: Path, at_most: int = JSON_BYTES) -> str:
    """Returns the text of a UTF-8 file. Raises ConfigError that names the file; FileNotFoundError where it is not."""
    regular(file, at_most)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is no text in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None


def read_json(file: Path) -> Any:
    """Returns the content of a JSON file. Raises ConfigError that names the file; FileNotFoundError where it is not."""
    regular(file, JSON_BYTES)
    try:
        return parse_json(file.read_bytes())
    except DataError as error:
        raise ConfigError(f"{file}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None


def open_tensors(file: Path, framework: str = "pt") -> Any:
    """Returns a safetensors file that is read tensor by tensor; nothing in it is executed.

    framework: whose tensors they become; "np" maps nothing but for reading. Raises ConfigError.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework)
    except (SafetensorError, FileNotFoundError) as error:
        raise ConfigError(f"{file}: not a safetensors file: {error}") from None
    except RuntimeError as error:  # torch's: a file that is larger than the memory there is
        raise ConfigError(f"{file}: cannot be read: {line_of(error)}") from None


def only_tensor(file: str, where: str) -> Any:
    """Returns the one tensor of a safetensors file, None where it holds several or none.

    where: the setting that names the file. Raises ConfigError.
    """
    path = Path(file)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ConfigError(f"{where}: {file}: expected a safetensors file")
    with open_tensors(path) as found:
        names = list(found.keys())
        return found.get_tensor(names[0]) if len(names) == 1 else None


def yaml_of(text: str, where: str) -> Any:
    """Returns what YAML text holds. Raises ConfigError that names `where`."""
    import yaml

    try:
        tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        many = _values(tree, {}) > YAML_VALUES
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not, a number of too many digits
        raise ConfigError(f"{where}: not YAML: {line_of(error)}") from None
    if many:
        raise ConfigError(f"{where}: holds more than {YAML_VALUES:,} values, or refers to itself")
    return tree


def _values(tree: Any, known: dict[int, float]) -> float:
    """Returns how many values a tree holds, those of aliases as often as they are named; infinity for a circle."""
    if not isinstance(tree, dict | list):
        return 1
    if id(tree) not in known:
        known[id(tree)] = float("inf")
        inner = tree.values() if isinstance(tree, dict) else tree
        known[id(tree)] = 1 + sum(_values(one, known) for one in inner)
    return known[id(tree)]
