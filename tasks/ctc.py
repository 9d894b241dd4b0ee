"""What an encoder's CTC head hears: a first pass for deliberation, and when each word was said.

Shape letters: B samples, T features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import Media, collate, to_device
from ..errors import ConfigError, require
from ..model import MMDiff
from ..objectives.ctc import collapse, emissions
from ..protocols import Row, Source
from ..session import load


@dataclass(frozen=True)
class Word:
    """A word with its first and last second in the clip, and the probability of its least sure token."""

    word: str
    start: float
    end: float
    confidence: float


@torch.inference_mode()
def emitted(model: MMDiff, rows: Sequence[Row], kind: str = "audio") -> list[Tensor]:
    """Log-probabilities (T, V) of each row's clip."""
    samples = [[Media(kind, row["audio"])] for row in rows]
    batch = to_device(collate(samples, model.vocab, model.readers), model.device)
    model.eval()
    log_p_BTV, length_B = emissions(model, kind, batch.media[kind])
    return [log_p_TV[:n].cpu() for log_p_TV, n in zip(log_p_BTV, length_B.tolist(), strict=True)]


def first_pass(model: MMDiff, rows: Sequence[Row], *, kind: str = "audio", batch_size: int = 32) -> list[str]:
    """Greedy transcripts: the likeliest token of every feature, repeats as one, blanks as none."""
    out: list[str] = []
    for first in range(0, len(rows), batch_size):
        group = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        for log_p_TV in emitted(model, group, kind):
            out.append(model.vocab.decode(collapse(log_p_TV.argmax(-1), model.vocab.mask_id)))
    return out


def word_times(log_p_TV: Tensor, text: str, model: MMDiff, seconds: float) -> list[Word]:
    """When each word of `text` was said, by forced alignment (torchaudio). seconds: of the clip.

    A token's probability is the mean over the features aligned with it. Empty where the text does not fit into the
    clip. Raises ConfigError for words that the tokenizer does not know.
    """
    require("torchaudio", "audio")
    from torchaudio.functional import forced_align, merge_tokens

    words = text.split()
    pieces = [model.vocab.encode(word if i == 0 else f" {word}") for i, word in enumerate(words)]
    ids = [i for piece in pieces for i in piece]
    blank = model.vocab.mask_id
    if blank in ids:
        raise ConfigError(f"text {text!r:.60} holds the mask token, which is the blank of CTC")
    repeats = sum(a == b for a, b in zip(ids, ids[1:], strict=False))
    if not ids or len(ids) + repeats > len(log_p_TV):
        return []
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
    """Rows with what a run's CTC head hears in them as their `hypothesis`.

    rows: any source of clips. run: a run folder or saved model. media: the kind of the sound.
    """

    def __init__(self, rows: Source, run: str, media: str = "audio") -> None:
        self._rows = [rows[i] for i in range(len(rows))]
        self._heard = first_pass(load(run).model, self._rows, kind=media)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return {**self._rows[index], "hypothesis": self._heard[index]}

    @classmethod
    def toy(cls, rows: Source, run: str, media: str = "audio") -> FirstPass:
        """A first pass that hears everything but the last word."""
        out = cls.__new__(cls)
        out._rows = [rows[i] for i in range(min(len(rows), 8))]
        out._heard = [str(row["text"]).rpartition(" ")[0] for row in out._rows]
        return out
