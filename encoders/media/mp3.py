"""The frames of MP3, counted one by one: a header that says none, too few or too many is replaced by a true one.

As ISO 11172-3 defines them, with the tags of Xing and LAME. Of files that were joined, all frames are read.
"""

from __future__ import annotations

import io
import mmap
import struct
from typing import NamedTuple

from mmdiff.errors import DataError

Bytes = bytes | mmap.mmap

JUNK = 1 << 16  # bytes between frames that are passed over; with more, the file is left to libsndfile

Key = tuple[int, int, bool]


class Frame(NamedTuple):
    """The head of a frame of MPEG audio."""

    size: int  # bytes
    key: Key  # version of MPEG, number of the sampling rate, whether it is mono


KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def frame_at(data: Bytes, at: int) -> Frame | None:
    """Returns the frame of Layer III whose header stands at a position, None where none does."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return None
    kbits = KBITS[3 if version == 3 else 2][bits]
    size = (144 if version == 3 else 72) * kbits * 1000 // RATES[version][rate] + (head[2] >> 1 & 1)
    return Frame(size, (version, rate, head[3] >> 6 == 3))


def whole_mp3(data: Bytes, start: int, name: str) -> list[io.BytesIO]:
    """Returns the sound with a header that is true, in a list; nothing where the file's own is, or is left alone."""
    spans, cut = _walk(data, start, name)
    if not spans:
        return []
    info = data[slice(*spans[0])] if _is_info(data, spans[0]) else b""
    sounds = [span for span in spans if not _is_info(data, span)]
    frames, size = len(sounds), sum(end - begin for begin, end in sounds) + len(info)
    at = max(info.find(b"Xing"), info.find(b"Info"))
    if at > 0 and info[at + 7] & 1:
        flags, claimed, claimed_bytes = struct.unpack_from(">III", info, at + 4)
        longer = flags & 2 and claimed_bytes > 1.01 * size + 1024
        if abs(claimed - frames) <= 1 or (claimed > frames and (cut or longer)):
            return []  # true, or true of a file that is cut off, which the decoder will notice
        head = bytearray(info)
        struct.pack_into(">I", head, at + 8, frames)
        if flags & 2:
            struct.pack_into(">I", head, at + 12, size)
    elif sounds:
        head = _made_info(data, sounds[0][0], frames, size)
    else:
        return []
    return [io.BytesIO(bytes(head) + b"".join(data[begin:end] for begin, end in sounds))]


def _walk(data: Bytes, at: int, name: str) -> tuple[list[tuple[int, int]], bool]:
    """Returns (begin, end) of each frame, and whether the last is cut off; no frames where it is not MP3 throughout."""
    spans: list[tuple[int, int]] = []
    first, junk, synced = None, 0, False
    while at < len(data):
        frame = frame_at(data, at)
        if frame and not (synced and frame.key == first) and not _goes_on(data, at, frame, first, name):
            frame = None
        if frame:
            first = first or frame.key
            if at + frame.size > len(data):
                return spans, True
            spans.append((at, at + frame.size))
            at, synced = at + frame.size, True
            continue
        synced, behind = False, behind_id3(data, at)
        if behind == at:
            found = data.find(b"\xff", at + 1)
            behind = at + 128 if data[at : at + 3] == b"TAG" else found if found > 0 else len(data)
            junk += behind - at if found > 0 else 0  # at the end stand tags of other kinds
            if junk > JUNK:
                return [], False
        at = behind
    return spans, False


def _goes_on(data: Bytes, at: int, frame: Frame, first: Key | None, name: str) -> bool:
    """Whether a header that was found anew is one: another of its kind, or the end, stands behind its frame."""
    behind = at + frame.size
    after = frame_at(data, behind)
    if after is None or after.key != frame.key:
        return behind >= len(data) and frame.key == first
    if first and frame.key != first:
        third = frame_at(data, behind + after.size)
        if third and third.key == frame.key:
            raise DataError(f"{name}: its sampling rate or its channels change within the file")
        return False
    return True


def _is_info(data: Bytes, span: tuple[int, int]) -> bool:
    head = data[span[0] + 4 : span[0] + 44]
    return b"Xing" in head or b"Info" in head or head[32:36] == b"VBRI"


def _made_info(data: Bytes, at: int, frames: int, size: int) -> bytearray:
    """Returns a frame of silence with Xing's tag, for a stream whose first frame is at a position."""
    head = bytearray(data[at : at + 4])
    head[1] |= 1  # no checksum
    head[2] = 0x80 | (head[2] & 0x0C)  # 112 or 64 kbit/s, no padding: room for the tag
    made = frame_at(bytes(head), 0)
    assert made is not None
    version, _, mono = made.key
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    tag = b"Xing" + struct.pack(">III", 3, frames, size + made.size)
    return bytearray((bytes(head) + b"\0" * side + tag).ljust(made.size, b"\0"))


def behind_id3(data: Bytes, at: int) -> int:
    """Returns the position behind an ID3v2 tag at a position, or that position."""
    head = data[at : at + 10]
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:]) > 127:
        return at
    a, b, c, d = head[6:]
    return at + 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
