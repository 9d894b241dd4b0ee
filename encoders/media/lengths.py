"""Compressed sound whose header lies about its length, or that is several files one behind the other.

libsndfile reads as much as a header says. Files of editors and streams say none, too little or too much, and two files
that were joined have the header of the first. So MP3 is walked frame by frame (`mp3.py`), Ogg page by page (RFC 3533),
and of FLAC the last frame is read (RFC 9639).
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mmdiff.errors import DataError

from .mp3 import Bytes, behind_id3, frame_at, whole_mp3

STREAM = 0x7FFF0000  # sizes of a WAV's sound from here on are those of streams, whose length was not known


def pieces(path: Path, *, thorough: bool) -> list[io.BytesIO]:
    """Returns the sounds of a file, each with a header that is true; nothing where the file can be read as it is.

    thorough: whether all of FLAC and Ogg is read, to find where a second file begins; else their ends only.
    Raises DataError for what cannot be put right: a sound cut off within a page, one whose sampling rate changes.
    """
    with open(path, "rb") as file:
        if not file.seek(0, io.SEEK_END):
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = behind_id3(data, 0)
            kind = data[start : start + 4]
            if kind == b"fLaC":
                return _flac(data, start, thorough)
            if kind == b"OggS":
                return _ogg(data, start, str(path), thorough)
            if kind == b"RIFF":
                _check_wav(data, str(path))
            elif start or (kind[0] == 0xFF and len(kind) == 4 and frame_at(data, start)):
                return whole_mp3(data, start, str(path))
    return []


def claimed(path: Path, frames: int) -> int:
    """Returns the samples that a WAV says it has, of which `frames` are there; those for any other file."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        size = file.seek(0, io.SEEK_END)
    begin, length = _wav_sound(head)
    there = size - begin
    if begin and there + 1 < length < STREAM:
        return max(frames + 1, round(frames * length / max(there, 1)))
    return frames


# FLAC


def _flac(data: Bytes, start: int, thorough: bool) -> list[io.BytesIO]:
    begins = [start]
    while thorough and (found := data.find(b"fLaC\x00\x00\x00\x22", begins[-1] + 4)) > 0:
        begins.append(found)
    ends = [*begins[1:], len(data)]
    out, true = [], True
    for begin, end in zip(begins, ends, strict=True):
        claimed = int.from_bytes(data[begin + 21 : begin + 26], "big") & (1 << 36) - 1
        total = _flac_total(data, begin, end)
        lies = claimed and total and total != claimed
        if lies or len(begins) > 1:
            piece = bytearray(data[begin:end])
            if total:
                piece[21] = piece[21] & 0xF0 | total >> 32 & 0x0F
                piece[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
            if lies:
                piece[26:42] = bytes(16)  # the checksum is of other sound
            out.append(io.BytesIO(bytes(piece)))
            true = False
    return [] if true else out


def _flac_total(data: Bytes, begin: int, end: int) -> int:
    """Returns the samples of a FLAC stream by the number of its last frame; 0 where no whole frame stands at its end.

    A position that only looks like the last frame has a wrong checksum.
    """
    claimed = int.from_bytes(data[begin + 21 : begin + 26], "big") & (1 << 36) - 1
    block = int.from_bytes(data[begin + 10 : begin + 12], "big")
    if data[end - 128 : end - 125] == b"TAG":
        end -= 128
    low, at = max(begin + 42, end - (1 << 16)), end
    for _ in range(16):
        at = max(data.rfind(b"\xff\xf8", low, at), data.rfind(b"\xff\xf9", low, at))
        if at < 0:
            return 0
        total = _behind_frame(data[at : at + 16], block)
        if total and (total == claimed or _crc(data[at : end - 2], 0x8005, 16) == int.from_bytes(data[end - 2 : end])):
            return total
    return 0


def _behind_frame(head: bytes, block: int) -> int:
    """Returns the number of the sample behind a frame of FLAC with this header; 0 where it is none."""
    if len(head) < 16:
        return 0
    code, rate, ones = head[2] >> 4, head[2] & 15, 8 - (head[4] ^ 0xFF).bit_length()
    if not code or rate == 15 or head[3] & 1 or ones in (1, 8):
        return 0
    number, at = head[4] & (0x7F >> ones), 5
    for byte in head[5 : 4 + (ones or 1)]:
        number, at = number << 6 | byte & 0x3F, at + 1
    size = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8 if code > 7 else 0
    if not size:
        size = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if at > 15 or _crc(head[:at], 0x07, 8) != head[at]:
        return 0
    return (number if head[1] & 1 else number * block) + size


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    out, table = 0, _crc_table(polynomial, bits)
    for byte in data:
        out = (out << 8 ^ table[out >> bits - 8 ^ byte]) & (1 << bits) - 1
    return out


@cache
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> bits - 1 else 0)) & (1 << bits) - 1
        table.append(value)
    return table


# Ogg


def _ogg(data: Bytes, start: int, name: str, thorough: bool) -> list[io.BytesIO]:
    begins, head = [start], True
    for at, first in _pages(data, start if thorough else max(start, data.rfind(b"OggS")), name):
        if first and not head:
            begins.append(at)
        head = first
    if len(begins) == 1:
        return []
    return [io.BytesIO(data[a:b]) for a, b in zip(begins, [*begins[1:], len(data)], strict=True)]


def _pages(data: Bytes, at: int, name: str) -> Iterator[tuple[int, bool]]:
    """Yields the position of each page, and whether it is the first of a stream. Raises DataError for a cut one."""
    while 0 <= at < len(data):
        page = data[at : at + 27]
        lengths = data[at + 27 : at + 27 + page[26]] if len(page) == 27 else b""
        end = at + 27 + len(lengths) + sum(lengths)
        if len(page) < 27 or len(lengths) < page[26] or end > len(data):
            raise DataError(f"{name}: damaged sound file, it is cut off within a page")
        yield at, bool(page[5] & 2)
        at = data.find(b"OggS", end)


# WAV


def _check_wav(data: Bytes, name: str) -> None:
    """Raise DataError for a WAV with more behind its sound than chunks, so that its header says too little."""
    begin, length = _wav_sound(data[: 1 << 16])
    end = begin + length + length % 2
    rest = len(data) - end
    if not begin or not length or rest <= 4096:
        return
    named, size = data[end : end + 4], int.from_bytes(data[end + 4 : end + 8], "little")
    if not (named.isascii() and named.decode().isprintable() and size <= rest):
        raise DataError(
            f"{name}: its header says {length:,} bytes of sound, and {rest:,} bytes follow that are no chunk"
        )


def _wav_sound(head: bytes) -> tuple[int, int]:
    """Returns where the sound of a WAV begins and the bytes that its header gives it; (0, 0) where it is none."""
    at = 12
    while head[:4] == b"RIFF" and at + 8 <= len(head):
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        if head[at : at + 4] == b"data":
            return at + 8, size
        at += 8 + size + size % 2
    return 0, 0
