"""Where the numbers of an item come from: a file, known by what the file system says of it, without reading it.

A feature cache that looks at the numbers hashes a whole picture per item; what a file system notes of a file is 100
bytes. It changes with the content: a write sets the times and mostly the size, a file put in its place has another
inode, and `touch -d` or `cp -p` set the time of the content but not that of the inode.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

SETTLED = 2 * 10**9
"""Nanoseconds that a file must be unchanged. File systems note times in ticks, of up to two seconds (FAT): what is
written twice within one tick can keep its size and times, as git knows of its index ("racy")."""


def file_state(data: object) -> bytes:
    """Returns the identity of the file that `data` names, as it is now; b"" where there is none that can be trusted.

    data: a path, or a mapping that names one and a part of it: {"path": ..., "start": ..., "end": ...}. Of arrays,
    bytes, and of a file that was changed within the last two seconds, the numbers alone are an identity.
    """
    part = ""
    if isinstance(data, Mapping):
        if "array" in data or "bytes" in data:
            return b""
        part = repr(sorted((str(key), value) for key, value in data.items() if key != "path"))
        data = data.get("path")
    if not isinstance(data, str | Path):
        return b""
    try:
        found = os.stat(data)
    except (OSError, ValueError):
        return b""
    if not stat.S_ISREG(found.st_mode) or time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED:
        return b""
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return f"{os.path.abspath(data)} {facts} {part}".encode("utf-8", "surrogateescape")
