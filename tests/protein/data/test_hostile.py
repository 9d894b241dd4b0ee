"""Files of sequences from anywhere: refused in one line, at once and in little memory; never read wrongly."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.protein.data import fasta as fasta_module
from mmdiff.tasks.protein.data import files, tables
from mmdiff.tasks.protein.data.alignments import Family, read_alignment
from mmdiff.tasks.protein.data.fasta import Fasta, read_a3m, read_fasta, read_sequences, write_fasta
from mmdiff.tasks.protein.data.records import Record
from mmdiff.tasks.protein.data.stockholm import read_stockholm
from mmdiff.tasks.protein.data.tables import write_table
from mmdiff.tasks.protein.embed.labels import label_array, read_labels
from mmdiff.tasks.protein.score.dms_files import read_scan

READERS: list[Callable[[Path], Any]] = [
    lambda path: list(read_sequences(path)),
    lambda path: list(read_sequences(path, gaps="keep")),
    lambda path: Fasta(str(path)),
    lambda path: read_alignment(path),
    lambda path: read_labels(path),
    lambda path: read_scan(path),
]


HEADS = {"csv": b"sequence\n", "tsv": b"sequence\n", "jsonl": b"\n", "sto": b"# STOCKHOLM 1.0\n"}


def refused(call: Callable[[], Any]) -> str:
    tracemalloc.start()
    with pytest.raises((DataError, ConfigError)) as caught:
        call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6 and "\n" not in str(caught.value) and len(str(caught.value)) < 800
    return str(caught.value)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("ending", [".fasta", ".a3m", ".csv", ".jsonl", ".sto", ".fa.gz"])
def test_devices_pipes_folders_and_names_that_are_too_long(
    read: Callable[[Path], Any], ending: str, tmp_path: Path
) -> None:
    (tmp_path / f"zero{ending}").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / f"loop{ending}").symlink_to(tmp_path / f"loop{ending}")
    (tmp_path / f"binary{ending}").write_bytes(bytes(99))
    for name in ("zero", "pipe", "folder", "loop", "binary", "x" * 5000, "missing"):
        refused(lambda name=name: read(tmp_path / f"{name}{ending}"))  # type: ignore[misc]


@pytest.mark.parametrize("ending", ["fasta", "a3m", "csv", "tsv", "jsonl", "sto"])
def test_what_is_packed_unpacks_to_no_more_than_is_likely(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FREE", 1 << 16)
    bomb = tmp_path / f"x.{ending}.gz"
    bomb.write_bytes(gzip.compress(HEADS.get(ending, b">a\n") + b"M" * 10_000_000))
    assert "unpacks to more than 250 times its size" in refused(lambda: list(read_sequences(bomb)))
    (tmp_path / "y.fa.gz").write_bytes(gzip.compress(b">a\n" + b"MKTAYIAK" * 8000))
    assert len(next(read_fasta(tmp_path / "y.fa.gz")).sequence) == 64_000


@pytest.mark.parametrize("ending", ["fasta", "a3m", "csv", "jsonl", "sto"])
def test_lines_and_records_have_bounds(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, fasta_module, tables):
        monkeypatch.setattr(module, "LONGEST", 1000)
    path = tmp_path / f"x.{ending}"
    path.write_bytes(HEADS.get(ending, b">a\n") + b"M" * 2000)
    expected = "has more than 1,000 bytes" if ending == "jsonl" else "expected at most 1,000 characters"
    assert expected in refused(lambda: list(read_sequences(path)))
    if ending in ("fasta", "a3m"):
        path.write_text(">a\n" + ("M" * 60 + "\n") * 50)
        assert "record 1, line 18: more than 1,000 letters" in refused(lambda: list(read_sequences(path)))


def test_long_ids_are_not_printed_whole(tmp_path: Path) -> None:
    long = "i" * 100_000
    (tmp_path / "a.fasta").write_text(f">{long}\nMK1\n")
    (tmp_path / "b.csv").write_text(f"id,sequence\n{long},MK1\n")
    (tmp_path / "c.csv").write_text(f"id,{long}\n1,MK\n")
    (tmp_path / "d.csv").write_text(f"id,label\n{long},1\n{long},1\n")
    for name in ("a.fasta", "b.csv", "c.csv"):
        refused(lambda name=name: list(read_sequences(tmp_path / name)))  # type: ignore[misc]
    refused(lambda: read_labels(tmp_path / "d.csv"))
    (tmp_path / "e.csv").write_text(f"id,label\n{long},1\n")
    refused(lambda: read_labels(tmp_path / "e.csv").of(["x" * 100_000]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a\\ud800", "sequence": "MK"}', r"line 1: lone surrogate, at character 1 of 'a\\ud800'"),
        ('{"id": "a", "sequence": "M\\udc00K"}', "lone surrogate"),
        ('{"id": "a", "sequence": "MK", "n": ' + "1" * 5000 + "}", "line 1: not JSON"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ('{"sequence": NaN}', "sequence is nan, expected a sequence"),
        ('{"sequence": ["M"]}', "expected a sequence"),
    ],
)
def test_json_lines_that_are_no_rows(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_sequences(tmp_path / "x.jsonl"))


def test_other_ends_of_lines_and_marks_change_nothing(tmp_path: Path) -> None:
    rows = [{"id": "a\u2028b", "sequence": "MK"}, {"id": "c\x85", "sequence": "AV"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = "id,sequence\n" + "".join(f"{row['id']},{row['sequence']}\n" for row in rows)
    heads = "".join(f">{row['id']}\n{row['sequence']}\n" for row in rows)
    stockholm = "# STOCKHOLM 1.0\n" + "".join(f"{'ac'[i]} {row['sequence']}\n" for i, row in enumerate(rows)) + "//\n"
    contents = {"x.jsonl": text, "x.csv": table, "x.fasta": heads, "x.a3m": heads, "x.sto": stockholm}
    for name, content in contents.items():
        for mark in ("", "\ufeff"):
            for end in ("\n", "\r\n"):
                (tmp_path / name).write_bytes((mark + content).replace("\n", end).encode())
                found = [(r.id, r.sequence) for r in read_sequences(tmp_path / name)]
                ids = ["a", "c"] if name == "x.sto" else [row["id"] for row in rows]
                assert found == [(ids[0], "MK"), (ids[1], "AV")], (name, mark, end)


def test_halves_of_surrogate_pairs_are_not_written_as_text(tmp_path: Path) -> None:
    for name in ("x.csv", "x.jsonl"):
        with pytest.raises(DataError, match=r"half a pair of surrogates, cannot be written"):
            write_table(tmp_path / name, [{"id": "\ud800"}])
    with pytest.raises(DataError, match=r"half a pair of surrogates, cannot be written"):
        write_fasta(tmp_path / "x.fasta", [Record("\ud800", "", "MK")])
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_no_names_of_classes(tmp_path: Path) -> None:
    for bad in ("nan", "inf", "-Infinity"):
        with pytest.raises(DataError, match=f"label 2: '{bad}', expected a finite number, or a name"):
            label_array(["0.5", bad, "0.7"], "auto")
    (tmp_path / "x.csv").write_text("mutant,score\nM1A,inf\nM1C,1\n")
    with pytest.raises(DataError, match="score: 'inf', expected a number or nothing"):
        read_scan(tmp_path / "x.csv", score_column="score")


# ColabFold and Stockholm

COLABFOLD = b"#4\t1\n>101\nMKAY\n>UniRef100_A\t34\t0.5\nMKtAY\n>B\nM--Yaa\n\0>101\nMKAY\n>C\n-KAY\n\0"
ROWS = [("101", "MKAY"), ("UniRef100_A", "MKAY"), ("B", "M--Y"), ("101", "MKAY"), ("C", "-KAY")]


@pytest.mark.parametrize("name", ["x.a3m", "x.a3m.gz", "x.txt"])
def test_alignments_of_colabfold(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(COLABFOLD) if name.endswith(".gz") else COLABFOLD)
    found = read_alignment(path)
    assert list(zip(found.ids, found.sequences, strict=True)) == ROWS
    assert [r.description for r in read_a3m(path)][1] == "34\t0.5"
    if name == "x.txt":
        return
    rows = Fasta(str(path), gaps="keep", lower="drop")
    assert [(row["id"], row["sequence"]) for row in (rows[i] for i in range(len(rows)))] == ROWS
    family = Family(str(path), split="all", aligned=False, max_gaps=1)
    assert [family[i]["sequence"] for i in range(len(family))] == ["MKAY", "MYAA", "KAY"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            COLABFOLD.replace(b"\0>101\nMKAY", b"\0>102\nMKAV"),
            r"record 4 \(102\), line 8: an alignment of another query",
        ),
        (COLABFOLD.replace(b"\0>101\nMKAY", b"\0#5\t1\n>102\nMKAVV"), r"an alignment of another query"),
        (COLABFOLD.replace(b"tA", b"t\0A"), "line 5: 'AY' behind a zero byte, expected '>'"),
        (COLABFOLD.replace(b"M--Y", b"M--"), r"record 3 \(B\): 3 match columns"),
        (COLABFOLD.replace(b">B\n", b">B\n#x\n"), "residue 1: '#' is no residue"),
    ],
)
def test_alignments_of_colabfold_that_do_not_fit(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.a3m").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_alignment(tmp_path / "x.a3m")


SEED = """# STOCKHOLM 1.0
#=GF ID   Toy
#=GS a/1-4 DE first
#=GS a/1-4 DE of all

