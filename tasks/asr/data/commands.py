"""Spoken commands: a speech recognition problem that needs no files, synthesised by espeak-ng (`espeak.py`).

    {"audio": {"array": ..., "sampling_rate": 16000}, "text": "set a timer for ten hours", "voice": "en-us+m1", ...}

A command is three to eight words of a closed vocabulary of 63: digit strings, calls, timers, switches and moves. Its
words cannot be guessed from the grammar: most are digits and numbers, and fourteen sounds like forty. Commands are
spoken by many voices at many speeds and pitches; the held-out variants of a voice are not in the training rows. Noise
is added at a given signal-to-noise ratio. Every row is a pure function of (seed, index).

Synthesis is the cost, some 5 ms per utterance. Utterances are kept in memory as 16-bit samples (58 kB per utterance),
or read from a file that `prepare` writes. The words are those of `grammar.py`.

Shape letters: S samples in time, U utterances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from tqdm import tqdm

from mmdiff.config.typed import typed
from mmdiff.data.processes import begin_working
from mmdiff.encoders.media.audio import resampler
from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.files import aside
from mmdiff.parts.ranges import AtLeast0, AtLeast1, Finite, Share
from mmdiff.protocols import Row

from . import espeak
from .grammar import KINDS, pick
from .noise import NOISES, SPEAKERS, mix

RATE = 16000  # of the rows, Hz

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = {"train": ("", "+m1", "+m3", "+m7", "+f1", "+f2", "+f4"), "heldout": ("+m2", "+m5", "+f3", "+f5")}
VOICES = {of: tuple(accent + variant for accent in ACCENTS for variant in VARIANTS[of]) for of in VARIANTS}
SPEEDS, PITCHES = (130, 230), (20, 80)  # words per minute; espeak-ng's 0 ... 99

ALONE = 200  # utterances that are synthesised sooner than processes are started
TEMPI = (0.9, 0.95, 1.0, 1.05, 1.1)  # of takes after the first: rates whose ratio to 16 kHz is of small numbers
QUIETER = 10.0  # dB at most, of takes after the first


class Utterance(NamedTuple):
    """All arguments of the synthesiser, and the kind of the command."""

    text: str
    kind: str
    voice: str
    rate: int
    pitch: int


class Commands:
    """Spoken commands: n utterances, and `takes` recordings of each.

    A row: {"audio": {"array": float32 (S,) within -1 ... 1, "sampling_rate": 16000}, "text", "id", "kind", "voice",
    "rate", "pitch", "snr": dB or None, "noise": its name or None, "duration": seconds}.

    voices: "train", or "heldout" for variants that are not in the training rows.
    snr: None for speech without noise, a ratio in dB, or a range [low, high] from which each row draws.
    clean: the share of rows that stay without noise, whatever `snr` is.
    noise: names of noises, equally often: "white", "pink", "babble" (three other utterances).
    takes: rows of an utterance: i, i + n, i + 2n, ... Each has fresh noise; takes after the first are also up to 10%
        slower or faster (with their pitch), and up to 10 dB quieter.
    store: a folder where `prepare` has written the utterances, or may write them. Rows are the same without it.
    sound: False leaves "audio" out, and nothing is synthesised; texts are the same.
    """

    kinds: Sequence[str] = ("digits", "digits", "call", "timer", "turn", "move")

    @typed
    def __init__(
        self,
        n: AtLeast1,
        seed: AtLeast0,
        voices: str = "train",
        snr: Finite | Sequence[Finite] | None = None,
        clean: Share = 0.0,
        noise: Sequence[str] = tuple(NOISES),
        takes: AtLeast1 = 1,
        store: str | None = None,
        sound: bool = True,
    ) -> None:
        if voices not in VOICES:
            raise ConfigError(f"voices: {voices!r} is not known{nearest(voices, VOICES)}")
        for name in noise:
            if name not in NOISES:
                raise ConfigError(f"noise: {name!r} is not known{nearest(name, NOISES)}")
        if snr is not None and not noise:
            raise ConfigError("noise: none is named, but there is an snr")
        if "babble" in noise and snr is not None and n <= SPEAKERS:
            raise ConfigError(f"n: {n} utterances are too few for babble, which takes {SPEAKERS} others")
        self.n, self.seed, self.voices, self.clean, self.noise = n, seed, voices, clean, tuple(noise)
        self.snr = None if snr is None else _range(snr)
        self.takes, self.sound = takes, sound
        self.file = None if store is None else Path(store) / f"{self._name}.safetensors"
        self._spoken: dict[int, np.ndarray] = {}
        self._kept = _Kept(self.file) if self.file is not None and self.file.is_file() else None

    @property
    def _name(self) -> str:
        return f"{type(self).__name__.lower()}-{self.voices}-{self.seed}"

    def __len__(self) -> int:
        return self.n * self.takes

    def __getitem__(self, index: int) -> Row:
        take, i = divmod(range(len(self))[index], self.n)
        utterance = self.utterance(i)
        row: dict[str, Any] = {"text": utterance.text, "id": f"{self._name}-{i}-{take}", "kind": utterance.kind}
        row |= {"voice": utterance.voice, "rate": utterance.rate, "pitch": utterance.pitch}
        return {**row, **self._recorded(i, take)} if self.sound else row

    def length(self, index: int) -> float:
        """Returns about how long a row is, without its synthesis: characters over words per minute."""
        utterance = self.utterance(index % self.n)
        return len(utterance.text) / utterance.rate

    def utterance(self, i: int) -> Utterance:
        """Returns the utterance of row i of the first n."""
        rng = self._rng("said", i)
        kind = pick(self.kinds, rng)
        text = " ".join(KINDS[kind](rng))
        speed, pitch = (int(rng.integers(low, high + 1)) for low, high in (SPEEDS, PITCHES))
        return Utterance(text, kind, pick(VOICES[self.voices], rng), speed, pitch)

    def spoken(self, i: int) -> np.ndarray:
        """Returns int16 (S,): utterance i without noise, at 16 kHz."""
        utterance = self.utterance(i)
        if self._kept is not None and (samples_S := self._kept.read(i, utterance)) is not None:
            return samples_S
        if i not in self._spoken:
            self._spoken[i] = _at_rate(*_say(utterance))
        return self._spoken[i]

    def _recorded(self, i: int, take: int) -> dict[str, Any]:
        rng = self._rng("take", i, take)
        name, snr = None, None
        if self.snr is not None and rng.random() >= self.clean:
            name, snr = pick(self.noise, rng), round(float(rng.uniform(*self.snr)), 2)
        out_S = self.spoken(i).astype(np.float32) / 32768
        gain = 1.0
        if take:
            out_S = resample(out_S, round(RATE * pick(TEMPI, rng)), RATE)
            gain = 10 ** (-rng.uniform(0, QUIETER) / 20)
        if name is not None and snr is not None:
            others = [self.spoken(j) for j in self._others(i, rng)] if name == "babble" else []
            out_S = mix(out_S, NOISES[name](len(out_S), rng, others), snr)
        out_S = out_S * np.float32(gain / max(1.0, float(abs(out_S).max())))  # not over full scale
        audio = {"array": out_S, "sampling_rate": RATE}
        return {"audio": audio, "snr": snr, "noise": name, "duration": len(out_S) / RATE}

    def _others(self, i: int, rng: Generator) -> list[int]:
        return [(i + 1 + int(step)) % self.n for step in rng.choice(self.n - 1, SPEAKERS, replace=False)]

    def _rng(self, stream: str, i: int, take: int = 0) -> Generator:
        of = crc32(f"{type(self).__name__} {self.voices} {stream}".encode())
        return Generator(Philox(SeedSequence((self.seed, of, i, take))))


class Digits(Commands):
    """Three to six digits, spoken; the arguments are those of `Commands`."""

    kinds = ("few",)


# Utterances in a file: "samples" int16 of all, one after the other, "ends" int64 (U,), and checksums as "marks"


def prepare(rows: Commands, processes: int = 2) -> Path | None:
    """Synthesise all utterances of `rows` in several processes, and write them to its store, unless they are there.

    Returns the file, or None without a store. It also serves the first n of a larger set, and any snr and takes.
    """
    file = rows.file
    if file is None or not rows.sound:
        return None
    from safetensors.numpy import save_file

    utterances = [rows.utterance(i) for i in range(rows.n)]
    if rows._kept is None or not rows._kept.holds(utterances):
        texts, _, voices, rates, pitches = zip(*utterances, strict=True)
        if rows.n <= ALONE:
            spoken = [_at_rate(*_say(utterance)) for utterance in utterances]
        else:
            with ProcessPoolExecutor(processes, get_context("spawn"), initializer=begin_working) as pool:
                raw = pool.map(espeak.say, texts, voices, rates, pitches, chunksize=16)
                spoken = [_at_rate(*one) for one in tqdm(raw, "speaking", rows.n, leave=False)]
        ends_U = np.cumsum([len(samples_S) for samples_S in spoken])
        marks_U = np.array([_mark(utterance) for utterance in utterances], dtype=np.uint32)
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside(file) as part:
            save_file({"samples": np.concatenate(spoken), "ends": ends_U, "marks": marks_U}, part)
        rows._kept = _Kept(file)
    return file


class _Kept:
    """The file of a store, opened for every read: that costs little, and the object can be sent to other processes."""

    def __init__(self, file: Path) -> None:
        from safetensors import SafetensorError

        self.file = file
        try:
            with self._open() as kept:
                self.ends_U, self.marks_U = kept.get_tensor("ends"), kept.get_tensor("marks")
                samples = kept.get_slice("samples")
                fits = self.ends_U.dtype == np.int64 and self.ends_U.ndim == 1 == len(samples.get_shape())
                fits = fits and samples.get_dtype() == "I16" and self.marks_U.shape == self.ends_U.shape
                if not fits or not (np.diff(self.ends_U, prepend=0) > 0).all():
                    raise SafetensorError("its tensors are not those of utterances")
                if samples.get_shape()[0] != self.ends_U[-1:].sum():
                    raise SafetensorError("its utterances do not make up its samples")
        except SafetensorError as error:
            raise DataError(f"{file}: is damaged ({error}); without it the utterances are synthesised again") from None

    def holds(self, utterances: Sequence[Utterance]) -> bool:
        marks = [_mark(utterance) for utterance in utterances]
        return marks == self.marks_U[: len(marks)].tolist()

    def read(self, i: int, utterance: Utterance) -> np.ndarray | None:
        """Returns int16 (S,), or None when the file is of other utterances."""
        if i >= len(self.ends_U) or self.marks_U[i] != _mark(utterance):
            return None
        with self._open() as kept:
            return kept.get_slice("samples")[int(self.ends_U[i - 1]) if i else 0 : int(self.ends_U[i])]

    def _open(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.file, framework="np")


def _mark(utterance: Utterance) -> int:
    return crc32(f"{espeak.version()} {utterance!r}".encode())


def _say(utterance: Utterance) -> tuple[np.ndarray, int]:
    return espeak.say(utterance.text, utterance.voice, utterance.rate, utterance.pitch)


def _at_rate(samples_S: np.ndarray, rate: int) -> np.ndarray:
    wave_S = resample(samples_S.astype(np.float32), rate, RATE)
    return np.clip(np.rint(wave_S), -32768, 32767).astype(np.int16)


def resample(wave_S: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Returns sound at another sampling rate, float32 (S,). rate, to: Hz."""
    if rate == to:
        return wave_S
    size = len(wave_S)
    whole_S = np.zeros(math.ceil(size / rate) * rate, dtype=np.float32)  # seconds: a new length costs a new kernel
    whole_S[:size] = wave_S
    resampled_S: np.ndarray = resampler(rate, to)(torch.from_numpy(whole_S)).numpy()
    return resampled_S[: math.ceil(size * to / rate)]


def _range(snr: float | Sequence[float]) -> tuple[float, float]:
    try:
        low, high = map(float, snr) if isinstance(snr, Sequence) else (float(snr), float(snr))
    except (TypeError, ValueError):
        raise ConfigError(f"snr: {snr!r}, expected dB or a range of two: [low, high]") from None
    if not low <= high:
        raise ConfigError(f"snr: [{low}, {high}] is not a range of dB")
    return low, high
