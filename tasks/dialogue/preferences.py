"""Preferences: rows with two answers to one prompt, of which people chose one.

    {"messages": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "What?"}
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}           whole dialogues
    {"image": "cat.jpg", "question": "What is it?", "chosen": "a cat", "rejected": "a dog"}      of any other task

A row's canvas holds two documents, the prompt with the chosen answer and the prompt with the rejected one, of which
`mmdiff.objectives.policy.preference.Preference` makes a pair. Predictions are those of the task within.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdiff.canvas.sample import Break, Sample, Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.fields import check_row
from mmdiff.errors import ConfigError, DataError, located, nearest
from mmdiff.parts import part
from mmdiff.protocols import Row, Task

ANSWERS = ("chosen", "rejected")


@part
class Preferences:
    """A task whose rows have `chosen` and `rejected` in place of an answer.

    task: what a row with one answer is laid out by.
    field: where that task looks for the answer; None: `messages` or `answer`, whichever it reads. Of `messages`, an
        answer is one more message of the assistant, or the whole dialogue where it is a list of messages.
    Raises ConfigError for a task that trains on earlier answers, too, for these are not preferred to anything, and
    where it is not known which field holds the answer.
    """

    def __init__(self, task: Any, field: str | None = None) -> None:
        known = [*(getattr(task, "fields", None) or ())]
        self.task: Task = task
        self.field = field or next((name for name in ("messages", "answer") if name in known), "")
        if not self.field:
            raise ConfigError(f"task.field: {type(task).__name__} reads {known}; expected the one that is the answer")
        if field and known and field not in known:
            raise ConfigError(f"task.field: {field!r}{nearest(field, known)}")
        if not getattr(task, "last_only", True):
            raise ConfigError("task.task.last_only: false, expected true: earlier answers are preferred to nothing")
        self.fields = (*known, *ANSWERS, "prompt") if known else None

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas of both answers. Raises DataError for a row without one of them, and for equal ones."""
        with located(row.get("where")):
            check_row(row, self.fields)
            for name in ANSWERS:
                if row.get(name) is None:
                    raise DataError(f"no {name}{nearest(name, map(str, row))}")
                if _blank(row[name]):
                    raise DataError(f"{name} is empty: {row[name]!r:.60}")
            if row["chosen"] == row["rejected"]:
                raise DataError(f"chosen and rejected are the same: {row['chosen']!r:.60}")
            chosen, rejected = (self.one(row, name) for name in ANSWERS)
            if self.field == "messages" and chosen["messages"][:-1] != rejected["messages"][:-1]:
                raise DataError("chosen and rejected answer other dialogues, expected the same up to the last message")
        canvases = [self.task.sample(one, vocab) for one in (chosen, rejected)]
        targets = [[list(p.ids or ()) for p in one if isinstance(p, Target)] for one in canvases]
        if targets[0] and targets[0] == targets[1]:
            with located(row.get("where")):
                raise DataError(f"chosen and rejected are laid out the same: {row['chosen']!r:.60}")
        return [*canvases[0], Break(), *canvases[1]]

    def one(self, row: Row, name: str) -> dict[str, Any]:
        """Returns the row with the answer `name` alone, as the task within reads it. Raises DataError."""
        out = {key: value for key, value in row.items() if key not in ANSWERS}
        answer = row[name]
        if self.field != "messages":
            if not isinstance(answer, str) and isinstance(row[ANSWERS[0]], str):
                raise DataError(f"{name} is not text: {answer!r:.60}")
            return {**out, self.field: answer}
        if row.get("prompt") is not None and row.get("messages") is not None:
            raise DataError("both prompt and messages, expected one of them before the answers")
        before = _before(out)
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        for where, value in ((name, answer), ("prompt" if "prompt" in row else "messages", before)):
            if value is not None and not _messages(value):
                raise DataError(f"{where} is neither text nor a list of messages: {value!r:.60}")
        messages = [*(before or ()), *answer]
        if not messages or messages[-1].get("role") != "assistant":
            who = messages[-1].get("role") if messages else None
            raise DataError(f"{name} ends with a message of {who!r:.60}, expected the assistant")
        if len(messages) < 2:
            raise DataError("nothing stands before the answers; expected messages, prompt, or whole dialogues")
        return {**out, "messages": messages}

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        return self.task.prompt(self._asked(row), vocab)

    def parse(self, ids: Sequence[int], vocab: Vocab) -> Any:
        return self.task.parse(ids, vocab)

    def score(self, prediction: Any, row: Row) -> dict[str, float]:
        """Returns the scores of the task within against the chosen answer."""
        return self.task.score(prediction, self._asked(row))

    def _asked(self, row: Row) -> Row:
        if row.get("chosen") is not None:
            return self.one(row, "chosen")
        if self.field != "messages" or row.get("prompt") is None:
            return row
        out = {key: value for key, value in row.items() if key != "rejected"}
        messages = _before(out)
        return {**out, "messages": messages}


def _before(row: dict[str, Any]) -> Any:
    """Takes `prompt` out of a row of messages. Returns the messages before the answer, None where there are none."""
    before = row.pop("prompt", row.get("messages"))
    return [{"role": "user", "content": before}] if isinstance(before, str) else before


def _blank(answer: Any) -> bool:
    """Whether an answer is a text of nothing, or messages of which the last one is."""
    if _messages(answer) and answer:
        answer = answer[-1].get("content")
    return isinstance(answer, str) and not answer.strip()


def _messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value)
