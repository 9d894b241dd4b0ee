"""espeak-ng: the same call gives the same samples, speed and pitch do as they are told, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError, MissingExtra, UserError
from mmdiff.tasks.asr.data import espeak
from mmdiff.tasks.asr.data.commands import VOICES
from mmdiff.tasks.asr.data.espeak import say, variants, voices

pytestmark = pytest.mark.needs("espeakng_loader")

TEXT = "set a timer for forty two minutes"


def print_of(text: str, voice: str) -> str:
    return hashlib.sha256(say(text, voice)[0].tobytes()).hexdigest()


def f0(samples_S: np.ndarray, rate: int) -> float:
    """The median fundamental of voiced frames of 40 ms, Hz: the highest peak of the autocorrelation in 60 to 400 Hz."""
    found = []
    size = rate // 25
    for frame in samples_S[: len(samples_S) // size * size].reshape(-1, size).astype(float):
        r = np.correlate(frame, frame, "full")[size - 1 :]
        lags = np.arange(rate // 400, rate // 60)
        best = lags[r[lags].argmax()]
        if r[best] > 0.5 * r[0] > 0:
            found.append(rate / best)
    return float(np.median(found))


def test_samples() -> None:
    samples_S, rate = say(TEXT)
    assert samples_S.dtype == np.int16 and samples_S.ndim == 1 and rate == 22050
    assert 1.2 < len(samples_S) / rate < 3
    assert 3000 < abs(samples_S.astype(int)).max() < 32767


@pytest.mark.slow
def test_the_same_call_gives_the_same_samples() -> None:
    """Whatever was said before; and later, for espeak-ng seeds its breath ("f2" has some) with the second."""
    some = ("en-us", "en-us+f2", "en-gb+m3", "en-029+croak", "de+whisper")
    first = {voice: print_of(TEXT, voice) for voice in some}
    assert len(set(first.values())) == len(some)
    say("nine nine three", "en-gb-scotland+f5", rate=230, pitch=80)
    time.sleep(1.1)
    assert {voice: print_of(TEXT, voice) for voice in reversed(some)} == first
    call = f"from test_espeak import print_of, TEXT; print(*[print_of(TEXT, v) for v in {some}])"
    other = subprocess.run(
        [sys.executable, "-c", call], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert other.stdout.split() == list(first.values())


@pytest.mark.slow
def test_every_variant_repeats_itself() -> None:
    before = {variant: print_of(TEXT, f"en-us+{variant}") for variant in variants()}
    time.sleep(1.1)
    assert {variant: print_of(TEXT, f"en-us+{variant}") for variant in reversed(variants())} == before


def test_rate_and_pitch() -> None:
    slow, fast = (len(say(TEXT, rate=rate)[0]) for rate in (120, 240))
    assert 1.6 < slow / fast < 2.4
    low, middle, high = (f0(*say(TEXT, pitch=pitch)) for pitch in (10, 50, 90))
    assert 60 < low < middle < high < 400 and high > 1.5 * low
    assert f0(*say(TEXT, "en-us+f2")) > 1.3 * f0(*say(TEXT, "en-us+m3"))


def test_voices() -> None:
    assert {"en-us", "en-gb", "en-gb-scotland", "de", "fr-fr"} <= set(voices())
    assert {"f1", "f5", "m1", "m7", "croak"} <= set(variants())
    assert all(espeak._identifier(voice) for of in VOICES for voice in VOICES[of])
    assert print_of(TEXT, "en-gb") != print_of(TEXT, "en-us")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"voice": "en-usa"}, "voice: espeak-ng has no 'en-usa' (did you mean \"en-us\"?)"),
        ({"voice": ""}, "voice: espeak-ng has no ''"),
        ({"voice": "en-us+crok"}, "there is no variant 'crok' (did you mean \"croak\"?)"),
        ({"voice": "en-us+"}, "there is no variant ''"),
        ({"voice": "en-us+Reed"}, "there is no variant 'Reed'"),  # the C library's random numbers
        ({"rate": 20}, "rate: 20 is not within 80 to 450"),
        ({"pitch": 100}, "pitch: 100 is not within 0 to 99"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        say(TEXT, **arguments)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_nothing_is_heard(text: str) -> None:
    with pytest.raises(DataError, match="has nothing that can be heard"):
        say(text)


def test_data_under_a_long_path(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    import espeakng_loader

    folder = espeak._data()
    assert espeak._identifier("en-us")
    link = type(folder)(str(tmp_path)) / ("x" * 120) / ("y" * 60)
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(link))
    with pytest.raises(UserError, match="cannot read its data; its path may have 150 characters"):
        say(TEXT)
    monkeypatch.undo()
    assert len(say(TEXT)[0])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    espeak._voices.cache_clear()
    with pytest.raises(MissingExtra, match=r"espeakng_loader is not installed: pip install 'mmdiff\[audio\]'"):
        say(TEXT)
