"""Sound files whose headers lie, that were joined or cut off, or ask for what no sound has: read whole or refused."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.encoders.media.audio import duration, read_waveform
from mmdiff.errors import DataError

pytestmark = pytest.mark.needs("soundfile", "torchaudio")

SAMPLES = 48000
WAVE = np.float32(0.5) * np.sin(np.arange(SAMPLES, dtype=np.float32) * 0.17)


def written(path: Path, wave: Any = WAVE, rate: int = 16000, **more: Any) -> bytes:
    import soundfile

    soundfile.write(path, wave, rate, **more)
    return path.read_bytes()


def saved(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_mp3_whose_header_lies_is_read_whole(tmp_path: Path, mode: str, factor: float) -> None:
    content = bytearray(written(tmp_path / "a.mp3", bitrate_mode=mode))
    true = read_waveform(tmp_path / "a.mp3")
    at = content.index(b"Xing") + 8
    said = struct.unpack_from(">I", content, at)[0]
    struct.pack_into(">I", content, at, int(factor * said))
    lie = saved(tmp_path / "lie.mp3", content)
    assert len(true) == SAMPLES and torch.equal(read_waveform(lie), true) and duration(lie) == 3.0
    part = {"path": lie, "start": 1.0, "end": 2.5}
    assert torch.equal(read_waveform(part), true[16000:40000])


def test_mp3_without_a_header_is_read_whole(tmp_path: Path) -> None:
    content = written(tmp_path / "a.mp3", bitrate_mode="VARIABLE")
    blank = saved(tmp_path / "b.mp3", content.replace(b"Xing", b"\0\0\0\0"))
    wave = read_waveform(blank)  # with the silence that encoders begin and end with, which the header told of
    assert SAMPLES < len(wave) < SAMPLES + 2304 and duration(blank) == len(wave) / 16000


@pytest.mark.parametrize("tags", [b"", b"TAG".ljust(128, b"\0"), b"ID3\4\0\0\0\0\1\0".ljust(138, b"\xff")])
def test_joined_mp3_is_read_whole(tmp_path: Path, tags: bytes) -> None:
    first, second = written(tmp_path / "a.mp3"), written(tmp_path / "b.mp3", WAVE[:20000])
    joined = saved(tmp_path / "c.mp3", first + tags + second + tags)
    wave = read_waveform(joined)
    assert 68000 <= len(wave) < 68000 + 4 * 576 and duration(joined) == len(wave) / 16000
    assert torch.equal(wave[:47000], read_waveform(tmp_path / "a.mp3")[:47000])


@pytest.mark.parametrize("kind", ["flac", "ogg", "opus"])
def test_joined_sound_is_read_whole(tmp_path: Path, kind: str) -> None:
    more = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
    first, second = written(tmp_path / f"a.{kind}", **more), written(tmp_path / f"b.{kind}", WAVE[:20000], **more)
    for other, path in ((second, "b"), (first, "a")):
        joined = saved(tmp_path / f"c.{kind}", first + other)
        parts = [read_waveform(tmp_path / f"{name}.{kind}") for name in ("a", path)]
        wave = read_waveform(joined)
        assert torch.equal(wave, torch.cat(parts))
        over = {"path": joined, "start": 2.5, "end": 3.5}
        torch.testing.assert_close(read_waveform(over), wave[40000:56000], atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_flac_whose_header_lies_is_read_whole(tmp_path: Path, factor: float) -> None:
    content = bytearray(written(tmp_path / "a.flac"))
    struct.pack_into(">I", content, 22, int(SAMPLES * factor))
    lie = saved(tmp_path / "lie.flac", content)
    assert torch.equal(read_waveform(lie), read_waveform(tmp_path / "a.flac")) and duration(lie) == 3.0


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16", "IMA_ADPCM", "ULAW"])
def test_codecs_of_telephones_are_read(tmp_path: Path, subtype: str) -> None:
    written(tmp_path / "a.wav", 0.9 * WAVE[:16000], 8000, subtype=subtype)
    wave = read_waveform(tmp_path / "a.wav", 8000)
    assert len(wave) >= 16000 and np.corrcoef(wave[:16000], WAVE[:16000])[0, 1] > 0.9
    part = {"path": str(tmp_path / "a.wav"), "start": 0.5, "end": 1.5}
    assert torch.equal(read_waveform(part, 8000), wave[4000:12000])


def test_what_is_cut_off_is_refused(tmp_path: Path) -> None:
    for name, more in {
        "a.wav": {},
        "a.flac": {},
        "a.mp3": {},
        "a.ogg": {},
        "b.ogg": {"subtype": "OPUS"},
    }.items():
        content = written(tmp_path / name, **more)
        for share in (0.3, 0.6, 0.95):
            cut = saved(tmp_path / f"cut-{name}", content[: int(share * len(content))])
            with pytest.raises(DataError, match=r"cut-.*damaged sound file"):
                read_waveform(cut)


def header(path: Path, content: bytes, at: int, form: str, value: int) -> str:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return saved(path, changed)


def test_absurd_headers_are_refused_at_once(tmp_path: Path) -> None:
    content = written(tmp_path / "a.wav", WAVE[:4000])
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    cases = {
        header(tmp_path / "1hz.wav", content, 24, "<I", 1): "a sampling rate of 1 Hz, expected 1000 to 768000",
        header(tmp_path / "fast.wav", content, 24, "<I", 2**31 - 1): "a sampling rate of 2147483647 Hz",
        header(tmp_path / "wide.wav", content, 22, "<H", 900): "900 channels, expected at most 64",
        header(tmp_path / "none.wav", content, 22, "<H", 0): "not a sound file",
        header(
            tmp_path / "more.wav", content, 40, "<I", 2**30
        ): "damaged sound file, .* samples can be read|s of sound",
        header(tmp_path / "less.wav", content, 40, "<I", 2000): "2,000 bytes of sound, and 6,000 bytes follow",
        str(tmp_path / "pipe.wav"): "a device or pipe",
        str(tmp_path / "zero.wav"): "a device or pipe",
        "UklGR" * 5000: r"^UklGRUklG\w{31}\.\.\.\w+: not a path of 25000 characters$",
        "a\0b": "not a path",
    }
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for path, message in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            read_waveform(path)
        assert len(str(caught.value)) < 300
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_more_than_can_be_heard_is_refused(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.flac", np.zeros(4000, np.float32), 1000))
    struct.pack_into(">I", content, 22, 2**31)
    with pytest.raises(DataError, match=r"s of sound, expected at most 7200|damaged"):
        read_waveform(saved(tmp_path / "b.flac", content[:-4]))


LONG = """
import resource, sys, torch
from mmdiff.encoders.media.audio import read_waveform, resampler
resampler(8000, 16000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wave = read_waveform(sys.argv[1])
print(len(wave), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_twenty_minutes_take_little_memory(tmp_path: Path) -> None:
    written(tmp_path / "a.wav", np.tile(WAVE, 200), 8000)
    out = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path / "a.wav")], capture_output=True, text=True, check=True
    )
    samples, kb = map(int, out.stdout.split())
    assert samples == 2 * 200 * SAMPLES and kb < 500_000


@pytest.mark.parametrize(("source", "rate"), [(8000, 16000), (44100, 16000), (16000, 22050)])
def test_resampling_in_blocks_is_that_of_the_whole(source: int, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdiff.encoders.media import audio

    wave = torch.randn(100_003, generator=torch.Generator().manual_seed(0))
    whole = read_waveform({"array": wave, "sampling_rate": source}, rate)
    monkeypatch.setattr(audio, "BLOCK", 8192)
    torch.testing.assert_close(read_waveform({"array": wave, "sampling_rate": source}, rate), whole)
