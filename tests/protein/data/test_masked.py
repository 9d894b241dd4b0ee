"""Sequences with residues masked: how many, which, and that the answer is the sequence."""

from __future__ import annotations

import pytest

from mmdiff.errors import ConfigError
from mmdiff.tasks.protein.data.masked import Masked

ROWS = [{"id": "a", "sequence": "MKXVACDEFG"}, {"id": "b", "sequence": "MK"}, {"id": "c", "sequence": "X"}]


@pytest.mark.parametrize(("share", "counts"), [(0.3, [3, 1, 0]), (1.0, [9, 2, 0]), (0.01, [1, 1, 0])])
def test_a_share_of_the_residues_is_open_and_x_never(share: float, counts: list[int]) -> None:
    rows = Masked(ROWS, share)
    for i, count in enumerate(counts):
        row = rows[i]
        assert row["answer"] == ROWS[i]["sequence"] and row["sequence"].count("_") == count and row["id"] in "abc"
        assert all(a in ("_", b) for a, b in zip(row["sequence"], row["answer"], strict=True))
    assert rows[0]["sequence"][2] == "X" and len(rows) == 3


def test_what_is_open_depends_on_seed_and_row_alone() -> None:
    long = [{"sequence": "ACDEFGHIKL" * 5}] * 4
    assert Masked(long)[1] == Masked(long[:2])[1]
    drawn = {Masked(long, seed=seed)[i]["sequence"] for seed in range(2) for i in range(4)}
    assert len(drawn) == 8


def test_every_residue_is_opened_as_often() -> None:
    row = [{"sequence": "ACDEFGHIKL"}] * 2000
    drawn = [Masked(row, 0.3)[i]["sequence"] for i in range(2000)]
    counts = [sum(s[position] == "_" for s in drawn) for position in range(10)]
    assert sum(counts) == 6000 and all(abs(c - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for c in counts)


def test_a_wrong_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="share=0: expected a number above 0 and up to 1"):
        Masked(ROWS, 0)
