"""Choosing and rescoring by likelihood: exact probabilities, invariances, and every refusal.

Shape letters: B rows, L places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import WORDS, Oracle

from mmdiff import evaluate
from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood.elbo import AnyOrder
from mmdiff.model.likelihood.orders import LeftToRight, RightToLeft
from mmdiff.session import Session
from mmdiff.tasks.dialogue import choice
from mmdiff.tasks.dialogue.choice import LETTERS, MultipleChoice, choose, nll, rescore
from mmdiff.tasks.vqa.task import VQA

CORNERS = ["north", "east", "south", "west"]


class Spelled:
    """Answers of four digits, each a word of the oracle."""

    def sample(self, row: Any, vocab: Vocab) -> Sample:
        return [Target([int(digit) for digit in row["text"]])]

    prompt = parse = score = None  # type: ignore[assignment]


class Known(Oracle):
    """The oracle as far as it stands in for a whole model."""

    readers: dict[str, Any] = {}

    def eval(self) -> None: ...
    def modules(self) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def model() -> MMDiff:
    """Random, with weights that are large enough for pictures and words to matter, and a tower with dropout."""
    torch.manual_seed(0)
    out = MMDiff(toy.backbone(), {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)
    return out


@pytest.fixture
def session(model: MMDiff) -> Session:
    return Session(model, toy.Where(), GenerationConfig(), Path())


def where(n: int = 0) -> dict[str, Any]:
    return toy.Corners()[n]


# Against known probabilities ------------------------------------------------------------------------------------------


def test_the_chosen_option_is_the_likeliest() -> None:
    """With exact conditionals the mean over masks is -log p; four places, so that every count of masks is asked."""
    oracle = Known.random()
    session = Session(oracle, Spelled(), GenerationConfig(), Path())  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    options = ["".join(map(str, digits)) for digits in rng.integers(0, WORDS, (6, 4))]
    exact = np.array([oracle.nll(tuple(int(d) for d in option)) for option in options])
    samples = 400
    out = choose(session, {}, options, field="text", samples=samples)
    one = np.array([nll(oracle, Spelled(), [{"text": o} for o in options], seed=s) for s in range(40)])  # type: ignore
    assert np.all(np.abs(np.array(out.nll) - exact) < 4.5 * one.std(0) / samples**0.5 + 1e-6)
    assert np.diff(np.sort(exact))[0] > 0.2  # so that the winner is no matter of chance
    assert out.index == exact.argmin() and out.prediction == options[out.index] and out.ties == [out.index]


def test_one_place_is_exact(model: MMDiff) -> None:
    row = where()
    batch = collate([toy.Where().sample(row | {"answer": "north"}, model.vocab)], model.vocab, model.readers)
    model.eval()
    with torch.no_grad():
        hidden = model.hidden(
            batch.ids_BL.masked_fill(batch.target_BL, model.vocab.mask_id),
            batch,
            model.encode(batch.media),
            torch.tensor([0]),
        )
        logp_V = model.backbone.head(hidden[0, -1]).log_softmax(-1)
    model.train()
    found = nll(model, toy.Where(), [row | {"answer": word} for word in CORNERS])
    expected = [-float(logp_V[model.vocab.encode(word)[0]]) for word in CORNERS]
    assert found == pytest.approx(expected, rel=1e-5)
    assert model.training  # as it was


def test_another_estimator_of_several_tokens(model: MMDiff) -> None:
    """Order by order the mean is what all sets together give, and the bound of as many levels as tokens estimates."""
    rows = [where() | {"answer": "north west"}, where() | {"answer": "south"}]
    both = [nll(model, toy.Where(), rows, estimator=one()) for one in (LeftToRight, RightToLeft)]
    whole = nll(model, toy.Where(), rows, estimator=AnyOrder())
    assert whole == pytest.approx(np.mean(both, axis=0), rel=1e-5)
    assert abs(both[0][0] - both[1][0]) > 1e-4


# What it does not depend on -------------------------------------------------------------------------------------------


def test_neither_order_nor_company_nor_batch_size(session: Session) -> None:
    options = ["north", "east east east", "south south", "west west west west west", "north east"]
    row = where()
    whole = choose(session, row, options)
    assert whole.nll == pytest.approx(choose(session, row, options, batch_size=2).nll, rel=1e-5)
    assert whole.nll == pytest.approx(choose(session, row, options[::-1]).nll[::-1], rel=1e-5)
    assert whole.nll[1] == pytest.approx(choose(session, row, options[1:2]).nll[0], rel=1e-5)
    assert choose(session, row, options[::-1]).prediction == whole.prediction
    assert whole.nll != choose(session, row, options, seed=1).nll  # it is an estimate


def test_shared_media_are_read_and_encoded_once_and_change_nothing(
    model: MMDiff, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [where(n) | {"answer": word} for n in (0, 3) for word in CORNERS]
    alone = [nll(model, toy.Where(), [row])[0] for row in rows]
    encoded: list[int] = []
    forward, read = toy.Patches.forward, toy.Patches.read
    monkeypatch.setattr(toy.Patches, "forward", lambda self, x: encoded.append(len(x)) or forward(self, x))
    monkeypatch.setattr(toy.Patches, "read", lambda self, data: encoded.append(-1) or read(self, data))
    fresh = [where(0), where(3)]
    shared = [fresh[n] | {"answer": word} for word in CORNERS for n in (0, 1)]  # mixed, two pictures in one batch
    mixed = nll(model, toy.Where(), shared)
    assert encoded == [-1, -1, 2]
    assert mixed[::2] + mixed[1::2] == pytest.approx(alone, rel=1e-5)


class Fresh(toy.Where):
    """A task that makes its pictures itself: each lives only until it is read."""

    def _context(self, row: Any, vocab: Vocab) -> list[Any]:
        return [Media("image", iter([row["image"]])), Text(vocab.encode("where"))]


def test_pictures_that_do_not_outlive_their_row(model: MMDiff, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that are gone leave their ids to later ones, which are other pictures."""
    rows = [where(n) for n in range(12)]
    expected = nll(model, toy.Where(), rows)
    read = toy.Patches.read
    monkeypatch.setattr(toy.Patches, "read", lambda self, data: read(self, next(data)))
    assert nll(model, Fresh(), rows) == pytest.approx(expected, rel=1e-5)


