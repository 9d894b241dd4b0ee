"""The text of an answer while it is being unmasked: what of it is certain, why it ended, its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.evals.requests import cut

from .batching import Draft
from .canvases import PromptCanvas

LEAST = -9999.0
"""OpenAI's log-probability of what has none."""


def keeps(config: GenerationConfig) -> bool:
    """Whether a token that is committed stays, so that the beginning of an answer is certain before its end is."""
    return config.process is None and config.revise is None and config.draft is None


@dataclass
class GrowingText:
    """The text of one answer, handed out as it becomes certain: all pieces together are the whole text.

    A piece ends before a character that is not whole, before white space that may be left out at the end, and before
    what may be the beginning of a stop string.
    """

    asked: PromptCanvas
    vocab: Vocab
    config: GenerationConfig
    stops: Sequence[str] = ()
    sent: str = ""

    def certain(self, draft: Draft) -> str:
        """Returns the next piece; empty where nothing more is certain."""
        first = next((i for i, pending in enumerate(draft.pending) if pending), len(draft.pending))
        if not keeps(self.config) or not first:
            return ""
        text = self.uncut(draft.ids[:first])
        stopped = cut(text, self.stops)
        if stopped == text:
            text = text.rstrip("\ufffd").rstrip()
            text = text[: len(text) - max((_begun(text, stop) for stop in self.stops), default=0)]
        return self._piece(stopped if stopped != self.uncut(draft.ids[:first]) else text)

    def whole(self, draft: Draft) -> str:
        """Returns the text of a finished canvas."""
        return cut(self.uncut(draft.ids), self.stops)

    def rest(self, draft: Draft) -> str:
        """Returns the last piece."""
        return self._piece(self.whole(draft))

    def uncut(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, whatever stop strings are in it."""
        return str(self.asked.parse(ids, self.vocab))

    def _piece(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        piece = text[len(self.sent) :]
        self.sent = text
        return piece


def _begun(text: str, stop: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def ended(draft: Draft, vocab: Vocab, text: str, whole: str) -> str:
    """Returns why an answer ended: `stop`, by an end id or a stop string, or `length`."""
    ends = {vocab.eos_id, *vocab.end_ids}
    return "stop" if text != whole or any(i in ends for i in draft.ids) else "length"


def count(draft: Draft, vocab: Vocab) -> int:
    """Returns the tokens of an answer, its end id among them."""
    n = len(vocab.until_end(draft.ids))
    return min(n + 1, len(draft.ids))


def tokens_of(draft: Draft, vocab: Vocab) -> list[dict[str, Any]]:
    """Returns the target positions as a page shows them: id, text, step, confidence, and whether each is masked."""
    return [
        {
            "id": i,
            "text": "░" if pending else _piece(i, vocab),
            "step": step,
            "confidence": round(sure, 4),
            "pending": pending,
        }
        for i, pending, step, sure in zip(draft.ids, draft.pending, draft.steps, draft.confidence, strict=True)
    ]


def _piece(i: int, vocab: Vocab) -> str:
    """Returns the text of a token; of a reserved id, which has none, the name of its range and its number there."""
    if text := vocab.piece(i):
        return text
    return next((f"{name}:{i - low}" for name, (low, high) in vocab.ranges.items() if low <= i < high), "")


def shown(draft: Draft, vocab: Vocab) -> dict[str, Any]:
    """Returns a draft as streams have it."""
    left = sum(draft.pending)
    return {"step": draft.step, "committed": len(draft.ids) - left, "pending": left, "tokens": tokens_of(draft, vocab)}


def log_probabilities(draft: Draft, vocab: Vocab) -> list[dict[str, Any]]:
    """Returns OpenAI's list of tokens with log-probabilities: those under which each was committed."""
    out = []
    for i, sure in zip(draft.ids[: count(draft, vocab)], draft.confidence, strict=False):
        piece = vocab.piece(i)
        logprob = log(sure) if sure > 0 else LEAST
        out.append({"token": piece, "logprob": logprob, "bytes": list(piece.encode()), "top_logprobs": []})
    return out
