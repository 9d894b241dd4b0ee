"""What is asked of a protein to be designed: templates, ranges of residues, motifs, allowed letters, lengths.

All of it ends in a `Design`, whose fields are those of a row of the protein task. Positions are counted from 1 and
ranges include both ends where a person writes or reads them; in Python they are half-open from 0, as slices are.

What is random is drawn from a generator that is given; `record_rng(seed, record)` makes one that depends on nothing
else, so a record is the same however many are made.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from mmdiff.errors import DataError, short
from mmdiff.tasks.protein.residues import AMBIGUOUS, CANONICAL, GAP, MASKED, RARE

LETTERS = "".join(sorted(set(CANONICAL + AMBIGUOUS + RARE) - {"J"}))
"""Residues that a template may fix: the 20 and X B U Z O. J has no id in ESM's vocabulary."""
MASK = "<mask>"
LONGEST = 100_000
"""Residues of one design. Titin has 35,000: what is above this is a slip of the hand."""

Span = tuple[int, int]
"""Half-open, from 0."""


@dataclass(frozen=True)
class Design:
    """sequence: residues that are fixed, `_` where a position is masked.

    allow: for each position the letters that may be generated there, or None for those of the task; None as a whole: no
        position is limited.
    """

    sequence: str
    allow: list[str | None] | None = None


def record_rng(seed: int, record: int, stream: str = "") -> Generator:
    """Random numbers of one record. stream: keeps independent uses apart ("template", "lengths", ...)."""
    word = (1 << 64) - 1
    return np.random.default_rng([seed & word, record & word, zlib.crc32(f"motifs/{stream}".encode())])


# Templates -----------------------------------------------------------------------------------------------------------

TOKEN = re.compile(
    r"(?P<fixed>[A-Z])"
    r"|(?P<open>[_#]|<mask>)"
    r"|\[(?P<low>[0-9]{1,18})(?:-(?P<high>[0-9]{1,18}))?\]"
    r"|\{(?P<but>\^?)(?P<letters>[^{}]*)\}"
)
EXPECTED = f"expected an upper-case residue, `_`, `#`, `{MASK}`, `[12]`, `[10-20]`, `{{ILV}}` or `{{^CM}}`"


def template(text: str, rng: Generator) -> Design:
    """Read `MKT___G[10-20]{ILV}AA`: residues that are fixed, and masked positions.

    `_`, `#` and `<mask>` are one masked position; `[12]` is twelve of them, `[10-20]` a number that is drawn, all
    numbers from 10 to 20 equally likely; `{ILV}` is one masked position for these letters only, `{^CM}` for all of the
    20 but these. Raises DataError that names the position in the text.
    """
    if not text:
        raise DataError(f"template: it is empty, {EXPECTED}")
    sequence: list[str] = []
    allow: list[str | None] = []
    at = 0
    while at < len(text):
        where = f"template, position {at + 1}"
        found = TOKEN.match(text, at)
        if found is None:
            raise DataError(f"{where}: {_shown(text, at)}, {EXPECTED}")
        if letter := found["fixed"]:
            if letter not in LETTERS:
                raise DataError(f"{where}: {letter!r} is no residue, expected one of {LETTERS}")
            sequence.append(letter)
            allow.append(None)
        elif found["letters"] is not None:
            sequence.append(MASKED)
            allow.append(_letters(found["letters"], bool(found["but"]), f"{where}: {found[0]}"))
        else:
            n = 1 if found["open"] else _drawn(int(found["low"]), found["high"], f"{where}: {found[0]}", rng)
            sequence += [MASKED] * n
            allow += [None] * n
        at = found.end()
    if not sequence:
        raise DataError(f"template: {short(repr(text), 60)} has no position at all")
    return Design("".join(sequence), allow if any(allow) else None)


def _drawn(low: int, last: str | None, where: str, rng: Generator) -> int:
    high = low if last is None else int(last)
    if low > high:
        raise DataError(f"{where}: {low} is above {high}, expected [{high}-{low}]")
    if high > LONGEST:
        raise DataError(f"{where}: expected at most {LONGEST} positions")
    return low if last is None else int(rng.integers(low, high + 1))


