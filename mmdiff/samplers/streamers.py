"""Streamers show a canvas while it is being filled. Shape letters: B samples, L canvas length."""

from __future__ import annotations

import shutil
import sys
from itertools import groupby
from typing import Any, Protocol, TextIO

from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab


class Streamer(Protocol):
    """transformers' streamer of diffusion models: `put_draft` while a canvas is filled, `put` for the finished one.

    One that also has `dropped() -> bool (B,) or None` is asked before every step which rows nobody waits for any more:
    they take part in no further step, and stay as they are.
    """

    def put_draft(self, value: Tensor, **named: Any) -> None:
        """Receives the canvas (B, L) after a step: what is committed, and masked positions. It is called by name.

        named: `step`, counted from 1; `state`, the generation as it stands (`mmdiff.canvas.generation`), of which a
            streamer changes nothing. A streamer takes names that it does not know.
        """
        ...

    def put(self, ids_BL: Tensor) -> None:
        """Receives the finished canvas."""
        ...

    def end(self) -> None: ...


class TextStreamer:
    """Prints the target positions of one row, one line per step; a terminal overwrites it. `░` is a masked position."""

    def __init__(self, vocab: Vocab, batch: Batch, row: int = 0, file: TextIO | None = None) -> None:
        self.vocab, self.row, self.file = vocab, row, file or sys.stdout
        self.target_L = batch.target_BL[row]

    def put_draft(self, value: Tensor, **named: Any) -> None:
        line = f"{named.get('step', 0):4d} | {self._text(value)}".replace("\n", "⏎")
        if self.file.isatty():
            width = shutil.get_terminal_size().columns - 1
            self.file.write(f"\r\x1b[K{line[:width]}")
        else:
            self.file.write(line + "\n")
        self.file.flush()

    def put(self, ids_BL: Tensor) -> None:
        start = "\r\x1b[K" if self.file.isatty() else ""
        self.file.write(start + self._text(ids_BL) + "\n")

    def end(self) -> None:
        self.file.flush()

    def _text(self, ids_BL: Tensor) -> str:
        ids = ids_BL[self.row][self.target_L].tolist()
        # runs between masked positions are decoded whole: a byte-level token may be a part of a character
        runs = groupby(ids, key=lambda i: i == self.vocab.mask_id)
        return "".join("░" * len(list(run)) if masked else self.vocab.decode(list(run)) for masked, run in runs)
