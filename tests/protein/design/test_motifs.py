"""Templates, ranges, motifs, allowed letters and lengths: by hand, by enumeration, and their errors."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mmdiff.errors import UserError
from mmdiff.tasks.protein.design.lengths import drawn_lengths
from mmdiff.tasks.protein.design.motifs import (
    Design,
    allowed,
    kept_ranges,
    masked_ranges,
    masked_share,
    record_rng,
    residue_ranges,
    scaffold,
    template,
)
from mmdiff.tasks.protein.residues import CANONICAL


def rng(record: int = 0) -> np.random.Generator:
    return record_rng(0, record, "test")


def uniform(counts: Counter[object], cells: int) -> bool:
    """Whether counts look uniform: chi square within five standard deviations of its mean."""
    n = counts.total()
    chi2 = sum((counts[c] - n / cells) ** 2 for c in counts) / (n / cells) + (cells - len(counts)) * n / cells
    return len(counts) <= cells and abs(chi2 - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


def test_a_template_by_hand() -> None:
    assert template("MKT___G[3]AA", rng()) == Design("MKT___G___AA")
    assert template("<mask>_#[0]XBUZO", rng()) == Design("___XBUZO")
    assert template("A{VLI}_{^CM}", rng()) == Design("A___", [None, "ILV", None, "ADEFGHIKLNPQRSTVWY"])


def test_a_range_of_places_is_drawn_uniformly_and_by_record_only() -> None:
    found = [template("G[10-20]A[2-3]", rng(k)).sequence for k in range(3000)]
    assert {s[0] for s in found} == {"G"} and uniform(Counter(s.rindex("A") for s in found), 11)
    assert uniform(Counter(len(s) - s.rindex("A") for s in found), 2)
    assert found[17] == template("G[10-20]A[2-3]", rng(17)).sequence
    assert record_rng(0, 1, "a").random() != record_rng(0, 1, "b").random()
    assert record_rng(0, 1).random() != record_rng(1, 0).random()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "template: it is empty"),
        ("MKt_", "template, position 3: 't' (did you mean 'T'?), expected an upper-case residue"),
        ("MK7", "position 3: '7'"),
        ("MK T", "position 3: ' '"),
        ("MKJ", "position 3: 'J' is no residue, expected one of ABCDEFGHIKLMNOPQRSTUVWXYZ"),
        ("M[20-10]", r"position 2: [20-10]: 20 is above 10, expected [10-20]"),
        ("M[10", "position 2: '[10' is not understood"),
        ("M[999999999]", "position 2: [999999999]: expected at most 100000 positions"),
        ("M{}", "position 2: {}: it has no letters"),
        ("M{IlV}", "position 2: {IlV}: 'l' is no residue"),
        ("M{^ACDEFGHIKLMNPQRSTVWY}", "no letter is left"),
        ("M<eos>", "position 2: '<eos>' is not understood"),
        ("[0]", "no position at all"),
    ],
)
def test_what_is_wrong_with_a_template(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        template(text, rng())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_ranges_of_residues() -> None:
    assert residue_ranges("16-35, 52-71,80", 80) == [(15, 35), (51, 71), (79, 80)]
    assert residue_ranges("3-4,1-2", 4) == [(2, 4), (0, 2)]
    for text, message in [
        ("0-3", "residues 0-3: expected numbers from 1 to 10"),
        ("8-11", "residues 8-11: expected numbers from 1 to 10"),
        ("5-3", "residues 5-3: 5 is above 3, expected 3-5"),
        ("1-4,4-6", "residues 4-6: they overlap 1-4"),
        ("4-6,1-9", "residues 1-9: they overlap 4-6"),
        ("1-", "residues '1-': expected a position or a range"),
        ("", "residues '': expected a position or a range"),
    ]:
        with pytest.raises(UserError) as error:
            residue_ranges(text, 10)
        assert message in str(error.value)


def test_fixed_and_opened_are_opposites() -> None:
    assert kept_ranges("MKTAYI", [(0, 2), (5, 6)]) == Design("MK___I")
    assert masked_ranges("MKTAYI", [(0, 2), (5, 6)]) == Design("__TAY_")


def test_a_share_is_opened_of_a_window_every_set_equally_likely() -> None:
    found = [masked_share("ACDEFG", 0.5, rng(k), window=(1, 5)).sequence for k in range(1200)]
    assert {(s[0], s[-1]) for s in found} == {("A", "G")} and uniform(Counter(found), 6)
    whole = masked_share(CANONICAL * 5, 0.3, rng())
    assert whole.sequence.count("_") == 30
    assert masked_share("AC", 0.01, rng()).sequence.count("_") == 1
    assert masked_share("A__C", 1.0, rng()).sequence == "____"
    anywhere = [masked_share("ACDEFG", 1.0, rng(k), window=4).sequence for k in range(600)]
    assert uniform(Counter(anywhere), 3) and set(anywhere) == {"____FG", "A____G", "AC____"}
    for share, window in [(0.0, None), (1.5, None), (0.5, 7), (0.5, (4, 9))]:
        with pytest.raises(UserError):
            masked_share("ACDEFG", share, rng(), window=window)
    with pytest.raises(UserError, match="residues 1-2: all of them are masked already"):
        masked_share("__A", 0.5, rng(), window=(0, 2))


def test_every_way_to_place_a_motif_is_equally_likely() -> None:
    sequence = "AACDDDDDEF"
    found, landed = Counter[object](), {}
    for k in range(3000):
        design, where = scaffold(sequence, [(1, 3), (8, 10)], (7, 7), rng(k))
        found[design.sequence] += 1
        landed[design.sequence] = where
    ways = {"_" * a + "AC" + "_" * b + "EF" + "_" * (3 - a - b) for a in range(4) for b in range(4 - a)}
    assert set(found) == ways and len(ways) == 10 and uniform(found, 10)
    for design, ((a, b), (c, d)) in landed.items():
        assert isinstance(design, str) and design[a:b] == "AC" and design[c:d] == "EF" and b <= c


def test_lengths_of_a_scaffold_are_uniform_and_segments_keep_the_order_given() -> None:
    found = [scaffold("ACDEFG", [(3, 6), (0, 2)], (5, 9), rng(k)) for k in range(2000)]
    assert uniform(Counter(len(design.sequence) for design, _ in found), 5)
    assert all(design.sequence.index("EFG") < design.sequence.index("AC") for design, _ in found)
    kept = [scaffold("ACDEFG", [(0, 1), (3, 5)], (7, 7), rng(k), keep_gaps=True) for k in range(900)]
    assert uniform(Counter(design.sequence for design, _ in kept), 3)
    assert all(design.sequence[a] == "A" and design.sequence[b:c] == "EF" for design, ((a, _), (b, c)) in kept)
    assert {b - a for _, ((a, _), (b, _)) in kept} == {3}


def test_what_is_wrong_with_a_scaffold() -> None:
    for ranges, length, message in [
        ([(0, 4)], (3, 9), "length: 3-9, the motif alone takes 4 positions"),
        ([(0, 4)], (9, 8), "length: 9 is above 8"),
        ([], (3, 9), "motif: it has no residues"),
        ([(0, 7)], (8, 9), "residues 1-7: expected positions from 1 to 6"),
    ]:
        with pytest.raises(UserError, match=message):
            scaffold("ACDEFG", ranges, length, rng())
    with pytest.raises(UserError, match="not in the order"):
        scaffold("ACDEFG", [(3, 5), (0, 2)], (7, 9), rng(), keep_gaps=True)


def test_allowed_letters_by_hand() -> None:
    design = allowed(Design("C_C__"), "2:LVA,4-5:^CA,4:AVL", forbid="V")
    assert design.sequence == "C_C__"  # what is fixed is no matter of what is written
    assert design.allow == [None, "AL", None, "L", "DEFGHIKLMNPQRSTWY"]
    assert allowed(Design("A_")) == Design("A_")
    assert allowed(template("{CA}_", rng()), forbid="C").allow == ["A", "ADEFGHIKLMNPQRSTVWY"]


@pytest.mark.parametrize(
    ("text", "forbid", "message"),
    [
        ("2:C", "C", "allow 2:C: residue 2 is left without a letter"),
        ("2:A,2:V", "", "allow 2:V: residue 2 is left without a letter"),
        ("", CANONICAL, f"forbid {CANONICAL}: residue 2 is left without a letter"),
        ("1:A", "", "allow 1:A: no position there is masked"),
        ("3-9:A", "", "residues 3-9: expected numbers from 1 to 3"),
        ("2", "", "allow '2': expected positions and letters"),
        ("2:a", "", "allow 2:a: 'a' is no residue"),
        ("2:", "", "allow 2:: it has no letters"),
        ("", "c", "forbid: 'c' is no residue"),
    ],
)
def test_what_is_wrong_with_allowed_letters(text: str, forbid: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        allowed(Design("C_A"), text, forbid)
    assert message in str(error.value)


def lengths(text: str, n: int, rng: np.random.Generator) -> list[int]:
    return list(islice(drawn_lengths(text, rng), n))


def test_lengths_do_not_depend_on_how_many(tmp_path: Path) -> None:
    file = tmp_path / "natural.fasta"
    file.write_text(">a\nAC-D\n>b\nACDEF\nGHIKL\n>c\nACD\n")
    assert lengths("100", 3, rng()) == [100] * 3
    assert lengths("50,60,70-70", 5, rng()) == [50, 60, 70, 50, 60]
    assert uniform(Counter(lengths("50-60", 3000, rng())), 11)
    natural = Counter(lengths(str(file), 3000, rng()))
    assert set(natural) == {3, 10} and abs(natural[3] - 2000) < 5 * (3000 * 2 / 9) ** 0.5
    for text in ("50-400", "5,6-9", str(file)):
        assert lengths(text, 100, rng())[:7] == lengths(text, 7, rng())
    assert next(drawn_lengths("12", rng())) == 12
    for text, message in [
        ("60-50", "lengths: 60-50: 60 is above 50, expected 50-60"),
        ("0", "lengths: 0: expected numbers from 1 to 100000"),
        ("5,,6", "lengths: '': expected numbers and ranges, as in 100, 50-400 or 50,60,70"),
        (
            "fifty",
            "lengths: 'fifty', expected numbers and ranges, as in 100, 50-400 or 50,60,70, or a FASTA file",
        ),
    ]:
        with pytest.raises(UserError) as error:
            lengths(text, 1, rng())
        assert message in str(error.value)
