"""What a person notes about a run: `note.txt` in its folder."""

from __future__ import annotations

from pathlib import Path

from mmdiff.config.load import RUN_FILE
from mmdiff.errors import ConfigError, nearest
from mmdiff.files import read_text, write_text

NOTE = "note.txt"
LONGEST = 10_000  # characters of a note


def read_note(folder: Path) -> str:
    """Returns the note of a run, empty where there is none. Raises ConfigError for a file that is no text."""
    try:
        return read_text(folder / NOTE, at_most=8 * LONGEST).strip()
    except FileNotFoundError:
        return ""


def write_note(folder: Path, text: str, *, add: bool = False) -> str:
    """Write the note of a run, in place of the one that is there; an empty one is taken away. Returns the note.

    add: put it below the one that is there. Raises ConfigError where there is no run, and for more than 10,000
    characters.
    """
    if not (folder / RUN_FILE).is_file():
        beside = [str(p) for p in folder.parent.iterdir() if (p / RUN_FILE).is_file()] if folder.parent.is_dir() else []
        raise ConfigError(f"{folder}: no run is here{nearest(str(folder), beside)}")
    old = read_note(folder)
    new = f"{old if add else ''}\n{text.strip()}".strip()
    check_note(new)
    if new == old:
        return new
    if new:
        write_text(folder / NOTE, f"{new}\n")
    else:
        (folder / NOTE).unlink(missing_ok=True)
    return new


def check_note(text: str) -> None:
    """Raise ConfigError for a note that is too long, or that no file can hold."""
    if len(text) > LONGEST:
        raise ConfigError(f"note: has {len(text):,} characters, expected at most {LONGEST:,}")
    odd = next((c for c in text if not c.isprintable() and c not in "\n\t"), None)
    if odd is not None:
        raise ConfigError(f"note: {odd!r} stands in it, expected text")
