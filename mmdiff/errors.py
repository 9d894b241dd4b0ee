"""The errors a person can cause. Each is one line: the field, its value, what was expected, the nearest valid name.

The command line prints them without a traceback and leaves with exit code 2; everything else that is raised is a bug.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """Something outside the code is wrong: a configuration, a file, an argument."""


class ConfigError(UserError):
    """A configuration names something that is not there, or gives it a value it cannot have."""


class DataError(UserError):
    """A row, a picture, a file: named by file and row. It is one line, also where a value in it is not."""

    def __str__(self) -> str:
        lines = " ".join(super().__str__().split("\n"))
        return lines.encode("utf-8", "backslashreplace").decode()


class RowError(DataError):
    """A row that cannot be used. `reason` is the kind of fault, in the same words for all rows that share it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MissingExtra(UserError):
    """A part needs a package that is not installed."""


@contextmanager
def located(where: str | None, catch: type[UserError] = DataError) -> Iterator[None]:
    """Put a place, such as `rows.json line 3`, in front of the message of an error of the kind `catch`.

    Raises DataError, of which `from None` hides the first one; without a place (None or "") the error stays as it is.
    """
    try:
        yield
    except catch as error:
        if not isinstance(where, str) or not where:
            raise
        raise DataError(f"{where:.300}: {error}") from None


NO_MEMORY = re.compile(
    "allocate memory|out of memory|Storage size calculation overflowed|multiplication overflow", re.I
)
"""What torch says of memory that is not there, or could not be anywhere."""


@contextmanager
def within_memory(where: str, less: str = "") -> Iterator[None]:
    """Make one line of memory that is not there. less: what would take less. Raises ConfigError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError, of a GPU and of a CPU
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        cause = str(error).partition("] ")[2] or str(error) or "MemoryError"
        raise ConfigError(f"{where}: takes more memory than there is ({line_of(cause, 120)}){less}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)`, or the known names when none is close; empty when nothing is known."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f' (did you mean "{close[0]}"?)'
    return f" (known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''})" if names else ""


def short(value: object, most: int = 200) -> str:
    """Returns a value for an error line, its middle left out where it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def line_of(error: BaseException | str, most: int = 200) -> str:
    """Returns an error of another package as one line of `most` characters, the name of its kind where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def shown(value: object, most: int = 80) -> str:
    """Returns a value for an error line: one line, its middle left out where it is long (no path, but a whole file)."""
    text = str(value)
    folder, name = os.path.split(text)
    if len(text) > most and (len(name) > most or len(text) > 4095 or not os.path.isdir(folder)):
        text = f"{text[: most // 2]}...{text[-(most // 2 - 3) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def require(package: str, extra: str) -> None:
    """Raise `MissingExtra` in one sentence unless `package` can be imported; nothing is imported here."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtra(f"{package} is not installed: pip install 'mmdiff[{extra}]'")
