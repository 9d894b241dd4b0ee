"""Word and character errors of recognised speech, their rates over a corpus, and bootstrap intervals.

Errors are counted by jiwer. Words are what white space of any kind separates; characters are code points, and a run of
white space is one of them. Nothing is lower-cased or cleaned unless a normaliser is asked for, which has to be applied
to both sides: `word_errors(normalise(reference), normalise(hypothesis))`.

Shape letters: U utterances, K counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from mmdiff.errors import ConfigError, DataError, nearest, require

Op = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Errors:
    """The errors of one utterance. Of equally short alignments jiwer chooses one; only their total is unique."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Words, or characters, of the reference."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float:
        """Errors per reference word; of an empty reference, as jiwer has it, the number of insertions."""
        return self.total / max(self.length, 1)


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Returns the errors of words."""
    return _errors(_by_words(reference, hypothesis))


def char_errors(reference: str, hypothesis: str) -> Errors:
    """Returns the errors of characters; a space between words counts as one of them."""
    require("jiwer", "audio")
    import jiwer

    return _errors(jiwer.process_characters(_spaced(reference), _spaced(hypothesis)))


def align(reference: str, hypothesis: str) -> list[tuple[Op, str | None, str | None]]:
    """Returns (operation, word of the reference, word of the hypothesis), in order; None for a side without a word."""
    out = _by_words(reference, hypothesis)
    expected, hypothesis = out.references[0], out.hypotheses[0]
    pairs: list[tuple[Op, str | None, str | None]] = []
    for chunk in out.alignments[0]:
        left = expected[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        n = max(len(left), len(right))
        pairs += [(chunk.type, (left or [None] * n)[i], (right or [None] * n)[i]) for i in range(n)]
    return pairs


def corpus(errors: Iterable[Errors]) -> dict[str, float]:
    """Returns `wer`, all errors over all reference words (not the mean of utterances' rates), and its counts.

    Of character errors, `wer` is the CER and `words` counts characters.
    """
    every = list(errors)
    _some(every)
    words = sum(e.length for e in every)
    return {
        "wer": sum(e.total for e in every) / max(words, 1),
        "substitutions": sum(e.substitutions for e in every),
        "deletions": sum(e.deletions for e in every),
        "insertions": sum(e.insertions for e in every),
        "words": words,
    }


def bootstrap(errors: Sequence[Errors], n: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the corpus rate: percentiles over `n` drawings of utterances with replacement.

    Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004).
    """
    _some(errors)
    drawn_nK = _drawn(np.array([[e.total, e.length] for e in errors]), n, seed)
    return _interval(drawn_nK[:, 0] / np.maximum(drawn_nK[:, 1], 1))


def paired_bootstrap(
    first: Sequence[Errors], second: Sequence[Errors], n: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Returns how `second` differs from `first`: the same utterances in the same order, each drawing shared by both.

    `difference`: rate of the second minus rate of the first, below 0 where the second is better; `low`, `high`: its
    95 % interval; `improved`: the share of drawings in which the second makes fewer errors (Bisani and Ney 2004, their
    probability of improvement). Raises DataError when the two do not have the same references.
    """
    _some(first)
    if [e.length for e in first] != [e.length for e in second]:
        raise DataError(f"paired bootstrap: {len(first)} and {len(second)} utterances with different references")
    counts_UK = np.array([[b.total - a.total, a.length] for a, b in zip(first, second, strict=True)])
    drawn_nK = _drawn(counts_UK, n, seed)
    low, high = _interval(drawn_nK[:, 0] / np.maximum(drawn_nK[:, 1], 1))
    more, words = counts_UK.sum(0)
    return {
        "difference": float(more / max(words, 1)),
        "low": low,
        "high": high,
        "improved": float((drawn_nK[:, 0] < 0).mean()),
    }


def basic(text: str) -> str:
    """Returns the text by Whisper's normaliser for any language: lower case, no brackets, symbols and punctuation."""
    return _whisper_basic()(text).strip()


def english(text: str) -> str:
    """Returns the text by Whisper's normaliser for English: contractions, spelling, numbers.

    Radford et al. 2022, appendix C.

    A trap: spoken digits are joined, "nine nine three" -> "993", "twenty twenty four" -> "2024", and "double five" is
    "55". A string of digits is then one word, all of it right or all of it wrong. Score such tasks with "basic" or
    "none". Fillers (hmm, uh, um) are left out.

    The rules are those of transformers, which are OpenAI's; the spelling table comes from whisper_normalizer. That
    package's own rules also write out kinda, sorta, dunno, and turn every "cause" into "because".
    """
    return _whisper_english()(text).strip()


NORMALISERS: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "lower": str.lower,
    "upper": str.upper,
    "basic": basic,
    "english": english,
}


def normaliser(name: str) -> Callable[[str], str]:
    """Returns a normaliser by name.

    Raises ConfigError for an unknown name, MissingExtra for a package that is not installed.
    """
    if name not in NORMALISERS:
        raise ConfigError(f"normalise: no normaliser {name!r}{nearest(str(name), NORMALISERS)}")
    NORMALISERS[name]("")  # a missing package raises now, not at the first score
    return NORMALISERS[name]


@cache
def _whisper_basic() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


@cache
def _whisper_english() -> Callable[[str], str]:
    require("whisper_normalizer", "audio")
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    return EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)


def _spaced(text: str) -> str:
    return " ".join(text.split())  # jiwer parts words at " " only: a single tab or line break would join two


def _by_words(reference: str, hypothesis: str) -> Any:
    require("jiwer", "audio")
    import jiwer

    return jiwer.process_words(_spaced(reference), _spaced(hypothesis))


def _errors(out: Any) -> Errors:
    return Errors(out.substitutions, out.deletions, out.insertions, out.hits)


def _drawn(counts_UK: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, K): sums of the counts over `n` drawings of U utterances."""
    if n < 1:
        raise ConfigError(f"bootstrap: {n} drawings, expected at least 1")
    # Not scipy.stats.bootstrap, whose figures are the same: it refuses a single utterance, and nothing here needs scipy
    rng, u = np.random.default_rng(seed), len(counts_UK)
    return np.stack([counts_UK[rng.integers(u, size=u)].sum(0) for _ in range(n)])


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _some(errors: Sequence[Errors]) -> None:
    if not errors:
        raise DataError("no utterance to score")
