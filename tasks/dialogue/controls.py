"""Controls of whether a model uses the picture: the same rows with another picture, a grey one or none.

    {"image": the picture of another row, "question": "What is it?", "answer": "a cat"}

Each wraps any source of rows. A model that scores as well on these as on the rows themselves does not use the picture.
`Shuffled` and `Without` also serve for sound, and for any other field of a row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.data.fields import EXTRA
from mmdiff.errors import ConfigError, DataError, nearest, require, shown
from mmdiff.files import unreadable
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0
from mmdiff.protocols import Row, Source

from .turns import NOUNS, SLOT


@part
class Shuffled:
    """The rows, each with the picture of another row; each picture is used once.

    The rows should have the same number of pictures.
    fields: the fields that come from the other row, together: `[audio, duration]` for sound.
    """

    def __init__(self, rows: Source, seed: AtLeast0, fields: Sequence[str] = ("image",)) -> None:
        if len(rows) < 2:
            raise ConfigError(f"rows: {len(rows)} of them cannot be shuffled, expected at least 2")
        self.rows, self.fields = rows, tuple(fields)
        order = np.random.default_rng(seed).permutation(len(rows))
        self._other = np.empty_like(order)
        self._other[order] = np.roll(order, -1)  # one cycle through all rows: no row keeps its own

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        i = range(len(self))[index]
        row, other = self.rows[i], self.rows[int(self._other[i])]
        for name in self.fields:
            for found in (row, other):
                if name not in found:
                    where = found.get("where", f"row {i if found is row else int(self._other[i])}")
                    raise DataError(f"{where}: no field {name!r} to shuffle{nearest(name, map(str, found))}")
        return {**row, **{name: other[name] for name in self.fields}}


@part
class Blank:
    """The rows with a plain grey picture of the same size in place of each picture."""

    def __init__(self, rows: Source) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        _check_pictures(row, "Blank")
        return {**row, "image": _grey(row["image"])} if row.get("image") is not None else row


def _check_pictures(row: Row, control: str) -> None:
    """Raise DataError for a row with other media than pictures only: a control of pictures changes nothing there."""
    others = [name for name in NOUNS if row.get(name) is not None]
    if others and "image" not in others:
        instead = f'Without(fields=["{others[0]}"]) or Shuffled(fields=["{others[0]}"])'
        raise DataError(
            f"{row.get('where', 'a row')}: {control} is of pictures, this row has {others[0]}; use {instead}"
        )


def _check_named(fields: Iterable[str], row: Row) -> None:
    """Raise DataError for a field that a row does not have, while it has one of nearly that name."""
    for name in fields:
        near = nearest(name, map(str, row.keys() - EXTRA - set(fields)))
        if name not in row and "did you mean" in near:
            raise DataError(f"{row.get('where', 'rows')}: no field {name!r}{near}")


def _grey(picture: Any) -> Any:
    if isinstance(picture, list | tuple):
        return [_grey(one) for one in picture]
    if isinstance(picture, np.ndarray):
        return np.full_like(picture, 128)
    require("PIL", "vision")
    from PIL import Image

    if isinstance(picture, Image.Image):
        return Image.new("RGB", picture.size, (128, 128, 128))
    if not isinstance(picture, str | Path):
        raise DataError(f"{picture!r:.60} is no picture, expected a path, a PIL image or an array")
    if fault := unreadable(picture):
        raise DataError(f"{shown(picture)}: {fault}")
    try:
        with Image.open(picture) as image:
            return Image.new("RGB", image.size, (128, 128, 128))
    except Exception as error:  # on damaged files, decoders raise almost anything
        raise DataError(f"{picture}: not a picture ({type(error).__name__})") from None


@part
class Without:
    """The rows without some of their fields: `[audio, duration]` for a model without sound."""

    def __init__(self, rows: Source, fields: Sequence[str]) -> None:
        self.rows, self.fields = rows, frozenset(fields)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        _check_named(self.fields, row)
        return {name: value for name, value in row.items() if name not in self.fields}


@part
class Fixed:
    """The rows with the same value in some of their fields: `{instruction: ""}` for a robot without instructions."""

    def __init__(self, rows: Source, fields: Mapping[str, Any]) -> None:
        self.rows, self.fields = rows, dict(fields)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        _check_named(self.fields, row)
        return {**row, **self.fields}


@part
class WithoutImage:
    """The rows without their pictures, and without `<image>` in their texts."""

    def __init__(self, rows: Source) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        _check_pictures(self.rows[index], "WithoutImage")
        row = {name: value for name, value in self.rows[index].items() if name != "image"}
        if "question" in row:
            row["question"] = _unslotted(row["question"])
        if isinstance(row.get("conversations"), list | tuple):
            row["conversations"] = [
                {**turn, "value": _unslotted(turn.get("value"))}
                if isinstance(turn, Mapping) and turn.get("from") == "human"
                else turn
                for turn in row["conversations"]
            ]
        return row


def _unslotted(text: Any) -> Any:
    return text.replace(SLOT, "").strip() if isinstance(text, str) else text  # all else the task refuses


def majority(rows: Source) -> Callable[[str], str]:
    """Returns the best guess without a picture: a function of a question to its most frequent answer in `rows`.

    A question that is not in `rows` gets the most frequent answer of all. Each of the `rows` has one answer.
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for i in range(len(rows)):
        by_question[rows[i]["question"]][rows[i]["answer"]] += 1
        overall[rows[i]["answer"]] += 1
    table = {question: answers.most_common(1)[0][0] for question, answers in by_question.items()}
    fallback = overall.most_common(1)[0][0]
    return lambda question: table.get(question, fallback)
