"""Golden values of the answer metrics, worked out by hand, and one test for each known trap of the published tools."""

from __future__ import annotations

import itertools
import random
from functools import lru_cache
from statistics import fmean

import pytest

from mmdiff.errors import DataError
from mmdiff.tasks.vqa.metrics import (
    anls,
    exact_match,
    levenshtein,
    med_closed,
    med_open,
    normalize_answer,
    normalize_answer_textvqa,
    relaxed_accuracy,
    vqa_accuracy,
)

pytestmark = pytest.mark.needs("rapidfuzz")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" Red\n", "red"),
        ("two\tdogs", "2 dogs"),
        ("The dog and a cat", "dog and cat"),
        ("none", "0"),
        ("ten of eleven", "10 of eleven"),
        # punctuation that touches no space becomes a space ...
        ("left-right", "left right"),
        ("yes/no", "yes no"),
        # ... that touches one is deleted, everywhere: " -" occurs, so "x-ray" loses its hyphen too
        ("x-ray -", "xray"),
        ("yes, it is", "yes it is"),
        # digit-comma-digit deletes every mark: "/" touches no space but goes without leaving one
        ("1,000", "1000"),
        ("1,000 a/b", "1000 ab"),
        # a line break is a space before the rule is applied: ", " occurs
        ("a,b,\nc", "ab c"),
        # contractions, from either half-written form; "lets" and "shes" are not in the official table
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("lets", "lets"),
        ("shes", "shes"),
        ("somebody'd", "somebodyd"),
        # ":" and "'" are not punctuation
        ("12:30", "12:30"),
        # other scripts pass through, lower-cased
        ("É, 狗", "é 狗"),
        # an option letter is an article
        ("A", ""),
    ],
)
def test_normalize_answer(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_periods_go_as_in_the_official_tool() -> None:
    # the intended look-behind would keep the period of "1."; the published one does not
    assert normalize_answer("1.") == "1"
    assert normalize_answer("3.14") == "3.14"
    assert normalize_answer(".5") == ".5"
    assert normalize_answer("u.s.") == "us"
    # re.UNICODE == 32 is passed as the count: 40 periods, 32 removed, 8 stay
    assert normalize_answer("yes" + "." * 40) == "yes" + "." * 8


def test_textvqa_normalisation() -> None:
    # "," deleted before the rule that would make it a space; "'s" becomes a word
    assert normalize_answer("a,b") == "b"
    assert normalize_answer_textvqa("a,b") == "ab"
    assert normalize_answer_textvqa("Joe's") == "joe 's"
    assert vqa_accuracy("joe's", ["joe 's"]) == 0.0
    assert vqa_accuracy("joe's", ["joe 's"], normalize=normalize_answer_textvqa) == 1.0


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_answers(matches: int, expected: float) -> None:
    # k = 3: the 3 sets that leave out a match see 2 -> 2/3 each, the 7 others see 3 -> 1: (3 * 2/3 + 7) / 10 = .9
    # k = 1: one set sees 0, nine see 1 -> 1/3: 9/3 / 10 = .3
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("Red", answers) == pytest.approx(expected)


def test_vqa_accuracy_equals_the_leave_one_out_mean() -> None:
    rng = random.Random(0)
    for _ in range(200):
        answers = [rng.choice(["red", "blue", "a dog"]) for _ in range(rng.randint(4, 12))]
        sets = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
        assert vqa_accuracy("blue", answers) == pytest.approx(fmean(min(1, s.count("blue") / 3) for s in sets))


def test_vqa_accuracy_of_few_answers() -> None:
    assert vqa_accuracy("The dog.", ["dog"]) == 1.0
    assert vqa_accuracy("cat", ["dog"]) == 0.0
    # two answers, m = 1: one set sees the match, the other does not: (0 + 1) / 2
    assert vqa_accuracy("dog", ["dog", "cat"]) == pytest.approx(1 / 2)
    # three answers, m = 2, two matches: (1/2 + 1/2 + 1) / 3
    assert vqa_accuracy("dog", ["dog", "dog", "cat"]) == pytest.approx(2 / 3)
    for n in range(1, 11):
        assert vqa_accuracy("dog", ["dog"] * n) == pytest.approx(1.0)


def test_vqa_accuracy_of_equal_answers() -> None:
    # traps: leaving out every *equal* answer gives 0 here, and comparing raw strings (all ten agree) fails on "Yes."
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 1.0
    assert vqa_accuracy("yes", ["yes."] * 10) == 1.0


def test_vqa_accuracy_of_empty_texts() -> None:
    assert vqa_accuracy("", ["dog"] * 10) == 0.0
    assert vqa_accuracy("dog", [""] * 10) == 0.0
    with pytest.raises(DataError, match="answers: expected a list"):
        vqa_accuracy("dog", [])
    with pytest.raises(DataError, match="answers: .*'dog'"):
        vqa_accuracy("dog", "dog")


def test_exact_match() -> None:
    assert exact_match(" Top  Left\n", "top left") == 1.0
    assert exact_match("Red", "red", ignore_case=False) == 0.0
    assert exact_match("red.", "red") == 0.0
    assert exact_match("red.", "red", ignore_punctuation=True) == 1.0
    assert exact_match("top-left", "topleft", ignore_punctuation=True) == 1.0
    assert exact_match("top-left", "top left", ignore_punctuation=True) == 0.0
    assert exact_match("ÉCOLE", "école") == 1.0
    assert exact_match("", "red") == 0.0
    assert exact_match("a", "a") == 1.0  # not an article here: option letters


@lru_cache
def _edits(a: str, b: str) -> int:
    """The recursive definition of the Levenshtein distance."""
    if not a or not b:
        return len(a) + len(b)
    return min(_edits(a[1:], b) + 1, _edits(a, b[1:]) + 1, _edits(a[1:], b[1:]) + (a[0] != b[0]))


def test_levenshtein() -> None:
    assert levenshtein("kitten", "sitting") == 3  # k -> s, e -> i, + g
    texts = ["".join(t) for n in range(5) for t in itertools.product("ab", repeat=n)]
    assert all(levenshtein(a, b) == _edits(a, b) for a in texts for b in texts)


def test_anls() -> None:
    assert anls("Hello World", ["hello  world "]) == 1.0
    # kitten/sitting: 3 edits, longer text 7: 1 - 3/7; the best of several references counts
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert anls("kitten", ["xxxxxx", "mitten", "sitting"]) == pytest.approx(1 - 1 / 6)
    # accents are letters: cafe/café 1 of 4
    assert anls("cafe", ["CAFÉ"]) == pytest.approx(3 / 4)


def test_anls_threshold() -> None:
    assert anls("abcx", ["abyz"]) == 0.5  # exactly at the threshold counts (2 of 4), as on the DocVQA server
    assert anls("axyz", ["abcd"]) == 0.0  # 1/4 is below
    assert anls("axyz", ["abcd"], threshold=0.2) == 0.25
    assert anls("abcx", ["abyz"], threshold=0.6) == 0.0


def test_anls_takes_lengths_of_the_squeezed_texts() -> None:
    # with the lengths of the raw texts "abc" and 7 spaces would score 1 - 3/10 against "xyz"
    assert anls("abc" + " " * 7, ["xyz"]) == 0.0


def test_anls_of_empty_texts() -> None:
    assert anls("", [""]) == 1.0
    assert anls(" \n", [""]) == 1.0
    assert anls("", ["a"]) == 0.0
    assert anls("a", [""]) == 0.0
    with pytest.raises(DataError, match="references"):
        anls("a", [])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("105", "100", 1.0),  # 5/100 <= .05
        ("95", "100", 1.0),
        ("106", "100", 0.0),
        ("100", "105", 1.0),  # 5/105: relative to the reference
        ("100", "95", 0.0),  # 5/95 > .05
        ("-104", "-100", 1.0),
        ("104", "-100", 0.0),
        ("12%", "0.12", 1.0),
        ("12%", "12.5%", 1.0),  # .005/.125 = .04
        ("12", "12%", 0.0),
        ("1,200", "1200", 0.0),  # no comma stripping
        ("12 cm", "12", 0.0),  # no unit stripping
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # 0 falls back to text
        ("0.01", "0", 0.0),
        ("1.05", "1", 0.0),  # 1.05 - 1 is .050000000000000044
        ("Blue ", "blue", 1.0),
        ("2021 ", "2021", 1.0),
        ("blue", "red", 0.0),
        ("", "5", 0.0),
        ("5", "", 0.0),
        ("", "", 1.0),
        ("%", "%", 1.0),
        ("nan", "nan", 1.0),  # a text
        ("1_000", "1000", 0.0),
        ("inf", "1e999", 0.0),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, expected: float) -> None:
    assert relaxed_accuracy(prediction, reference) == expected


