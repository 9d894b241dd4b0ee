"""Which of several texts? Multiple choice and n-best rescoring, by the likelihood that a model gives to each.

    session = mmdiff.load("runs/audio-diffa")
    choose(session, {"audio": "clip.wav", "question": "Who speaks?"}, ["a child", "an old man"]).prediction

Shape letters: B rows, N crops of media, T features per crop, E encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.sample import Item, Media, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.data.collate import collate
from mmdiff.data.fields import check_row
from mmdiff.errors import ConfigError, DataError, RowError, located, nearest
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.model.features import subset
from mmdiff.model.likelihood import estimate
from mmdiff.model.likelihood.elbo import Elbo
from mmdiff.model.likelihood.passes import Estimator
from mmdiff.parts import part
from mmdiff.parts.arguments import check_argument
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row, Task
from mmdiff.session import Session

from .templates import Plain, Template
from .turns import NOUNS, read_turns

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Normalise = Literal["sum", "token"]


@dataclass(frozen=True)
class Choice:
    """The chosen option. nll: that of each option, in nats. ties: options as good as the best; the first is chosen."""

    index: int
    prediction: str
    nll: list[float]
    ties: list[int]


@dataclass(frozen=True)
class Hypothesis:
    """A ranked hypothesis. total: score - weight * nll. index: its number in the given list."""

    index: int
    text: str
    nll: float
    score: float
    total: float


def nll(
    model: MMDiff,
    task: Task,
    rows: Sequence[Row],
    *,
    normalise: Normalise = "sum",
    levels: int = 16,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    estimator: Estimator | None = None,
    links: Sequence[Any] = (),
) -> list[float]:
    """Returns -log p(answer | the rest of the row) of each row, in nats: `mmdiff.model.likelihood.estimate`.

    It is computed on the training canvas.
    normalise: "sum" is of the whole answer with what the task puts behind it (an end id, EOS up to `answer_length`);
        "token" is that divided by its positions.
    levels: how many numbers of masked positions are scored; of an answer with more positions, a sample of them.
    samples: masks that are drawn per number, the mean is taken. All rows are masked by the same noise, so a figure does
        not depend on which rows stand beside it, and answers of one length are compared under the same masks.
    estimator: None: the bound of `levels`; or another (`mmdiff.model.likelihood.elbo`, `orders`), which has no levels.
    links: guidance, as `mmdiff.model.likelihood.estimate` has it.
    batch_size: rows per forward. Media that several rows share are encoded once per batch.
    """
    if normalise not in ("sum", "token"):
        raise ConfigError(f"normalise: {normalise!r}{nearest(str(normalise), ['sum', 'token'])}")
    for name, value in (("levels", levels), ("samples", samples), ("batch_size", batch_size)):
        check_argument(AtLeast1, value, name)
    out: list[float] = []
    with evaluating(model):
        for first in range(0, len(rows), batch_size):
            batch = _batch(model, task, rows[first : first + batch_size])
            chosen = estimator or Elbo(levels)
            drawn = [estimate(model, batch, chosen, seed=seed + n, links=links).nll_B for n in range(samples)]
            nll_B = torch.stack(drawn).mean(0)
            if normalise == "token":
                nll_B = nll_B / batch.target_BL.sum(1).clamp(min=1)
            out += nll_B.tolist()
    return out


def choose(
    session: Session, row: Row, options: Sequence[str], *, field: str = "answer", margin: float = 0.0, **estimate: Any
) -> Choice:
    """Returns the likeliest of several answers to a row.

    field: of the row that holds the answer ("text" in speech recognition). In a dialogue it is the last answer.
    margin: options within so many nats of the best are ties; of ties the first is chosen.
    estimate: the keywords of `nll`. Raises DataError for an empty list, and for options that the task refuses.
    """
    costs = _costs(session, row, options, field, "options", estimate)
    ties = _best([-cost for cost in costs], margin)
    return Choice(ties[0], options[ties[0]], costs, ties)


def rescore(
    session: Session,
    row: Row,
    nbest: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    weight: float = 1.0,
    field: str = "text",
    margin: float = 0.0,
    **estimate: Any,
) -> list[Hypothesis]:
    """Returns the hypotheses of another recogniser, ranked by `score - weight * nll`, the best first.

    scores: the recogniser's own log-probabilities in nats, the higher the better; None: zeros.
    margin: hypotheses within so many nats of the best keep the order in which they were given.
    estimate: the keywords of `nll`. Raises DataError for an empty list, scores of another length or not finite, and
    hypotheses that the task refuses.
    """
    given = [0.0] * len(nbest) if scores is None else [float(score) for score in scores]
    if len(given) != len(nbest):
        raise DataError(f"scores: {len(given)} of them for {len(nbest)} hypotheses")
    for score in given:
        if not math.isfinite(score):
            raise DataError(f"scores: {score} is not a finite number")
    costs = _costs(session, row, nbest, field, "nbest", estimate)
    total = [score - weight * cost for score, cost in zip(given, costs, strict=True)]
    ties = _best(total, margin)
    rest = sorted(set(range(len(nbest))) - set(ties), key=lambda i: -total[i])
    return [Hypothesis(i, nbest[i], costs[i], given[i], total[i]) for i in [*ties, *rest]]


@part
class MultipleChoice:
    """A task for `mmdiff eval`, whose rows have `audio` or `image`, options, and the right option as `answer`:

        {"audio": "clip.wav", "question": "Who speaks?", "options": ["a child", "an old man"], "answer": "a child"}

    The options are listed by letter behind the question, and the answer is one position at which only their letters
    may stand, in front of a given end id. So the one forward that fills it in compares their likelihoods. The score is
    `accuracy`.

    template: as in `mmdiff.tasks.vqa.VQA`. instruction: stands behind the list. media: the kind of the pictures; sounds
        are of kind `audio`.
    """

    fields = ("image", "audio", "protein", "question", "options", "answer")

    def __init__(
        self, template: Template | None = None, instruction: str = "Answer with one letter.", media: str = "image"
    ) -> None:
        self.template = Plain() if template is None else template
        self.instruction, self.media = instruction, media

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        with located(row.get("where")):
            return self._canvas(row, _letters(row, vocab)[_right(row)], vocab, train=True)

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        with located(row.get("where")):
            return self._canvas(row, vocab.mask_id, vocab, train=False)

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        return vocab.decode(ids).strip()

    def score(self, prediction: str, row: Row) -> dict[str, float]:
        with located(row.get("where")):
            return {"accuracy": float(prediction.upper() == LETTERS[_right(row)])}

    def _canvas(self, row: Row, answer: int, vocab: Vocab, *, train: bool) -> Sample:
        check_row(row, self.fields)
        question = row.get("question")
        if not isinstance(question, str):
            raise RowError("no question", f"question: {question!r:.60}")
        listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, _options(row), strict=False)]
        media = {field: row[field] for field in NOUNS if row.get(field) is not None}
        asked = {**media, "question": "\n".join(line for line in [question, *listed, self.instruction] if line)}
        ((content, _),) = read_turns(asked, self.media)
        target = Target([answer], allow=tuple((i, i + 1) for i in _letters(row, vocab)))
        return [*self.template.canvas([(content, target)], vocab, train=train), Text([self.template.end(vocab)])]


def _options(row: Row) -> list[str]:
    options = row.get("options")
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise DataError(f"options: {options!r:.60} is not a list of texts")
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"options: {len(options)} of them, expected 2 to {len(LETTERS)}")
    return list(options)


def _right(row: Row) -> int:
    options, answer = _options(row), row.get("answer")
    if not isinstance(answer, str) or answer not in options:
        raise DataError(f"answer: {answer!r:.60} is none of the options{nearest(str(answer), options)}")
    return options.index(answer)


def _letters(row: Row, vocab: Vocab) -> list[int]:
    """Returns one id per letter. Raises ConfigError for a letter that takes several ids."""
    found = [literal(letter, vocab) for letter in LETTERS[: len(_options(row))]]
    for letter, ids in zip(LETTERS, found, strict=False):
        if len(ids) != 1:
            raise ConfigError(f"task: {letter!r} takes {len(ids)} ids of the tokenizer, expected one")
    return [ids[0] for ids in found]


def _costs(
    session: Session, row: Row, texts: Sequence[str], field: str, what: str, estimate: dict[str, Any]
) -> list[float]:
    """Returns the nll of each text; equal texts have equal figures."""
    if not texts or isinstance(texts, str):
        raise DataError(f"{what}: {texts!r:.60}, expected a list of at least one text")
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{what}: {text!r:.60} is not text")
    check_row(row, getattr(session.task, "fields", None), strict=True)
    different = list(dict.fromkeys(texts))
    rows = [_answered(row, field, text) for text in different]
    cost = dict(zip(different, nll(session.model, session.task, rows, **estimate), strict=True))
    return [cost[text] for text in texts]


def _answered(row: Row, field: str, text: str) -> Row:
    if field != "answer" or "conversations" not in row:
        return {**row, field: text}
    answered = read_turns(row)[-1][1] is not None
    turns = row["conversations"][:-1] if answered else row["conversations"]
    return {**row, field: text, "conversations": [*turns, {"from": "gpt", "value": text}]}


def _best(values: Sequence[float], margin: float) -> list[int]:
    """Returns the indices of all values within `margin` of the highest, in order."""
    if not margin >= 0:
        raise ConfigError(f"margin: {margin}, expected 0 or more nats")
    return [i for i, value in enumerate(values) if value >= max(values) - margin]


@torch.no_grad()
def _batch(model: MMDiff, task: Task, rows: Sequence[Row]) -> Batch:
    """Returns the training canvases of rows, all under one index, so that they have the same noise.

    Media that rows share, as one path or one object, are read and encoded once.
    """
    readers, samples = model.readers, []
    read: dict[Any, tuple[object, Item]] = {}  # the data is kept, for no other object may take its id meanwhile
    for row in rows:
        sample: list[Any] = []
        for piece in task.sample(row, model.vocab):
            if isinstance(piece, Media) and piece.kind in readers:
                key = piece.kind, piece.data if isinstance(piece.data, str) else id(piece.data)
                if key not in read:
                    read[key] = piece.data, readers[piece.kind].read(piece.data)
                piece = Media(piece.kind, read[key][1])
            sample.append(piece)
        samples.append(sample)
    batch = collate(samples, model.vocab, readers, index=[0] * len(rows))
    for kind, group in batch.media.items():
        order = [id(piece.data) for s in samples for piece in s if isinstance(piece, Media) and piece.kind == kind]
        different = list(dict.fromkeys(order))
        chosen = [order.index(key) for key in different]
        features_NTE = model.features(kind, to_device(subset(group, chosen), model.device))
        of_item = dict(zip(different, features_NTE.split([group.crops[i] for i in chosen]), strict=True))
        group.features_NTE = torch.cat([of_item[key] for key in order])
    return batch
