"""The texts of conversation rows, for a tokenizer made from one's own data."""

from __future__ import annotations

from collections.abc import Iterator

from mmdiff.data.stream import check_source
from mmdiff.errors import located
from mmdiff.parts import part
from mmdiff.protocols import Row, Source

from .turns import read_turns


@part
class Texts:
    """Yields {"text": ...} for each piece of text of each turn, as `mmdiff.tasks.text.tokenizer.byte_pairs` reads them.

    rows: rows of a file, or any other source of them, as in `mmdiff.tasks.dialogue.turns`. Raises ConfigError for what
        is no source, DataError for a row of neither form.
    """

    def __init__(self, rows: Source) -> None:
        check_source(rows, "rows")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        for i in range(len(self.rows)):
            row = self.rows[i]
            with located(row.get("where")):
                turns = read_turns(row)
            for content, answer in turns:
                yield from ({"text": text} for text in (*content, answer) if isinstance(text, str))
