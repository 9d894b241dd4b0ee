"""Noises to mix with speech at a given ratio: white, pink, and the babble of other utterances.

A noise is float32 (S,), of any power. Shape letters: S samples in time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.random import Generator


def white(size: int, rng: Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """Returns white noise of unit variance, float32 (size,)."""
    return rng.standard_normal(size, dtype=np.float32)


def pink(size: int, rng: Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """Power falls with 1 / frequency."""
    long = 1 << (size - 1).bit_length()  # lengths with large prime factors transform slowly
    spectrum = np.fft.rfft(rng.standard_normal(long, dtype=np.float32))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum), dtype=np.float32), 1))
    return np.fft.irfft(spectrum, long)[:size].astype(np.float32)


def babble(size: int, rng: Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the sum of other utterances, equally loud, each from a random offset on, repeated."""
    out_S = np.zeros(size, dtype=np.float32)
    for other in others:
        other_S = other.astype(np.float32)
        out_S += np.resize(np.roll(other_S, rng.integers(len(other_S))), size) / np.sqrt(np.mean(other_S**2))
    return out_S


Noise = Callable[[int, Generator, Sequence[np.ndarray]], np.ndarray]
NOISES: Mapping[str, Noise] = {"white": white, "pink": pink, "babble": babble}
SPEAKERS = 3  # of a babble


def mix(speech_S: np.ndarray, noise_S: np.ndarray, snr: float) -> np.ndarray:
    """Returns their sum. snr: power of the speech over that of the noise, both over the whole length, dB."""
    power = np.mean(speech_S.astype(np.float64) ** 2) / np.mean(noise_S.astype(np.float64) ** 2)
    return speech_S + noise_S * np.float32(np.sqrt(power / 10 ** (snr / 10)))
