"""Messages of a dialogue, in the form of OpenAI or of ShareGPT:

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello"}], "tools": [...]}
    {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, ...]}

`tools` may be left out; it, `tool_calls`, turns of tools and all other fields of a message are for the template, as
with transformers. `weight: 0` in a turn of the assistant keeps it from being trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmdiff.data.fields import text_fault
from mmdiff.errors import RowError, nearest
from mmdiff.files import as_object
from mmdiff.parts import part
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import CheckedRows, Entry, check_fields, read_json

ROLES = ("system", "developer", "user", "assistant", "tool")
SHARE_GPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Who speaks, as ShareGPT and the sets in its form have it -> the role."""
OF_MESSAGES = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight")
OF_TURNS = ("from", "value", "weight")
OTHERWISE = {"function_call": "tool_calls", "text": "content"}  # names of older forms
FIELDS = ("messages", "conversations", "tools", "system", "answer")


def read_messages(row: Row) -> list[dict[str, Any]]:
    """Returns the messages of a row, by role and content, whatever its form. Raises RowError.

    A role is one of `ROLES`: a template writes it into the string as it is. The field `system` of a row is its first
    message.
    """
    if row.get("messages") is not None:
        found = [_openai(n, one) for n, one in enumerate(_list(row["messages"], "messages"), 1)]
    elif row.get("conversations") is not None:
        found = [_share_gpt(n, one) for n, one in enumerate(_list(row["conversations"], "conversations"), 1)]
    else:
        raise RowError("no messages", nearest("messages", map(str, row)).strip())
    if (system := row.get("system")) is not None:
        found = [{"role": "system", "content": _content(system, "system")}, *found]
    if any(message["role"] == "system" for message in found[1:]):
        raise RowError("a system message behind the first")
    if fault := text_fault(found):
        raise RowError(fault[0], fault[1].removeprefix(", "))
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(one, Mapping) for one in tools)):
        raise RowError("tools is not a list of descriptions", f"{tools!r:.60}")
    return found


def asked(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Returns the messages before the last answer, and that answer; None where the dialogue waits for it."""
    if messages[-1]["role"] == "assistant":
        return messages[:-1], str(messages[-1]["content"])
    return messages, None


@part
@dataclass(eq=False)
class MessageFile(CheckedRows):
    """The dialogues of one file, a JSON list or JSON lines. Each must have an answer of the assistant.

    path: the file. on_error, limit: see `mmdiff.tasks.dialogue.rows.CheckedRows`. A row has `messages`, `tools` where
    there are any, `where`, and the last `question` and `answer` (for reports).
    """

    page: ClassVar[str] = "docs/data/dialogues.md"
    path: str

    def origin(self) -> str:
        return self.path

    def entries(self) -> Iterator[Entry]:
        for where, raw in read_json(Path(self.path)):
            yield where, partial(_checked, raw, where)

    def verified(self, pool: Any, rows: Any) -> list[Entry]:
        return [(row["where"], partial(dict, row)) for row in rows]

    def length(self, index: int) -> float:
        """Characters of all messages."""
        return float(sum(len(message["content"]) for message in self.rows[index]["messages"]))

    @classmethod
    def toy_files(cls, folder: Path, **arguments: Any) -> dict[str, Any]:
        import json

        ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]
        rows = [{"messages": [*ask, {"role": "assistant", "content": f"Fine, {n} times."}]} for n in range(4)]
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        return {"path": str(folder / "rows.json")}


def _checked(raw: Any, where: str) -> Row:
    row = as_object(raw)
    messages = read_messages(row)
    check_fields(row, FIELDS)
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError("no answer")
    question = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    answer = next(m["content"] for m in reversed(messages) if m["role"] == "assistant")
    tools = {"tools": row["tools"]} if row.get("tools") is not None else {}
    return {"messages": messages, **tools, "question": question, "answer": answer, "where": where}


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f"no {field}", f"{value!r:.60}, expected a list of turns")
    return list(value)


def _openai(n: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError("message is not a mapping", f"message {n} is {message!r:.60}")
    _check_names(f"message {n}", message, OF_MESSAGES)
    role = message.get("role")
    if role not in ROLES:
        raise RowError("unknown role", f"message {n} is of {role!r:.60}{nearest(str(role), ROLES)}")
    content, calls = message.get("content"), message.get("tool_calls")
    out = {"role": role, "content": "" if content is None and calls else _content(content, f"message {n}")}
    return out | {name: value for name, value in message.items() if name not in out and value is not None}


def _share_gpt(n: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise RowError("turn is not a mapping", f"turn {n} is {turn!r:.60}")
    if "from" not in turn and turn.get("role") in ROLES:  # some sets have OpenAI's messages under ShareGPT's name
        return _openai(n, turn)
    _check_names(f"turn {n}", turn, OF_TURNS)
    who = turn.get("from")
    if not isinstance(who, str) or who not in SHARE_GPT:
        raise RowError("unknown from", f"turn {n} is from {who!r:.60}{nearest(str(who), SHARE_GPT)}")
    weight = {} if turn.get("weight") is None else {"weight": turn["weight"]}
    return {"role": SHARE_GPT[who], "content": _content(turn.get("value"), f"turn {n}"), **weight}


def _check_names(where: str, message: Mapping[Any, Any], known: Collection[str]) -> None:
    """Raise RowError for a field that looks like one that is not there, and for a weight that is neither 0 nor 1."""
    absent = [name for name in known if message.get(name) in (None, "")]
    for name, value in message.items():
        if not isinstance(name, str):
            raise RowError("unknown field", f"{where}: {name!r:.60}")
        if name in known or value is None:
            continue
        if near := get_close_matches(OTHERWISE.get(name, name).lower(), absent, n=1, cutoff=0.8):
            raise RowError("unknown field", f'{where}: {name!a:.60} (did you mean "{near[0]}"?)')
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError("weight is neither 0 nor 1", f"{where}: {weight!r:.60}")


def _content(content: Any, where: str) -> str:
    """Returns the text of a message: a string, or OpenAI's list of parts of text."""
    if isinstance(content, list | tuple):
        texts = [one.get("text") if isinstance(one, Mapping) and one.get("type") == "text" else None for one in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    if not isinstance(content, str):
        raise RowError("content is not text", f"{where}: {content!r:.60}")
    return content
