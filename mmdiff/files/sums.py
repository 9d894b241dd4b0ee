"""Checksums of a folder's files, in the format of `sha256sum -c`, with the signature of the person who wrote them.

    # mmdiff signature 5d41402a...
    9f86d081...  config.json
    60303ae2...  model.safetensors

The checksums show damage. The signature (HMAC-SHA256, RFC 2104) shows who wrote the folder: its key lies in the home of
this user and goes nowhere, so a folder that carries a right signature was written by this user's own mmdiff.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from mmdiff.errors import ConfigError

from .reading import regular
from .whole import aside, part_of, remove

SUMS = "SHA256SUMS"
SIGNATURE = "# mmdiff signature "
LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+(?:/[^/\n]+)*)")
BYTES = 1024**2  # of a file of checksums


def digest(file: Path) -> str:
    """Returns the SHA-256 of a regular file in hexadecimal digits."""
    regular(file)
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str] | None = None, known: dict[str, str] | None = None) -> None:
    """Write the checksums of files of a folder, signed where this user has or can get a key.

    names: of the files, below the folder. None: all that are there.
    known: digests that need not be computed again, by name.
    """
    if names is None:
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != SUMS]
    known = known or {}
    text = "".join(f"{known.get(name) or digest(folder / name)}  {name}\n" for name in sorted(names))
    signature = _signature(text, make=True)
    with aside(folder / SUMS) as part:
        part.write_text((f"{SIGNATURE}{signature}\n" if signature else "") + text, encoding="utf-8")


def read_sums(folder: Path) -> tuple[dict[str, str], bool]:
    """Returns the digests of a folder's files by name, and whether this user's signature is right; no digests where
    there are no checksums. Raises ConfigError for a file of checksums that cannot be read."""
    file = folder / SUMS
    try:
        regular(file, BYTES)
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return {}, False
    except ValueError:
        raise ConfigError(f"{file}: is not text") from None
    signature = lines.pop(0).removeprefix(SIGNATURE).strip() if lines and lines[0].startswith(SIGNATURE) else None
    sums = {}
    for line in lines:
        found = LINE.fullmatch(line.rstrip("\n"))
        if not found:
            raise ConfigError(f"{file}: {line.strip()[:80]!r} is not a checksum and a name")
        sums[found[2]] = found[1]
    right = _signature("".join(lines), make=False)
    return sums, bool(signature and right and hmac.compare_digest(signature, right))


def signed(file: Path) -> bool:
    """Whether a file is as this user's own mmdiff wrote it: its checksum is right, and so is their signature."""
    sums, right = read_sums(file.parent)
    return right and file.name in sums and digest(file) == sums[file.name]


def damaged(folder: Path) -> str | None:
    """Returns what is wrong with the first file that is not as the checksums of its folder have it, None if all are."""
    sums, _ = read_sums(folder)
    for name, expected in sums.items():
        if ".." in Path(name).parts or not (folder / name).is_file():
            return f"{folder / name}: is missing, {SUMS} lists it"
        if digest(folder / name) != expected:
            changed = f"is damaged or was changed, its SHA-256 is not that of {SUMS} (if it was you, remove its line)"
            return f"{folder / name}: {changed}"
    return None


def check_sums(folder: Path) -> None:
    """Raise ConfigError, by name, for a file that is not as the checksums of its folder have it."""
    if found := damaged(folder):
        raise ConfigError(found)


def _signature(text: str, *, make: bool) -> str | None:
    key = _key(_home(), make=make)
    return None if key is None else hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "mmdiff"


def _key(folder: Path, *, make: bool) -> bytes | None:
    """Returns this user's key. make: make one where there is none; None where that cannot be."""
    file = folder / "key"
    try:
        if make and not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = part_of(file)
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(32))
            try:
                os.link(part, file)  # of two processes that get here, one wins
            except FileExistsError:
                pass
            finally:
                remove(part)
        key = file.read_bytes()
    except OSError:
        return None
    return key if len(key) == 32 else None
