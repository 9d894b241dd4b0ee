"""Sequences from files and back: what is read, every refusal, and rows by number."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import DATA, SHARED

from mmdiff.config import build
from mmdiff.errors import ConfigError, DataError, UserError
from mmdiff.tasks.protein.data.fasta import Fasta, read_a3m, read_fasta, read_sequences, write_fasta
from mmdiff.tasks.protein.data.policies import Policy
from mmdiff.tasks.protein.data.records import Record
from mmdiff.tasks.protein.data.tables import Pairs, read_csv, write_table
from mmdiff.tasks.protein.residues import CANONICAL

GLOBINS = DATA / "globins45.fa"
REAL = SHARED / "data" / "protein"
PACKED = gzip.compress(b">a\nMK\n", mtime=0)  # stands in names of tests, which two processes have to find alike

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes, name: str = "x.fa") -> str:
        raw = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return str(tmp_path / name)

    return write


def one(path: str, **policy: str) -> str:
    (record,) = read_fasta(path, **policy)
    return record.sequence


def refusal(path: str, error: type[Exception] = DataError, read: Callable[..., Any] = read_fasta, **policy: Any) -> str:
    """The one line that is said, without the folder."""
    with pytest.raises(error) as caught:
        list(read(path, **policy))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(Path(path).parent) + "/", "")


# FASTA


def test_globins() -> None:
    records = list(read_fasta(GLOBINS, unique=True))
    lengths = [len(r.sequence) for r in records]
    assert (len(records), min(lengths), max(lengths)) == (45, 141, 153)
    letters = sum(c.isalpha() for line in GLOBINS.read_text().split("\n") if line[:1] != ">" for c in line)
    assert sum(lengths) == letters
    assert (records[0].id, records[0].description) == ("MYG_ESCGI", "")
    assert records[2].where == f"{GLOBINS} record 3 ({records[2].id})"


@pytest.mark.needs("Bio")
@pytest.mark.parametrize(
    "name",
    ["small/globins45.fa", "small/some_proteins.fasta", "small/mmseqs2_QUERY.fasta", "family/kunitz_PF00014.afa",
     "family/hhblits_uniclust_2017_10_5ahw_1_A.a3m", "motif/1prw.a3m", "motif/7mrx.fasta"],
)  # fmt: skip
def test_against_biopython(name: str) -> None:
    from Bio import SeqIO

    path = GLOBINS if name == "small/globins45.fa" else REAL / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with open(path) as file:
        wanted = [(r.id, r.description.removeprefix(r.id).strip(), str(r.seq)) for r in SeqIO.parse(file, "fasta")]
    as_it_is = [(r.id, r.description, len(r.sequence)) for r in read_fasta(path, gaps="keep")]
    assert as_it_is == [(id, description, len(s)) for id, description, s in wanted]
    residues = [s.translate(str.maketrans("", "", "-.")).upper() for _, _, s in wanted]
    assert [r.sequence for r in read_fasta(path)] == residues
    columns = ["".join(c for c in s if c.isupper() or c == "-") for _, _, s in wanted]
    assert [r.sequence for r in read_a3m(path)] == columns
    source = Fasta(str(path))
    assert [source[i]["sequence"] for i in range(len(source))] == residues


def test_ids_descriptions_and_line_ends(write: Write) -> None:
    text = "\n>a|1  two  words=é\tx \nMK T\n\nV\n>  b\nA\n>c\tlast\nC"
    wanted = [("a|1", "two  words=é\tx", "MKTV"), ("b", "", "A"), ("c", "last", "C")]
    ends = [text.replace("\n", end) for end in ("\n", "\r\n", "\r")]
    for variant in (*ends, "\ufeff" + text, "\ufeff" + ends[2]):
        for name in ("x.fa", "x.fa.gz"):
            path = write(variant, name)
            assert [(r.id, r.description, r.sequence) for r in read_fasta(path)] == wanted
            source = Fasta(path)
            rows = [source[i] for i in range(len(source))]
            assert rows == [r.row for r in read_fasta(path)]


@pytest.mark.parametrize(
    ("policy", "given", "wanted"),
    [
        ({}, "MkT-.v*", "MKTV"),
        ({"gaps": "keep"}, "Mk-.T", "MK--T"),
        ({"lower": "drop"}, "MkxT", "MT"),
        ({"lower": "drop", "gaps": "keep"}, "Mk-..T", "M-T"),
        ({"lower": "drop", "unknown": "refuse", "gaps": "refuse"}, "MxT.", "MT"),
        ({}, "XBUZOJxbuzoj", "XBUZOXXBUZOX"),
        ({"unknown": "x"}, "AXBUZOJu", "AXXXXXXX"),
        ({"masked": "keep"}, "M__K", "M__K"),
        ({"masked": "keep"}, CANONICAL + CANONICAL.lower(), CANONICAL * 2),
    ],
)
def test_policies(write: Write, policy: dict[str, str], given: str, wanted: str) -> None:
    assert one(write(f">a\n{given}\n"), **policy) == wanted
    assert one(write(f">a\n{' '.join(given)}\n"), **policy) == wanted
    assert one(write(">a\n" + "\n".join(given)), **policy) == wanted


def test_letters_that_stay_keep_the_length(write: Write) -> None:
    every = "ACDEFGHIKLMNPQRSTVWYXBUZOJ-.acdefghiklmnpqrstvwyxbuzoj"
    for unknown in ("keep", "x"):
        assert len(one(write(f">a\n{every}"), gaps="keep", unknown=unknown)) == len(every)


@pytest.mark.parametrize(
    ("policy", "given", "said"),
    [
        ({}, "MKT\nA 1", "line 6, residue 5: '1' is no residue"),
        ({}, "MKT>", "line 5, residue 4: '>' is no residue"),
        ({}, "MÄ", "line 5, residue 2: 'Ä' is no residue"),
        ({}, "M*K", "line 5, residue 2: '*' is a stop before the end"),
        ({"stop": "refuse"}, "MK*", "line 5, residue 3: '*' is a stop, and stop: refuse"),
        ({"stop": "refuse"}, "M*K*", "line 5, residue 2: '*' is a stop before the end"),
        ({"gaps": "keep"}, "MK*-", "line 5, residue 3: '*' is a stop before the end"),
        ({"gaps": "refuse"}, "M\n\n-K", "line 7, residue 2: '-' is a gap, and gaps: refuse"),
        ({"lower": "refuse"}, "Mk", "line 5, residue 2: 'k' is lower case, and lower: refuse"),
        ({"unknown": "refuse"}, "MkX", "line 5, residue 3: 'X' is none of ACDEFGHIKLMNPQRSTVWY, and unknown: refuse"),
        ({}, "M_", "line 5, residue 2: '_' is a masked position, expected residues"),
        ({"gaps": "drop"}, "M--1", "line 5, residue 4: '1' is no residue"),
        ({}, "", "line 5: no sequence"),
        ({}, "--*", "line 5: nothing is left of its sequence"),
    ],
)
def test_refused_letters(write: Write, policy: dict[str, str], given: str, said: str) -> None:
    path = write(f">a\nMK\nV\n>MYG_HORSE horse\n{given}\n>c\nA\n")
    assert refusal(path, **policy) == f"x.fa record 2 (MYG_HORSE), {said}"


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "x.fa", "x.fa: no records"),
        (b"\n \r\n", "x.fa", "x.fa: no records"),
        (b"MKT\n>a\nM\n", "x.fa", "x.fa line 1: 'MKT' before the first '>' (tables end in .csv, .tsv, .jsonl)"),
        (b">a\nM\n> \nK\n", "x.fa", "x.fa record 2, line 3: no id after '>'"),
        (b">a\nM\n>b \xe9\nK\n", "x.fa", "x.fa line 3: byte 0xe9 is not UTF-8"),
        (b">a\nM\n>b\nK\xe9\n", "x.fa", "x.fa record 2 (b), line 4: byte 0xe9 is not UTF-8"),
        (b"\x89PNG\r\n\0\0", "x.fa", "x.fa: not a text file"),
        (">a\nMK\n".encode("utf-16"), "x.fa", "x.fa: not a text file"),
        (PACKED, "x.fa", "x.fa: packed by gzip under a name without .gz"),
        (PACKED, "x.fa.gz", "x.fa.gz: packed by gzip twice"),
    ],
)
def test_refused_files(write: Write, content: bytes, name: str, said: str) -> None:
    path = write(content, name)
    assert refusal(path) == said
    assert refusal(path, read=Fasta) == said


def test_damaged_gz_and_missing_files(tmp_path: Path) -> None:
    whole = gzip.compress(b">a\nMKT\n" + b">b\nACDEFG\n" * 9000 + bytes(range(65, 70)))
    path = tmp_path / "x.fa.gz"
    path.write_bytes(whole[:-20])
    assert refusal(str(path)) == "x.fa.gz: cut off, its packed data have no end"
    path.write_bytes(whole[:60] + b"\xff\xff\xff\xff" + whole[64:])
    assert refusal(str(path)).startswith("x.fa.gz: not a gzip file (")
    path.write_bytes(b">a\nMKT\n")
    assert refusal(str(path)).startswith("x.fa.gz: not a gzip file (")
    assert refusal(str(tmp_path / "none.fa")) == "none.fa: No such file or directory"
    assert refusal(str(tmp_path / "none.csv"), read=read_csv) == "none.csv: No such file or directory"


def test_duplicate_ids_are_an_error_where_asked(write: Write) -> None:
    path = write(">a\nM\n>b\nK\n>a x\nT\n")
    assert len(list(read_fasta(path))) == 3
    assert refusal(path, unique=True) == "x.fa record 3 (a), line 5: duplicate id, that of record 1 too"


def test_unknown_policies() -> None:
    for words, said in [
        ({"lower": "uper"}, "lower: 'uper' (did you mean \"upper\"?)"),
        ({"gap": "keep"}, "no policy 'gap' (did you mean \"gaps\"?)"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read_fasta("not-opened.fa", **words)  # said at once, before the file is looked for
        assert str(caught.value) == said
    with pytest.raises(ConfigError, match="unknown: False"):
        Policy(unknown=False)  # type: ignore[arg-type]


def test_reading_is_a_stream(write: Write) -> None:
    """The fault at the end of the file has not been met when the first records are there."""
    records = read_fasta(write(">a\nM\n" * 3 + ">b\n1\n"))
    assert [next(records).id for _ in range(3)] == ["a"] * 3
    with pytest.raises(DataError, match="record 4"):
        next(records)


# Writing


RECORDS = [Record("a", "first  one", "MKTV" * 40), Record("sp|P1|X", "", "A"), Record("c", "é", "X" * 60)]


@pytest.mark.parametrize("name", ["y.fa", "y.fasta.gz"])
@pytest.mark.parametrize("width", [1, 7, 60, None])
def test_fasta_round_trip(tmp_path: Path, name: str, width: int | None) -> None:
    path = tmp_path / name
    assert write_fasta(path, iter(RECORDS), width) == 3
    assert [(r.id, r.description, r.sequence) for r in read_sequences(path)] == [
        (r.id, r.description, r.sequence) for r in RECORDS
    ]
    text = (gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()).decode()
    longest = max(len(line) for line in text.split("\n") if line[:1] != ">")
    assert longest == (width or 160) and text.endswith("X\n")
    again = tmp_path / f"again-{name}"
    write_fasta(again, [r.row for r in RECORDS], width)
    assert again.read_bytes() == path.read_bytes()  # rows do as well; nothing in it depends on name or time


@pytest.mark.parametrize(
    "bad",
    [
        Record("", "", "M"),
        Record("a b", "", "M"),
        Record("a", "x\ny", "M"),
        Record("a", " x", "M"),
        Record("a", "", ""),
        Record("a", "", "M\nK"),
        Record("a", "", "M>"),
    ],
)
def test_nothing_is_left_of_a_file_that_cannot_be_finished(tmp_path: Path, bad: Record) -> None:
    with pytest.raises(DataError, match="y.fa record 2"):
        write_fasta(tmp_path / "y.fa", [RECORDS[0], bad])
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "y.fa"
    write_fasta(path, RECORDS)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="y.fa is there already"):
        write_fasta(path, RECORDS[:1])
    with pytest.raises(DataError):
        write_fasta(path, [Record("", "", "M")], overwrite=True)
    assert path.read_bytes() == before
    write_fasta(path, RECORDS[:1], overwrite=True)
    assert len(list(read_fasta(path))) == 1
    with pytest.raises(ConfigError, match="cannot be written"):
        write_fasta(tmp_path / "none" / "y.fa", RECORDS)


# Tables


def test_lines_of_every_format_may_end_in_a_carriage_return_alone(write: Write) -> None:
    for text, name in (
        (">a\nMK\nV\n>b\nMk-W\n", "x.a3m"),
        ("# STOCKHOLM 1.0\na MKV\nb MKW\n//\n", "x.sto"),
        ("id,sequence\na,MKV\nb,MKW\n", "x.csv"),
        ('{"id": "a", "sequence": "MKV"}\n{"id": "b", "sequence": "MKW"}\n', "x.jsonl.gz"),
    ):
        found = [(r.id, r.sequence.replace("-", "")) for r in read_sequences(write(text.replace("\n", "\r"), name))]
        assert found == [("a", "MKV"), ("b", "MKW" if name != "x.a3m" else "MW")]
    refused = refusal(write(">a\rMKV\r>b\rMK1\r", "y.fa"))
    assert refused == "y.fa record 2 (b), line 4, residue 3: '1' is no residue"


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
def test_table_round_trip(tmp_path: Path, name: str) -> None:
    records = [Record(f"id {i}", 'a "quoted", text', "MKTV"[: i + 1], fields={"fitness": str(i / 4)}) for i in range(3)]
    path = tmp_path / name
    write_table(path, ({"id": r.id, "description": r.description, "sequence": r.sequence, **r.fields} for r in records))
    back = list(read_sequences(path))
    assert [Record(r.id, r.description, r.sequence, fields=r.fields) for r in back] == records
    assert back[1].where == f"{path} record 2 (id 1)"
    assert back[1].row["fitness"] == "0.25"
    with pytest.raises(DataError, match=r"u.csv record 2: columns \['id', 'other'\], expected \['id'\]"):
        write_table(tmp_path / "u.csv", [{"id": "a"}, {"id": "b", "other": 1}])


def test_columns(write: Write) -> None:
    path = write("mutant,mutated_sequence,score\r\nA1P,mk-t,1\r\n\r\nD2N,MKV*,\r\n", "m.csv")
    records = list(read_csv(path, "mutated_sequence", "mutant"))
    assert [(r.id, r.sequence) for r in records] == [("A1P", "MKT"), ("D2N", "MKV")]
    assert [r.fields for r in records] == [{"score": "1"}, {"score": ""}]
    assert [r.id for r in read_csv(path, "mutated_sequence")] == ["1", "2"]
    rows = [{"id": 7, "sequence": "MK", "y": 0.5}, {"sequence": "mt", "y": None}]
    lines = write("".join(json.dumps(row) + "\n" for row in rows), "m.jsonl")
    records = list(read_sequences(lines))
    assert [(r.id, r.sequence) for r in records] == [("7", "MK"), ("2", "MT")]
    assert [r.fields for r in records] == [{"y": 0.5}, {"y": None}]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("id,seq\na,M\n", "t.csv", "t.csv line 1: no column 'sequence' (known: id, seq)"),
        ("id,sequence\na,M\nb,K,x\n", "t.csv", "t.csv line 3: 3 cells, expected 2"),
        ("id,sequence\na,M\nb,K1\n", "t.csv", "t.csv record 2 (b), line 3, residue 2: '1' is no residue"),
        ("id,sequence\na,M\nb,\n", "t.csv", "t.csv record 2 (b), line 3: no sequence"),
        ("id,id,sequence\n", "t.csv", "t.csv line 1: two columns 'id'"),
        ('id,sequence\na,"M\n', "t.csv", "t.csv line 2: unexpected end of data"),
        ("id,sequence\n", "t.csv", "t.csv: no records"),
        ("id,sequence\n\xe9,M\n".encode("latin-1"), "t.csv", "t.csv: byte 0xe9 is not UTF-8"),
        (
            '{"sequence": "M"}\n{"sequence"\n',
            "t.jsonl",
            "t.jsonl line 2: not JSON: Expecting ':' delimiter at column 12",
        ),
        ("[1]\n", "t.jsonl", "t.jsonl line 1: not a JSON object: [1]"),
        ('{"sequence": 5}\n', "t.jsonl", "t.jsonl record 1 (1), line 1: sequence is 5, expected a sequence"),
    ],
)
def test_refused_tables(write: Write, text: str | bytes, name: str, said: str) -> None:
    assert refusal(write(text, name), read=read_sequences) == said


def test_endings(write: Write) -> None:
    assert [r.sequence for r in read_sequences(write(">a\nMk-\n", "x.A3M"))] == ["M-"]
    assert [r.sequence for r in read_sequences(write(">a\nMk-\n", "x.a3m.gz"), lower="upper", gaps="drop")] == ["MK"]
    assert "no format has the ending '.txt'" in refusal(write(">a\nM", "x.txt"), UserError, read_sequences)
    assert "is no table" in refusal(write(">a\nM", "x.fa"), UserError, read_csv)


# Rows by number


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_rows_by_number(write: Write, name: str) -> None:
    path = write(GLOBINS.read_bytes(), name)
    wanted = [r.row for r in read_fasta(path)]
    source = Fasta(path)
    assert [source[i] for i in reversed(range(len(source)))] == wanted[::-1]
    assert [source.length(i) for i in range(45)] == [len(row["sequence"]) for row in wanted]
    copy = pickle.loads(pickle.dumps(source))  # opened by now: a data process is given no open file
    assert copy[44] == wanted[44]
    few = Fasta(path, limit=3)
    assert [few[i] for i in range(len(few))] == wanted[:3]
    with pytest.raises(IndexError):
        few[3]
    with pytest.raises(IndexError):
        source[-1]


def test_crops(write: Write) -> None:
    sequence = "".join(CANONICAL[i * 7 % 20] for i in range(19)) + "W"
    path = write(f">a\n{sequence}\n" * 300)
    head, windows = Fasta(path, max_length=8, crop="head"), Fasta(path, max_length=8)
    assert head[5]["sequence"] == sequence[:8] and head.length(5) == 8
    assert head[5]["where"] == f"{path} record 6 (a) residues 1-8"
    starts = []
    for i in range(300):
        row = windows[i]
        first, last = map(int, row["where"].split()[-1].split("-"))
        assert row["sequence"] == sequence[first - 1 : last] and last - first == 7
        starts.append(first)
    assert set(starts) == set(range(1, 14))  # 13 positions; one is missed with probability 13 * (12/13)**300 < 1e-9
    assert windows[7] == windows[7] == Fasta(path, max_length=8)[7]
    assert [Fasta(path, max_length=8, seed=1)[i]["where"] for i in range(9)] != [windows[i]["where"] for i in range(9)]
    assert Fasta(path, max_length=20)[0]["sequence"] == sequence
    for bad in ({"max_length": 0}, {"limit": 0}, {"crop": "tail"}):
        with pytest.raises(ConfigError):
            Fasta(path, **bad)  # type: ignore[arg-type]


def test_a_file_that_changes_is_noticed(write: Write) -> None:
    source = Fasta(write(">a\nMKT\n>b\nMK\n"))
    write(">aa\nMKT\n>b\nMK\n")
    with pytest.raises(DataError, match="changed since it was first read"):
        source[1]


def test_toy_twins() -> None:
    node = {"target": "mmdiff.tasks.protein.data.fasta.Fasta", "path": "not/there.fa", "max_length": 10, "limit": 5}
    source = build(node, toy=True)
    assert [len(source[i]["sequence"]) for i in range(len(source))] == [10] * 5
    assert pickle.loads(pickle.dumps(source))[4] == source[4]


# Pairs


def test_pairs(write: Write) -> None:
    path = write("id\ttarget\tbinder\np1\tmkt\tAC\np2\tMMMM\tWWWW\n\np3\tM\tK\n", "p.tsv")
    pairs = Pairs(path)
    assert pairs[0] == {"id": "p1", "target": "MKT", "sequence": "AC", "where": f"{path} record 1 (p1)"}
    both = Pairs(path, swap=True, max_length=5)
    assert [(r["id"], r["target"], r["sequence"]) for r in (both[i] for i in range(len(both)))] == [
        ("p1", "MKT", "AC"), ("p1-swapped", "AC", "MKT"), ("p3", "M", "K"), ("p3-swapped", "K", "M"),
    ]  # fmt: skip
    assert both.skipped == 1 and [both.length(i) for i in range(4)] == [5, 5, 2, 2]
    assert len(Pairs(path, limit=2)) == 2
    lines = write('{"a": "MK", "b": "T", "name": "x"}\n', "p.jsonl")
    assert Pairs(lines, "a", "b", "name")[0] == {
        "id": "x", "target": "MK", "sequence": "T", "where": f"{lines} record 1 (x)",
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(both))[1] == both[1]


def test_refused_pairs(write: Write) -> None:
    path = write("id,target,binder\np1,MK,AC\np2,M1,AC\n", "p.csv")
    assert refusal(path, read=Pairs) == "p.csv record 2 (p2), line 3, target residue 2: '1' is no residue"
    assert refusal(path, read=Pairs, binder="bindr") == "p.csv line 1: no column 'bindr' (did you mean \"binder\"?)"
    assert refusal(path, read=Pairs, limit=1, max_length=2) == "p.csv: no pair has at most 2 letters"
    assert len(Pairs.toy("no.csv", swap=True)) == 16
