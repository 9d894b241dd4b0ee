"""What words stand for, and what is left of records: every ending, and nothing lost."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import UserError
from mmdiff.files import make_folder, output_file
from mmdiff.tasks.protein.cli.inputs import evaluation_rows, first_sequence, pairs_or_records, sequences_of
from mmdiff.tasks.protein.cli.results import (
    TABLES,
    Results,
    design_row,
    fasta,
    new_table,
    page_file,
    score_row,
    tabbed,
)
from mmdiff.tasks.protein.data.fasta import read_fasta, read_sequences
from mmdiff.tasks.protein.data.tables import write_table

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def record(name: str, sequence: str, **more: Any) -> dict[str, Any]:
    told = {"description": "", "length": len(sequence), "designed": 2, "forwards": 2, "confidence": -1.25}
    return {"id": name, **told, "sequence": sequence, "steps": [0, 1], "attempts": 1, "guard": "ok", **more}


RECORDS = [
    record("a", "MK" * 40, description="of two\n lines"),
    record("b", "AC-D", confidence=None, designed=0, guard="run of 12 G", description='"quoted", by commas'),
]


def lines_of(results: Results, records: list[dict[str, Any]]) -> None:
    """As `mmdiff.runs.records.JsonlStore` leaves them."""
    assert results.lines is not None
    results.lines.write_text("".join(json.dumps({"row": i, **r}) + "\n" for i, r in enumerate(records)))


@pytest.mark.parametrize("ending", ["fasta", "fa.gz", "csv", "tsv", "csv.gz", "jsonl", "jsonl.gz"])
def test_every_ending_has_all_records(tmp_path: Path, ending: str) -> None:
    results = Results("--out", str(tmp_path / f"x.{ending}"))
    lines_of(results, RECORDS)
    found = results.finish(design_row)
    assert found["out"] == str(tmp_path / f"x.{ending}") and ("lines" in found) == (ending != "jsonl")
    sequences = read_sequences(found["out"], gaps="keep")
    assert [(r.id, r.sequence) for r in sequences] == [(r["id"], r["sequence"]) for r in RECORDS]
    before = Path(found["out"]).read_bytes()
    Results("--out", found["out"]).finish(design_row)  # the command given again
    assert Path(found["out"]).read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    if ending == "fasta":
        assert fasta(RECORDS) + "\n" == Path(found["out"]).read_text()
        one, other = read_fasta(found["out"], gaps="keep")
        assert one.description == "of two lines designed=2 confidence=-1.250"
        assert other.description == '"quoted", by commas designed=0 guard=run_of_12_G'
    if ending == "csv":
        first, second = csv.DictReader(Path(found["out"]).read_text().splitlines())
        assert first["confidence"] == "-1.25" and second["confidence"] == "" and second["guard"] == "run of 12 G"
        assert "steps" not in first


def test_a_file_that_was_changed_stays(tmp_path: Path) -> None:
    results = Results("--out", str(tmp_path / "x.fasta.gz"))
    lines_of(results, RECORDS[:1])
    out = Path(results.finish(design_row)["out"])
    lines_of(results, RECORDS)  # more records of a longer input
    Results("--out", str(out)).finish(design_row)
    assert len(list(read_fasta(out, gaps="keep"))) == 2
    with gzip.open(out, "wt") as handle:
        handle.write(">mine\nMKT\n")
    with pytest.raises(UserError, match="was changed since it was written, and stays"):
        Results("--out", str(out)).finish(design_row)
    assert [r.id for r in read_fasta(out)] == ["mine"] and not list(tmp_path.glob(".*"))


def test_files_of_others_are_refused_before_any_work(tmp_path: Path, write: Write) -> None:
    write("x.fasta", ">a\nMK\n")
    (tmp_path / "d.csv").mkdir()
    for name, message in (
        ("x.fasta", "is there already and was not written by this command"),
        ("d.csv", "is not the name of a file"),
        ("x.txt", "x.txt, expected a name ending in .fa, .fasta"),
        ("x", "x, expected a name ending in .fa, .fasta"),
        ("x.fasta/y.fasta", "x.fasta is a file"),
    ):
        with pytest.raises(UserError, match=message):
            Results("--out", str(tmp_path / name))
    with pytest.raises(UserError, match="expected a name ending in .csv, .tsv, .jsonl, or"):
        Results("--out", str(tmp_path / "s.fasta"), TABLES)
    write("t.csv", "id\n")
    with pytest.raises(UserError, match="t.csv is there already"):
        new_table("--out", str(tmp_path / "t.csv"))
    assert output_file("--out", str(tmp_path / "new" / "y.fa")) == tmp_path / "new" / "y.fa"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "t.csv", "x.fasta"]
    with pytest.raises(UserError, match="--out: .* cannot be written"):
        make_folder("--out", tmp_path / "x.fasta" / "y.csv")


def test_tables(tmp_path: Path) -> None:
    scored = {"row": 0, "id": "a", "bound": 2.5, "log_p": [-1.0, None], "control": {"bound": None}}
    row = score_row(scored)
    assert row == {"id": "a", "bound": 2.5, "log_p": "[-1.0, null]", "control.bound": None}
    assert tabbed([row]) == "id\tbound\tlog_p\tcontrol.bound\na\t2.5\t[-1.0, null]\t-"
    write_table(tmp_path / "t.tsv", [row])
    assert (tmp_path / "t.tsv").read_text().splitlines()[0] == "id\tbound\tlog_p\tcontrol.bound"
    with pytest.raises(UserError, match="is there already"):
        write_table(tmp_path / "t.tsv", [row])


def test_the_page_of_a_run_overwrites_no_metrics(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert page_file("--report", None, run) is None  # a model without a run
    (run / "config.yaml").touch()
    (run / "metrics.json").write_text('{"train": 1}')
    assert page_file("--report", None, run) == run / "protein" / "report.html"
    with pytest.raises(UserError, match="metrics.json is of something else and would be lost"):
        page_file("--report", str(run / "x.html"), run)
    (run / "metrics.json").write_text('{"mask_filling": {}}')
    assert page_file("--report", str(run / "x.html"), run) == run / "x.html"


def test_first_sequences(write: Write) -> None:
    long = "MKTAYIAKQR" * 500  # no name of a file
    assert first_sequence("--target", long) == long
    assert first_sequence("--target", str(write("x.a3m", ">q\nAB--DE\n>r\nABC-DE\n"))) == "ABDE"
    assert first_sequence("--target", str(write("x.fa", ">q\nmkt\n"))) == "MKT"
    for wrong in ("mkt", "", "MK1", "no.fa", long.lower()):
        with pytest.raises(UserError, match="^--target: .*expected residues in upper case"):
            first_sequence("--target", wrong)


def test_pairs_and_sequences_are_told_by_their_columns(write: Write) -> None:
    pairs = list(pairs_or_records(write("p.csv", "id,target,binder\na,MKT,AC\n"), {}))
    assert pairs[0]["target"] == "MKT" and pairs[0]["sequence"] == "AC"
    (one,) = pairs_or_records(write("s.csv", "id,sequence\na,A-C\n"), {"gaps": "keep"})
    assert one.sequence == "A-C"
    file = write("x.fa", ">a\nMK\n>b\nAC\n")
    assert sequences_of(str(file), ["b", "a"]) == ["AC", "MK"]
    with pytest.raises(UserError, match="no sequence of the id 'c'"):
        sequences_of(str(file), ["c"])


def test_rows_to_judge_by(write: Write, tmp_path: Path) -> None:
    test, train = write("x.fa", ">a\nMK\n>b\nAC\n"), write("y.csv", "id,sequence\nc,DE\n")
    rows, known = evaluation_rows("nowhere", test, str(train), 1)
    assert [r["id"] for r in rows] == ["a"] and known is not None and known[0]["sequence"] == "DE"
    assert evaluation_rows("nowhere", test, None, None)[1] is None
    with pytest.raises(UserError, match="--train goes with a file"):
        evaluation_rows("nowhere", None, str(train), None)
    with pytest.raises(UserError, match="a model without a run; give a file"):
        evaluation_rows(str(tmp_path), None, None, None)


def test_the_page_of_a_file_does_not_take_the_place_of_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    own, other = page_file("--report", None, tmp_path), page_file("--report", None, tmp_path, Path("data/x.fasta.gz"))
    assert own == tmp_path / "protein" / "report.html" and other == tmp_path / "protein-x" / "report.html"
