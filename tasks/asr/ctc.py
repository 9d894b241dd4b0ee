"""The transcripts of an encoder's CTC head: a first pass for deliberation.

Shape letters: N crops, T features, E encoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmdiff.canvas.batch import MediaBatch, to_device
from mmdiff.canvas.sample import Item, Media
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.objectives.ctc import collapse, emissions
from mmdiff.parts import part
from mmdiff.protocols import Row, Source
from mmdiff.session import load


def read_clip(model: MMDiff, row: Row, kind: str = "audio") -> Item:
    """Returns a row's sound as the encoder takes it.

    Raises DataError, also for a row without sound, and ConfigError for a model without an encoder of that kind.
    """
    if kind not in model.readers:
        raise ConfigError(f"model.encoders: none is for {kind}{nearest(kind, model.readers)}")
    if row.get("audio") is None:
        raise DataError(f"{row['where']}: no audio" if row.get("where") else "no audio")
    return model.readers[kind].read(row["audio"])


@torch.inference_mode()
def encoded(model: MMDiff, items: Sequence[Item], kind: str = "audio") -> MediaBatch:
    """Returns clips with their features, on the model's device."""
    media = collate([[Media(kind, item)] for item in items], model.vocab, model.readers).media[kind]
    media = to_device(media, model.device)
    with evaluating(model):
        return replace(media, features_NTE=model.features(kind, media))


@torch.inference_mode()
def emitted(model: MMDiff, media: MediaBatch, kind: str = "audio") -> list[Tensor]:
    """Returns log-probabilities (T, V) of each clip, on the CPU. Raises ConfigError for a model without the head."""
    with evaluating(model):
        log_p_BTV, length_B = emissions(model, kind, media)
    return [log_p_TV[:n].cpu() for log_p_TV, n in zip(log_p_BTV, length_B.tolist(), strict=True)]


def greedy(log_p_TV: Tensor, vocab: Vocab) -> str:
    """Returns the text of the likeliest token of every feature, repeats as one, blanks as none."""
    return vocab.decode(collapse(log_p_TV.argmax(-1), vocab.mask_id)).strip()


def first_pass(model: MMDiff, rows: Sequence[Row] | Source, *, kind: str = "audio", batch_size: int = 32) -> list[str]:
    """Returns greedy transcripts of all rows; the sound of `batch_size` rows is in memory at a time."""
    out: list[str] = []
    for first in range(0, len(rows), batch_size):
        items = [read_clip(model, rows[i], kind) for i in range(first, min(first + batch_size, len(rows)))]
        out += [greedy(log_p_TV, model.vocab) for log_p_TV in emitted(model, encoded(model, items, kind), kind)]
    return out


@part
class FirstPass:
    """Rows with the transcript of a run's CTC head as their `hypothesis`; all are transcribed once, at the beginning.

    rows: any source of clips. run: a run folder or saved model. media: the kind of the sound.
    """

    def __init__(self, rows: Source, run: str, media: str = "audio") -> None:
        self.rows = rows
        self._first_pass = first_pass(load(run).model, rows, kind=media)

    def __len__(self) -> int:
        return len(self._first_pass)

    def __getitem__(self, index: int) -> Row:
        return {**self.rows[index], "hypothesis": self._first_pass[index]}

    @classmethod
    def toy(cls, rows: Source, run: str, media: str = "audio") -> FirstPass:
        """A first pass, of eight rows, that misses the last word of each."""
        out = cls.__new__(cls)
        out.rows = rows
        out._first_pass = [str(rows[i]["text"]).rpartition(" ")[0] for i in range(min(len(rows), 8))]
        return out
