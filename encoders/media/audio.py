"""Sound files to waveforms: soundfile decodes, torchaudio resamples. A waveform is mono float32, full scale -1..1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.errors import DataError, nearest, require, shown
from mmdiff.files import unreadable

from .lengths import claimed, pieces

Waveform = Tensor

FIELDS = ("path", "array", "sampling_rate", "start", "end")
OVERSHOOT = 0.5  # seconds a segment may end behind its file: Kaldi's extract-segments takes as much for rounding
MAX_SAMPLES = 1 << 40  # soundfile gives 2^63 - 1 for FLAC that was written to a pipe
RATE_RANGE = (1000, 768_000)  # Hz
MAX_CHANNELS = 64
LOUDEST = 2.0**31  # some write whole numbers of 16, 24 or 32 bits as floats; above, squares do not fit float32
MAX_SECONDS = 2 * 3600  # that are read at once
BLOCK = 1 << 20  # samples that are resampled together
DECODED = 1 << 24  # numbers that are decoded together
MAX_KERNEL = 1 << 24  # numbers of a resampling kernel; 44100 -> 16000 Hz needs 75 thousand


def read_waveform(data: object, rate: int = 16000) -> Waveform:
    """Returns the samples (samples,) at `rate` Hz; channels are averaged.

    data: a path (WAV, FLAC, OGG, MP3), or the bytes of such a file; a mapping {"path": ...}; or one of Hugging Face's
        form, {"array": floats (samples,) or (samples, channels), "sampling_rate": Hz}. Either mapping may have "start"
        and "end", in seconds: only that part is read (MP3 is decoded from its beginning). Without "end", or with -1 as
        in Kaldi, it ends at the last sample.
    Raises DataError that names the file: missing, not sound, damaged, empty, not finite, a segment outside it.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return _of_bytes(data, rate)
    fields, name = _fields(data)
    if "array" in fields:
        array = _array(fields["array"], name)
        source_rate = _rate(fields.get("sampling_rate"), name)
        first, last = _part(fields, len(array), source_rate, name)
        _check_seconds((last - first) / source_rate, name)
        sound = _mono(array[first:last]).astype(np.float32)
    else:
        with _opened(name, thorough=True) as (files, frames):
            source_rate = files[0].samplerate
            first, last = _part(fields, frames, source_rate, name)
            _check_seconds((last - first) / source_rate, name)
            sound = _decoded(files, first, last - first, name)
    wave = torch.from_numpy(sound)
    if not bool(wave.isfinite().all()):
        raise DataError(f"{name}: holds samples that are not finite numbers")
    if (peak := float(wave.abs().amax())) > LOUDEST:
        raise DataError(f"{name}: holds samples of {peak:.3g}, expected -1 to 1")
    return _resampled(wave, source_rate, rate, name)


def _of_bytes(data: bytes | bytearray | memoryview, rate: int) -> Waveform:
    with NamedTemporaryFile() as file:  # MP3 and WAV are looked at as files, to see where they end
        file.write(data)
        file.flush()
        try:
            return read_waveform(file.name, rate)
        except DataError as error:
            raise DataError(str(error).replace(file.name, f"sound of {len(data)} bytes")) from None


def duration(data: object) -> float:
    """Returns the seconds that `read_waveform` would read, of a file by its header. Raises DataError as it does."""
    fields, name = _fields(data)
    if "array" in fields:
        frames, rate = len(_array(fields["array"], name)), _rate(fields.get("sampling_rate"), name)
    else:
        with _opened(name) as (files, frames):
            rate = files[0].samplerate
    first, last = _part(fields, frames, rate, name)
    return (last - first) / rate


def windows(wave: Waveform, seconds: float, rate: int = 16000) -> list[Waveform]:
    """Returns consecutive pieces of `seconds`; the last one may be shorter, and nothing is cut off."""
    return list(wave.split(round(seconds * rate)))


