"""A tokenizer of the words of the instructions of one's own episodes, for policies that learn from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1

from .data.dataset import Steps

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>")


@part
def words_of(rows: Any, also: Sequence[str] = (), most: AtLeast1 = 2000) -> Any:
    """Returns a tokenizer of whole lower-case words, those of the instructions of a LeRobotDataset.

    rows: `mmdiff.tasks.vla.data.dataset.Steps`. also: words besides, of instructions that are to be tried and not in
    the data. most: words of instructions. With more, which few episodes do not teach, it raises DataError; so does an
    instruction that holds the spelling of a special token. Raises ConfigError for other rows.
    """
    if not isinstance(rows, Steps):
        raise ConfigError(f"rows: {type(rows).__name__}, expected {{target: {Steps.__module__}.Steps, path: ...}}")
    own: set[str] = set()
    for text in rows.data.tasks:
        found = text.lower().split()
        if (bad := next((word for word in found if word in SPECIAL), None)) is not None:
            raise DataError(f"{rows.data.path}: instruction {text!r:.60}: {bad} is a special token, expected words")
        own.update(found)
    if len(own) > most:
        raise DataError(
            f"{rows.data.path}: instructions of {len(own)} different words, expected at most {most} (`most`)"
        )
    return word_tokenizer(sorted({*own, *also}))
