"""Rows drawn so that each answer comes up equally often.

    {"image": "0.png", "question": "is there a circle?", "answer": "no"}

Most rows of small sets ask for yes or no, from which a model that begins from nothing learns to look only after
thousands of steps. A first stage of balanced rows is about the rarer answers, which name what is seen.
"""

from __future__ import annotations

from collections import defaultdict

from mmdiff.data.stream import check_source
from mmdiff.errors import ConfigError, located
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row, Source

from .turns import answers


@part
class Balanced:
    """The rows in turns of one per answer (the last one of a conversation). Rows of rarer answers come up again.

    least: answers of fewer rows than this are taken together as one. Its length is that of the commonest answer's rows
        times the number of answers. Raises ConfigError for what is no source and where no row has an answer,
        DataError for an answer that is none.
    """

    def __init__(self, rows: Source, least: AtLeast1 = 20) -> None:
        check_source(rows, "rows")
        by_answer: dict[str, list[int]] = defaultdict(list)
        for i in range(len(rows)):
            row = rows[i]
            with located(row.get("where")):
                found = answers(row)[:1]
            for answer in found:
                by_answer[answer].append(i)
        rare = [i for of in by_answer.values() if len(of) < least for i in of]
        self.rows = rows
        self.of_answers = [of for of in by_answer.values() if len(of) >= least] + ([sorted(rare)] if rare else [])
        if not self.of_answers:
            raise ConfigError("rows: none has an answer to balance by")

    def __len__(self) -> int:
        return len(self.of_answers) * max(map(len, self.of_answers))

    def __getitem__(self, index: int) -> Row:
        n, group = divmod(range(len(self))[index], len(self.of_answers))
        return self.rows[self.of_answers[group][n % len(self.of_answers[group])]]