# Ties, length, weights ------------------------------------------------------------------------------------------------


def test_equal_options_tie_and_the_first_is_chosen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(choice, "nll", lambda m, t, rows, **named: asked.append(len(rows)) or nll(m, t, rows, **named))
    out = choose(session, where(), ["east", "north", "east", "north"])
    assert asked == [2]
    assert out.nll[0] == out.nll[2] and out.nll[1] == out.nll[3]
    best = min((0, 1), key=lambda i: out.nll[i])
    assert out.index == best and out.ties == [best, best + 2]
    near = choose(session, where(), ["east", "north"], margin=1e9)
    assert near.index == 0 and near.ties == [0, 1]


def test_length_normalisation(session: Session) -> None:
    options = ["north", "north north north"]
    total, mean = (choose(session, where(), options, normalise=n) for n in ("sum", "token"))
    assert mean.nll == pytest.approx([total.nll[0], total.nll[1] / 3])


def test_rescoring_by_hand(session: Session) -> None:
    row, nbest = where(), ["north", "east", "south", "east"]
    figures = dict(zip(nbest, choose(session, row, nbest).nll, strict=True))
    for weight in (0.0, 0.5, 2.0):
        scores = [-3.0, -1.0, -2.0, -7.5]
        out = rescore(session, row, nbest, scores, weight=weight, field="answer")
        total = [s - weight * figures[text] for s, text in zip(scores, nbest, strict=True)]
        assert [h.index for h in out] == sorted(range(4), key=lambda i: -total[i])
        for h in out:
            assert (h.text, h.nll, h.score) == (nbest[h.index], figures[h.text], scores[h.index])
            assert h.total == pytest.approx(total[h.index])
    plain = rescore(session, row, nbest, field="answer")
    assert [h.nll for h in plain] == sorted(h.nll for h in plain)
    assert [h.index for h in plain if h.text == "east"] == [1, 3]  # equal ones as they came
    kept = rescore(session, row, nbest, field="answer", margin=1e9)
    assert [h.index for h in kept] == [0, 1, 2, 3]


