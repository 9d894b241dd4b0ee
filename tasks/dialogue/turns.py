"""The turns of a row of questions and answers, in either of its two forms:

    {"image": picture or list of them, "question": "What is it?", "answer": "a cat" or list of accepted ones}
    {"image": ..., "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", ...}]}

`image` may be left out. `<image>` in a human turn marks the position of a picture, in the order of `image`; a
`question` without any has its pictures in front. `audio` and `<audio>` are the same for sounds, `protein` and
`<protein>` for proteins (sequences); a row may have all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdiff.canvas.sample import Media
from mmdiff.errors import RowError, nearest
from mmdiff.protocols import Row

NOUNS = {"image": "picture", "audio": "sound", "protein": "protein"}
"""Field of a row -> the noun for one of its media in errors."""
SLOT = "<image>"
SLOTS = re.compile("<(image|audio|protein)>")
Content = Sequence[str | Media]
"""The content of a human turn: text and media in order."""
Turns = list[tuple[Content, str | None]]
"""(question, answer); the last answer may be missing."""


def media_of(row: Row, field: str) -> list[Any]:
    """Returns the pictures (`image`), sounds (`audio`) or proteins (`protein`) of a row."""
    found = row.get(field)
    if found is None:
        return []
    return list(found) if isinstance(found, list | tuple) else [found]


def read_turns(row: Row, kind: str = "image") -> Turns:
    """Returns the turns of a row. Raises RowError.

    kind: that of the `Media` of pictures; the kind of other media is their field.

    As LLaDA-V does, the only picture, sound or protein of a turn is moved to its front, with a line break behind it;
    several stay where their slots are.
    """
    media = {
        field: [Media(kind if field == "image" else field, one) for one in media_of(row, field)] for field in NOUNS
    }
    if "conversations" in row:
        pairs = _pairs(row["conversations"])
    else:
        question, answer = _text(row, "question"), accepted(row.get("answer"))
        front = [f"<{field}>\n" * len(found) for field, found in media.items() if f"<{field}>" not in question]
        pairs = [("".join([*front, question]), answer[0] if answer else None)]
    for field, found in media.items():
        slots = sum(question.count(f"<{field}>") for question, _ in pairs)
        if slots != len(found):
            reason = f"{'more' if slots > len(found) else 'fewer'} <{field}> slots than {NOUNS[field]}s"
            raise RowError(reason, f"{slots} slots, {len(found)} {NOUNS[field]}s")
    rest = {field: iter(found) for field, found in media.items()}
    return [(_content(question, rest), answer) for question, answer in pairs]


def answers(row: Row) -> list[str]:
    """Returns the accepted answers to the last question, the one to train on first; empty when the row has none."""
    if row.get("answer") is not None or "conversations" not in row:
        return accepted(row.get("answer"))
    last = _pairs(row["conversations"])[-1][1]
    return [] if last is None else [last]


def accepted(answer: Any) -> list[str]:
    """Returns all accepted answers, the most frequent first (of equally frequent ones the first). Raises RowError."""
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


def _content(text: str, rest: Mapping[str, Iterator[Media]]) -> Content:
    """Returns the content of a human turn. rest: the media that no slot has taken yet, by field."""
    pieces = SLOTS.split(text.strip())  # text, field, text, field, ..., text
    texts, media = pieces[::2], [next(rest[field]) for field in pieces[1::2]]
    if len(media) <= 1:
        text = "".join(texts).strip()
        return [*media, *([f"\n{text}" if media else text] if text else [])]
    out: list[str | Media] = []
    for piece, one in zip(texts, [*media, None], strict=True):
        out += [piece] if piece else []
        out += [one] if one is not None else []
    return out
