"""`mmdiff chat`: a line from stdin, an answer of the model, and so on; the draft is shown as it is unmasked."""

from __future__ import annotations

import sys
from typing import Any

from mmdiff.errors import UserError

from .arguments import Output, overrides_of


def chat(run: str, /, *words: str, system: str | None = None, quiet: bool = False) -> Output:
    """Talk to a run whose task reads messages: a line of stdin is a turn, an answer comes on stdout, until stdin ends.

    Args:
        run: a run, a checkpoint in it or a saved model.
        words: settings as dotted.key=value.
        system: the text of a system message, before all turns.
        quiet: do not show on stderr how an answer is unmasked; `░` is a masked position.
    """
    paths, overrides = overrides_of(words)
    if paths:
        raise UserError(f"chat: {paths[0]!r:.80} is not a setting (dotted.key=value); turns are read from stdin")
    from mmdiff.session import load

    session = load(run, *overrides)
    if "messages" not in (getattr(session.task, "fields", None) or ()):
        hint = "give one that does, such as task.target=mmdiff.tasks.text.chat.Chat"
        raise UserError(f"{run}: its task reads no messages: {hint}")
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    turns = forwards = 0
    while line := _next():
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.rstrip("\n")})
        stream = None if quiet else sys.stderr
        out = session.predict_many([{"messages": list(messages)}], first=turns, stream=stream)[0]
        turns, forwards = turns + 1, forwards + out["forwards"]
        messages.append({"role": "assistant", "content": out["prediction"]})
        print(out["prediction"], flush=True)
    return {"messages": messages, "forwards": forwards}, f"{turns} turns, {forwards} forwards"


def _next() -> str:
    """Returns the next line with its end; empty at the end of stdin."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()
