"""What a row of questions and answers says, in either of its two forms:

    {"image": picture or list of them, "question": "What is it?", "answer": "a cat" or list of accepted ones}
    {"image": ..., "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", ...}]}

`image` may be left out. `<image>` in a human turn is the place of a picture, in the order of `image`; a `question`
without any has its pictures in front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..batch import Media
from ..errors import DataError, nearest
from ..protocols import Row

SLOT = "<image>"
Content = Sequence[str | Media]
"""What a person says in one turn: text and pictures in order."""
Turns = list[tuple[Content, str | None]]
"""(what is asked, what is answered); the last may wait for its answer."""


class RowError(DataError):
    """A row that cannot be used. `reason` is its kind of fault, in the same words for all rows that share it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def pictures(row: Row) -> list[Any]:
    image = row.get("image")
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def read_turns(row: Row, kind: str = "image") -> Turns:
    """The turns of a row. kind: of the `Media` its pictures become. Raises RowError.

    As LLaDA-V does, the only picture of a turn is moved to its front, with a line break behind it; several stay where
    their slots are.
    """
    media = [Media(kind, picture) for picture in pictures(row)]
    if "conversations" in row:
        pairs = _pairs(row["conversations"])
    else:
        question, answer = _text(row, "question"), accepted(row.get("answer"))
        if SLOT not in question:
            question = f"{SLOT}\n" * len(media) + question
        pairs = [(question, answer[0] if answer else None)]
    slots = sum(question.count(SLOT) for question, _ in pairs)
    if slots != len(media):
        reason = f"{'more' if slots > len(media) else 'fewer'} {SLOT} slots than pictures"
        raise RowError(reason, f"{slots} slots, {len(media)} pictures")
    rest = iter(media)
    return [
        (_content(question, [next(rest) for _ in range(question.count(SLOT))]), answer) for question, answer in pairs
    ]


def answers(row: Row) -> list[str]:
    """The accepted answers to the last question, the one to train on first; empty when the row has none."""
    if row.get("answer") is not None or "conversations" not in row:
        return accepted(row.get("answer"))
    last = _pairs(row["conversations"])[-1][1]
    return [] if last is None else [last]


def accepted(answer: Any) -> list[str]:
    """All accepted answers, the most frequent first (the earliest of equally frequent ones). Raises RowError."""
    if answer is None:
        return []
    every = [answer] if isinstance(answer, str) else answer
    if not isinstance(every, list | tuple) or not all(isinstance(one, str) for one in every):
        raise RowError("answer is not text", f"{answer!r:.60}")
    if not every or not all(one.strip() for one in every):
        raise RowError("empty answer")
    first = Counter(every).most_common(1)[0][0]
    others = list(every)
    others.remove(first)
    return [first, *others]


def _pairs(conversation: Any) -> list[tuple[str, str | None]]:
    if not isinstance(conversation, list | tuple) or not conversation:
        raise RowError("no conversation", f"conversations: {conversation!r:.60}, expected a list of turns")
    pairs: list[tuple[str, str | None]] = []
    for n, turn in enumerate(conversation, 1):
        if not isinstance(turn, Mapping):
            raise RowError("turn is not a mapping", f"turn {n} is {turn!r:.60}")
        who, text = turn.get("from"), _text(turn, "value", f"turn {n} ")
        waiting = bool(pairs) and pairs[-1][1] is None
        if who == "human":
            if waiting:
                raise RowError("two human turns in a row", f"turns {n - 1} and {n}")
            pairs.append((text, None))
        elif who == "gpt":
            if not waiting:
                raise RowError("gpt turn without a human turn before it", f"turn {n}")
            if not text.strip():
                raise RowError("empty answer", f"turn {n}")
            pairs[-1] = pairs[-1][0], text
        else:
            raise RowError("unknown from", f"turn {n} is from {who!r}{nearest(str(who), ['human', 'gpt'])}")
    return pairs


def _text(fields: Mapping[str, Any], name: str, where: str = "") -> str:
    text = fields.get(name)
    if name not in fields:
        raise RowError(f"no {name}", (where + nearest(name, map(str, fields))).strip())
    if not isinstance(text, str):
        raise RowError(f"{name} is not text", f"{where}{name}: {text!r:.60}")
    return text


def _content(text: str, media: Sequence[Media]) -> Content:
    if len(media) <= 1:
        text = text.replace(SLOT, "").strip()
        return [*media, *([f"\n{text}" if media else text] if text else [])]
    out: list[str | Media] = []
    for piece, picture in zip(text.strip().split(SLOT), [*media, None], strict=True):
        out += [piece] if piece else []
        out += [picture] if picture is not None else []
    return out