def _fields(data: object) -> tuple[Mapping[str, Any], str]:
    """Returns the mapping that `data` is or stands for, and its name in errors."""
    if isinstance(data, str | Path):
        return {"path": data}, str(data)
    if not isinstance(data, Mapping):
        expected = 'a path, {"path": ...} or {"array": ..., "sampling_rate": ...}'
        raise DataError(f"audio: a {type(data).__name__}, expected {expected}")
    for key in data:
        if key not in FIELDS:
            raise DataError(f"audio: unknown field {key!r}{nearest(str(key), FIELDS)}")
    if "array" not in data and not isinstance(data.get("path"), str | Path):
        raise DataError(f"audio: path: {data.get('path')!r:.60}, and no array; expected one of them")
    return data, str(data.get("path") or "audio array")


def _array(array: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        values = array.detach().cpu().float().numpy() if isinstance(array, Tensor) else np.asarray(array)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{name}: {array!r:.60} is no array of samples") from None
    if values.dtype.kind != "f":
        raise DataError(f"{name}: array of {values.dtype}, expected floats in -1..1")
    if values.ndim not in (1, 2) or (values.ndim == 2 and (values.shape[1] > values.shape[0] or 0 in values.shape)):
        raise DataError(f"{name}: array of shape {values.shape}, expected (samples,) or (samples, channels)")
    return values


def _rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, Integral) or int(rate) <= 0:
        raise DataError(f"{name}: sampling_rate: {rate!r:.60} is not a whole number of Hz above 0")
    low, high = RATE_RANGE
    if not low <= int(rate) <= high:
        raise DataError(f"{name}: a sampling rate of {rate!s:.40} Hz, expected {low} to {high}")
    return int(rate)


def _part(fields: Mapping[str, Any], frames: int, rate: int, name: str) -> tuple[int, int]:
    """Returns the first sample and the one behind the last, in a sound of `frames`."""
    if frames == 0:
        raise DataError(f"{name}: holds no samples")
    start, end = fields.get("start"), fields.get("end")
    for key, value in (("start", start), ("end", end)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) < 1e9
        ):
            raise DataError(f"{name}: {key}: {value!r:.60} is not a number of seconds")
    start, end = start or 0, frames / rate if end is None or end == -1 else end
    first, last = round(start * rate), round(end * rate)
    if not 0 <= first < min(last, frames) or last > frames + OVERSHOOT * rate:
        raise DataError(f"{name}: no segment from {start:g} to {end:g} s in {frames / rate:g} s of sound")
    return first, min(last, frames)


@contextmanager
def _opened(name: str, *, thorough: bool = False) -> Iterator[tuple[list[Any], int]]:
    """Yields the sounds of a file, mostly one, and their samples in all. thorough: see `pieces`."""
    require("soundfile", "audio")
    import soundfile

    if fault := unreadable(name):
        raise DataError(f"{shown(name)}: {'a folder, expected a sound file' if fault == 'a folder' else fault}")
    files: list[Any] = []
    try:
        sources: list[Any] = list(pieces(Path(name), thorough=thorough)) or [name]
        for source in sources:
            files.append(soundfile.SoundFile(source))
        frames = sum(file.frames for file in files)
        if any(file.frames > MAX_SAMPLES for file in files):
            raise DataError(f"{name}: its header does not say how long it is (a stream); write the file anew")
        if len({file.samplerate for file in files}) > 1:
            raise DataError(f"{name}: its sampling rate changes within the file")
        _rate(files[0].samplerate, name)
        if (channels := max(file.channels for file in files)) > MAX_CHANNELS:
            raise DataError(f"{name}: {channels} channels, expected at most {MAX_CHANNELS}")
        yield files, claimed(Path(name), frames) if files[0].format == "WAV" else frames
    except (soundfile.SoundFileError, TypeError):  # TypeError: headerless formats, known by their ending
        raise DataError(f"{name}: not a sound file, expected WAV, FLAC, OGG or MP3") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
    finally:
        for file in files:
            file.close()


