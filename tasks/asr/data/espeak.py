"""Speech of the espeak-ng synthesiser, from the package `espeakng_loader`: no audio device, no files, no network.

The sound depends on the arguments alone. espeak-ng keeps much state between calls (flutter, the phase of a wave), and
no function of its interface resets all of it. So its library is loaded anew for every call, which costs half a
millisecond.
"""

from __future__ import annotations

import _ctypes
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Lock

import numpy as np

from mmdiff.errors import ConfigError, DataError, UserError, nearest, require

RATES = (80, 450)  # words per minute
PITCHES = (0, 99)
SYNCHRONOUS, DONT_EXIT = 2, 0x8000  # of speak_lib.h, as all numbers below
UTF8, CHARACTER = 1, 1
RATE, PITCH = 1, 3

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_one_at_a_time = Lock()  # the library has one state per process


def say(text: str, voice: str = "en-us", rate: int = 175, pitch: int = 50) -> tuple[np.ndarray, int]:
    """Returns `text` as speech: int16 samples (n,), and how many of them make a second (22,050).

    The same arguments give the same samples, whatever the calls before and in whatever process.

    voice: one of `voices()`, or with one of `variants()`: "en-us", "en-gb-scotland+f3".
    rate: words per minute, 80 to 450; pitch: 0 to 99.
    Raises ConfigError for a voice, rate or pitch that does not exist, DataError for a text without any sound, and
    MissingExtra.
    """
    name = _identifier(voice)
    for what, value, (low, high) in (("rate", rate, RATES), ("pitch", pitch, PITCHES)):
        if not low <= value <= high:
            raise ConfigError(f"{what}: {value} is not within {low} to {high}")
    chunks: list[bytes] = []

    @_Callback
    def keep(samples: ctypes._Pointer[ctypes.c_short], n: int, events: int | None) -> int:
        if samples and n:
            chunks.append(ctypes.string_at(samples, n * ctypes.sizeof(ctypes.c_short)))
        return 0

    data = text.encode()
    with _one_at_a_time, _library() as (library, sampling_rate):
        library.espeak_SetSynthCallback(keep)
        _check(library.espeak_SetVoiceByName(name.encode()), f"voice {voice!r}")
        _check(library.espeak_SetParameter(RATE, rate, 0), f"rate {rate}")
        _check(library.espeak_SetParameter(PITCH, pitch, 0), f"pitch {pitch}")
        size = ctypes.c_size_t(len(data) + 1)
        _check(library.espeak_Synth(data, size, 0, CHARACTER, 0, UTF8, None, None), f"text {text!r}")
        _check(library.espeak_Synchronize(), f"text {text!r}")
    samples_N = np.frombuffer(b"".join(chunks), dtype=np.int16)
    if not samples_N.any():
        raise DataError(f"text: {text!r} has nothing that can be heard")
    return samples_N, sampling_rate


def voices() -> tuple[str, ...]:
    """Returns the voices, by language: "en-us", "de", ..."""
    return tuple(_voices())


@cache
def variants() -> tuple[str, ...]:
    """Returns what may follow a voice and a "+": "f3", "m2", "croak", ..."""
    files = sorted((_data() / "voices" / "!v").iterdir())
    # "klatt 6" draws from the random numbers of the C library, whose state is not espeak-ng's own.
    return tuple(file.name for file in files if "klatt 6" not in file.read_text(errors="replace"))


@cache
def version() -> str:
    """Returns the version of the package. Another one may speak the same text in another way."""
    require("espeakng_loader", "audio")
    return metadata.version("espeakng_loader")


@cache
def _voices() -> dict[str, str]:
    """Returns espeak-ng's own name of each language, the path of its file."""
    found: dict[str, str] = {}
    root = _data() / "lang"
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("language "):
                found.setdefault(line.split()[1], file.relative_to(root).as_posix())
    return dict(sorted(found.items()))


def _identifier(voice: str) -> str:
    language, plus, variant = voice.partition("+")
    if language not in _voices():
        raise ConfigError(f"voice: espeak-ng has no {language!r}{nearest(language, voices())}")
    if plus and variant not in variants():
        raise ConfigError(f"voice: {voice!r}: there is no variant {variant!r}{nearest(variant, variants())}")
    return _voices()[language] + plus + variant


def _data() -> Path:
    require("espeakng_loader", "audio")
    import espeakng_loader

    return Path(espeakng_loader.get_data_path())


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Yields the library in its first state, and its sampling rate."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        sampling_rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(_data()).encode(), DONT_EXIT)
        if sampling_rate <= 0:
            raise UserError(f"espeak-ng cannot read its data; its path may have 150 characters at most: {_data()}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of breath; else it is the time in seconds
        try:
            yield library, sampling_rate
        finally:
            library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def _check(status: int, what: str) -> None:
    if status:
        raise UserError(f"espeak-ng cannot take {what} (status {status})")
