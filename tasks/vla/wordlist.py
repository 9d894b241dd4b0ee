"""A tokenizer of the words of the instructions of one's own episodes, for policies that learn from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.ranges import AtLeast1
from mmdiff.errors import DataError
from mmdiff.parts import part

from .data.layout import read_layout

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>")


@part
def words_of(path: str, also: Sequence[str] = (), most: AtLeast1 = 2000) -> Any:
    """Returns a tokenizer of whole lower-case words, those of the instructions of the LeRobotDataset at `path`.

    also: words besides, of instructions that are to be tried and are not in the data. most: words of instructions. With more, which few episodes do not teach, it raises DataError; so does an instruction
    that holds the spelling of a special token, and a folder that is no data set.
    """
    words: dict[str, None] = {}
    for text in read_layout(path).tasks.values():
        found = text.lower().split()
        if (bad := next((word for word in found if word in SPECIAL), None)) is not None:
            raise DataError(f"{path}: instruction {text!r:.60}: {bad} is a special token, expected words")
        words |= dict.fromkeys(found)
    if len(words) > most:
        raise DataError(f"{path}: instructions of {len(words)} different words, expected at most {most} (`most`)")
    return word_tokenizer(sorted({*words, *also}))
