"""Lengths of sequences that are to be made, as a person gives them: `100`, `50-400`, `50,60,70-80`, or a FASTA file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from numpy.random import Generator

from mmdiff.errors import ConfigError, DataError, short
from mmdiff.tasks.protein.data.fasta import read_fasta

from .motifs import LONGEST, number_range

EXPECTED = "numbers and ranges, as in 100, 50-400 or 50,60,70"


def drawn_lengths(text: str, rng: Generator) -> Iterator[int]:
    """Lengths without an end. `100`: all the same; `50-400`: all from 50 to 400 equally likely; `50,60,70-80`: one
    after the other, again and again. Anything else is a FASTA file, whose lengths are drawn with replacement; gaps do
    not count. Raises ConfigError, and DataError of the file.
    """
    if re.fullmatch(r"[0-9,\s-]+", text):
        parts = [number_range(part.strip(), "lengths:", LONGEST, EXPECTED) for part in text.split(",")]
        return (low if low == high else int(rng.integers(low, high + 1)) for low, high in cycle(parts))
    file = Path(text)
    try:
        is_there = file.is_file()
    except OSError:  # too long for a name
        is_there = False
    if not is_there:
        raise ConfigError(f"lengths: {short(repr(text), 60)}, expected {EXPECTED}, or a FASTA file that is there")
    known = [len(record.sequence) for record in read_fasta(file, gaps="drop")]
    if not known:
        raise DataError(f"{file}: it has no sequences to take lengths from")
    return (known[int(rng.integers(len(known)))] for _ in cycle([0]))
