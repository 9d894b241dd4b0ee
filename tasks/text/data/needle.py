"""The needle task: a fact is hidden in a long text at a given depth, and asked for at its end.

    {"text": ["... The secret number of Lisbon is 40719. ... The secret number of Lisbon is", 6], "answer": "40719",
     "kind": "1024 tokens, depth 0.5"}

`mmdiff.tasks.text.PlainText` reads it: a number is a gap of so many masked positions. The task is that of passkeys
(Mohtashami and Jaggi, arXiv 2305.16300) in the grid of lengths and depths by which LongLLaDA (arXiv 2506.14429) and
UltraLLaDA compare ways to lengthen a context. With `others`, other cities' numbers lie in the text as well, so that
naming any number is not enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mmdiff.canvas.sample import LONGEST
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, Share
from mmdiff.protocols import Row

from .documents import texts_of
from .library import StandardLibrary
from .windows import tokenizer_of

CITIES = (
    "Accra Bergen Cusco Dublin Esbjerg Fukuoka Geneva Havana Izmir Jaipur Kampala Lisbon Manila Nairobi Oslo Porto "
    "Quito Riga Sofia Tunis Utrecht Vienna Windhoek Xalapa Yerevan Zagreb"
).split()
FACT, ASKED = "The secret number of {} is {}.\n", "The secret number of {} is"


@part
@dataclass(eq=False)
class Needles:
    """Rows, `count` per length and depth, in this order. A row is a function of (seed, number) and the documents.

    tokenizer: that of the model, or a folder that holds it. documents: what the text is made of, line by line; the
        Python library's by default.
    lengths: tokens of a canvas, the masked ones included; the text is made of whole lines and so a little shorter.
    depths: where the fact stands: 0 before the text, 1 behind it, just before the question.
    others: numbers of other cities at random depths.
    Raises DataError for documents without a line, ConfigError for a length that has no room for the facts.
    """

    tokenizer: Any
    documents: Iterable[Row] = field(default_factory=StandardLibrary)
    lengths: Sequence[AtLeast1] = (256, 512, 1024)
    depths: Sequence[Share] = (0.0, 0.25, 0.5, 0.75, 1.0)
    count: AtLeast1 = 2
    others: AtLeast0 = 0
    seed: AtLeast0 = 0

    def __post_init__(self) -> None:
        self.tokenizer = tokenizer_of(self.tokenizer)
        if not self.lengths or not self.depths:
            raise ConfigError(f"needle: lengths {self.lengths}, depths {self.depths}: expected at least one of each")
        if max(self.lengths) > LONGEST:
            raise ConfigError(f"lengths: {max(self.lengths)}, expected at most {LONGEST}")
        if self.others >= len(CITIES):
            raise ConfigError(f"others: {self.others}, expected at most {len(CITIES) - 1}")
        every = (f"{line}\n" for _, text in texts_of(self.documents) for line in text.splitlines() if line.strip())
        self._lines = list(islice(every, 20 * max(self.lengths)))  # more than any row reads
        if not self._lines:
            raise DataError("needle: the documents have no line of text")
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.lengths) * len(self.depths) * self.count

    def cell(self, index: int) -> tuple[int, float]:
        """Returns the length and the depth of a row."""
        at = index // self.count
        return self.lengths[at // len(self.depths)], self.depths[at % len(self.depths)]

    def __getitem__(self, index: int) -> Row:
        length, depth = self.cell(index)
        key = NoiseKey(self.seed, stream="needle")
        first, *draws = key.uniform(index, 1 + 3 * len(CITIES)).tolist()
        of_cities = sorted(zip(draws[0::3], CITIES, draws[1::3], draws[2::3], strict=True))[: 1 + self.others]
        facts = [(city, str(int(10**4 + u * 9 * 10**4)), depth if n == 0 else where)
                 for n, (_, city, u, where) in enumerate(of_cities)]  # fmt: skip
        city, number, _ = facts[0]
        asked, gap = ASKED.format(city), self._size(f" {number}")
        taken = 1 + gap + self._size(asked) + sum(self._size(FACT.format(*fact[:2])) for fact in facts)
        if taken > length:
            raise ConfigError(f"lengths: {length}: facts and question take {taken} tokens")
        lines = self._text(int(first * len(self._lines)), length - taken)
        hidden = [(self._at(lines, where), where, FACT.format(name, value)) for name, value, where in facts]
        for at, _, fact in sorted(hidden, reverse=True):  # from the end to the front
            lines.insert(at, fact)
        return {
            "text": ["".join(lines) + asked, gap],
            "answer": number,
            "kind": f"{length} tokens, depth {depth:g}",
        }

    def _text(self, first: int, size: int) -> list[str]:
        """Returns whole lines from a number on, round and round, of so many tokens at most."""
        lines: list[str] = []
        while (size := size - self._size(line := self._lines[(first + len(lines)) % len(self._lines)])) >= 0:
            lines.append(line)
        return lines

    def _at(self, lines: Sequence[str], depth: float) -> int:
        """Returns the number of lines before the depth, which counts tokens."""
        sizes = [self._size(line) for line in lines]
        goal, before = depth * sum(sizes), 0
        for n, size in enumerate(sizes):
            if before + size / 2 > goal:
                return n
            before += size
        return len(lines)

    def _size(self, text: str) -> int:
        if text not in self._sizes:
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            self._sizes[text] = len(found["input_ids"])
        return self._sizes[text]

    @classmethod
    def toy(cls, **arguments: Any) -> Needles:
        """One short row."""
        return cls(**{**arguments, "lengths": (128,), "depths": (0.5,), "count": 1})


def grid(rows: Needles, records: Sequence[Mapping[str, Any]]) -> dict[int, dict[float, float]]:
    """Returns {length: {depth: the share of numbers that were found}}. records: of all rows, in their order."""
    found: dict[int, dict[float, float]] = {length: dict.fromkeys(rows.depths, 0.0) for length in rows.lengths}
    for n, record in enumerate(records):
        length, depth = rows.cell(n)
        found[length][depth] += record["scores"]["exact_match"] / rows.count
    return found
