"""Pictures that are traps, and what is no picture: refused in one short line, at once, in little memory."""

from __future__ import annotations

import io
import os
import resource
import struct
import time
import zlib
from pathlib import Path

import pytest

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import DataError

pytestmark = pytest.mark.needs("PIL")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    every = [
        (b"IHDR", head),
        *chunks,
        (b"IDAT", zlib.compress(bytes((width // 8 + 1) * min(height, 10000)))),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in every
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_traps_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    cases = {
        png(100_000, 100_000): "too large|expected 1 to",
        png(8000, 8000): r"8000 x 8000 pixels in \d+ bytes, a trap",
        png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))): "damaged picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n": "EPS is a program that draws",
        tmp_path / "pipe.png": r"pipe\.png: a device or pipe",
        tmp_path / "zero.png": r"zero\.png: a device or pipe",
        tmp_path / "loop.png": r"loop\.png: Too many levels of symbolic links",
        tmp_path: "a folder, expected a picture",
        "iVBORw0KGgo" * 500: r"^iVBORw0KGgo\w{29}\.\.\.\w+: not a path of 5500 characters$",
        "data:image/png;base64," + "iVBO/Rw0KGgo" * 20: r"^data:image.{30}\.\.\..*: no such file$",
        "a\0b\nc": r"^a\\x00b\\nc: not a path$",
        "a\ud800.png": r"^a\\ud800\.png: (not a path|no such file)$",
    }
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for source, message in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            read_image(source)
        assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_large_plain_pictures_are_read(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4500, 3500), "red").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (4500, 3500)
    buffer = io.BytesIO()
    Image.effect_noise((600, 400), 50).save(buffer, "JPEG")
    assert read_image(buffer.getvalue()).size == (600, 400)
