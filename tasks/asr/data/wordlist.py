"""A tokenizer of the words of one's own transcripts, for models that learn from nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.stream import check_source
from mmdiff.errors import DataError, located
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Source

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>")


@part
def words_of(rows: Source, also: Sequence[str] = ("transcribe",), most: AtLeast1 = 2000) -> Any:
    """Returns a tokenizer of whole lower-case words: `also`, then those of the transcripts, the most frequent first.

    also: words of instructions. most: words of transcripts. With more, which few thousand clips do not teach, it raises
    DataError; so do a row without a transcript, and a transcript that holds the spelling of a special token.
    """
    check_source(rows, "rows")
    count: Counter[str] = Counter()
    for i in range(len(rows)):
        row = rows[i]
        with located(row.get("where")):
            text = row.get("text")
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"text: {text!r:.60}, expected a transcript")
            words = text.lower().split()
            if (bad := next((word for word in words if word in SPECIAL), None)) is not None:
                raise DataError(f"text: {bad} is a special token, expected words")
            count.update(words)
    if len(count) > most:
        raise DataError(f"transcripts of {len(count)} different words, expected at most {most} (`most`)")
    found = [word for word, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))]
    return word_tokenizer(list(dict.fromkeys([*also, *found])))