def _letters(text: str, but: bool, where: str) -> str:
    """The allowed letters, each once, in the order of the alphabet."""
    given = set(text)
    if not given:
        raise DataError(f"{where}: it has no letters, expected as in {{ILV}} or {{^CM}}")
    if unknown := sorted(given - set(LETTERS)):
        raise DataError(f"{where}: {unknown[0]!r} is no residue, expected some of {LETTERS}")
    left = set(CANONICAL) - given if but else given
    if not left:
        raise DataError(f"{where}: no letter is left to be generated")
    return "".join(sorted(left))


def _shown(text: str, at: int) -> str:
    letter = text[at]
    if letter in "[{<":
        return f"{text[at : at + 8]!r} is not understood"
    if letter.islower() and letter.upper() in LETTERS:
        return f"{letter!r} (did you mean {letter.upper()!r}?)"
    return repr(letter)


# Ranges of residues --------------------------------------------------------------------------------------------------


def residue_ranges(text: str, length: int) -> list[Span]:
    """`16-35,52-71` of a sequence of `length` residues, both ends included -> [(15, 35), (51, 71)], as written.

    Raises DataError for what is no range, out of range, reversed, or overlaps another.
    """
    spans: list[Span] = []
    for item in text.split(","):
        first, last = _residues(item.strip(), length)
        for low, high in spans:
            if first - 1 < high and low < last:
                raise DataError(f"residues {item.strip()}: they overlap {low + 1}-{high}")
        spans.append((first - 1, last))
    return spans


def number_range(text: str, what: str, most: int, expected: str) -> tuple[int, int]:
    """Both ends of `12` or `10-20`, from 1 to `most`. Raises DataError that begins with `what`."""
    found = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if found is None:
        raise DataError(f"{what} {short(repr(text), 60)}: expected {expected}")
    low = int(found[1])
    high = int(found[2] or low)
    if low > high:
        raise DataError(f"{what} {text}: {low} is above {high}, expected {high}-{low}")
    if low < 1 or high > most:
        raise DataError(f"{what} {text}: expected numbers from 1 to {most}")
    return low, high


def _residues(text: str, length: int) -> tuple[int, int]:
    return number_range(text, "residues", length, "a position or a range, as in 16-35,52-71")


def kept_ranges(sequence: str, ranges: Sequence[Span]) -> Design:
    """Keep the residues in `ranges`; all other positions are masked. Raises DataError for a range that is not there."""
    _check(ranges, len(sequence))
    return _masked(sequence, set(range(len(sequence))) - _positions(ranges))


def masked_ranges(sequence: str, ranges: Sequence[Span]) -> Design:
    """Mask the residues in `ranges`; all others stay. Raises DataError for a range that is not there."""
    _check(ranges, len(sequence))
    return _masked(sequence, _positions(ranges))


def _positions(ranges: Sequence[Span]) -> set[int]:
    return {i for low, high in ranges for i in range(low, high)}


def _masked(sequence: str, positions: set[int]) -> Design:
    return Design("".join(MASKED if i in positions else letter for i, letter in enumerate(sequence)))


def masked_share(sequence: str, share: float, rng: Generator, window: Span | int | None = None) -> Design:
    """Mask round(share x residues) of the residues, at least one, drawn at random.

    window: a stretch in which they lie, or the length of one that is put anywhere, all offsets equally likely (the
    template designs of DSM, arXiv 2506.08293: 1 to 90 % of a known binder or of a window of it). Positions that are
    masked already stay masked and do not count. Raises DataError.
    """
    if not 0 < share <= 1:
        raise DataError(f"share: {share}, expected above 0 and up to 1")
    if isinstance(window, int):
        if not 1 <= window <= len(sequence):
            raise DataError(f"window: {window} residues, the sequence has {len(sequence)}")
        start = int(rng.integers(0, len(sequence) - window + 1))
        window = (start, start + window)
    low, high = window or (0, len(sequence))
    _check([(low, high)], len(sequence))
    positions = [i for i in range(low, high) if sequence[i] != MASKED]
    if not positions:
        raise DataError(f"residues {low + 1}-{high}: all of them are masked already")
    count = max(1, round(share * len(positions)))
    return _masked(sequence, set(rng.choice(positions, count, replace=False).tolist()))


