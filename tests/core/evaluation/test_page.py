"""The kit of the reports: tables, as text too, and data URIs."""

from __future__ import annotations

import base64

import pytest

from mmdiff.evaluation.page import Number, cells, data_uri, evenly, marked, text_table

TABLE: dict[str, dict[str, Number]] = {"a": {"x": 2.0, "z": "text"}, "b": {"y": 10, "x": 1.96}, "c": {"x": 3.0}}


def one_place(figure: Number) -> str:
    return figure if isinstance(figure, str) else f"{figure:.1f}"


def test_cells_stand_under_the_columns_of_all_rows() -> None:
    columns, rows = cells(TABLE, one_place)
    assert columns == ["x", "z", "y"]
    assert rows == {"a": ["2.0", "text", "–"], "b": ["2.0", "–", "10.0"], "c": ["3.0", "–", "–"]}


def test_what_is_lowest_as_shown_is_marked_and_text_never() -> None:
    _, rows = marked(TABLE, one_place)
    best = {label: [text for text, is_lowest in row if is_lowest] for label, row in rows.items()}
    assert best == {"a": ["2.0"], "b": ["2.0", "10.0"], "c": []}


def test_a_table_as_text_has_aligned_columns() -> None:
    assert text_table([["", "all"], ["policy", "0.5"], ["a", "–"]]) == "        all\npolicy  0.5\na         –"


@pytest.mark.parametrize(("n", "expected"), [(0, []), (2, [0, 3]), (4, [0, 1, 3, 4]), (9, [0, 1, 2, 3, 4, 5])])
def test_items_are_taken_evenly(n: int, expected: list[int]) -> None:
    assert evenly(range(6), n) == expected


def test_a_data_uri_holds_the_bytes() -> None:
    kind, _, text = data_uri(b"\x00\xff", "audio/wav").partition(",")
    assert kind == "data:audio/wav;base64" and base64.b64decode(text) == b"\x00\xff"