a/1-4    MK.
b/3-6    MRA
#=GR b/3-6 SS HHH

a/1-4    AY*
b/3-6    .Y.
#=GC SS_cons HHH
//
"""
HMMER = """# STOCKHOLM 1.0
a         MKt.AY
#=GR a PP 999.99
b         M-..AY
c         MKvvA-
//
"""


def test_alignments_in_stockholm(tmp_path: Path) -> None:
    seed, hmmer = tmp_path / "x.sto", tmp_path / "y.stk"
    seed.write_text(SEED.replace("*", "."))
    hmmer.write_text(HMMER)
    found = read_alignment(seed)
    assert found.ids == ("a/1-4", "b/3-6") and found.sequences == ("MK-AY", "MRA-Y")
    assert [r.description for r in read_sequences(seed)] == ["first of all", ""]
    assert [r.sequence for r in read_sequences(seed)] == ["MKAY", "MRAY"]
    assert read_alignment(hmmer).sequences == ("MKAY", "M-AY", "MKA-")
    assert [r.sequence for r in read_stockholm(hmmer)] == ["MKTAY", "MAY", "MKVVA"]
    family = Family(str(hmmer), split="all", aligned=False, max_gaps=1)
    assert [family[i]["sequence"] for i in range(3)] == ["MKTAY", "MAY", "MKVVA"]
    hmmer.write_text(HMMER.replace("//", "#=GC RF x~x.xx\n//"))
    assert read_alignment(hmmer).sequences == ("MTAY", "M-AY", "MVA-")
    (tmp_path / "names.txt").write_text(HMMER)  # known by its first line
    assert read_alignment(tmp_path / "names.txt").columns == 4
    hmmer.write_text("# STOCKHOLM 1.0\na mk\nb m.\n//\n")
    assert read_alignment(hmmer).sequences == ("MK", "M-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HMMER.replace("c         MKvvA-", "c         MKvvA"), r"line 5 \(c\): 5 columns, the first row has 6"),
        (HMMER.replace("//\n", ""), "cut off, it does not end in '//'"),
        (HMMER + HMMER, "line 7: another alignment begins"),
        (HMMER.replace("//", "#=GC RF xx\n//"), "RF has 2 columns, the rows have 6"),
        (HMMER.replace("MKvvA-", "MKvvA1"), r"record 3 \(c\), line 5, residue 6: '1' is no residue"),
        (HMMER.replace("MKvvA-", "MKv vA-"), "line 5: .*expected a name and its columns"),
        (HMMER.replace("a    ", "b    "), r"columns, the first row has|6 columns"),
        ("# STOCKHOLM 1.0\n//\n", "no records"),
        ("a MK\n//\n", "line 1: 'a MK', expected '# STOCKHOLM 1.0'"),
    ],
)
def test_alignments_in_stockholm_that_do_not_fit(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.sto").write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_sequences(tmp_path / "x.sto", gaps="keep"))
