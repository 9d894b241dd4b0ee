"""Rows of two answers: every form is laid out as its two answers are, one by one; predictions are those of the task."""

from __future__ import annotations

from typing import Any

import pytest
import toy

from mmdiff.canvas.sample import Break, Target
from mmdiff.data.stream import Component, Stream
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


class Stripping(Plain):
    """A template that leaves the spaces around words out, with the last message as the target."""

    def sample(self, messages: Any, vocab: Any, **_: Any) -> Any:
        return [Target(vocab.encode(messages[-1]["content"].strip()))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER], "chosen": "", "rejected": "south"}, "chosen is empty: ''"),
        ({"messages": [USER], "chosen": "north", "rejected": " \n "}, "rejected is empty: ' \\n '"),
        ({"messages": [USER], "chosen": "north", "rejected": [{**SOUTH, "content": ""}]}, "rejected is empty"),
        ({"messages": [USER], "chosen": None, "rejected": "south"}, "no chosen"),
        ({"messages": [USER], "chosen": "north", "rejected": "north"}, "are the same: 'north'"),
        ({"messages": [USER], "chosen": "north", "rejected": "north "}, "are laid out the same: 'north'"),
        ({"messages": [USER], "chosen": "north", "rejected": float("nan")}, "rejected is neither text nor a list"),
        ({"messages": [USER], "chosen": "north", "rejected": ["south"]}, "rejected is neither text nor a list"),
        ({"messages": 7, "chosen": "north", "rejected": "south"}, "messages is neither text nor a list of messages: 7"),
        ({"prompt": 7, "chosen": "north", "rejected": "south"}, "prompt is neither text nor a list of messages: 7"),
        ({"prompt": "a", "messages": [USER], "chosen": "north", "rejected": "south"}, "both prompt and messages"),
        ({"prompt": [], "chosen": "north", "rejected": "south"}, "nothing stands before the answers"),
    ],
)
def test_hostile_rows_are_refused_in_one_line(row: dict[str, Any], message: str) -> None:
    task = Preferences(Chat(template=Stripping(), last_only=True))
    with pytest.raises(DataError) as raised:
        task.sample({**row, "where": "pairs.jsonl line 2"}, VOCAB)
    text = str(raised.value)
    assert text.startswith("pairs.jsonl line 2: ") and message in text and "\n" not in text


def test_a_dialogue_that_no_model_could_take_is_named_and_skipped_where_that_is_asked_for() -> None:
    row = {"question": "where", "chosen": "north", "rejected": "south " * 40}

    class Pairs(list):  # type: ignore[type-arg]
        on_error = "stop"

    rows = Pairs([{**row, "rejected": "south"}, {**row, "where": "pairs.jsonl line 2"}])
    stream = Stream([Component("", rows, Preferences(toy.Where(image=False), field="answer"))], seed=0, longest=20)
    wrong = next(n for n in range(4) if stream.locate(n)[1] == 1)
    with pytest.raises(DataError, match="^row 1: pairs.jsonl line 2: a canvas of 41 positions, expected at most 20 of"):
        stream.sample(wrong, VOCAB, {})
    rows.on_error = "skip"
    assert len(stream.sample(wrong, VOCAB, {})) == 5 and stream.skipped == {(0, 1)}
