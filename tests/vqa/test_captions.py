"""Golden values of the caption metrics, worked out by hand on a few words."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from mmdiff.errors import DataError
from mmdiff.tasks.vqa.captions import bleu, cider, rouge_l, tokenize

pytestmark = pytest.mark.needs("rapidfuzz")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog, running.", ["a", "dog", "running"]),
        ("a T-shirt (3.5 inches) -- 1,000 of them", ["a", "t-shirt", "3.5", "inches", "1,000", "of", "them"]),
        ("the man's dog can’t run", ["the", "man", "'s", "dog", "ca", "n't", "run"]),
        ("'quoted' o'clock dogs'", ["quoted", "o'clock", "dogs"]),
        ("red/blue_green", ["red", "blue", "green"]),
        ("cafe\u0301 ÉCOLE", ["café", "école"]),
        ("हिन्दी", ["हिन्दी"]),  # vowel signs are combining marks, not separators
        ("...", []),
        ("", []),
    ],
)
def test_tokenize(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_bleu_clips_by_the_largest_count_in_one_reference() -> None:
    # Papineni's example: seven "the"; references hold it twice and once -> p_1 = 2/7; lengths 7 and 6, 7: no penalty
    references = [["the cat is on the mat", "there is a cat on the mat"]]
    assert bleu(["the the the the the the the"], references, n=1) == pytest.approx(2 / 7)
    assert bleu(["the the the the the the the"], references, n=2) == 0.0


def test_bleu_of_every_order() -> None:
    # a b c d e x against a b c d e f: p_1 = 5/6, p_2 = 4/5, p_3 = 3/4, p_4 = 2/3; equal lengths
    # their products: 5/6, 4/6, 3/6, 2/6 -> BLEU-n = (product)^(1/n)
    for n, product in enumerate([5 / 6, 4 / 6, 3 / 6, 2 / 6], 1):
        assert bleu(["a b c d e x"], [["a b c d e f"]], n=n) == pytest.approx(product ** (1 / n))


def test_bleu_penalty_takes_the_nearest_length_over_the_set() -> None:
    # lengths 2 and 2 -> c = 4; nearest of (5, 3) is 3, nearest of (1, 3) is a tie -> the shorter, 1: r = 4, no penalty
    predictions, references = ["a b", "c d"], [["a b x y z", "a b x"], ["c", "c d x"]]
    assert bleu(predictions, references, n=1) == pytest.approx(1.0)
    # without the one-word reference r = 3 + 3, c = 4: exp(1 - 6/4)
    assert bleu(predictions, [["a b x y z", "a b x"], ["c d x"]], n=1) == pytest.approx(math.exp(-0.5))
    # a prediction longer than its reference pays in p_1 only, and wins nothing by the penalty: 2/3
    assert bleu(["a b x"], [["a b"]], n=1) == pytest.approx(2 / 3)


def test_bleu_sums_over_the_set_before_dividing() -> None:
    # found 3 + 0 of 3 + 1 words: 3/4, not the mean (1 + 0) / 2 of the two pictures
    assert bleu(["a b c", "x"], [["a b c"], ["y"]], n=1) == pytest.approx(3 / 4)


def test_rouge_l() -> None:
    # police killed the gunman / police kill the gunman: LCS 3 of 4 and 4 words: P = R = 3/4 = F
    assert rouge_l(["police killed the gunman"], [["police kill the gunman"]]) == pytest.approx(3 / 4)
    # the gunman police / the gunman kill police now: LCS = the gunman police = 3; P = 1, R = 3/5, beta^2 = 1.44
    # F = 2.44 * .6 / (.6 + 1.44) = 1.464 / 2.04
    assert rouge_l(["the gunman police"], [["the gunman kill police now"]]) == pytest.approx(1.464 / 2.04)
    # the words in another order: LCS 1 of 3
    assert rouge_l(["c b a"], [["a b c"]]) == pytest.approx(1 / 3)
    # a repeated word matches once: LCS 1, P = 1/2, R = 1, F = 2.44 * .5 / (1 + 1.44 * .5) = 1.22 / 1.72
    assert rouge_l(["a a"], [["a"]]) == pytest.approx(1.22 / 1.72)


def test_rouge_l_takes_the_largest_precision_and_recall_apart() -> None:
    # a b: against "a b c d" P = 1, R = 1/2; against "a" P = 1/2, R = 1 -> P = R = 1, F = 1
    assert rouge_l(["a b"], [["a b c d", "a"]]) == pytest.approx(1.0)
    # the mean over pictures
    assert rouge_l(["a b", "x"], [["a b c d", "a"], ["y"]]) == pytest.approx(0.5)


def test_cider_of_one_word_captions() -> None:
    # two pictures, log N = log 2; only 1-grams exist, so the cosine of order 1 is divided by n = 4: 10 * 1/4
    assert cider(["dog", "cat"], [["dog"], ["cat"]]) == pytest.approx(2.5)
    # a word in the references of every picture has weight log 2 - log 2 = 0
    assert cider(["dog", "dog"], [["dog"], ["dog"]]) == 0.0


def test_cider_clips_and_penalises_length() -> None:
    # n = 1, idf of "dog" and "red" is log 2 = L. Prediction dog dog red = (2L, L), reference dog red = (L, L):
    # clipped dot (min(2, 1) * 1 + 1 * 1) L^2 = 2 L^2, norms sqrt(5) L and sqrt(2) L, length difference 1, sigma 6
    # picture 2 scores 0; the mean halves: 10 * 2 / sqrt(10) * exp(-1/72) / 2
    expected = 10 * 2 / math.sqrt(10) * math.exp(-1 / 72) / 2
    assert cider(["dog dog red", "x"], [["dog red"], ["cat"]], n=1) == pytest.approx(expected)


def test_cider_counts_a_picture_once_and_averages_its_references() -> None:
    # N = 3. df(dog) = 2 pictures (twice in the first does not count twice), df(red) = 1:
    # w_dog = log 3/2, w_red = log 3. Prediction "red": cosine with "dog red" = w_red / sqrt(w_red^2 + w_dog^2),
    # length difference 1; with "dog" 0. Mean over two references, over three pictures (the others score 0)
    w_dog, w_red = math.log(3 / 2), math.log(3)
    cosine = w_red / math.hypot(w_red, w_dog) * math.exp(-1 / 72)
    references = [["dog red", "dog"], ["dog"], ["cat"]]
    assert cider(["red", "x", "x"], references, n=1) == pytest.approx(10 * cosine / 2 / 3)


def test_cider_of_perfect_captions() -> None:
    # every order has a non-zero vector: cosine 1 in all four, 10; three words lack the 4-grams: 10 * 3/4
    assert cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx(10.0)
    assert cider(["a b c", "e f g"], [["a b c"], ["e f g"]]) == pytest.approx(7.5)
    # one picture: log 1 = 0
    assert cider(["a b c d"], [["a b c d"]]) == 0.0


def test_another_tokenizer() -> None:
    # characters: 1 of 2 match; by words none does
    assert bleu(["狗叫"], [["狗跑"]], n=1) == 0.0
    assert bleu(["狗叫"], [["狗跑"]], n=1, tokenize=list) == pytest.approx(0.5)
    assert rouge_l(["A"], [["a"]], tokenize=str.split) == 0.0


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider])
def test_empty_captions_score_zero(metric: Callable[..., float]) -> None:
    assert metric(["", ""], [["a dog"], ["a cat"]]) == 0.0
    assert metric(["a dog", "a cat"], [[""], ["..."]]) == 0.0
    assert metric([""], [[""]]) == 0.0


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider])
def test_lists_that_do_not_fit(metric: Callable[..., float]) -> None:
    with pytest.raises(DataError, match="predictions: expected a list"):
        metric([], [])
    with pytest.raises(DataError, match="predictions: .*'a dog'"):
        metric("a dog", [["a dog"]])
    with pytest.raises(DataError, match="a row for each of 2 predictions, got 1"):
        metric(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="a row for each of 1 predictions, got 2"):
        metric(["a"], [["a"], ["b"]])
    with pytest.raises(DataError, match=r"references\[1\]: .*\[\]"):
        metric(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match=r"references\[0\]: .*'a dog'"):
        metric(["a"], ["a dog"])