def scaffold(
    sequence: str, ranges: Sequence[Span], length: Span, rng: Generator, *, keep_gaps: bool = False
) -> tuple[Design, list[Span]]:
    """The segments `ranges` of a motif in a new sequence, in the order given, all else masked; and where each landed.

    length: (least, most) residues of the new sequence, both included, all equally likely. (EvoDiff, arXiv 2309.15766,
        counts the residues that are added.) What the motif leaves over is shared out between the two ends and the gaps
        between segments, every way of doing so equally likely; any of them may be empty.
    keep_gaps: segments stay as far from each other as they were, with masked positions between, as EvoDiff has them;
        only the two ends are then drawn.
    Raises DataError.
    """
    _check(ranges, len(sequence))
    if not ranges:
        raise DataError("motif: it has no residues")
    least, most = length
    if least > most:
        raise DataError(f"length: {least} is above {most}, expected {most}-{least}")
    blocks = [sequence[low:high] for low, high in ranges]
    if keep_gaps:
        start, stop = ranges[0][0], ranges[-1][1]
        if any(later < end for (_, end), (later, _) in pairwise(ranges)):
            raise DataError("motif: its segments are not in the order of the sequence, so their gaps cannot be kept")
        blocks = [kept_ranges(sequence, ranges).sequence[start:stop]]
    motif = sum(map(len, blocks))
    if least < motif:
        raise DataError(f"length: {least}-{most}, the motif alone takes {motif} positions")
    total = int(rng.integers(least, most + 1))
    # stars and bars: blocks are the bars that stand among the masked positions
    bars = np.sort(rng.choice(total - motif + len(blocks), len(blocks), replace=False)).tolist()
    out, starts, last = "", [], -1
    for bar, block in zip(bars, blocks, strict=True):
        out += MASKED * (bar - last - 1)
        starts.append(len(out))
        out, last = out + block, bar
    out += MASKED * (total - len(out))
    if keep_gaps:
        starts = [starts[0] + low - ranges[0][0] for low, _ in ranges]
    return Design(out), [(start, start + high - low) for start, (low, high) in zip(starts, ranges, strict=True)]


def _check(ranges: Sequence[Span], length: int) -> None:
    for low, high in ranges:
        if not 0 <= low < high <= length:
            raise DataError(f"residues {low + 1}-{high}: expected positions from 1 to {length}")


# Allowed letters -----------------------------------------------------------------------------------------------------


def allowed(design: Design, text: str = "", forbid: str = "") -> Design:
    """Limits the masked positions of a design further.

    text: `10:AVL,12-15:^C`, positions or ranges with the letters that may be generated there, or those of the 20
    that may not. Several that cover a position all hold. forbid: letters that are generated nowhere.
    What is fixed stays as it is, forbidden or not: these are rules of what is written.
    Raises DataError for a rule that covers no masked position, and for a masked position that is left without a letter.
    """
    sequence = design.sequence
    positions = [i for i, letter in enumerate(sequence) if letter == MASKED]
    allow = list(design.allow or [None] * len(sequence))
    if forbid and (unknown := sorted(set(forbid) - set(LETTERS + GAP))):
        raise DataError(f"forbid: {unknown[0]!r} is no residue, expected some of {LETTERS}, or {GAP}")
    rules = [(positions, set(CANONICAL) - set(forbid), f"forbid {forbid}")] if forbid else []
    for item in text.split(",") if text.strip() else ():
        where, colon, letters = item.strip().partition(":")
        if not colon:
            raise DataError(
                f"allow {short(repr(item.strip()), 60)}: expected positions and letters, as in 10:AVL,12-15:^C"
            )
        first, last = _residues(where.strip(), len(sequence))
        covered = [i for i in positions if first <= i + 1 <= last]
        if not covered:
            raise DataError(f"allow {short(item.strip(), 60)}: no position there is masked")
        letters = letters.strip()
        left = set(_letters(letters.removeprefix("^"), letters.startswith("^"), f"allow {item.strip()}"))
        rules.append((covered, left - set(forbid), f"allow {item.strip()}"))
    for covered, left, name in rules:
        for i in covered:
            both = left if allow[i] is None else left & set(allow[i] or "")
            if not both:
                raise DataError(f"{name}: residue {i + 1} is left without a letter")
            allow[i] = "".join(sorted(both))
    return Design(sequence, allow if any(allow) else None)
