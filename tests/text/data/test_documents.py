"""Documents of every format, and what is wrong with them in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdiff.errors import DataError
from mmdiff.tasks.text.data.documents import Documents, Split, texts_of
from mmdiff.tasks.text.data.library import StandardLibrary

TEXTS = ["one\ntwo\n", "drei — vier", "", "five"]


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in TEXTS))


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()))


def compressed(path: Path) -> None:
    import bz2
    import lzma

    data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    if path.suffix == ".zst":
        import pyarrow

        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(data)
    else:
        path.write_bytes((bz2 if path.suffix == ".bz2" else lzma).compress(data))


def a_list(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf " + json.dumps([{"text": text} for text in TEXTS], indent=1).encode())


def cells(path: Path) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        rows.writerows([["n", "text"], *([1, text] for text in TEXTS)])


def table(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3, 4]}), path, row_group_size=2)


def saved(path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lines),
        ("A.JSONL", lines),
        ("a.json", lines),
        ("a[1].json", a_list),
        ("a.csv", cells),
        ("a.tsv", cells),
        ("a.jsonl.gz", packed),
        ("c4.json.gz", packed),
        ("a.jsonl.bz2", compressed),
        ("a.json.xz", compressed),
        pytest.param("a.jsonl.zst", compressed, marks=pytest.mark.needs("pyarrow")),
        pytest.param("a.parquet", table, marks=pytest.mark.needs("pyarrow")),
        pytest.param("a", saved, marks=pytest.mark.needs("datasets")),
    ],
)
def test_every_format_gives_the_same_documents(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    read = Documents(str(tmp_path / name))
    assert [row["text"] for row in read] == TEXTS == [row["text"] for row in read]  # as often as they are asked for
    assert [row["text"] for row in Documents(str(tmp_path / name), limit=2)] == TEXTS[:2]


def test_files_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c" / "e.txt.gz").write_bytes(gzip.compress(b"packed"))
    for pattern in ("*.*", "*", ""):  # of the last two, folders are matched too
        rows = list(Documents(str(tmp_path / "**" / pattern)))
        assert [row["text"] for row in rows] == ["a.md", "b.txt", "c/d.txt", "packed"]
        assert rows[0]["where"] == str(tmp_path / "a.md")
    with pytest.raises(DataError, match="matches folders alone, expected files"):
        Documents(f"{tmp_path}/*/")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b'{"text": 1}', "line 1: text is not text: 1"),
        (b'{"text": "a"}\n{"txt": "b"}', 'line 2: no text: (did you mean "txt"?)'),
        (b"[1]", "line 1: not a JSON object"),
        (b"{", "line 1: not JSON"),
        (b'{"text": "\xff"}', "line 1: not UTF-8: at byte 10"),
        (b'{"text": "a\\ud800"}', "line 1: a lone surrogate"),
        (b"[" * 200_000, "line 1: n"),
    ],
)
def test_what_cannot_be_read_is_named_or_skipped(
    content: bytes, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError) as raised:
        list(Documents(str(path)))
    assert error in str(raised.value) and str(raised.value).startswith(f"{path} line")
    assert [row["text"] for row in Documents(str(path), on_error="skip")][-1] == "fine"
    assert f"{path}: skipped 1 of " in capsys.readouterr().err


def test_files_that_are_cut_off_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file.*did you mean"):
        Documents(str(tmp_path / "b.jsonl" if (tmp_path / "a.jsonl").write_text("{}") else ""))
    packed(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        list(Documents(str(tmp_path / "a.jsonl.gz")))
    (tmp_path / "a.jsonl.bz2").write_bytes(b"BZh91AY nothing")
    (tmp_path / "a.csv").write_text('text\n"one')
    (tmp_path / "a.json").write_text('[{"text": "one"}, ')
    faults = {"a.jsonl.bz2": ": cannot be read", "a.csv": " line 2: cannot be read", "a.json": ": not JSON"}
    for name, fault in faults.items():
        with pytest.raises(DataError, match=f"{name}{fault}"):
            list(Documents(str(tmp_path / name)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(Documents(str(tmp_path / "a.parquet")))


def test_a_split_is_by_text_whole_and_of_about_its_share() -> None:
    rows = [{"text": f"document {n % 3000}"} for n in range(6000)]  # every text twice
    held, rest = ([row["text"] for row in Split(rows, 0.2, which)] for which in ("heldout", "train"))  # type: ignore[arg-type]
    assert sorted(held + rest) == sorted(row["text"] for row in rows) and not set(held) & set(rest)
    assert abs(len(held) / 6000 - 0.2) < 4 * (0.2 * 0.8 / 3000) ** 0.5
    assert not list(Split(rows, 0.0, "heldout")) and len(list(Split(rows, 1.0, "heldout"))) == 6000


def test_rows_of_any_kind_are_documents() -> None:
    assert list(texts_of([{"text": "a"}, {"text": "b", "where": "x"}])) == [("document 0", "a"), ("x", "b")]
    with pytest.raises(DataError, match="document 0: no text"):
        list(texts_of([{"content": "a"}]))
    with pytest.raises(DataError, match="document 1"):
        list(texts_of([{"text": "a"}, "b"]))  # type: ignore[list-item]


def test_the_library_of_this_python_is_there() -> None:
    rows = list(StandardLibrary.toy())
    assert len(rows) == 20 and all(len(row["text"]) >= 500 for row in rows)
    assert len({row["where"] for row in rows}) == 20
