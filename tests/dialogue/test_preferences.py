"""Rows of two answers: every form is laid out as its two answers are, one by one; predictions are those of the task."""

from __future__ import annotations

from typing import Any

import pytest
import toy

from mmdiff.canvas.sample import Break
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.dialogue.preferences import Preferences
from mmdiff.tasks.text.chat import Chat
from mmdiff.tasks.text.templates import ChatTemplate

VOCAB = toy.model(image=False).vocab
USER = {"role": "user", "content": "where"}
NORTH, SOUTH = ({"role": "assistant", "content": word} for word in ("north", "south"))


class Plain(ChatTemplate):
    """A template of nothing: the words of a dialogue, of which the last message is the target."""

    def __init__(self) -> None: ...

    def sample(self, messages: Any, vocab: Any, **_: Any) -> Any:
        return [tuple(m["content"] for m in messages)]

    def prompt(self, messages: Any, vocab: Any, length: int, **_: Any) -> Any:
        return [tuple(m["content"] for m in messages), length]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER], "chosen": "north", "rejected": "south"},
        {"prompt": "where", "chosen": "north", "rejected": [SOUTH]},
        {"prompt": [USER], "chosen": [NORTH], "rejected": [SOUTH]},
        {"chosen": [USER, NORTH], "rejected": [USER, SOUTH]},
    ],
)
def test_every_form_is_the_same_two_dialogues(row: Any) -> None:
    task = Preferences(Chat(template=Plain(), last_only=True))
    assert task.sample(row, VOCAB) == [("where", "north"), Break(), ("where", "south")]
    assert task.prompt(row, VOCAB)[0] == ("where",)
    assert task.score("north", row) == {"exact_match": 1.0}
    assert task.prompt({"prompt": "where"}, VOCAB)[0] == ("where",)


def test_any_task_may_stand_within() -> None:
    task, where = Preferences(toy.Where(image=False), field="answer"), toy.Where(image=False)
    row = {"question": "where", "chosen": "north north", "rejected": "south"}
    chosen, rejected = ({"question": "where", "answer": text} for text in ("north north", "south"))
    assert task.sample(row, VOCAB) == [*where.sample(chosen, VOCAB), Break(), *where.sample(rejected, VOCAB)]
    assert task.prompt(row, VOCAB) == where.prompt(chosen, VOCAB)
    assert task.score("south", row) == {"exact": 0.0}
    assert task.parse([5, 6], VOCAB) == where.parse([5, 6], VOCAB)


def test_what_is_no_preference_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.field: Where reads \[\]"):
        Preferences(toy.Where())
    with pytest.raises(ConfigError, match=r'task\.field: \'mesages\' \(did you mean "messages"\?\)'):
        Preferences(Chat(template=Plain(), last_only=True), field="mesages")
    task = Preferences(toy.Where(image=False), field="answer")
    with pytest.raises(DataError, match="no rejected"):
        task.sample({"question": "where", "chosen": "north"}, VOCAB)
    with pytest.raises(DataError, match="rejected is not text: 7"):
        task.sample({"question": "where", "chosen": "north", "rejected": 7}, VOCAB)