def test_relaxed_accuracy_tolerance() -> None:
    assert relaxed_accuracy("110", "100", tolerance=0.1) == 1.0
    assert relaxed_accuracy("101", "100", tolerance=0.0) == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "published", "strict"),
    [
        ("Yes.", "yes", 1.0, 1.0),
        ("Yes, it does", "no", 0.0, 0.0),
        ("The heart is normal", "no", 1.0, 0.0),  # "no" inside "normal"
        ("abnormal", "no", 1.0, 0.0),
        ("It is not", "no", 1.0, 0.0),  # "no" inside "not"
        ("eyes", "yes", 1.0, 0.0),  # "yes" inside "eyes"
        ("yes or no", "no", 1.0, 0.0),  # hedging; the first verdict is yes
        ("Yes, there is no fracture", "yes", 1.0, 1.0),
        ("There is no fracture", "no", 1.0, 1.0),
        ("left", "left", 0.0, 1.0),  # right, but no yes or no in the text
        ("the left lung is normal", "left", 1.0, 1.0),  # the same answer passes by way of "normal"
        ("cleft", "left", 0.0, 0.0),
        ("on the left side", "left side", 0.0, 1.0),
        ("", "no", 0.0, 0.0),
        ("no", "", 1.0, 0.0),  # the empty text is a substring of all
        ("", "", 0.0, 1.0),
    ],
)
def test_med_closed(prediction: str, reference: str, published: float, strict: float) -> None:
    assert med_closed(prediction, reference) == published
    assert med_closed(prediction, reference, strict=True) == strict