def test_a_margin_keeps_the_given_order_among_the_best_only(session: Session) -> None:
    row = where()
    scores = [-1.0, -0.9, -50.0, -40.0]
    out = rescore(session, row, CORNERS, scores, weight=0.0, margin=0.5, field="answer")
    assert [h.index for h in out] == [0, 1, 3, 2]
    assert [h.index for h in rescore(session, row, CORNERS, scores, weight=0.0, field="answer")] == [1, 0, 3, 2]


def test_dialogues_take_the_answer_as_their_last_turn() -> None:
    said: list[str] = []

    class Heard(VQA):
        def sample(self, row: Any, vocab: Vocab) -> Sample:
            out = super().sample(row, vocab)
            said.append(" ".join(vocab.piece(i) for part in out if not isinstance(part, Media) for i in part.ids or []))
            return out

    session = Session(MMDiff(toy.backbone()), Heard(), GenerationConfig(), Path())
    turns = [("human", "where"), ("gpt", "north"), ("human", "where"), ("gpt", "south")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    for one in (row, {"conversations": row["conversations"][:3]}):  # the second waits for its answer
        choose(session, one, ["east", "west"])
    assert said == [f"where north <eos> where {answer} <eos>" for answer in ("east", "west")] * 2
    assert row["conversations"][-1]["value"] == "south"  # the row itself is not changed


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda s: choose(s, where(), []), DataError, r"^options: \[\], expected a list of at least one text$"),
        (lambda s: choose(s, where(), "north"), DataError, "^options: 'north', expected a list"),
        (lambda s: rescore(s, where(), []), DataError, r"^nbest: \[\], expected a list of at least one text$"),
        (lambda s: rescore(s, where(), ["a"], [1.0, 2.0]), DataError, "^scores: 2 of them for 1 hypotheses$"),
        (lambda s: rescore(s, where(), ["a"], [float("nan")]), DataError, "^scores: nan is not a finite number$"),
        (lambda s: choose(s, where(), ["north"], normalise="tokens"), ConfigError, 'did you mean "token"'),
        (
            lambda s: choose(s, where(), ["north"], levels=0),
            ConfigError,
            "levels=0: expected a whole number",
        ),
        (
            lambda s: choose(s, where(), ["north"], samples=0),
            ConfigError,
            "samples=0: expected a whole number",
        ),
        (lambda s: choose(s, where(), ["north"], margin=-1), ConfigError, "^margin: -1, expected 0 or more nats$"),
    ],
)
def test_refusals(call: Any, kind: type[Exception], message: str, session: Session) -> None:
    with pytest.raises(kind, match=message):
        call(session)


def test_no_rows_have_no_figures(model: MMDiff) -> None:
    assert nll(model, toy.Where(), []) == []


# The task -------------------------------------------------------------------------------------------------------------

ASKED = {"question": "where", "options": ["in the north", "in the south", "west"], "answer": "in the south"}
KNOWN = "where in the north south west a. b. c. d. a b c d answer with one letter.".split()


@pytest.fixture(scope="module")
def letters() -> MMDiff:
    torch.manual_seed(1)
    return MMDiff(new_backbone(tokenizer=word_tokenizer(KNOWN), hidden_size=32, layers=2, heads=2, init_std=0.3)).eval()


