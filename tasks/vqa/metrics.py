"""Scores for one short answer: VQA accuracy, exact match, ANLS, relaxed accuracy, LLaVA-Med closed and open questions.

Each function scores one question and returns values in [0, 1]; a benchmark reports the mean over its questions.
`strict=True` and the deviations named in the docstrings aside, the numbers are those of the published tools.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from mmdiff.errors import DataError, require

_NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
# "dont" -> "don't", "couldnt've" and "couldn'tve" -> "couldn't've": every form that lacks exactly one apostrophe.
_CONTRACTIONS = {w[:i] + w[i + 1 :]: w for w in _CONTRACTED for i, c in enumerate(w) if c == "'"}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round in the official table; kept


def normalize_answer(text: str) -> str:
    """The answer normalisation of the official VQA evaluation (Antol et al. 2015, vqaEval.py), character for character.

    In this order: newlines and tabs become spaces; each of ``; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !`` is removed
    everywhere if it touches a space anywhere in the text, or if a digit-comma-digit occurs anywhere, and is a space
    otherwise; periods go; lower case; none, zero ... ten become digits; a, an, the go; contractions get their
    apostrophe.

    Quirks of the official tool that are kept, because every published number has them:
    * Its period pattern `(?!<=\\d)(\\.)(?!\\d)` was meant to keep a period after a digit, but the misspelt look-behind
      is always true: every period that no digit follows is removed ("1." -> "1", "3.14" and ".5" stay).
    * It passes re.UNICODE, which is 32, as the count: only the first 32 such periods are removed.
    * The single letter "a" is an article: option letters do not survive. Score those with `exact_match`.
    * ":" and "'" are not punctuation.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = _THOUSANDS.search(text) is not None
    text = text.translate(
        {ord(p): "" if thousands or f"{p} " in text or f" {p}" in text else " " for p in _PUNCTUATION}
    )
    words = _PERIOD.sub("", text, count=32).lower().split()
    digits = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def normalize_answer_textvqa(text: str) -> str:
    """As TextVQA scores: "," and "?" removed, "'s" split off, then `normalize_answer`; for `vqa_accuracy`."""
    return normalize_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vqa_accuracy(
    prediction: str, answers: Sequence[str], *, normalize: Callable[[str], str] = normalize_answer
) -> float:
    """Soft accuracy against several human answers: the mean over leave-one-out sets of min(1, matches / 3).

    With the usual ten answers, 0, 1, 2, 3, >= 4 matches give 0, .3, .6, .9, 1 (not matches / 3). With n answers the
    three agreeing people become m = min(3, n - 1), as only n - 1 are left in a set: the official value for n >= 4,
    matches / n for n = 2, 3, and one answer is an exact match after normalisation. (Unchanged, the official rule could
    give at most 2/3 for three answers, and 0 for one.)

    Both sides are always normalised. The official tool compares the raw strings when all ten answers agree (its
    prediction "Yes." scores 0 there); tools that leave out *equal* answers instead of *one* answer lose the duplicates.

    Raises DataError when `answers` is empty or is one string.
    """
    _several("answers", answers)
    predicted = normalize(prediction)
    n, k = len(answers), sum(normalize(answer) == predicted for answer in answers)
    if n == 1:
        return float(k)
    m = min(3, n - 1)
    # k sets leave out a match and see k - 1 of them, the n - k others see all k (for k = 0 the first term is 0)
    return (k * min(1.0, (k - 1) / m) + (n - k) * min(1.0, k / m)) / n


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """`vqa_accuracy` of texts as TextVQA normalises them. Raises DataError as it does."""
    return vqa_accuracy(prediction, answers, normalize=normalize_answer_textvqa)


def gqa_accuracy(prediction: str, reference: str) -> float:
    """`exact_match` without case and punctuation, as GQA counts."""
    return exact_match(prediction, reference, ignore_punctuation=True)


