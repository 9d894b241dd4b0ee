"""Plain text: windows of documents to train on; continuation, infilling and rewriting.

    {"text": "Once upon a time"}                       what follows is generated
    {"text": ["def area(r):\n    return ", 8, "\n"]}   a number is a gap of so many masked positions
    {"draft": "Teh cat sat."}                          is rewritten, with `sampler.draft`

mmdiff generate runs/stories text="Once upon a time"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdiff.canvas.sample import LONGEST, Break, Part, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, literal, start_of
from mmdiff.data.fields import check_row
from mmdiff.errors import DataError, located
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1
from mmdiff.protocols import Row

from .data.windows import fingerprint


@part
class PlainText:
    """The task of plain text.

    max_new_tokens: masked positions behind a text that is to be continued.
    spare: positions behind a draft, filled with EOS, so that it may become longer.
    separate: the documents of a window do not see each other (UltraLLaDA found that best); False:
        they do, as if they were one text with end tokens in it (LLaDA's pre-training, arXiv 2502.09992).
    """

    fields = ("text", "draft", "pieces", "tokenizer", "answer")

    def __init__(self, max_new_tokens: AtLeast1 = 128, spare: AtLeast0 = 0, separate: bool = True) -> None:
        self.max_new_tokens, self.spare, self.separate = max_new_tokens, spare, separate

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas of a window (`mmdiff.tasks.text.data.windows`), or of a whole `text` with its end.

        Raises DataError for a row that is neither, and for a window of another tokenizer's ids.
        """
        with located(row.get("where")):
            check_row(row, self.fields)
            if "pieces" not in row:
                return [Text([start_of(vocab)]), Target([*_ids(row, "text", vocab), vocab.eos_id])]
            if (mark := row.get("tokenizer")) is not None and mark != fingerprint(vocab.tokenizer):
                raise DataError("tokenizer: the window holds ids of another tokenizer than this model's")
            parts: list[Part] = []
            for first, *rest in _pieces(row):
                parts += [Text([first]), Target(rest), *([Break()] if self.separate else [])]
            return parts

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas to fill: of a text to continue, one with gaps, a draft, or the first half of a window."""
        with located(row.get("where")):
            check_row(row, self.fields)
            start: list[Part] = [Text([start_of(vocab)])]
            if row.get("draft") is not None:
                return [*start, Target([*_ids(row, "draft", vocab), *[vocab.eos_id] * self.spare])]
            if isinstance(row.get("text"), list | tuple):
                return [*start, *gaps(row["text"], vocab)]
            if "pieces" in row:
                ids = _pieces(row)[0]
                return [Text(ids[: max(1, len(ids) // 2)]), Target(length=self.max_new_tokens)]
            return [*start, Text(_ids(row, "text", vocab)), Target(length=self.max_new_tokens)]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        """Returns the text of the ids; end tokens, behind which nothing stands, are left out."""
        ends = {vocab.eos_id, *vocab.end_ids}
        return vocab.decode([i for i in map(int, ids) if i not in ends])

    def score(self, prediction: str, row: Row) -> dict[str, float]:
        """Returns whether the prediction is the row's `answer`; nothing where it has none."""
        answer = row.get("answer")
        return {} if answer is None else {"exact_match": float(prediction.strip() == str(answer).strip())}


def gaps(pieces: Sequence[Any], vocab: Vocab) -> list[Part]:
    """Returns texts as given and numbers as so many masked positions. Raises DataError for anything else."""
    parts: list[Part] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(Text(literal(piece, vocab)))
        elif isinstance(piece, int) and not isinstance(piece, bool) and 1 <= piece <= LONGEST:
            parts.append(Target(length=piece))
        else:
            raise DataError(f"text: {piece!r:.60}, expected a text, or a number of masked positions up to {LONGEST}")
    if not any(isinstance(one, Target) for one in parts):
        raise DataError("text: there is no gap, expected a number of masked positions among the texts")
    return parts


def _pieces(row: Row) -> Sequence[Sequence[int]]:
    """Returns the documents of a window. Raises DataError for what is no list of lists of ids."""
    found = row["pieces"]
    if not isinstance(found, list | tuple) or not len(found):
        raise DataError(f"pieces: {found!r:.60}, expected a list of documents, each a list of ids")
    for one in found:
        if isinstance(one, np.ndarray) and one.ndim == 1 and one.dtype.kind in "iu" and len(one):
            continue
        if not isinstance(one, list | tuple) or not one or not all(isinstance(i, int | np.integer) for i in one):
            raise DataError(f"pieces: {one!r:.60}, expected a list of ids")
    return found


def _ids(row: Row, field: str, vocab: Vocab) -> list[int]:
    if not isinstance(row.get(field), str):
        raise DataError(f"{field}: {row.get(field)!r:.60}, expected a text")
    return literal(row[field], vocab)