def test_a_question_with_its_options_on_a_canvas(letters: MMDiff) -> None:
    vocab, task = letters.vocab, MultipleChoice()
    a, b, c = (vocab.encode(x)[0] for x in "abc")
    listed = "where a. in the north b. in the south c. west answer with one letter."
    allow = ((a, a + 1), (b, b + 1), (c, c + 1))
    assert task.sample(ASKED, vocab) == [Text(vocab.encode(listed)), Target([b], allow=allow), Text([vocab.eos_id])]
    assert task.prompt(ASKED, vocab)[1] == Target([vocab.mask_id], allow=allow)
    with_media = task.sample(ASKED | {"audio": ["x", "y"], "image": "z"}, vocab)
    found = [part for part in with_media if isinstance(part, Media)]
    assert found == [Media("image", "z"), Media("audio", "x"), Media("audio", "y")]
    assert MultipleChoice(instruction="").sample(ASKED, vocab)[0] == Text(vocab.encode(listed.split(" answer")[0]))
    assert task.score("b", ASKED) == task.score("B", ASKED) == {"accuracy": 1.0}
    assert task.score("c", ASKED) == {"accuracy": 0.0}


def test_evaluation_writes_the_likeliest_letter_in_one_forward(letters: MMDiff) -> None:
    """Even where some other word is likelier than all of them."""
    session = Session(letters, MultipleChoice(), GenerationConfig(), Path())
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        options = [str(o) for o in rng.permutation(["north", "south", "west", "in the west"])[: rng.integers(2, 5)]]
        rows.append({"question": "where", "options": options, "answer": options[int(rng.integers(len(options)))]})
    means, records = evaluate(session, rows, batch_size=7)
    expected, outside = [], 0
    for row, record in zip(rows, records, strict=True):
        batch = collate([session.task.prompt(row, letters.vocab)], letters.vocab)
        with torch.no_grad():
            logits_V = letters.backbone(batch.ids_BL)[0, batch.target_BL[0]][0]
        n = len(row["options"])
        ids = [letters.vocab.encode(letter)[0] for letter in LETTERS[:n]]
        best = int(logits_V[ids].argmax())
        outside += int(logits_V.argmax()) not in ids
        assert record["prediction"].upper() == LETTERS[best] and record["forwards"] == 1
        # the same comparison by the bound
        costs = [nll(letters, session.task, [row | {"answer": option}])[0] for option in row["options"]]
        assert int(np.argmin(costs)) == best
        expected.append(row["answer"] == row["options"][best])
    assert means["accuracy"] == np.mean(expected) and outside > 0


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"answer": "in the nort"}, "answer: 'in the nort' is none of the options .did you mean \"in the north\""),
        ({"answer": None}, "answer: None is none of the options"),
        ({"options": None}, "options: None is not a list of texts"),
        ({"options": ["north", 3]}, r"options: \['north', 3\] is not a list of texts"),
        ({"options": ["north"]}, "options: 1 of them, expected 2 to 26"),
        ({"options": ["north"] * 27}, "options: 27 of them, expected 2 to 26"),
        ({"question": None}, "no question: question: None"),
        ({"where": "rows.json row 3", "answer": "up"}, "^rows.json row 3: answer: 'up'"),
    ],
)
def test_rows_that_cannot_be_used(changed: dict[str, Any], message: str, letters: MMDiff) -> None:
    with pytest.raises(DataError, match=message):
        MultipleChoice().sample(ASKED | changed, letters.vocab)


def test_a_letter_must_be_one_id() -> None:
    class Split:
        """Writes a letter in two ids."""

        all_special_ids: Sequence[int] = ()

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [4, 5]}

    vocab = Vocab(Split(), 10, mask_id=2, eos_id=1, pad_id=0, slot_id=2)
    with pytest.raises(ConfigError, match="'A' takes 2 ids of the tokenizer, expected one"):
        MultipleChoice().sample(ASKED, vocab)
