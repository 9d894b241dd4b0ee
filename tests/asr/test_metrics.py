"""Speech metrics against counts by hand, an edit distance written here, closed forms, and other implementations."""

from __future__ import annotations

import math
import pickle
import random

import pytest

from mmdiff.errors import ConfigError, DataError, MissingExtra
from mmdiff.tasks.asr import metrics as asr_metrics
from mmdiff.tasks.asr.metrics import (
    NORMALISERS,
    Errors,
    align,
    bootstrap,
    char_errors,
    corpus,
    normaliser,
    paired_bootstrap,
    word_errors,
)

pytestmark = pytest.mark.needs("jiwer")


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein by its recursion, one row of the table at a time."""
    above = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        row = [i]
        for j, said in enumerate(hypothesis, 1):
            row.append(min(row[j - 1] + 1, above[j] + 1, above[j - 1] + (expected != said)))
        above = row
    return above[-1]


def sentences(n: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    draw = lambda: " ".join(rng.choice(["a", "b", "cab", "ab"]) for _ in range(rng.randint(0, 9)))  # noqa: E731
    return [(draw(), draw()) for _ in range(n)]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),  # substitutions, deletions, insertions, hits
    [
        ("the cat sat", "the cat sat", (0, 0, 0, 3)),
        ("the cat sat", "the bat sat", (1, 0, 0, 2)),
        ("the cat sat", "the sat", (0, 1, 0, 2)),
        ("the cat sat", "the fat cat sat", (0, 0, 1, 3)),
        ("call two five one", "call two nine one nine", (1, 0, 1, 3)),
        ("a b", "", (0, 2, 0, 0)),
        ("", "a b", (0, 0, 2, 0)),
        ("", "", (0, 0, 0, 0)),
        (" \n", "a\tb", (0, 0, 2, 0)),
        # white space of any kind parts words; jiwer alone takes a tab between words for a part of one
        ("a\tb", "a b", (0, 0, 0, 2)),
        ("a\nb", "a b", (0, 0, 0, 2)),
        ("a\u00a0b", " a   b ", (0, 0, 0, 2)),
        ("The cat", "the cat.", (2, 0, 0, 0)),  # nothing is cleaned unasked
    ],
)
def test_words_counted_by_hand(reference: str, hypothesis: str, counts: tuple[int, ...]) -> None:
    errors = word_errors(reference, hypothesis)
    assert errors == Errors(*counts)
    assert errors.total == sum(counts[:3]) and errors.length == len(reference.split())


def test_characters_counted_by_hand() -> None:
    assert char_errors("cat", "bat") == Errors(1, 0, 0, 2)
    assert char_errors("a  b\n", "ab") == Errors(0, 1, 0, 2)  # the run of spaces is one character
    assert char_errors("", "a b") == Errors(0, 0, 3, 0)
    assert char_errors("ab", "") == Errors(0, 2, 0, 0)
    assert char_errors("", "") == Errors(0, 0, 0, 0)
    assert char_errors("是的", "是").rate == 0.5


def test_rates() -> None:
    assert word_errors("a b c d", "a x c").rate == 0.5
    assert word_errors("", "a b").rate == 2.0 and word_errors("", "").rate == 0.0
    assert word_errors("a", "b c d").rate == 3.0  # more than 100 %


def test_equal_to_another_edit_distance() -> None:
    for reference, hypothesis in sentences(300):
        for count, pieces in ((word_errors, str.split), (char_errors, list)):
            left, right = pieces(reference), pieces(hypothesis)
            errors = count(reference, hypothesis)
            assert errors.total == distance(left, right)
            assert errors.length == len(left) and errors.length - errors.deletions + errors.insertions == len(right)


@pytest.mark.needs("kaldialign")
def test_equal_to_kaldialign() -> None:
    import kaldialign

    for reference, hypothesis in sentences(300, seed=1):
        errors = word_errors(reference, hypothesis)
        theirs = kaldialign.edit_distance(reference.split(), hypothesis.split())
        assert (errors.total, errors.length) == (theirs["total"], theirs["ref_len"])
        assert errors.insertions - errors.deletions == theirs["ins"] - theirs["del"]


def test_alignment_in_order() -> None:
    assert align("call five one", "please call nine one") == [
        ("insert", None, "please"),
        ("equal", "call", "call"),
        ("substitute", "five", "nine"),
        ("equal", "one", "one"),
    ]
    assert align("a b", "") == [("delete", "a", None), ("delete", "b", None)]
    assert align("", "a") == [("insert", None, "a")]
    assert align("", "") == []


def test_an_alignment_is_both_sides_and_the_counts() -> None:
    for reference, hypothesis in sentences(200, seed=2):
        pairs, errors = align(reference, hypothesis), word_errors(reference, hypothesis)
        assert [left for _, left, _ in pairs if left is not None] == reference.split()
        assert [right for _, _, right in pairs if right is not None] == hypothesis.split()
        assert all((left == right) == (op == "equal") for op, left, right in pairs)
        ops = [op for op, _, _ in pairs]
        assert [ops.count(op) for op in ("substitute", "delete", "insert", "equal")] == [
            errors.substitutions, errors.deletions, errors.insertions, errors.hits
        ]  # fmt: skip


def test_a_corpus_rate_is_no_mean_of_rates() -> None:
    every = [word_errors("a", "b"), word_errors("a b c d e f g h i", "a b c d e f g h i"), word_errors("", "x")]
    assert corpus(every) == {"wer": 0.2, "substitutions": 1, "deletions": 0, "insertions": 1, "words": 10}
    assert corpus(iter(every)) == corpus(every)
    assert corpus([word_errors("", "")])["wer"] == 0.0
    for nothing in ([], iter([])):
        with pytest.raises(DataError, match="no utterance to score"):
            corpus(nothing)


def quantile(q: float, n: int, p: float) -> int:
    """Of the binomial distribution."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= q:
            return k
    return n


