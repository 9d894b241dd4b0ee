"""`Guard`: whether a sequence repeats itself, which language models of proteins are prone to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, PositiveShare
from mmdiff.tasks.protein.residues import GAP


@part
@dataclass(frozen=True)
class Guard:
    """Whether a sequence repeats itself. It looks at residues that were sampled, not at those that were given.

    share: one kind of residue has more than this share of what was sampled, and `least` positions or more: of few
        positions natural stretches have such a share too. DPLM samples kinds of residues above 25 % again.
    run: more than `run` equal residues stand in a row; or as many as `run` repeat the 2 to 4 that stand before them,
        over and over. Gaps of an alignment are passed over.
    tries: how often a sequence is sampled at most. The last one is kept, and its record names what it tripped on.

    Of 515 natural proteins (`QUERY.fasta` of MMseqs2, and 15 of UniRef50) share trips 0.6 %, run 2.3 %; of 4,914
    Kunitz domains neither any. Of stretches of 30 natural residues 1.9 % trip on share, with least=1 it is 6.4 %.
    """

    share: PositiveShare = 0.25
    run: AtLeast1 = 8
    tries: AtLeast1 = 4
    least: AtLeast1 = 10

    def __call__(self, sequence: str, designed: Sequence[bool]) -> str:
        """Return "ok", or what the sequence trips on: `L 31 %`, `run of 12 G`, `11 residues repeat GS`.

        designed: whether each position was sampled.
        """
        residues = [(letter, new) for letter, new in zip(sequence, designed, strict=True) if letter != GAP]
        letters = [letter for letter, _ in residues]
        sampled = Counter(letter for letter, new in residues if new)
        for letter, n in sampled.most_common(1):
            if n >= self.least and n > self.share * sampled.total():
                return f"{letter} {100 * n / sampled.total():.0f} %"
        for unit in range(1, 5):
            same = 0
            for i in range(unit, len(residues)):
                same = same + 1 if residues[i][1] and letters[i] == letters[i - unit] else 0
                if same >= max(self.run, unit):
                    return self._named(letters, i, unit, same)
        return "ok"

    def _named(self, letters: Sequence[str], last: int, unit: int, same: int) -> str:
        start = last - same - unit + 1
        while last + 1 < len(letters) and letters[last + 1] == letters[last + 1 - unit]:
            last += 1
        n = last - start + 1
        repeat = "".join(letters[start : start + unit])
        return f"run of {n} {repeat}" if unit == 1 else f"{n} residues repeat {repeat}"


GUARD = Guard()
