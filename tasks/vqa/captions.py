"""Scores for captions over a whole set: BLEU, ROUGE-L, CIDEr-D, in the variants of the COCO caption evaluation.

`predictions` holds one caption per picture, `references` one or more per picture, in the same order. On the same tokens
the values equal those of the COCO tool; that one uses the Java PTB tokenizer, here it is `tokenize` unless another
callable is given (`str.split` for captions that are tokenised already). No library has these variants without Java. A
caption without tokens scores 0 and does not fail.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean

from mmdiff.errors import DataError, require

Tokenizer = Callable[[str], Sequence[str]]
_NGram = tuple[str, ...]

_STOP = re.compile(r"(?<!\d)[.,]|[.,](?!\d)")
_CLITIC = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))$")


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation, close to what the Penn Treebank rules leave of a caption.

    Unicode NFC; letters, digits and combining marks make words; "-" and "'" count inside a word (t-shirt, o'clock), "."
    and "," between digits (3.5, 1,000); every other character separates. English clitics are split: the man's -> the
    man 's, can't -> ca n't. Text without spaces between words (Chinese) is one word; give such text its own tokenizer.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = (c if c.isalnum() or c in "-'.," or unicodedata.category(c).startswith("M") else " " for c in text)
    words = _STOP.sub(" ", "".join(kept)).split()
    return [token for word in words for token in _CLITIC.sub(r" \1", word.strip("-'")).split()]


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], n: int = 4, tokenize: Tokenizer = tokenize
) -> float:
    """Corpus BLEU-n in [0, 1] (Papineni et al. 2002): brevity penalty times the geometric mean of p_1 ... p_n.

    p_k is the number of predicted k-grams found, each clipped to its largest count in one reference of the picture,
    over all predicted k-grams, both summed over the set. The penalty is exp(1 - r/c) when the total predicted length c
    is below r, the total of the reference lengths nearest to each prediction (the shorter one of two). No smoothing:
    0.0 when any p_k is 0 or there are no k-grams.

    Raises DataError when the lists do not fit or are empty (so do `rouge_l` and `cider`).
    """
    found, made, length, reference_length = [0] * n, [0] * n, 0, 0
    for predicted, expected in _tokenized(predictions, references, tokenize):
        length += len(predicted)
        reference_length += min((abs(len(words) - len(predicted)), len(words)) for words in expected)[1]
        for k in range(n):
            counts = _ngrams(predicted, k + 1)
            most: Counter[_NGram] = Counter()
            for words in expected:
                most |= _ngrams(words, k + 1)
            found[k] += (counts & most).total()
            made[k] += counts.total()
    if not all(found):
        return 0.0
    log_precision = fmean(math.log(hits / total) for hits, total in zip(found, made, strict=True))
    return math.exp(log_precision + min(0.0, 1 - reference_length / length))


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    beta: float = 1.2,
    tokenize: Tokenizer = tokenize,
) -> float:
    """Mean ROUGE-L in [0, 1] (Lin 2004): F = (1 + beta^2) P R / (R + beta^2 P) of the longest common subsequence.

    P = LCS / words of the prediction, R = LCS / words of the reference. As in the COCO tool each is the largest over
    the references, so that P and R may come from different ones.
    """
    require("rapidfuzz", "vision")
    from rapidfuzz.distance import LCSseq

    scores = []
    for predicted, expected in _tokenized(predictions, references, tokenize):
        common = [LCSseq.similarity(predicted, words) for words in expected]
        precision = max(common) / max(1, len(predicted))
        recall = max(c / max(1, len(words)) for c, words in zip(common, expected, strict=True))
        weighted = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / weighted if weighted else 0.0)
    return fmean(scores)


def cider(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    n: int = 4,
    sigma: float = 6.0,
    tokenize: Tokenizer = tokenize,
) -> float:
    """Mean CIDEr-D in [0, 10] (Vedantam et al. 2015, section 6.1) over the pictures.

    For each k = 1 ... n a caption is the vector count * (log N - log max(1, df)) over its k-grams, where df is the
    number of the N pictures with that k-gram in a reference. Similarity to one reference: sum of min(p, r) r over |p|
    |r|, times exp(-(length difference in words)^2 / (2 sigma^2)); the score is 10 times its mean over k and the
    references.

    The document frequencies come from the given references: values of different sets (or subsets) cannot be compared,
    and a single picture always scores 0, as log N = 0. A caption shorter than n words cannot reach 10.
    """
    rows = _tokenized(predictions, references, tokenize)
    frequency: Counter[_NGram] = Counter()
    for _, expected in rows:
        frequency.update({gram for words in expected for k in range(n) for gram in _ngrams(words, k + 1)})
    log_pictures = math.log(len(rows))

    def vectors(words: Sequence[str]) -> list[dict[_NGram, float]]:
        return [
            {gram: c * (log_pictures - math.log(max(1, frequency[gram]))) for gram, c in _ngrams(words, k + 1).items()}
            for k in range(n)
        ]

    scores = []
    for predicted, expected in rows:
        vectors_p = vectors(predicted)
        similarities = []
        for words in expected:
            penalty = math.exp(-((len(predicted) - len(words)) ** 2) / (2 * sigma**2))
            similarities += [penalty * _clipped_cosine(p, r) for p, r in zip(vectors_p, vectors(words), strict=True)]
        scores.append(10 * fmean(similarities))
    return fmean(scores)


def _clipped_cosine(p: dict[_NGram, float], r: dict[_NGram, float]) -> float:
    norms = math.hypot(*p.values()) * math.hypot(*r.values())
    return sum(min(weight, r[gram]) * r[gram] for gram, weight in p.items() if gram in r) / norms if norms else 0.0


def _ngrams(words: Sequence[str], k: int) -> Counter[_NGram]:
    return Counter(tuple(words[i : i + k]) for i in range(len(words) - k + 1))


def _tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenizer
) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    if isinstance(predictions, str) or not predictions:
        raise DataError(f"predictions: expected a list of at least one caption, got {predictions!r:.60}")
    if len(predictions) != len(references):
        raise DataError(f"references: expected a row for each of {len(predictions)} predictions, got {len(references)}")
    for row, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise DataError(f"references[{row}]: expected a list of at least one caption, got {texts!r:.60}")
    return [
        (tokenize(prediction), [tokenize(text) for text in texts])
        for prediction, texts in zip(predictions, references, strict=True)
    ]


METRICS: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    **{f"bleu_{n}": partial(bleu, n=n) for n in (1, 2, 3, 4)},
    "rouge_l": rouge_l,
    "cider_d": cider,
}
"""The caption metrics among the names that `task.metrics` of a configuration takes."""
