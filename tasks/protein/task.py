"""Protein sequences: sampled from nothing, filled in around fixed residues, or as the binder of a target.

A canvas is `<cls> sequence <eos>`, and `<cls> target <eos> sequence <eos>` with a target, as ESM-2 and DSM have it.
What is noised is the sequence, chosen by its segment and not by counting ends; the target is always context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.fields import check_row
from mmdiff.errors import ConfigError, DataError, located, short
from mmdiff.parts import part
from mmdiff.protocols import Row

from .residues import CANONICAL, MASKED, Residues

READ = ("sequence", "target", "allow")
"""Without which a canvas would be another one. Tables of sequences have labels in columns of any name."""


@part
class Protein:
    """Rows `{sequence, target?, allow?, where?}` <-> canvases. A row's `sequence` may have masked positions, `_`.

    letters: what may be generated. The 20 residues; with `-` an alignment is generated column by column.
    learned: letters that are noised and scored in training, with the softmax over them; the others of a sequence (X, a
        gap) are context there. None: the same as `letters`. "all": every letter, with the softmax over the whole
        vocabulary, as DSM has it.
    allow, of a row: for every position None or the letters that may be generated there, out of `letters`.
    """

    fields = ("sequence", "target", "allow", "answer")  # others of a row are not read
    vectors = "mmdiff.tasks.protein.embed.embeddings.vectors"  # how a server embeds

    def __init__(self, letters: str = CANONICAL, learned: str | None = None) -> None:
        if not letters or len(set(letters)) != len(letters):
            raise ConfigError(f"task.letters: {short(repr(letters), 60)}, expected letters, each once")
        if learned is not None and learned != "all" and len(set(learned)) != max(len(learned), 1):
            raise ConfigError(f"task.learned: {learned!r}, expected letters, each once, or all")
        self.letters, self.learned = letters, learned
        self._known: tuple[Vocab, Residues] | None = None

    def residues(self, vocab: Vocab) -> Residues:
        """The letters of a vocabulary. Raises ConfigError where some of `letters` are missing."""
        if self._known is None or self._known[0] is not vocab:
            found = Residues(vocab)
            learned = "" if self.learned in (None, "all") else self.learned
            if unknown := set(self.letters + str(learned)) - set(found.letters):
                raise ConfigError(f"task.letters: no id for {min(unknown)!r}, expected some of {found.letters}")
            self._known = vocab, found
        return self._known[1]

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Lay a whole sequence out for training. Raises DataError as `whole` does."""
        if self.learned == "all":
            return self.whole(row, vocab, self.residues(vocab).letters, restrict=False)
        return self.whole(row, vocab, self.letters if self.learned is None else self.learned)

    def whole(self, row: Row, vocab: Vocab, letters: str, *, restrict: bool = True) -> list[Text | Target]:
        """Lay a whole sequence out: its residues among `letters` are targets, all others context.

        restrict: the softmax over a target runs over `letters`; False: over the whole vocabulary. Raises DataError for
        a missing sequence, a masked position, or a letter that has no id.
        """
        residues, sequence = self.residues(vocab), self._sequence(row)
        if MASKED in sequence:
            raise DataError(
                f"{_where(row)}residue {sequence.index(MASKED) + 1} is masked (`_`), expected a whole sequence"
            )
        ids = self._ids(residues, sequence, row)
        allow = residues.ranges(letters) if restrict else None
        parts: list[Text | Target] = []
        at = 0
        for is_target, group in groupby(sequence, key=lambda letter: letter in letters):
            n = sum(1 for _ in group)
            parts.append(Target(ids[at : at + n], allow=allow) if is_target else Text(ids[at : at + n]))
            at += n
        return [*self._before(row, vocab), *parts, Text([vocab.eos_id])]

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Open positions are targets, all others given. Raises DataError as `sample` does, and for a wrong `allow`."""
        residues, sequence = self.residues(vocab), self._sequence(row)
        ids = self._ids(residues, sequence, row)
        parts = []
        for letters, start, end in self._spans(row, sequence):
            parts.append(Target(ids[start:end], allow=residues.ranges(letters) if letters else None))
        return [*self._before(row, vocab), *parts, Text([vocab.eos_id])]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        """The sequence; `_` where a position is masked."""
        return self.residues(vocab).decode(list(ids))

    def score(self, prediction: str, row: Row) -> dict[str, float]:
        """`recovery`: the share of residues that are those of the row's `answer`; nothing where a row has none."""
        answer = row.get("answer")
        if answer is None:
            return {}
        designed = [i for i, letter in enumerate(str(row["sequence"])) if letter == MASKED]
        if not designed:
            return {}
        if len(prediction) != len(answer):
            raise DataError(f"{_where(row)}answer: {len(answer)} residues, the sequence has {len(prediction)}")
        return {"recovery": sum(prediction[i] == answer[i] for i in designed) / len(designed)}

    def _spans(self, row: Row, sequence: str) -> Iterator[tuple[str, int, int]]:
        """(letters that may be generated, start, end) of neighbours with the same; none for what is given."""
        allow = row.get("allow")
        if allow is not None and len(allow) != len(sequence):
            raise DataError(f"{_where(row)}allow: {len(allow)} entries for {len(sequence)} positions")

        def letters(i: int) -> str:
            if sequence[i] != MASKED:
                return ""
            if allow is None or allow[i] is None:
                return self.letters
            if not allow[i] or set(allow[i]) - set(self.letters):
                raise DataError(f"{_where(row)}allow, residue {i + 1}: {allow[i]!r}, expected some of {self.letters}")
            return "".join(sorted(set(allow[i])))

        start = 0
        for name, group in groupby(range(len(sequence)), key=letters):
            end = start + sum(1 for _ in group)
            yield name, start, end
            start = end

    def _before(self, row: Row, vocab: Vocab) -> list[Text]:
        start = [] if vocab.bos_id is None else [vocab.bos_id]
        target = row.get("target")
        if target is None:
            return [Text(start)] if start else []
        if not isinstance(target, str) or not target:
            raise DataError(f"{_where(row)}target: {target!r}, expected residues")
        if MASKED in target:
            at = target.index(MASKED) + 1
            raise DataError(f"{_where(row)}target: residue {at} is masked (`_`), expected a whole sequence")
        ids = self._ids(self.residues(vocab), target, row, "target: ")
        return [Text([*start, *ids, vocab.eos_id])]

    def _sequence(self, row: Row) -> str:
        with located(_where(row).removesuffix(": ")):
            check_row(row, READ)
        sequence = row.get("sequence")
        if not isinstance(sequence, str) or not sequence:
            raise DataError(f"{_where(row)}sequence: {sequence!r}, expected residues")
        return sequence

    def _ids(self, residues: Residues, sequence: str, row: Row, what: str = "") -> list[int]:
        with located(f"{_where(row)}{what}".removesuffix(": ")):
            ids: list[int] = residues.encode(sequence).tolist()
        return ids


def _where(row: Row) -> str:
    name = row.get("where") or row.get("id")
    return f"{name}: " if name else ""
