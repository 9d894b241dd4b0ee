"""Records of a few rows, whatever is wrong with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.data.fields import check_row
from mmdiff.errors import DataError, located
from mmdiff.protocols import Row, Source
from mmdiff.runs.records import Record
from mmdiff.session import Session

NAMES = ("id", "question_id", "image_id", "audio_id", "text_id")  # fields that say which row it is, the first counts


def predict_batch(session: Session[Any], source: Source, numbers: Sequence[int]) -> list[Record]:
    """Returns a record per row of `numbers`; of one that cannot be used, `error` says why.

    Rows that can be read are predicted together where their numbers follow each other, and alone where one of them
    fails: a prediction is the same.
    """
    out: dict[int, Record] = {}
    runs: list[list[tuple[int, Row]]] = []
    fields = getattr(session.task, "fields", None)
    for number in numbers:
        try:
            row = source[number]
            with located(row.get("where")):
                check_row(row, fields, strict=True)
        except DataError as error:
            out[number] = {"id": None, "error": str(error)}
            continue
        if not runs or runs[-1][-1][0] + 1 != number:
            runs.append([])
        runs[-1].append((number, row))
    for group in runs:
        try:
            out |= _predicted(session, group)
        except DataError:
            for one in group:
                try:
                    out |= _predicted(session, [one])
                except DataError as error:
                    name = one[1].get("where") or f"row {one[0]}"
                    text = str(error).removeprefix(f"row {one[0]}: ").removeprefix(f"{name}: ")  # as a task says it
                    out[one[0]] = {"id": _id(one[1]), "error": f"{name}: {text}"}
    return [out[number] for number in numbers]


def _predicted(session: Session[Any], group: Sequence[tuple[int, Row]]) -> dict[int, Record]:
    found = session.predict_many([row for _, row in group], first=group[0][0])
    return {
        number: {"id": _id(row), "prediction": one["prediction"], "forwards": one["forwards"]}
        for (number, row), one in zip(group, found, strict=True)
    }


def _id(row: Row) -> Any:
    return next((row[name] for name in NAMES if row.get(name) is not None), None)
