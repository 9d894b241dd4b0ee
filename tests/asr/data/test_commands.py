"""Spoken commands: the grammar by an independent reader, who speaks, noise by its power, purity, and the store."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Row
from mmdiff.tasks.asr.data import commands as speech
from mmdiff.tasks.asr.data import espeak
from mmdiff.tasks.asr.data.commands import NOISES, VOICES, Commands, Digits, mix, prepare, resample
from mmdiff.tasks.asr.data.grammar import tokenizer, words
from mmdiff.tasks.dialogue.controls import Shuffled, Without

pytestmark = [pytest.mark.needs("espeakng_loader"), pytest.mark.needs("torchaudio")]

N = 4000
FULL = 0.9999  # what reaches it was scaled down
DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = [unit + "teen" for unit in "thir four fif six seven eigh nine".split()]
TENS = [unit + "ty" for unit in "thir for fif six seven eigh nine".split()]


@pytest.fixture(scope="module")
def said() -> list[speech.Utterance]:
    rows = Commands(N, seed=1)
    return [rows.utterance(i) for i in range(N)]


@pytest.fixture(scope="module")
def clean() -> list[Row]:
    return list(Commands(24, seed=1))


def value(number: list[str]) -> int:
    """Of one to ninety nine in words; fails on anything else."""
    units = {word: i for i, word in enumerate(DIGITS)} | {"ten": 10, "eleven": 11, "twelve": 12}
    units |= {word: 13 + i for i, word in enumerate(TEENS)}
    tens = {"twenty": 20} | {word: 30 + 10 * i for i, word in enumerate(TENS)}
    match number:
        case [one]:
            return {**units, **tens}[one]
        case [ten, one]:
            assert 0 < units[one] < 10
            return tens[ten] + units[one]
    raise AssertionError(number)


def read(text: str) -> tuple[str, list[str]]:
    """The kind and the number words of a command; fails on what is none."""
    match text.split():
        case ["call", *rest] if 4 <= len(rest) <= 7 and set(rest) <= set(DIGITS):
            return "call", rest
        case ["set", "a", "timer", "for", *rest, "seconds" | "minutes" | "hours"] if value(rest) < 100:
            return "timer", rest
        case ["turn", "the", room, device, "on" | "off", *rest]:
            assert room in "kitchen bedroom hall garden office".split()
            assert device in "lights heater fan radio blinds".split()
            assert not rest or (rest[0] == "at" and value(rest[1:]) < 100)
            return "turn", rest[1:]
        case ["move", "the", color, "box", "left" | "right" | "up" | "down", *rest, "steps"] if value(rest) < 100:
            assert color in "red green blue white black".split()
            return "move", rest
        case rest if 3 <= len(rest) <= 8 and set(rest) <= set(DIGITS):
            return "digits", rest
    raise AssertionError(text)


def within(count: int, n: int, share: float) -> bool:
    """Six standard deviations of a binomial: wrong once in 500 million."""
    return abs(count - n * share) < 6 * (n * share * (1 - share)) ** 0.5


def snr_of(noisy: Row, silent: Row) -> float:
    speech_S = silent["audio"]["array"].astype(np.float64)
    noise_S = noisy["audio"]["array"] - speech_S
    return float(10 * np.log10((speech_S**2).sum() / (noise_S**2).sum()))


# What is said


def test_every_command_is_in_the_grammar(said: list[speech.Utterance]) -> None:
    read_all = [read(one.text) for one in said]
    assert [kind for kind, _ in read_all] == [one.kind for one in said]
    assert max(len(one.text.split()) for one in said) == 8
    assert 6 < np.mean([len(one.text.split()) for one in said]) < 6.4


def test_the_vocabulary_is_closed(said: list[speech.Utterance]) -> None:
    assert {word for one in said for word in one.text.split()} == set(words())
    assert len(words()) == 63 and words() == sorted(set(words()))
    made = tokenizer()
    assert len(made) == 4 + 63 + 1  # and what a model is asked to do
    for one in said[:200]:
        ids = made(one.text, add_special_tokens=False)["input_ids"]
        assert made.unk_token_id not in ids and made.decode(ids) == one.text


def test_shares(said: list[speech.Utterance]) -> None:
    kinds = Counter(one.kind for one in said)
    assert within(kinds["digits"], N, 1 / 3) and all(
        within(kinds[k], N, 1 / 6) for k in ("call", "timer", "turn", "move")
    )
    numbers = [n for kind, n in (read(one.text) for one in said) if kind in ("timer", "turn", "move") and n]
    bare = Counter(n[0] for n in numbers if len(n) == 1)
    # 30% of numbers are one of ten teens, 30% one of eight bare tens
    assert within(sum(bare[word] for word in TEENS), len(numbers), 0.3 * 7 / 10)
    assert within(sum(bare[word] for word in TENS), len(numbers), 0.3 * 7 / 8)
    assert all(within(bare[teen], len(numbers), 0.03) for teen in TEENS)
    assert all(within(bare[ten], len(numbers), 0.3 / 8) for ten in TENS)
    digits = Counter(word for one in said if one.kind in ("digits", "call") for word in one.text.split())
    total = sum(digits[digit] for digit in DIGITS)
    assert all(within(digits[digit], total, 0.1) for digit in DIGITS)


def test_digits() -> None:
    rows = Digits(500, seed=1, sound=False)
    lengths = Counter(len(row["text"].split()) for row in rows)
    assert set(lengths) == {3, 4, 5, 6} and {w for row in rows for w in row["text"].split()} == set(DIGITS)
    assert Digits(3, seed=1)[2]["duration"] > 0.5


def test_held_out_voices_are_never_heard_in_training(said: list[speech.Utterance]) -> None:
    heldout = Commands(600, seed=1, voices="heldout", sound=False)
    assert {one.voice for one in said} == set(VOICES["train"])
    assert {row["voice"] for row in heldout} == set(VOICES["heldout"])
    variants = [{voice.partition("+")[2] for voice in VOICES[of]} for of in ("train", "heldout")]
    assert not variants[0] & variants[1]
    assert not {row["text"] for row in heldout} >= {one.text for one in said[:600]}  # another order, not the same texts


def test_sets_of_other_seeds_share_no_utterance(said: list[speech.Utterance]) -> None:
    spoken = {(one.text, one.voice, one.rate, one.pitch) for one in said}
    assert len(spoken) > 0.999 * N
    for seed in (2, 3):
        others = Commands(400, seed=seed)
        assert not spoken & {(o.text, o.voice, o.rate, o.pitch) for o in map(others.utterance, range(400))}


# Rows


def test_rows(clean: list[Row]) -> None:
    for i, row in enumerate(clean):
        wave_S = row["audio"]["array"]
        assert wave_S.dtype == np.float32 and wave_S.ndim == 1 and row["audio"]["sampling_rate"] == 16000
        assert row["duration"] == len(wave_S) / 16000 and 0.4 < row["duration"] < 5
        assert 0.1 < abs(wave_S).max() <= 1
        assert row["snr"] is None and row["noise"] is None and row["id"] == f"commands-train-1-{i}-0"
        samples_S, rate = espeak.say(row["text"], row["voice"], row["rate"], row["pitch"])
        assert abs(len(wave_S) / 16000 - len(samples_S) / rate) < 1e-4


def test_rows_are_pure() -> None:
    def prints(rows: Commands, order: list[int]) -> dict[int, tuple[str, bytes]]:
        return {i: (rows[i]["id"], rows[i]["audio"]["array"].tobytes()) for i in order}

    arguments: dict[str, Any] = {"n": 5, "seed": 3, "snr": [0, 20], "clean": 0.3, "takes": 2}
    first = prints(Commands(**arguments), list(range(10)))
    assert prints(Commands(**arguments), [7, 3, 9, 1, 0, 2, 4, 5, 6, 8]) == first
    assert len({wave for _, wave in first.values()}) == 10
    worker = DataLoader(Commands(**arguments), batch_size=None, num_workers=1)  # type: ignore[arg-type]
    assert {i: (row["id"], row["audio"]["array"].numpy().tobytes()) for i, row in enumerate(worker)} == first
    others = [Commands(**{**arguments, "seed": 4}), Commands(**{**arguments, "voices": "heldout"})]
    assert all(other[0]["text"] != Commands(**arguments)[0]["text"] for other in others)
    assert Commands(**arguments)[-1]["id"] == "commands-train-3-4-1"
    with pytest.raises(IndexError):
        Commands(**arguments)[10]


def test_texts_need_no_sound(monkeypatch: pytest.MonkeyPatch, clean: list[Row]) -> None:
    monkeypatch.setattr(espeak, "say", None)
    rows = list(Commands(24, seed=1, sound=False))
    assert all("audio" not in row and "duration" not in row for row in rows)
    assert [row["text"] for row in rows] == [row["text"] for row in clean]


def test_resampling_is_that_of_the_whole(clean: list[Row]) -> None:
    from torchaudio.transforms import Resample

    for size, rate in ((22050, 22050), (30001, 22050), (17, 14400), (40123, 17600)):
        wave_S = np.random.default_rng(size).standard_normal(size).astype(np.float32)
        expected_S = Resample(rate, 16000)(torch.from_numpy(wave_S)).numpy()
        np.testing.assert_allclose(resample(wave_S, rate, 16000), expected_S, atol=5e-6)


# Noise


@pytest.mark.parametrize("snr", [5, 20.0])
@pytest.mark.parametrize("noise", list(NOISES))
def test_the_mixture_has_the_ratio_asked_for(noise: str, snr: float, clean: list[Row]) -> None:
    rows = list(Commands(24, seed=1, snr=snr, noise=[noise]))
    whole = [(a, b) for a, b in zip(rows, clean, strict=True) if abs(a["audio"]["array"]).max() < FULL]
    assert len(whole) >= 20  # the others were scaled down
    for noisy, silent in whole:
        assert noisy["snr"] == snr and noisy["noise"] == noise
        assert {**noisy, "audio": 0, "snr": 0, "noise": 0} == {**silent, "audio": 0, "snr": 0, "noise": 0}
        assert snr_of(noisy, silent) == pytest.approx(snr, abs=0.01)


def test_ranges_and_shares(clean: list[Row]) -> None:
    rows = Commands(24, seed=1, snr=[5, 25], clean=0.4, takes=20)
    drawn = [(rows[i]["snr"], rows[i]["noise"]) for i in range(0, len(rows), 2)]
    ratios = [snr for snr, _ in drawn if snr is not None]
    assert within(len(drawn) - len(ratios), len(drawn), 0.4)
    assert 5 <= min(ratios) < 7 and 23 < max(ratios) <= 25
    names = Counter(noise for _, noise in drawn)
    assert all(within(names[name], len(drawn), 0.6 / 3) for name in NOISES)
    assert all((snr is None) == (noise is None) for snr, noise in drawn)
    for i in range(24):
        row = rows[i]
        if row["snr"] is None:
            assert np.array_equal(row["audio"]["array"], clean[i]["audio"]["array"])
        elif abs(row["audio"]["array"]).max() < FULL:
            assert snr_of(row, clean[i]) == pytest.approx(row["snr"], abs=0.01)


def test_colours_of_noise() -> None:
    """Power by octave, averaged over ten seconds: doubles in white noise, stays in pink."""
    for name, doubled in (("white", 2.0), ("pink", 1.0)):
        noise_S = NOISES[name](160000, np.random.default_rng(0), [])
        assert noise_S.dtype == np.float32 and noise_S.shape == (160000,)
        power = abs(np.fft.rfft(noise_S)) ** 2
        octaves = [power[10 * f : 20 * f].sum() for f in (125, 250, 500, 1000, 2000, 4000)]
        assert np.array(octaves[1:]) / octaves[:-1] == pytest.approx(doubled, rel=0.25)


def test_babble_is_three_others_equally_loud() -> None:
    rows = Commands(5, seed=1, snr=0, noise=["babble"])
    for i in range(5):
        for seed in range(20):
            others = rows._others(i, np.random.default_rng(seed))
            assert len(set(others)) == 3 and i not in others and set(others) <= set(range(5))
    tones = [k * np.sin(2 * np.pi * np.arange(1000) * f / 1000) for k, f in ((100, 30), (10, 40), (1, 50))]
    noise_S = NOISES["babble"](3000, np.random.default_rng(0), tones)
    spectrum = abs(np.fft.rfft(noise_S))
    assert spectrum[[90, 120, 150]] == pytest.approx(3000 / 2**0.5, rel=1e-3) and (spectrum > 1).sum() == 3


def test_loud_mixtures_stay_within_full_scale(clean: list[Row]) -> None:
    for noisy, silent in zip(Commands(24, seed=1, snr=-10), clean, strict=True):
        speech_S, mixed_S = (row["audio"]["array"].astype(np.float64) for row in (silent, noisy))
        assert abs(mixed_S).max() <= 1 and np.isfinite(mixed_S).all()
        share = mixed_S @ speech_S / (speech_S @ speech_S)  # noise is all but orthogonal to the speech
        noise_S = mixed_S - share * speech_S
        ratio = 10 * np.log10((share * speech_S) @ (share * speech_S) / (noise_S @ noise_S))
        assert ratio == pytest.approx(-10, abs=3)


def test_mix() -> None:
    speech_S = np.array([3, 0, 3, 0], dtype=np.float32)
    noise_S = np.array([0, 7, 0, 7], dtype=np.float32)
    np.testing.assert_allclose(mix(speech_S, noise_S, 0), [3, 3, 3, 3], rtol=1e-6)
    np.testing.assert_allclose(mix(speech_S, noise_S, 20), [3, 0.3, 3, 0.3], rtol=1e-6)


def test_takes(clean: list[Row]) -> None:
    rows = Commands(24, seed=1, takes=5)
    assert len(rows) == 120
    tempi = set()
    for i in range(24, 120):
        first, again = clean[i % 24], rows[i]
        assert [again[k] for k in ("text", "voice", "rate", "pitch")] == [
            first[k] for k in ("text", "voice", "rate", "pitch")
        ]
        tempi.add(round(first["duration"] / again["duration"], 2))
        quieter = 10 * np.log10(np.mean(first["audio"]["array"] ** 2) / np.mean(again["audio"]["array"] ** 2))
        assert -0.5 < quieter < 10.5
    assert tempi == {0.9, 0.95, 1.0, 1.05, 1.1}
    noisy = Commands(24, seed=1, takes=5, snr=[0, 20])
    assert len({noisy[i]["snr"] for i in range(0, 120, 24)}) == 5  # other noise each time
    assert all(np.array_equal(rows[i]["audio"]["array"], clean[i]["audio"]["array"]) for i in range(24))


# The store


def test_the_store_holds_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"seed": 6, "snr": [0, 20], "takes": 2, "store": str(tmp_path / "new")}
    before = Commands(6, **arguments)
    spoken = [row["audio"]["array"].tobytes() for row in before]
    file = prepare(Commands(6, **arguments))
    assert file is not None and [f.name for f in file.parent.iterdir()] == ["commands-train-6.safetensors"]
    written = file.stat().st_mtime_ns

    def silence(*_: object) -> None:
        raise AssertionError("spoken")

    monkeypatch.setattr(espeak, "say", silence)
    stored = Commands(6, **arguments)
    assert [row["audio"]["array"].tobytes() for row in stored] == spoken
    assert [row["audio"]["array"].tobytes() for row in pickle.loads(pickle.dumps(stored))] == spoken
    assert not stored._spoken
    assert prepare(stored) == file and file.stat().st_mtime_ns == written
    assert prepare(Commands(4, **arguments)) == file and file.stat().st_mtime_ns == written  # the first of more
    assert [stored.spoken(i).tobytes() for i in range(4)] == [
        Commands(4, **arguments).spoken(i).tobytes() for i in range(4)
    ]
    with pytest.raises(AssertionError, match="spoken"):
        Commands(7, **arguments).spoken(6)  # not there
    assert prepare(Commands(4, seed=6)) is None and prepare(Commands(4, sound=False, **arguments)) is None


def test_a_store_of_other_utterances_is_not_believed(tmp_path: Path) -> None:
    rows = Commands(3, seed=8, store=str(tmp_path))
    held = [rows.spoken(i) for i in range(3)]
    wrong = {"samples": np.zeros(30, np.int16), "ends": np.array([10, 20, 30]), "marks": np.zeros(3, np.uint32)}
    assert rows.file is not None
    save_file(wrong, rows.file)
    again = Commands(3, seed=8, store=str(tmp_path))
    assert all(np.array_equal(again.spoken(i), held[i]) for i in range(3))
    prepare(again, processes=1)
    assert load_file(rows.file)["ends"][-1] == sum(map(len, held))
    good = load_file(rows.file)
    for name, value in {
        "ends": good["ends"] - 1,
        "samples": good["samples"][:-1],
        "marks": good["marks"][:1],
    }.items():
        save_file({**good, name: value}, rows.file)
        with pytest.raises(DataError, match=r"commands-train-8\.safetensors: is damaged .its"):
            Commands(3, seed=8, store=str(tmp_path))
    save_file({**good, "ends": good["ends"][::-1].copy()}, rows.file)
    with pytest.raises(DataError, match=r"commands-train-8\.safetensors: is damaged .its"):
        Commands(3, seed=8, store=str(tmp_path))
    rows.file.write_bytes(b"half a file")
    with pytest.raises(DataError, match="commands-train-8.safetensors: is damaged"):
        Commands(3, seed=8, store=str(tmp_path))


# Controls and refusals


def test_another_sound_or_none(clean: list[Row]) -> None:
    shuffled = Shuffled(clean, seed=5, fields=["audio", "duration"])
    own = {row["audio"]["array"].tobytes(): i for i, row in enumerate(clean)}
    taken = [own[row["audio"]["array"].tobytes()] for row in shuffled]
    assert sorted(taken) == list(range(24)) and all(other != i for i, other in enumerate(taken))
    assert [row["duration"] for row in shuffled] == [clean[i]["duration"] for i in taken]
    assert [row["text"] for row in shuffled] == [row["text"] for row in clean]
    deaf = Without(clean, ["audio", "duration"])
    assert len(deaf) == 24 and {*deaf[3]} == {*clean[3]} - {"audio", "duration"} and deaf[3]["text"] == clean[3]["text"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": 0}, "n=0: expected a whole number of at least 1"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"takes": 0}, "takes=0: expected a whole number of at least 1"),
        ({"voices": "held-out"}, "voices: 'held-out' is not known (did you mean \"heldout\"?)"),
        ({"noise": ["whit"]}, "noise: 'whit' is not known (did you mean \"white\"?)"),
        ({"noise": "white"}, "noise: 'white' is no list of string"),
        ({"snr": 5, "noise": []}, "noise: none is named, but there is an snr"),
        ({"snr": [10, 5]}, "snr: [10.0, 5.0] is not a range of dB"),
        ({"snr": [1, 2, 3]}, "snr: [1, 2, 3], expected dB or a range of two"),
        ({"snr": "loud"}, "snr: 'loud' is no number or list of number"),
        ({"clean": 30}, "clean=30: expected a number from 0 to 1"),
        ({"n": 3, "snr": 5}, "n: 3 utterances are too few for babble, which takes 3 others"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Commands(**{"n": 9, "seed": 1, **arguments})
    assert message in str(caught.value) and "\n" not in str(caught.value)
