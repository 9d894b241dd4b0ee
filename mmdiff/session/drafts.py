"""A generation draft by draft: the sampler runs in a thread, and waits for whoever looks at a draft.

Nobody who looks has to look to the end: a row that nobody waits for any more takes part in no further step.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.vocab import Vocab

from .prediction import Prediction, draft_of


class _Streamer:
    """Hands the drafts of the first row on, one at a time."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.drafts: Queue[Any] = Queue(maxsize=1)
        self.left = False

    def put_draft(self, value: Tensor, *, state: GenerationState, **named: Any) -> None:
        if not self.left:
            self.drafts.put(draft_of(0, state, self.vocab))

    def put(self, ids_BL: Tensor) -> None:
        """Nothing: the prediction comes last."""

    def end(self) -> None:
        """Nothing."""

    def dropped(self) -> Tensor | None:
        """Returns bool (1,) once nobody looks any more."""
        return torch.tensor([True]) if self.left else None


def drafts(generate: Callable[[Any], Prediction], vocab: Vocab) -> Iterator[Prediction]:
    """Yields a draft after every step, then what `generate(streamer)` returns; raises what it raises."""
    streamer = _Streamer(vocab)

    def run() -> None:
        try:
            streamer.drafts.put(generate(streamer))
        except BaseException as error:  # for whoever looks, in whose thread it is raised again
            streamer.drafts.put(error)
        streamer.drafts.put(None)

    thread = Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        while (found := streamer.drafts.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        streamer.left = True
        while thread.is_alive():
            while not streamer.drafts.empty():
                streamer.drafts.get_nowait()
            thread.join(0.01)
