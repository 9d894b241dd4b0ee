"""Files and folders that are whole or not there: written aside, made durable, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mmdiff.errors import ConfigError, short

PART = re.compile(r"\.(\d+)@(.*?)\.part-")  # the process and the machine that write under such a name


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text: the file is the old one or the new one, never half of it."""
    with aside(file) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`, with the same ending, to write a file or make a folder under.

    What was written is made durable and then gets the name `path` in one step, in place of a file or an empty folder;
    after an error it is removed. What a killed process left of `path` is removed first.
    """
    part = part_of(path)
    remove(part)
    clear(path.parent, path.name)
    try:
        with named(path):
            yield part
            commit(part, path)
    finally:
        remove(part)


def part_of(path: Path) -> Path:
    """The name beside `path` under which this process writes it."""
    return path.with_name(f".{os.getpid()}@{os.uname().nodename}.part-{path.name}")


def clear(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes of this machine left half written in a folder.

    What belongs to a process that lives, or to another machine, stays. name: only parts of the file of this name.
    """
    try:
        found = [entry for entry in os.listdir(folder) if name is None or entry.endswith(f".part-{name}")]
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        of = PART.match(entry)
        if of and of[2] == os.uname().nodename and not _lives(int(of[1])):
            remove(folder / entry)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def commit(part: Path, path: Path) -> None:
    """Make a file or folder durable, then give it its name. Raises OSError where a folder is that is not empty."""
    for file in [*part.rglob("*"), part]:
        sync(file)
    if part.is_dir() and path.exists():
        path.rmdir()
    os.replace(part, path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is neither."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the two names are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def lock(file: Path, busy: str) -> TextIO:
    """Keep other processes out for as long as the file that is returned is open. Raises ConfigError(busy)."""
    while True:
        if file.exists() and not file.is_file():  # to open a pipe is to wait for who writes into it
            raise ConfigError(f"{file}: is a folder, device or pipe, expected the file of a lock")
        handle = open(file, "a")
        try:
            # not `flock`: data processes would inherit that one, and outlive a killed run by some seconds
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise OSError(error.errno, f"cannot be locked ({error.strerror})", str(file)) from None
            raise ConfigError(busy) from None
        if file.exists() and os.path.samestat(os.fstat(handle.fileno()), os.stat(file)):
            return handle
        handle.close()  # who held it has taken the file away meanwhile


def locked(file: Path) -> bool:
    """Whether another process holds a lock. Asking keeps nobody out; of a lock of this process it says False."""
    if not file.is_file():  # to open a pipe is to wait for who writes into it
        return False
    try:
        with open(file, "rb") as handle:  # F_GETLK only looks; the layout of `struct flock` is the system's
            linux = sys.platform == "linux"
            fields = (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0) if linux else (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
            layout = "hhqqi4x" if linux else "qqihh"
            found = struct.unpack(layout, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *fields)))
    except OSError:
        return False
    return bool(found[0 if linux else 3] != fcntl.F_UNLCK)


def unlock(handle: TextIO) -> None:
    """Take a lock's file away, and let other processes in."""
    Path(handle.name).unlink(missing_ok=True)
    handle.close()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an error of the system that names no file the name `path`: a full disk is told of when writing, without."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:  # of a library in another language, whose errors are of its own kind
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextmanager
def writable(file: Path) -> Iterator[None]:
    """Make one line of why a file cannot be written: no room, no permission, too long a name. Raises ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{short(file)}: cannot be written ({error.strerror})") from None


def sync(file: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
