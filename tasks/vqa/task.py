"""Questions about pictures or sounds, in one turn or many, also about neither.

    {"image": "photo.jpg", "question": "What is on the table?", "answer": "a vase"}

mmdiff generate runs/vqa image=photo.jpg question="What is on the table?"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.data.fields import check_row
from mmdiff.errors import ConfigError, DataError, RowError, located, nearest, require
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.templates import Plain, Template
from mmdiff.tasks.dialogue.turns import answers, read_turns

from . import captions, metrics
from .pope import pope

OF_SETS = (*captions.METRICS, "pope")
ONE_REFERENCE = ("exact_match", "gqa_accuracy", "relaxed_accuracy", "med_closed", "med_open")
MANY_REFERENCES = ("vqa_accuracy", "textvqa_accuracy", "anls")
METRICS = (*ONE_REFERENCE, *MANY_REFERENCES, *OF_SETS)


@part
class VQA:
    """The task of rows as in `mmdiff.tasks.dialogue.turns`. All answers of a dialogue are noised together.

    answer_length: positions of every answer, filled up with EOS; the end id is left out where an answer takes them all.
        None: as many as the answer and its end id take, and `max_new_tokens` when generating.
    template: what stands around questions and answers, see `mmdiff.tasks.dialogue.templates`; `Plain()` when left out.
    metrics: names. Those of single answers are functions in `mmdiff.tasks.vqa.metrics`. Where a row has several
        accepted answers, those for one reference see the most frequent, on which the model is trained. `med_closed`
        leaves out rows whose `answer_type` is OPEN, `med_open` those where it is CLOSED; the scores of `med_open` are
        `open_recall`, `open_f1`, ... Those of whole sets are `bleu_1` ... `bleu_4`, `rouge_l` and `cider_d` (see
        `mmdiff.tasks.vqa.captions`), which see all accepted answers, and `pope` (see `mmdiff.tasks.vqa.pope`), whose
        figures are `pope_accuracy`, `pope_f1`, ...
    media: the kind of the pictures, the name of the encoder in `model.encoders`; sounds are of kind `audio`.
    """

    fields = ("image", "audio", "protein", "question", "answer", "conversations", "answer_type")

    def __init__(
        self,
        answer_length: AtLeast1 | None = None,
        template: Template | None = None,
        metrics: str | Sequence[str] = ("exact_match",),
        max_new_tokens: AtLeast1 = 128,
        media: str = "image",
    ) -> None:
        self.metrics = [metrics] if isinstance(metrics, str) else list(metrics)
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(f"task.metrics: no metric {name!r}{nearest(name, METRICS)}")
        if {"anls", "rouge_l"} & set(self.metrics):
            require("rapidfuzz", "vision")  # a missing package raises now, not at the first score
        self.answer_length, self.max_new_tokens, self.media = answer_length, max_new_tokens, media
        self.template = Plain() if template is None else template

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas with the answers.

        Raises DataError when an answer is missing, too long for `answer_length`, or not in the vocabulary.
        """
        with located(row.get("where")):
            turns = [(content, Target(self._ids(answer, vocab))) for content, answer in read_turns(row, self.media)]
            check_row(row, self.fields)
            return self.template.canvas(turns, vocab, train=True)

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas with masked positions for the last answer; earlier answers are given."""
        with located(row.get("where")):
            *before, (question, _) = read_turns(row, self.media)
            check_row(row, self.fields)
            given = [(content, Text(self._ids(answer, vocab))) for content, answer in before]
            last = (question, Target(length=self.answer_length or self.max_new_tokens))
            return self.template.canvas([*given, last], vocab, train=False)

    def _ids(self, answer: str | None, vocab: Vocab) -> list[int]:
        if answer is None:
            raise RowError("no answer")
        ids = literal(answer.strip(), vocab)
        positions = self.answer_length
        if positions is None:
            return [*ids, self.template.end(vocab)]
        if len(ids) > positions:
            raise DataError(f"answer {answer!r:.60} takes {len(ids)} positions, answer_length is {positions}")
        return [*ids, self.template.end(vocab), *[vocab.eos_id] * positions][:positions]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        ids, end = [int(i) for i in ids], self.template.end(vocab)
        return vocab.decode(vocab.until_end(ids[: ids.index(end)] if end in ids else ids)).strip()

    def score(self, prediction: str, row: Row) -> dict[str, float]:
        """Returns the scores of one prediction by the metrics of single answers. Raises RowError without an answer."""
        references = answers(row)
        if not references:
            raise RowError("no answer", "a row without one cannot be scored")
        kind = str(row.get("answer_type", "")).lower()
        scores: dict[str, float] = {}
        for name in self.metrics:
            if name in OF_SETS or (name, kind) in (("med_closed", "open"), ("med_open", "closed")):
                continue
            value = getattr(metrics, name)(prediction, references if name in MANY_REFERENCES else references[0])
            scores |= {f"open_{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
        return scores

    def score_all(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the figures of the whole set by the metrics of sets. Raises RowError without an answer."""
        names = [name for name in self.metrics if name in OF_SETS]
        if not names:
            return {}
        predictions, references = [record["prediction"] for record in records], [answers(record) for record in records]
        if not all(references):
            raise RowError("no answer", f"task.metrics: {names[0]} needs the field `answer` in every row")
        out: dict[str, Any] = {}
        for name in names:
            if name == "pope":
                out |= {f"pope_{part}": value for part, value in pope(predictions, references).items()}
            else:
                out[name] = captions.METRICS[name](predictions, references)
        return out