def test_bootstrap_of_one_word_utterances_is_binomial() -> None:
    """The errors of a drawing of U one-word utterances, a share p of them wrong, are binomial (U, p)."""
    every = [Errors(1, 0, 0, 0)] * 7 + [Errors(0, 0, 0, 1)] * 10
    # the distribution function is 0.011 or more away from 0.025 and 0.975, 5 standard errors of 6000 drawings
    assert (quantile(0.025, 17, 7 / 17), quantile(0.975, 17, 7 / 17)) == (3, 11)
    assert bootstrap(every, n=6000) == pytest.approx((3 / 17, 11 / 17))


def test_bootstrap_draws_utterances_and_not_words() -> None:
    """One utterance has all errors and most words: rates of a drawing are 90k / (90k + 10), k times it was drawn."""
    every = [Errors(90, 0, 0, 0)] + [Errors(0, 0, 0, 1)] * 9
    low, high = bootstrap(every, n=2000)
    assert low == 0.0  # it is left out with probability 0.9^10 = .35
    k = quantile(0.975, 10, 0.1)
    assert high == pytest.approx(90 * k / (90 * k + 10 - k))


def test_bootstrap_is_repeatable() -> None:
    every = [word_errors(*pair) for pair in sentences(50)]
    assert bootstrap(every, seed=3) == bootstrap(every, seed=3) != bootstrap(every, seed=4)
    low, high = bootstrap(every)
    assert low < corpus(every)["wer"] < high
    assert bootstrap([Errors(0, 0, 2, 0), Errors(0, 0, 2, 0)]) == (4.0, 4.0)  # no words at all, as `rate` has it
    with pytest.raises(ConfigError, match="bootstrap: 0 drawings"):
        bootstrap(every, n=0)
    with pytest.raises(DataError, match="no utterance"):
        bootstrap([])


@pytest.mark.needs("kaldialign")
def test_bootstrap_against_kaldialign() -> None:
    """It takes 1.96 standard deviations and not percentiles, which is the same for a rate that is nearly normal."""
    import kaldialign

    pairs = [(reference or "a", hypothesis) for reference, hypothesis in sentences(400, seed=5)]
    low, high = bootstrap([word_errors(*pair) for pair in pairs], n=3000)
    theirs = kaldialign.bootstrap_wer_ci(
        [left.split() for left, _ in pairs], [right.split() for _, right in pairs], replications=3000
    )
    width = theirs["ci95max"] - theirs["ci95min"]
    assert (low, high) == pytest.approx((theirs["ci95min"], theirs["ci95max"]), abs=0.06 * width)


def test_paired_bootstrap_shares_its_drawings() -> None:
    """A second system that saves one of ten words in every utterance is better by exactly 0.1 in every drawing."""
    rng = random.Random(0)
    first = [Errors(k := rng.randint(1, 9), 0, 0, 10 - k) for _ in range(30)]
    second = [Errors(e.substitutions - 1, 0, 0, e.hits + 1) for e in first]
    assert paired_bootstrap(first, second) == pytest.approx(
        {"difference": -0.1, "low": -0.1, "high": -0.1, "improved": 1.0}
    )
    assert paired_bootstrap(second, first)["improved"] == 0.0
    assert paired_bootstrap(first, first) == {"difference": 0.0, "low": 0.0, "high": 0.0, "improved": 0.0}
    low, high = bootstrap(first)
    assert high - low > 0.1  # unpaired, the two cannot be told apart


def test_paired_bootstrap_by_closed_form() -> None:
    """One-word utterances: 7 of 17 get better, none worse. The difference of a drawing is minus that binomial / U."""
    first = [Errors(1, 0, 0, 0)] * 12 + [Errors(0, 0, 0, 1)] * 5
    second = [Errors(0, 0, 0, 1)] * 7 + first[7:]
    out = paired_bootstrap(first, second, n=6000)
    assert (out["difference"], out["low"], out["high"]) == pytest.approx((-7 / 17, -11 / 17, -3 / 17))
    assert out["improved"] == pytest.approx(1 - (10 / 17) ** 17, abs=0.001)  # not so where none of the 7 is drawn
    with pytest.raises(DataError, match="different references"):
        paired_bootstrap(first, second[1:])
    with pytest.raises(DataError, match="different references"):
        paired_bootstrap(first, [Errors(0, 0, 0, 2), *second[1:]])


