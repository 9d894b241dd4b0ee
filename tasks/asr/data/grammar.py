"""The grammar of the spoken commands, and its closed vocabulary.

    "set a timer for forty two minutes"

Each kind of command draws a list of words from its own random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.random import Generator

from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.parts import part

DIGITS = tuple("zero one two three four five six seven eight nine".split())
TEENS = tuple("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split())
TENS = tuple("twenty thirty forty fifty sixty seventy eighty ninety".split())
ROOMS = ("kitchen", "bedroom", "hall", "garden", "office")
DEVICES = ("lights", "heater", "fan", "radio", "blinds")
COLORS = ("red", "green", "blue", "white", "black")
WAYS = ("left", "right", "up", "down")
UNITS = ("seconds", "minutes", "hours")
STATES = ("on", "off")


def words() -> list[str]:
    """Returns the closed vocabulary, sorted."""
    names = (*DIGITS, *TEENS, *TENS, *ROOMS, *DEVICES, *COLORS, *WAYS, *UNITS, *STATES)
    return sorted({*names, *"call set a timer for turn the at move box steps".split()})


@part
def tokenizer() -> Any:
    """Returns a transformers tokenizer over `words()` and "transcribe", a word of instructions."""
    return word_tokenizer([*words(), "transcribe"])


def pick(choices: Sequence[Any], rng: Generator) -> Any:
    """Returns one of some choices, each equally likely."""
    return choices[int(rng.integers(len(choices)))]


def number(rng: Generator) -> list[str]:
    """Returns one to ninety nine. Bare teens and bare tens, which sound alike, are equally frequent."""
    share = rng.random()
    if share < 0.2:
        return [pick(DIGITS, rng)]
    if share < 0.5:
        return [pick(TEENS, rng)]
    if share < 0.8:
        return [pick(TENS, rng)]
    return [pick(TENS, rng), pick(DIGITS[1:], rng)]


def digits(low: int, high: int, rng: Generator) -> list[str]:
    """Returns `low` to `high` digits as words."""
    return [pick(DIGITS, rng) for _ in range(rng.integers(low, high + 1))]


def switch(rng: Generator) -> list[str]:
    """Returns the words of a command that turns a device on or off, half of them with a time."""
    what = ["turn", "the", pick(ROOMS, rng), pick(DEVICES, rng), pick(STATES, rng)]
    return [*what, "at", *number(rng)] if rng.random() < 0.5 else what


KINDS: Mapping[str, Callable[[Generator], list[str]]] = {
    "digits": lambda rng: digits(3, 8, rng),
    "few": lambda rng: digits(3, 6, rng),
    "call": lambda rng: ["call", *digits(4, 7, rng)],
    "timer": lambda rng: ["set", "a", "timer", "for", *number(rng), pick(UNITS, rng)],
    "turn": switch,
    "move": lambda rng: ["move", "the", pick(COLORS, rng), "box", pick(WAYS, rng), *number(rng), "steps"],
}
