"""Sound files to waveforms: soundfile decodes, torchaudio resamples. A waveform is mono float32, full scale -1..1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.errors import DataError, nearest, require

Waveform = Tensor

FIELDS = ("path", "array", "sampling_rate", "start", "end")
OVERSHOOT = 0.5  # seconds a segment may end behind its file: Kaldi's extract-segments takes as much for rounding
MAX_SAMPLES = 1 << 40  # soundfile gives 2^63 - 1 for FLAC that was written to a pipe
MAX_KERNEL = 1 << 24  # numbers of a resampling kernel; 44100 -> 16000 Hz needs 75 thousand


def read_waveform(data: object, rate: int = 16000) -> Waveform:
    """Returns the samples (samples,) at `rate` Hz; channels are averaged.

    data: a path (WAV, FLAC, OGG, MP3); a mapping {"path": ...}; or one of Hugging Face's form, {"array": floats
        (samples,) or (samples, channels), "sampling_rate": Hz}. Either mapping may have "start" and "end", in seconds:
        only that part is read (MP3 is decoded from its beginning). Without "end", or with -1 as in Kaldi, it ends at
        the last sample.
    Raises DataError that names the file: missing, not sound, damaged, empty, not finite, a segment outside it.
    """
    fields, name = _fields(data)
    if "array" in fields:
        array = _array(fields["array"], name)
        source_rate = _rate(fields.get("sampling_rate"), name)
        first, last = _part(fields, len(array), source_rate, name)
        sound = array[first:last]
    else:
        with _opened(name) as file:
            source_rate = file.samplerate
            first, last = _part(fields, file.frames, source_rate, name)
            sound = _decoded(file, first, last - first, name)
    wave = torch.from_numpy(sound.mean(axis=1, dtype=np.float32) if sound.ndim == 2 else sound.astype(np.float32))
    if not bool(wave.isfinite().all()):
        raise DataError(f"{name}: holds samples that are not finite numbers")
    return _resampled(wave, source_rate, rate, name)


def duration(data: object) -> float:
    """Returns the seconds that `read_waveform` would read, of a file by its header. Raises DataError as it does."""
    fields, name = _fields(data)
    if "array" in fields:
        frames, rate = len(_array(fields["array"], name)), _rate(fields.get("sampling_rate"), name)
    else:
        with _opened(name) as file:
            frames, rate = file.frames, file.samplerate
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
        raise DataError(f"audio: path: {data.get('path')!r}, and no array; expected one of them")
    return data, str(data.get("path") or "audio array")


def _array(array: Any, name: str) -> np.ndarray[Any, Any]:
    values = array.detach().cpu().float().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if values.dtype.kind != "f":
        raise DataError(f"{name}: array of {values.dtype}, expected floats in -1..1")
    if values.ndim not in (1, 2) or (values.ndim == 2 and (values.shape[1] > values.shape[0] or 0 in values.shape)):
        raise DataError(f"{name}: array of shape {values.shape}, expected (samples,) or (samples, channels)")
    return values


def _rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, Integral) or rate <= 0:
        raise DataError(f"{name}: sampling_rate: {rate!r} is not a whole number of Hz above 0")
    return int(rate)


def _part(fields: Mapping[str, Any], frames: int, rate: int, name: str) -> tuple[int, int]:
    """Returns the first sample and the one behind the last, in a sound of `frames`."""
    if frames == 0:
        raise DataError(f"{name}: holds no samples")
    start, end = fields.get("start"), fields.get("end")
    for key, value in (("start", start), ("end", end)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value)):
            raise DataError(f"{name}: {key}: {value!r} is not a number of seconds")
    start, end = start or 0, frames / rate if end is None or end == -1 else end
    first, last = round(start * rate), round(end * rate)
    if not 0 <= first < min(last, frames) or last > frames + OVERSHOOT * rate:
        raise DataError(f"{name}: no segment from {start:g} to {end:g} s in {frames / rate:g} s of sound")
    return first, min(last, frames)


def _opened(name: str) -> Any:
    require("soundfile", "audio")
    import soundfile

    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name}: a folder, expected a sound file" if path.is_dir() else f"{name}: no such file")
    try:
        file = soundfile.SoundFile(name)
    except (soundfile.SoundFileError, TypeError):  # TypeError: headerless formats, known by their ending
        raise DataError(f"{name}: not a sound file, expected WAV, FLAC, OGG or MP3") from None
    if file.frames > MAX_SAMPLES:
        file.close()
        raise DataError(f"{name}: its header does not say how long it is (a stream); write the file anew")
    return file


def _decoded(file: Any, first: int, count: int, name: str) -> np.ndarray[Any, Any]:
    """(count, channels)"""
    import soundfile

    try:
        # MP3: a seek lands where the decoder lacks bits of earlier frames, and distorts as much as 0.2 s of sound
        skipped = first if file.format == "MP3" else 0
        file.seek(first - skipped)
        sound: np.ndarray[Any, Any] = file.read(skipped + count, dtype="float32", always_2d=True)[skipped:]
    except soundfile.SoundFileError as error:
        raise DataError(f"{name}: damaged sound file ({' '.join(str(error).split())})") from None
    if len(sound) < count:
        raise DataError(f"{name}: damaged sound file, {len(sound)} of {count} samples can be read")
    return sound


def _resampled(wave: Waveform, source: int, rate: int, name: str) -> Waveform:
    if source == rate:
        return wave
    common = math.gcd(source, rate)
    if source * rate // common**2 > MAX_KERNEL:
        raise DataError(f"{name}: {source} Hz has no simple ratio to {rate} Hz, so it cannot be resampled")
    resampled: Waveform = resampler(source, rate)(wave)
    return resampled


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
        said = [(n + 2 * k) % len(digits) for k in range(n + 1)]
        wave = np.concatenate([0.3 * np.sin(2 * np.pi * 220 * (1 + d) * time_S) for d in said])
        path = folder / f"{name.format(n)}.{ending}"
        soundfile.write(path, wave, rate)
        files.append((path, " ".join(digits[d] for d in said)))
    return files
