"""What an encoder's CTC head hears: a first pass for deliberation, and when each word was said.

Shape letters: N crops, T features, E encoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmdiff.canvas.batch import MediaBatch, to_device
from mmdiff.canvas.sample import Item, Media
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError, nearest, require
from mmdiff.model import MMDiff
from mmdiff.objectives.ctc import collapse, emissions
from mmdiff.protocols import Row, Source
from mmdiff.session import load
from mmdiff.tasks.dialogue.templates import literal


@dataclass(frozen=True)
class Word:
    """A word with its first and last second in the clip, and the probability of its least sure token."""

    word: str
    start: float
    end: float
    confidence: float


def read_clip(model: MMDiff, row: Row, kind: str = "audio") -> Item:
    """A row's sound as the encoder takes it. Raises DataError, for a row without any too, and ConfigError."""
    if kind not in model.readers:
        raise ConfigError(f"model.encoders: none is for {kind}{nearest(kind, model.readers)}")
    if row.get("audio") is None:
        raise DataError(f"{row['where']}: no audio" if row.get("where") else "no audio")
    return model.readers[kind].read(row["audio"])


@torch.inference_mode()
def encoded(model: MMDiff, items: Sequence[Item], kind: str = "audio") -> MediaBatch:
    """Clips with their features, on the model's device."""
    model.eval()
    media = collate([[Media(kind, item)] for item in items], model.vocab, model.readers).media[kind]
    media = to_device(media, model.device)
    return replace(media, features_NTE=model.features(kind, media))


@torch.inference_mode()
def emitted(model: MMDiff, media: MediaBatch, kind: str = "audio") -> list[Tensor]:
    """Log-probabilities (T, V) of each clip, on the CPU. Raises ConfigError for a model without the head."""
    log_p_BTV, length_B = emissions(model, kind, media)
    return [log_p_TV[:n].cpu() for log_p_TV, n in zip(log_p_BTV, length_B.tolist(), strict=True)]


def greedy(log_p_TV: Tensor, vocab: Vocab) -> str:
    """The likeliest token of every feature, repeats as one, blanks as none."""
    return vocab.decode(collapse(log_p_TV.argmax(-1), vocab.mask_id)).strip()


def first_pass(model: MMDiff, rows: Sequence[Row] | Source, *, kind: str = "audio", batch_size: int = 32) -> list[str]:
    """Greedy transcripts of all rows; `batch_size` of them are held at a time."""
    out: list[str] = []
    for first in range(0, len(rows), batch_size):
        items = [read_clip(model, rows[i], kind) for i in range(first, min(first + batch_size, len(rows)))]
        out += [greedy(log_p_TV, model.vocab) for log_p_TV in emitted(model, encoded(model, items, kind), kind)]
    return out


def word_times(log_p_TV: Tensor, text: str, model: MMDiff, seconds: float) -> list[Word]:
    """When each word of `text` was said, by forced alignment (torchaudio). seconds: of the clip.

    A token's probability is the mean over the features aligned with it; all features are taken to be equally long.
    Empty where the text does not fit into the clip. Raises DataError for words that the tokenizer does not know.
    """
    require("torchaudio", "audio")
    from torchaudio.functional import forced_align, merge_tokens

    words = text.split()
    pieces = [literal(word if i == 0 else f" {word}", model.vocab) for i, word in enumerate(words)]
    ids = [i for piece in pieces for i in piece]
    repeats = sum(a == b for a, b in zip(ids, ids[1:], strict=False))  # with a blank between them
    if not ids or len(ids) + repeats > len(log_p_TV):
        return []
    blank = model.vocab.mask_id
    path, score = forced_align(log_p_TV[None], torch.tensor([ids], dtype=torch.int32), blank=blank)
    spans = iter(merge_tokens(path[0], score[0].exp(), blank=blank))
    a_feature = seconds / len(log_p_TV)
    out = []
    for word, piece in zip(words, pieces, strict=True):
        of_word = [next(spans) for _ in piece]
        start, end = of_word[0].start * a_feature, of_word[-1].end * a_feature
        out.append(Word(word, round(start, 3), round(end, 3), min(float(s.score) for s in of_word)))
    return out


class FirstPass:
    """Rows with what a run's CTC head hears in them as their `hypothesis`; all are listened to once, at the beginning.

    rows: any source of clips. run: a run folder or saved model. media: the kind of the sound.
    """

    def __init__(self, rows: Source, run: str, media: str = "audio") -> None:
        self.rows = rows
        self._heard = first_pass(load(run).model, rows, kind=media)

    def __len__(self) -> int:
        return len(self._heard)

    def __getitem__(self, index: int) -> Row:
        return {**self.rows[index], "hypothesis": self._heard[index]}

    @classmethod
    def toy(cls, rows: Source, run: str, media: str = "audio") -> FirstPass:
        """A first pass, of eight rows, that hears everything but the last word."""
        out = cls.__new__(cls)
        out.rows = rows
        out._heard = [str(rows[i]["text"]).rpartition(" ")[0] for i in range(min(len(rows), 8))]
        return out
