"""Gaps of a text that are filled, and drafts that are rewritten; what is not masked stays, character by character.

Shape letters: L canvas length.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmdiff.canvas.vocab import literal
from mmdiff.data.stream import canvases
from mmdiff.errors import DataError
from mmdiff.samplers.streamers import TextStreamer
from mmdiff.session import Session

from .task import PlainText

GAP = re.compile(r"<gap(?::(\d{1,6}))?>")


@dataclass(frozen=True)
class Filled:
    """A text. gaps: what stands in its gaps, or the tokens of a draft that changed. forwards: those it took part in."""

    text: str
    gaps: list[str]
    forwards: int


def pieces_of(text: str, length: int) -> list[str | int]:
    """Returns the texts between gaps, and for each gap its number of masked positions. Raises DataError without any.

    length: of a `<gap>` that does not say.
    """
    pieces: list[str | int] = []
    at = 0
    for match in GAP.finditer(text):
        pieces += [text[at : match.start()], int(match[1]) if match[1] else length]
        at = match.end()
    if not pieces:
        raise DataError("the text has no gap, expected <gap> or <gap:8> in it")
    return [piece for piece in (*pieces, text[at:]) if piece != ""]


def fill(session: Session[PlainText], pieces: Sequence[str | int], *, show: bool = False) -> Filled:
    """Returns the text with its gaps filled. What an end token cuts off is left out of a gap."""
    model, vocab = session.model, session.model.vocab
    batch = canvases([{"text": list(pieces)}], session.task, vocab, model.readers)
    streamer = TextStreamer(vocab, batch, file=sys.stderr) if show else None
    out = model.generate(batch, generation_config=session.sampler, streamer=streamer)
    at_L = out.target_BL[0].nonzero().squeeze(1).tolist()
    ids, gaps = [int(out.ids_BL[0, at]) for at in at_L], []
    for piece in pieces:
        if isinstance(piece, int):
            gap, ids = ids[:piece], ids[piece:]
            gaps.append(vocab.decode(vocab.until_end(gap)))
    rest = iter(gaps)
    text = "".join(next(rest) if isinstance(piece, int) else piece for piece in pieces)
    return Filled(text, gaps, int(out.forwards_B[0]))


def rewritten(session: Session[PlainText], draft: str, *, rounds: int = 1, show: bool = False) -> Filled:
    """Returns the draft after so many rounds of `sampler.draft`, and the tokens that the last of them changed."""
    if not draft:
        raise DataError("the draft is empty")
    vocab, forwards = session.model.vocab, 0
    text, changed = draft, []
    for turn in range(rounds):
        stream = sys.stderr if show else None
        one = replace(session, sampler=replace(session.sampler, seed=session.sampler.seed + turn))
        (out,) = one.predict_many([{"draft": text}], stream=stream)
        before = [vocab.piece(i) for i in literal(text, vocab)]
        changed = [token for (token, step, _), old in zip(out["canvas"], before, strict=False) if step and token != old]
        text, forwards = out["prediction"], forwards + out["forwards"]
        if not changed and not session.sampler.temperature:
            break
    return Filled(text, changed, forwards)
