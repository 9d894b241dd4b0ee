"""What may stand in a protein sequence besides the 20 residues, and what becomes of it, by named policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.tasks.protein.residues import AMBIGUOUS, CANONICAL, GAP, MASKED, RARE

WHITE = b" \t\r\n\v\f"
WORDS = {
    "lower": ("upper", "drop", "refuse"),
    "gaps": ("keep", "drop", "refuse"),
    "stop": ("strip", "refuse"),
    "unknown": ("keep", "x", "refuse"),
    "masked": ("keep", "refuse"),
}


@dataclass(frozen=True)
class Policy:
    """What becomes of everything in a sequence that is none of the 20 residues. Raises ConfigError for unknown words.

    lower: lower-case letters. "upper": residues as any other (soft masking); "drop": left out, and '.' with them
        (insertions of A3M and A2M); "refuse".
    gaps: '-' and '.'. "keep": both become '-'; "drop"; "refuse".
    stop: '*' at the end. "strip"; "refuse". Elsewhere it is always an error.
    unknown: letters besides the 20. "keep": X, B, U, Z and O stay, J (which ESM has no id for) becomes X; "x": all of
        them become X; "refuse".
    masked: '_', a masked position, which is to be generated. "keep"; "refuse".
    """

    lower: str = "upper"
    gaps: str = "drop"
    stop: str = "strip"
    unknown: str = "keep"
    masked: str = "refuse"

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ConfigError(f"{name}: {getattr(self, name)!r}{nearest(str(getattr(self, name)), words)}")


def policy_of(words: Mapping[str, str]) -> Policy:
    """The policy of named words. Raises ConfigError for names and words that are unknown."""
    for name in words.keys() - WORDS.keys():
        raise ConfigError(f"no policy {name!r}{nearest(name, WORDS)}")
    return Policy(**words)


@lru_cache
def _table(policy: Policy) -> tuple[bytes, bytes]:
    """(what each byte becomes, 0 for a refusal; bytes that are dropped), for `bytes.translate`."""
    table = bytearray(256)
    for letter in CANONICAL + AMBIGUOUS + RARE:
        known = {"keep": "X" if letter == "J" else letter, "x": "X", "refuse": "\0"}[policy.unknown]
        table[ord(letter)] = ord(letter if letter in CANONICAL else known)
        if policy.lower == "upper":
            table[ord(letter.lower())] = table[ord(letter)]
    table[ord("*")] = ord("*")
    if policy.gaps == "keep":
        table[ord(GAP)] = table[ord(".")] = ord(GAP)
    if policy.masked == "keep":
        table[ord(MASKED)] = ord(MASKED)
    drop = WHITE + (b"-." if policy.gaps == "drop" else b"")
    if policy.lower == "drop":
        drop += b"." + (CANONICAL + AMBIGUOUS + RARE).lower().encode()
    return bytes(table), drop


def cleaned(lines: Sequence[bytes], line: int, where: str, policy: Policy, what: str = "") -> str:
    """What the policy makes of a sequence, in lines that begin at `line` of the file."""
    table, drop = _table(policy)
    raw = lines[0] if len(lines) == 1 else b"".join(lines)
    kept = raw.translate(table, drop)
    if policy.stop == "strip":
        kept = kept.rstrip(b"*")
    if b"\0" in kept or b"*" in kept:
        raise DataError(f"{where}, {_fault(lines, line, policy, what)}")
    if not kept:
        missing = "nothing is left of its sequence" if raw.translate(None, WHITE) else "no sequence"
        raise DataError(f"{where}, line {line}: {what}{missing}")
    return kept.decode("ascii")


def _fault(lines: Sequence[bytes], line: int, policy: Policy, what: str) -> str:
    """Line and position of the first letter that is refused, and why."""
    table, drop = _table(policy)
    position, white = 0, WHITE.decode()
    letters = len(b"".join(lines).translate(table, drop).rstrip(b"*"))  # up to the stop at the end
    kept = 0
    for number, text in enumerate(lines, line):
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"line {number}: byte {text[error.start]:#04x} is not UTF-8"
        for letter in decoded:
            position += letter not in white
            if letter.isascii() and letter.encode() in drop:
                continue
            kept += 1
            if letter == "*":
                if kept > letters and policy.stop == "strip":
                    continue
                why = "a stop before the end" if kept <= letters else "a stop, and stop: refuse"
            elif letter.isascii() and table[ord(letter)]:
                continue
            elif letter in "-.":
                why = "a gap, and gaps: refuse"
            elif letter == MASKED:
                why = "a masked position, expected residues"
            elif letter.isascii() and letter.islower() and policy.lower == "refuse":
                why = "lower case, and lower: refuse"
            elif letter.isascii() and letter.isalpha():
                why = f"none of {CANONICAL}, and unknown: refuse"
            else:
                why = "no residue"
            return f"line {number}, {what}residue {position}: {letter!r} is {why}"
    raise AssertionError("no letter is refused")