def _decoded(files: list[Any], first: int, count: int, name: str) -> np.ndarray[Any, Any]:
    """float32 (count,): samples of sounds that follow each other, channels averaged, read block by block."""
    import soundfile

    blocks, left = [np.zeros(0, dtype=np.float32)], count
    try:
        for file in files:
            if first >= file.frames and file is not files[-1]:
                first -= file.frames
                continue
            # MP3: a seek lands where the decoder lacks bits of earlier frames, and distorts as much as 0.2 s of sound;
            # soundfile seeks after every read
            if file.format == "MP3":
                block = file.read(first + left, dtype="float32", always_2d=True)[first:]
                blocks.append(_mono(block))
                left, first = left - len(block), 0
                continue
            skipped = 0 if file.seekable() else first
            if first > skipped:
                file.seek(first)
            first = 0
            while left:
                size = min(DECODED // file.channels, skipped or left)
                block = file.read(size, dtype="float32", always_2d=True)
                if skipped:
                    skipped -= size
                else:
                    blocks.append(_mono(block))
                    left -= len(block)
                if len(block) < size:
                    break
    except soundfile.SoundFileError as error:
        raise DataError(f"{name}: damaged sound file ({' '.join(str(error).split())})") from None
    if left:
        raise DataError(f"{name}: damaged sound file, {count - left} of {count} samples can be read")
    return np.concatenate(blocks)


def _mono(sound: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return sound.mean(axis=1, dtype=np.float32) if sound.ndim == 2 else sound


def _check_seconds(seconds: float, name: str) -> None:
    if seconds > MAX_SECONDS:
        raise DataError(
            f"{name}: {seconds:g} s of sound, expected at most {MAX_SECONDS}; `start` and `end` read a part"
        )


def _resampled(wave: Waveform, source: int, rate: int, name: str) -> Waveform:
    if source == rate:
        return wave
    common = math.gcd(source, rate)
    if source * rate // common**2 > MAX_KERNEL:
        raise DataError(f"{name}: {source} Hz has no simple ratio to {rate} Hz, so it cannot be resampled")
    module = resampler(source, rate)
    if len(wave) <= BLOCK:
        resampled: Waveform = module(wave)
        return resampled
    # the same block by block: the filter sees `width` samples to both sides, and memory grows with a block only
    source, rate = source // common, rate // common
    step, beside = BLOCK // source * source, -(-(module.width + source) // source) * source
    out = []
    for begin in range(0, len(wave), step):
        low = max(0, begin - beside)
        part = module(wave[low : begin + step + beside])
        skip = (begin - low) // source * rate
        out.append(part[skip : skip + step // source * rate])
    return torch.cat(out)[: -(-len(wave) * rate // source)]


@lru_cache(maxsize=16)
def resampler(source: int, rate: int) -> Any:
    """Returns a module that resamples. It is kept, for making its kernel takes longer than using it."""
    require("torchaudio", "audio")
    from torchaudio.transforms import Resample

    return Resample(source, rate)


def write_tones(folder: Path, ending: str, name: str = "tone{}", rate: int = 16000) -> list[tuple[Path, str]]:
    """Write four small files. Returns their paths and transcripts: each digit is a tone of 0.3 s."""
    require("soundfile", "audio")
    import soundfile

    digits = ("zero", "one", "two", "three", "four")
    time_S = np.arange(round(0.3 * rate)) / rate
    files = []
    for n in range(4):
        spoken = [(n + 2 * k) % len(digits) for k in range(n + 1)]
        wave = np.concatenate([0.3 * np.sin(2 * np.pi * 220 * (1 + d) * time_S) for d in spoken])
        path = folder / f"{name.format(n)}.{ending}"
        soundfile.write(path, wave, rate)
        files.append((path, " ".join(digits[d] for d in spoken)))
    return files
