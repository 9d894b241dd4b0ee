"""Rows of whole sequences as questions: some residues masked (`_`), the whole sequence as the answer.

`mmdiff eval` then counts how many residues are recovered; `mmdiff protein eval` reports more.
"""

from __future__ import annotations

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.parts import part
from mmdiff.parts.ranges import PositiveShare, Whole
from mmdiff.protocols import Row, Source
from mmdiff.tasks.protein.residues import CANONICAL, MASKED


@part
class Masked:
    """The rows of another source with a `share` of the residues masked, at least one, and the sequence as `answer`.

    Which ones are masked is drawn by (seed, number of the row). Letters outside the 20 residues stay.
    share: above 0 and up to 1, which masks all residues. Raises ConfigError for another share.
    """

    def __init__(self, rows: Source, share: PositiveShare = 0.3, seed: Whole = 0) -> None:
        self.rows, self.share, self.key = rows, share, NoiseKey(seed, stream="opened")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        letters = list(str(row["sequence"]))
        positions = [i for i, letter in enumerate(letters) if letter in CANONICAL]
        order = self.key.uniform(index, len(positions)).argsort(kind="stable")
        for i in order[: max(1, round(self.share * len(positions)))].tolist():
            letters[positions[i]] = MASKED
        return {**row, "sequence": "".join(letters), "answer": row["sequence"]}