# Normalisers


def test_names() -> None:
    text = " Don't  STOP, [noise] colour!"
    assert normaliser("none")(text) == text
    assert normaliser("lower")(text) == " don't  stop, [noise] colour!"
    assert normaliser("upper")(text) == " DON'T  STOP, [NOISE] COLOUR!"
    assert normaliser("basic")(text) == "don t stop colour"
    with pytest.raises(ConfigError, match=r'normalise: no normaliser \'englsh\' \(did you mean "english"\?\)'):
        normaliser("englsh")
    for function in NORMALISERS.values():  # a task is sent to data processes
        assert pickle.loads(pickle.dumps(function)) is not None


ENGLISH = [
    ("", ""),
    ("Don't stop, [noise] the colour!", "do not stop the color"),
    ("Mr. Smith's at 3,000 metres.", "mister smith is at 3000 meters"),
    ("uh I'm gonna (laughs) go, hmm", "i am going to go"),
    ("twenty-one thousand dollars and fifty cents", "$21000.50"),
    ("He paid $2 and 7 cents, i.e. 10 percent.", "he paid $2.07 i e 10%"),
    ("the one and only", "the one and only"),
    ("one hundred and one", "101"),
    ("two point five million", "2500000"),
    ("THE TWENTY FIRST OF JUNE NINETEEN SIXTY", "the 21st of june 1960"),
    ("café naïve", "cafe naive"),
    ("it's been done; we'd been, they'll've", "it has been done we had been they will have"),
    ("St John's cafe on 5th Ave.", "saint john is cafe on 5th ave"),
    ("three and a half", "3.5"),
    ("and a half", ""),  # a slip of the published rules
]


@pytest.mark.needs("whisper_normalizer")
@pytest.mark.parametrize(("text", "expected"), ENGLISH)
def test_english(text: str, expected: str) -> None:
    from whisper_normalizer.english import EnglishTextNormalizer

    assert normaliser("english")(text) == expected == EnglishTextNormalizer()(text).strip()


@pytest.mark.needs("whisper_normalizer")
def test_english_as_transformers_has_it() -> None:
    """The table is the whole of OpenAI's, and the rules are those of transformers."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    table = EnglishSpellingNormalizer().mapping
    assert len(table) == 1739
    theirs = EnglishTextNormalizer(table)
    for british, american in list(table.items())[::50]:
        assert normaliser("english")(british) == theirs(british) == american
    assert EnglishTextNormalizer({})("colour") == "colour"  # what is lost without the table


@pytest.mark.needs("whisper_normalizer")
def test_english_is_not_the_packages_own() -> None:
    """It has four rules that OpenAI's does not, one of which changes the noun."""
    from whisper_normalizer.english import EnglishTextNormalizer

    text = "the cause is kinda sorta known, dunno"
    assert normaliser("english")(text) == "the cause is kinda sorta known dunno"
    assert EnglishTextNormalizer()(text) == "the because is kind of sort of known do not know"


@pytest.mark.needs("whisper_normalizer")
@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("nine nine three seven", "9937"),
        ("twenty twenty four", "2024"),
        ("double five seven", "557"),
        ("first second third", "1st 2nd 3rd"),
        ("call oh one two", "call 012"),
    ],
)
def test_the_trap_of_spoken_digits(spoken: str, written: str) -> None:
    assert normaliser("english")(spoken) == written
    assert normaliser("basic")(spoken) == spoken


@pytest.mark.needs("whisper_normalizer")
def test_a_digit_string_is_all_right_or_all_wrong_after_english() -> None:
    said, heard = "nine nine three seven", "nine five three seven"
    assert word_errors(said, heard).rate == 0.25
    english = normaliser("english")
    assert word_errors(english(said), english(heard)).rate == 1.0


@pytest.mark.needs("whisper_normalizer")
def test_english_survives_any_words() -> None:
    """What a model says may be any salad of number words."""
    from transformers.models.whisper.english_normalizer import EnglishNumberNormalizer

    rng, words = random.Random(0), sorted(EnglishNumberNormalizer().words)
    words += ["half", "a", "$", "%", "7", "3.5", "1,000", ".", "¢7", "'s", "20th", "½", "٣", "(", "["]
    english = normaliser("english")
    for _ in range(2000):
        text = english(" ".join(rng.choice(words) for _ in range(rng.randint(0, 6))))
        assert text == " ".join(text.split())


def test_a_missing_package_is_said_before_the_first_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, extra: str) -> None:
        raise MissingExtra(f"{package} is not installed: pip install 'mmdiff[{extra}]'")

    monkeypatch.setattr(asr_metrics, "require", missing)
    asr_metrics._whisper_english.cache_clear()
    with pytest.raises(MissingExtra, match=r"whisper_normalizer is not installed: .*mmdiff\[audio\]"):
        normaliser("english")
    with pytest.raises(MissingExtra, match="jiwer is not installed"):
        word_errors("a", "a")
    normaliser("basic")
