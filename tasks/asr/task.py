"""Speech recognition and deliberation: a clip of sound, and its transcript.

mmdiff asr transcribe runs/demo-asr clip.wav

    {"audio": "clip.wav", "text": "turn left", "hypothesis": "turn lift"}

`text` is the transcript, `hypothesis` that of a first pass; `audio` may be {"array": ..., "sampling_rate": 16000}.
A row's `audio` may be left out where a model is to work from text alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.data.fields import check_row
from mmdiff.errors import DataError, located
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, NotNegative
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.templates import Plain, Template
from mmdiff.tasks.dialogue.turns import Content

from .metrics import bootstrap, char_errors, corpus, normaliser, word_errors

Case = Literal["keep", "upper", "lower"]


@part
class ASR:
    """The task of rows with sound and a transcript, which a model generates.

    With `draft`, a row's `hypothesis` is on the canvas, for the sampler to improve (`mmdiff.samplers.deliberation`).

    answer_length: positions of every transcript, filled up with EOS, when training and when generating from nothing.
        None: as many as the words and an end id take when training, `max_new_tokens` when generating.
    slack: a draft is followed by this share of its own length in EOS positions, at least `min_slack`, so that words can
        be added: a canvas of the draft's length can only replace them. What is then left of `answer_length` is EOS that
        stays, for the model to see a canvas of the size it was trained on.
    draft: whether hypotheses are used; else everything is generated from nothing, whatever rows have.
    instruction: a text behind the sound, such as "Transcribe the audio:".
    case: of transcripts and hypotheses. normalise: what WER and CER are counted after, see `mmdiff.tasks.asr.metrics`.
    media: the kind of the sound, the name of the encoder in `model.encoders`.
    """

    fields = ("audio", "text", "hypothesis", "nbest", "duration")

    def __init__(
        self,
        answer_length: AtLeast1 | None = None,
        *,
        slack: NotNegative = 0.15,
        min_slack: AtLeast0 = 2,
        draft: bool = False,
        instruction: str = "",
        template: Template | None = None,
        case: Case = "keep",
        normalise: str = "none",
        max_new_tokens: AtLeast1 = 128,
        media: str = "audio",
    ) -> None:
        self.answer_length, self.max_new_tokens = answer_length, max_new_tokens
        self.slack, self.min_slack, self.draft = slack, min_slack, draft
        self.instruction, self.case, self.media = instruction, case, media
        self.template = Plain() if template is None else template
        self.normalise, self._normalised = normalise, normaliser(normalise)

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas with the transcript.

        Raises DataError for a missing transcript, one too long for `answer_length`, and words without an id.
        """
        with located(row.get("where")):
            check_row(row, self.fields)
            ids = [*self._ids(row, "text", vocab), self.template.end(vocab)]
            positions = self.answer_length or len(ids)
            if len(ids) - 1 > positions:
                raise DataError(
                    f"text {row['text']!r:.60} takes {len(ids) - 1} positions, answer_length is {positions}"
                )
            ids = [*ids, *[vocab.eos_id] * positions][:positions]
            return self._canvas(row, Target(ids), vocab, train=True)

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Returns a canvas with masked positions, or with the draft. Raises DataError for unknown words of a draft."""
        with located(row.get("where")):
            check_row(row, self.fields)
            target, fill = Target(length=self.answer_length or self.max_new_tokens), 0
            if self.draft and row.get("hypothesis") is not None:
                ids = self._ids(row, "hypothesis", vocab)
                slack = max(self.min_slack, math.ceil(self.slack * len(ids)))
                target = Target([*ids, *([self.template.end(vocab)] + [vocab.eos_id] * slack)[:slack]])
                fill = max(0, (self.answer_length or 0) - len(ids) - slack)
            return [*self._canvas(row, target, vocab, train=False), *([Text([vocab.eos_id] * fill)] if fill else [])]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        """Returns the text. End ids are left out at every position: amid a draft they take the position of a word."""
        ends = {vocab.eos_id, self.template.end(vocab), *vocab.end_ids}
        return vocab.decode([i for i in ids if int(i) not in ends]).strip()

    def score(self, prediction: str, row: Row) -> dict[str, float]:
        """Returns WER and CER of one utterance, in errors per reference word and character, and whether it has none."""
        pair = self.pair(row, prediction)
        wer, cer = word_errors(*pair).rate, char_errors(*pair).rate
        return {"wer": wer, "cer": cer, "exact_match": float(wer == 0)}

    def score_all(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns corpus figures: all errors over all reference words, with a 95 % bootstrap interval."""
        words = [word_errors(*self.pair(record, record["prediction"])) for record in records]
        chars = [char_errors(*self.pair(record, record["prediction"])) for record in records]
        low, high = bootstrap(words)
        return {**corpus(words), "wer_low": low, "wer_high": high, "cer": corpus(chars)["wer"]}

    def pair(self, row: Row, prediction: str) -> tuple[str, str]:
        """Returns the row's transcript and a prediction, cased and normalised alike, for counting errors."""
        with located(row.get("where")):
            return self._normalised(self._text(row, "text")), self._normalised(self._cased(prediction))

    def _canvas(self, row: Row, target: Target, vocab: Vocab, *, train: bool) -> Sample:
        content: Content = [Media(self.media, row["audio"])] if row.get("audio") is not None else []
        content = [*content, self.instruction] if self.instruction else content
        return self.template.canvas([(content, target)], vocab, train=train)

    def _ids(self, row: Row, field: str, vocab: Vocab) -> list[int]:
        text = " ".join(self._text(row, field).split())
        return literal(text, vocab) if text else []

    def _text(self, row: Row, field: str) -> str:
        text = row.get(field)
        if not isinstance(text, str):
            raise DataError(f"{field}: {text!r:.60} is not text" if field in row else f"no {field}")
        return self._cased(text)

    def _cased(self, text: str) -> str:
        return {"keep": text, "upper": text.upper(), "lower": text.lower()}[self.case]