def exact_match(
    prediction: str, reference: str, *, ignore_case: bool = True, ignore_punctuation: bool = False
) -> float:
    """1.0 when the texts are equal, 0.0 otherwise; GQA uses both flags (`gqa_accuracy`).

    Runs of white space count as one space and none counts at the ends (published tools leave that to the caller).
    `ignore_punctuation` deletes the 32 ASCII marks, without leaving a space: "top-left" equals "topleft".
    """

    def clean(text: str) -> str:
        text = text.lower() if ignore_case else text
        text = text.translate(_NO_PUNCTUATION) if ignore_punctuation else text
        return " ".join(text.split())

    return float(clean(prediction) == clean(reference))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def anls(prediction: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest reference, 0 below `threshold` (Biten et al. 2019; DocVQA).

    Similarity = 1 - edits / length of the longer string, counted in code points of the lower-cased texts with white
    space squeezed; two empty texts are equal (1.0). A similarity of exactly `threshold` counts, as on the DocVQA server
    (the paper's formula gives 0 there).

    Deviation: the DocVQA server and lmms-eval divide the edits of the squeezed texts by the length of the *unsqueezed*
    ones, so that trailing spaces raise the score; here both are squeezed. Texts without surplus space score the same.

    Raises DataError when `references` is empty or is one string.
    """
    _several("references", references)
    squeezed = " ".join(prediction.lower().split())
    best = max(_similarity(squeezed, " ".join(reference.lower().split())) for reference in references)
    return best if best >= threshold else 0.0


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    return 1.0 - levenshtein(a, b) / longest if longest else 1.0


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and substitutions of code points that turn `a` into `b`."""
    require("rapidfuzz", "vision")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a, b)


def relaxed_accuracy(prediction: str, reference: str, tolerance: float = 0.05) -> float:
    """1.0 when |prediction - reference| <= tolerance |reference| for two numbers, or the texts are equal (ChartQA).

    "12%" is .12. Quirks of the published rule that are kept: a reference of 0 is compared as text ("0.0" is not "0");
    thousands commas and units are not stripped ("1,200" is not 1200, "12" is not "12%"); the division is in floats, so
    "1.05" for "1" falls just outside.
    Deviations: white space at the ends is ignored; "nan", "inf" and "1_000", which Python reads as numbers, are texts.
    """
    prediction, reference = prediction.strip().lower(), reference.strip().lower()
    value, target = _number(prediction), _number(reference)
    if value is not None and target:
        return float(abs(value - target) / abs(target) <= tolerance)
    return float(prediction == reference)


def _number(text: str) -> float | None:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def med_closed(prediction: str, reference: str, *, strict: bool = False) -> float:
    """Accuracy of one closed medical question; LLaVA-Med v1.0.0 (run_eval.py), or with its pitfalls removed.

    As published: 1.0 when the normalised prediction contains "yes" or "no", and contains the reference, both as
    *substrings*. So "normal heart" is a correct "no", a hedging "yes or no" is always correct, and the right answer to
    a left-or-right question scores 0 unless the prediction happens to contain "yes" or "no". The first release also
    left every wrong yes/no answer out of the count (fixed in December 2023); numbers made with it can only be too high.

    `strict`: words, not substrings. For a reference of yes or no, the first word of the prediction that is yes or no
    decides, and there must be one. Any other reference must occur as a run of whole words ("left" in "the left lung");
    an empty one needs an empty prediction.

    Both normalise with `normalize_answer`; LLaVA-Med's copy differs only for punctuation next to a line break or next
    to white space at the ends of the text.
    """
    predicted, expected = normalize_answer(prediction), normalize_answer(reference)
    if not strict:
        return float(("yes" in predicted or "no" in predicted) and expected in predicted)
    if expected in ("yes", "no"):
        return float(next((word for word in predicted.split() if word in ("yes", "no")), None) == expected)
    return float(f" {expected} " in f" {predicted} " if expected else not predicted)


def med_open(prediction: str, reference: str, *, strict: bool = False) -> dict[str, float]:
    """`recall` (the headline), `precision`, `f1` and `exact_match` of one open medical question, over normalised words.

    As published by LLaVA-Med: with c_p, c_r the word counts of prediction and reference, tp = sum of c_p over shared
    words, fp = sum of c_p over the others of the prediction, fn = sum of c_r over the missing words of the reference.
    tp counts the *prediction*, so that repeating a right word raises recall and precision, and a long answer costs no
    recall. `exact_match` is (shared distinct words) / (words of the prediction), not an exact match. All are 0 when
    either side is empty. Not here: its "open accuracy", which needs the candidate answers of the training set, and its
    sentence-level BLEU (see `mmdiff.tasks.vqa.captions.bleu`).

    `strict`: tp = sum of min(c_p, c_r), recall = tp / words of the reference, precision = tp / words of the prediction,
    `exact_match` 1.0 when the normalised texts are equal; two empty sides agree (all 1.0).
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if strict and not predicted and not expected:
        return {"recall": 1.0, "precision": 1.0, "f1": 1.0, "exact_match": 1.0}
    if not predicted or not expected:
        return {"recall": 0.0, "precision": 0.0, "f1": 0.0, "exact_match": 0.0}
    count_p, count_r = Counter(predicted), Counter(expected)
    shared = count_p.keys() & count_r.keys()
    if strict:
        hits = (count_p & count_r).total()
        recall, precision = hits / len(expected), hits / len(predicted)
        exact = float(predicted == expected)
    else:
        hits = sum(count_p[word] for word in shared)
        misses = sum(count for word, count in count_r.items() if word not in shared)
        recall = hits / (hits + misses)
        precision = hits / len(predicted)
        exact = len(shared) / len(predicted)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"recall": recall, "precision": precision, "f1": f1, "exact_match": exact}


def _several(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise DataError(f"{name}: expected a list of at least one answer, got {texts!r:.60}")