def _scores(recall: float, precision: float, f1: float, exact_match: float) -> object:
    return pytest.approx({"recall": recall, "precision": precision, "f1": f1, "exact_match": exact_match})


def test_med_open_without_repeats() -> None:
    # prediction: right upper lobe nodule (4 words), reference: right lobe mass (3); shared: right, lobe
    # both: recall 2/3, precision 2/4, f1 = 2 * 2 / (4 + 3) = 4/7; published "exact match" 2/4
    assert med_open("Right upper lobe nodule", "the right lobe mass") == _scores(2 / 3, 2 / 4, 4 / 7, 2 / 4)
    assert med_open("Right upper lobe nodule", "the right lobe mass", strict=True) == _scores(2 / 3, 2 / 4, 4 / 7, 0)


def test_med_open_repeats_inflate_the_published_recall_only() -> None:
    # published: tp = 3 (of the prediction), fn = 1 (mass): recall 3/4, precision 3/3, f1 = 2 * 3/4 / (7/4) = 6/7,
    # "exact match" 1/3. strict: tp = min(3, 1) = 1: recall 1/2, precision 1/3, f1 = 2 * 1 / (2 + 3) = 2/5
    assert med_open("lobe lobe lobe", "lobe mass") == _scores(3 / 4, 1, 6 / 7, 1 / 3)
    assert med_open("lobe lobe lobe", "lobe mass", strict=True) == _scores(1 / 2, 1 / 3, 2 / 5, 0)
    # and a repeat in the reference is not missed by the published recall: c_p = 1, no missing word
    assert med_open("lobe", "lobe lobe")["recall"] == 1.0
    assert med_open("lobe", "lobe lobe", strict=True)["recall"] == 0.5


def test_med_open_equal_and_disjoint() -> None:
    for strict in (False, True):
        assert med_open("Left lung.", "left lung", strict=strict) == _scores(1, 1, 1, 1)
        assert med_open("kidney", "left lung", strict=strict) == _scores(0, 0, 0, 0)
        assert med_open("", "left lung", strict=strict) == _scores(0, 0, 0, 0)
        assert med_open("left lung", "", strict=strict) == _scores(0, 0, 0, 0)
    assert med_open("", "") == _scores(0, 0, 0, 0)
    assert med_open("", "the", strict=True) == _scores(1, 1, 1, 1)
    # the published "exact match" ignores order, the strict one does not
    assert med_open("lung left", "left lung")["exact_match"] == 1.0
    assert med_open("lung left", "left lung", strict=True)["exact_match"] == 0.0
