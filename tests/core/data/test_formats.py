"""Rows of any task from JSON lines, Parquet, tar shards and `datasets`: the same rows, each once, also after a kill."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config import build
from mmdiff.data.formats.loaded import loaded
from mmdiff.data.formats.parquet import Parquet
from mmdiff.data.formats.rows import Rows
from mmdiff.data.stream import GROUPS, Component, Stream
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.media.images import read_image
from mmdiff.errors import ConfigError, DataError, RowError, UserError
from mmdiff.files import parse_json
from mmdiff.tasks.text.data.documents import texts_of
from mmdiff.tasks.vqa import VQA
from mmdiff.training.loading import batches_of

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")
N = 24


def png(n: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), n, np.uint8)).save(out, "png")
    return out.getvalue()


ROWS = [{"image": png(n), "question": f"wie viel ist {n}", "answer": ["ä", str(n)]} for n in range(N)]


def tar(path: Path, members: Sequence[tuple[str, bytes]], kinds: Mapping[str, bytes] | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.type = (kinds or {}).get(name, tarfile.REGTYPE)
            member.size = len(data) if member.type == tarfile.REGTYPE else 0
            member.linkname = "x"
            archive.addfile(member, io.BytesIO(data) if member.size else None)


def shard(rows: Sequence[dict[str, Any]], first: int) -> list[tuple[str, bytes]]:
    members = []
    for n, row in enumerate(rows, first):
        rest = {name: value for name, value in row.items() if name != "image"}
        members += [(f"./a.b/{n:03}.png", row["image"]), (f"./a.b/{n:03}.json", json.dumps(rest).encode())]
    return members


def as_lines(folder: Path) -> Any:
    for n, row in enumerate(ROWS):
        (folder / f"{n}.png").write_bytes(row["image"])
    lines = [json.dumps({**row, "image": f"{n}.png"}, ensure_ascii=False) for n, row in enumerate(ROWS)]
    (folder / "a.jsonl").write_text("\ufeff" + "\n\n".join(lines[:7]), encoding="utf-8")  # no line feed at the end
    (folder / "b.jsonl").write_text("\r\n".join(lines[7:]) + "\n", encoding="utf-8")
    return str(folder / "*.jsonl")


def as_parquet(folder: Path) -> Any:
    for name, rows in (("a", ROWS[:11]), ("b", ROWS[11:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=2)
    return str(folder / "*.parquet")


def as_tar(folder: Path) -> Any:
    tar(folder / "a.tar", shard(ROWS[:5], 0))
    tar(folder / "b.tar", shard(ROWS[5:], 5))
    return str(folder / "*.tar")


def as_dataset(folder: Path) -> Any:
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in ROWS]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def as_saved(folder: Path) -> Any:
    as_dataset(folder).save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_stream(folder: Path) -> Any:
    return as_dataset(folder).to_iterable_dataset(num_shards=3)


def as_loaded(folder: Path) -> Any:
    as_parquet(folder)
    node = {
        "target": "mmdiff.data.formats.loaded.loaded",
        "path": "parquet",
        "data_dir": str(folder),
        "streaming": True,
    }
    return build(node)


VOCAB = new_backbone(tokenizer=word_tokenizer([f"w{n}" for n in range(N)]), hidden_size=8, layers=1, heads=1).vocab
FORMATS = [as_lines, as_parquet, as_tar, as_dataset, as_saved, as_stream, as_loaded]
Make = Callable[[Path], Any]


@pytest.mark.parametrize("make", FORMATS)
def test_the_rows_are_those_of_every_format(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = Rows(make(tmp_path))
    assert len(rows) == N
    for n in (*range(N), 3, 20, 0):
        found = dict(rows[n])
        assert found.pop("where")
        if isinstance(found["image"], str):
            found["image"] = Path(found["image"]).read_bytes()
        assert found == ROWS[n]
    with pytest.raises(IndexError):
        rows[N]


class Numbered:
    """A task whose sample says which row it is of."""

    def sample(self, row: Any, vocab: Any) -> Any:
        return [Text([int(row["answer"][1]) + 4]), Target([4])]


def numbers(
    source: Any, *, first: int, last: int, world: int, workers: int, on_error: Any = "stop", batch: int = 2
) -> list[list[int]]:
    """Row numbers of every step of a stage, over all processes."""
    stage: Any = SimpleNamespace(batch_size=batch, accumulate=1, steps=last, padding="ignore")
    model: Any = SimpleNamespace(vocab=VOCAB, readers={})
    found: list[list[int]] = [[] for _ in range(last - first)]
    for rank in range(world):
        stream = Stream([Component("", Rows(source, on_error=on_error), Numbered())], seed=3)  # type: ignore[arg-type]
        shape = {"rank": rank, "world": world, "workers": workers}
        for at, batch in enumerate(batches_of(stage, stream, model, first=first, **shape)):
            found[at] += (batch.ids_BL[:, 0] - 4).tolist()
    return found


@pytest.mark.parametrize(
    "make", [pytest.param(one, marks=[pytest.mark.slow] * (one not in (as_lines, as_stream))) for one in FORMATS]
)
def test_two_ranks_of_two_workers_cover_each_row_once_per_epoch(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that is killed and resumed has the rows that it would have had, in any number of processes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    source = make(tmp_path)
    shared = numbers(source, first=0, last=12, world=2, workers=2)  # 12 steps of 4 rows: two epochs
    for epoch in (shared[:6], shared[6:]):
        assert sorted(n for step in epoch for n in step) == list(range(N))
    assert numbers(source, first=5, last=12, world=2, workers=2) == shared[5:]
    alone = [n for step in numbers(source, first=0, last=24, world=1, workers=0) for n in step]
    assert alone == [n for step in shared for n in step]
    streamed = make in (as_stream, as_loaded)
    assert (alone[:N] == list(range(N))) is streamed
    assert (alone[:N] == alone[N:]) is streamed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than this machine has cores
@pytest.mark.parametrize("make", FORMATS)
def test_any_number_of_processes_has_the_same_rows_also_where_it_changes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 12 rows, divided over 1, 2, 3 and 4 ranks with 0, 1 and 3 data processes; two steps are an epoch. After
    a step another number of ranks goes on."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    source = make(tmp_path)
    expected = numbers(source, first=0, last=4, world=1, workers=0, batch=12)
    for epoch in (expected[:2], expected[2:]):
        assert sorted(n for step in epoch for n in step) == list(range(N))
    for world in (1, 2, 3, 4):
        for workers in (0, 1, 3):
            shape = {"batch": 12 // world, "workers": workers}
            assert numbers(source, first=0, last=4, world=world, **shape) == expected
            other = world % 4 + 1
            assert numbers(source, first=1, last=4, world=other, batch=12 // other, workers=workers) == expected[1:]


def test_rows_that_are_begun_go_on_in_forked_data_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is read before data processes are forked (`check_source`); shards are read ahead by threads, which
    are not in those processes: a wait for them would not end."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    as_lines(tmp_path)
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    rows = Rows(loaded("json", data_files=files, streaming=True, shuffle_buffer=8), limit=N)
    expected = [rows[n]["question"] for n in range(N)]
    assert rows[0]["question"] == expected[0]
    child = multiprocessing.get_context("fork").Process(target=_the_others_are, args=(rows, expected))
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == 0 and rows[1]["question"] == expected[1]


def _the_others_are(rows: Rows, expected: Sequence[str]) -> None:
    os._exit(0 if [rows[n]["question"] for n in range(1, N)] == expected[1:] else 1)


def test_a_group_of_parquet_is_read_once_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, reads = Rows(as_parquet(tmp_path)), Counter()  # type: ignore[var-annotated]
    read = Parquet._read_group
    monkeypatch.setattr(Parquet, "_read_group", lambda self, *at: reads.update([at]) or read(self, *at))
    stream = Stream([Component("", rows, Numbered())], seed=0)  # type: ignore[arg-type]
    found = [stream.locate(n)[1] for n in range(N)]
    for row in found:
        rows[row]
    assert set(reads.values()) == {1} and len(reads) == len(rows.group_sizes) == 13 > GROUPS
    assert sorted(found) == list(range(N))
    assert pickle.loads(pickle.dumps(rows))[5]["question"] == "wie viel ist 5"


def test_what_cannot_be_used_is_named_counted_and_skipped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"question": "q", "answer": ["a", str(n)]}) for n in range(8)]
    lines[5] = '{"question": "q", "answer": ["a'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    fault = rf"row 5: {path} line 6: not JSON: Unterminated string starting at at column 30"
    with pytest.raises(DataError, match=f"^{fault}$"):
        numbers(str(path), first=0, last=4, world=1, workers=0)
    for world, workers in ((1, 0), (2, 2)):
        found = numbers(str(path), first=0, last=8 // world, world=world, workers=workers, on_error="skip")
        every = [n for step in found for n in step]
        assert Counter(every) == {**dict.fromkeys((0, 1, 2, 3, 4, 7), 2), 6: 4}
    assert "not JSON" in (err := capfd.readouterr().err) and "skipped (1 by this process)" in err
    checked = Rows(str(path), on_error="skip", verify=True)
    assert len(checked) == 7 and checked.skipped == {"not JSON": 1}
    assert [row["answer"][1] for row in (checked[n] for n in range(7))] == ["0", "1", "2", "3", "4", "6", "7"]
    assert f"{path}: skipped 1 of 8 rows (1 not JSON" in capfd.readouterr().err
    with pytest.raises(DataError, match=f"^{path} line 6: not JSON"):
        Rows(str(path), verify=True)
    path.write_text("[]\n3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"^data: none of 2 rows from row \d on can be used$"):
        numbers(str(path), first=0, last=1, world=1, workers=0, on_error="skip")


PICKLED = pickle.dumps(print)


@pytest.mark.parametrize(
    ("members", "kinds", "fault"),
    [
        ([("a.json", b"{}"), ("../b.json", b"{}")], {}, "../b.json: leads out of the archive"),
        ([("/b.json", b"{}")], {}, "/b.json: leads out of the archive"),
        ([("x/../../b.json", b"{}")], {}, "x/../../b.json: leads out of the archive"),
        ([("a.pyd", PICKLED)], {}, "a.pyd: is a pickle, which could run anything; expected json, txt, npy or media"),
        (
            [("a.x.PKL", PICKLED)],
            {},
            "a.x.PKL: is a pickle, which could run anything; expected json, txt, npy or media",
        ),
        ([("a.jpg", b"")], {"a.jpg": tarfile.SYMTYPE}, "a.jpg: is a link, expected a file"),
        ([("a.jpg", b"")], {"a.jpg": tarfile.FIFOTYPE}, "a.jpg: is no plain file"),
        ([("a.json", b"{}"), ("a.JSON", b"{}")], {}, "a.JSON: a second member of this name and ending"),
        (
            [("a.json", b"{}"), ("b.json", b"{}"), ("a.txt", b"")],
            {},
            "a.txt: apart from the other members of 'a', which stand before another row; expected an archive in the "
            "order of names",
        ),
    ],
)
def test_members_that_are_refused(
    members: list[tuple[str, bytes]], kinds: dict[str, bytes], fault: str, tmp_path: Path
) -> None:
    tar(tmp_path / "s.tar", members, kinds)
    with pytest.raises(DataError) as caught:
        Rows(str(tmp_path / "s.tar"))
    assert str(caught.value) == f"{tmp_path}/s.tar {fault}"


@pytest.mark.parametrize(
    ("member", "data", "fault"),
    [
        ("0.json", b"[1]", "json: not a JSON object: [1]"),
        ("0.cls", b"cat", "cls: b'cat' is not a whole number"),
        ("0.txt", b"\xff", "txt: not UTF-8 at byte 0"),
        ("0.npy", b"\x93NUMPY", "npy: not an array"),
    ],
)
def test_members_that_cannot_be_read(member: str, data: bytes, fault: str, tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", [(member, data)])
    rows = Rows(str(tmp_path / "s.tar"))
    with pytest.raises(DataError) as caught:
        rows[0]
    assert str(caught.value).startswith(f"{tmp_path}/s.tar 0: {fault}")


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([print], dtype=object), allow_pickle=True)
    tar(tmp_path / "s.tar", [("0.npy", out.getvalue())])
    with pytest.raises(DataError, match="npy: not an array .Object arrays cannot be loaded"):
        Rows(str(tmp_path / "s.tar"))[0]


def test_kinds_of_members(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.arange(3))
    members = [
        ("0.cls", b"7\n"),
        ("0.txt", "ä".encode()),
        ("0.npy", array.getvalue()),
        ("0.left.jpg", b"l"),
        ("0.bin", b"b"),
    ]
    tar(tmp_path / "s.tar", [("._0.jpg", b"of macOS"), *members, ("a/.DS_Store", b"")])
    assert len(Rows(str(tmp_path / "s.tar"))) == 1
    row = dict(Rows(str(tmp_path / "s.tar"), fields={"question": "text"})[0])
    assert row.pop("npy").tolist() == [0, 1, 2]
    where = f"{tmp_path}/s.tar 0"
    assert row == {"cls": 7, "question": "ä", "left": b"l", "bin": b"b", "where": where}


def resized(data: bytes, size: bytes) -> bytes:
    """A tar file whose first header has another size, in 12 bytes, and the right sum of itself."""
    header = bytearray(data[:512])
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: data[:520], "json: is cut off, 8 of 17 bytes are there|not a tar file that can be read"),
        (lambda data: data[:512] + b"\x01" * 512 + data[1024:], "json: not JSON"),
        (lambda data: data[:1024] + b"\x01" * 512 + data[1536:], "the header at byte 1024 is damaged"),
        (lambda data: data[:700], "not a tar file that can be read"),
        (lambda data: b"\x1f\x8b" + data, "is packed, and rows are read by number; unpack it to a .tar"),
        (lambda data: b"", "not a tar file that can be read"),
        (lambda data: data[:2048], "is cut off at byte 2048: the block that ends an archive is missing"),
        (lambda data: resized(data, b"\xff" * 11 + b"\xfe"), "0.json: has -2 bytes"),
        (lambda data: resized(data, b"\x80" + b"\x7f" * 11), "cannot be read|not a tar file that can be read"),
    ],
)
def test_a_damaged_shard_is_never_a_shorter_one(damage: Any, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    tar(path, [(f"{n}.json", b'{"question": "q"}') for n in range(4)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"^{path}[^\n]*({fault})"):
        rows = Rows(str(path))
        for n in range(4):
            rows[n]


def test_what_is_no_source_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("a\n", encoding="utf-8")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    for source, fault in (
        ("b.jsonl", 'b.jsonl: no such file (did you mean "'),
        ("a.csv", "a.csv: .csv, expected .jsonl, .ndjson, .parquet, .tar"),
        ("a.*", "a.*: files of several formats (.csv, .jsonl), expected one"),
        ("bad.parquet", "bad.parquet: not a Parquet file that can be read"),
        ("empty.jsonl", "empty.jsonl: no rows"),
    ):
        with pytest.raises(DataError) as caught:
            Rows(str(tmp_path / source))
        assert fault in str(caught.value) and "\n" not in str(caught.value)
    for arguments, fault in (
        ({"source": [{}]}, "source: a list, expected a path or what `datasets` loads"),
        (
            {"source": str(tmp_path / "a.jsonl"), "on_error": "ski"},
            "Rows.on_error: 'ski' is not one of stop, skip (did you mean \"skip\"?)",
        ),
        ({"source": str(tmp_path / "a.jsonl"), "folder": "nowhere"}, "folder: nowhere is not a folder"),
        ({"source": {}}, "source: a dict, expected a path or what `datasets` loads"),
        ({"source": ""}, "'': no such file"),
    ):
        with pytest.raises(UserError) as error:
            Rows(**arguments)  # type: ignore[arg-type]
        assert str(error.value) == fault
    (tmp_path / "a[1].JSONL").write_text("{}\n", encoding="utf-8")  # a name, though it would be a pattern too
    assert len(Rows(str(tmp_path / "a[1].JSONL"))) == 1
    (tmp_path / "out.jsonl").write_text('{"image": "x/../../cat.jpg"}\n{"a": 1}\n', encoding="utf-8")
    rows = Rows(str(tmp_path / "out.jsonl"))
    with pytest.raises(DataError, match=r"out.jsonl line 1: image: .* leads out of "):
        rows[0]
    with pytest.raises(DataError, match=r"out.jsonl line 2: no imag \(known: a\)"):
        Rows(str(tmp_path / "out.jsonl"), fields={"image": "imag"})[1]


def test_a_stream_that_is_shorter_than_its_limit_is_an_error(tmp_path: Path) -> None:
    rows = Rows(as_stream(tmp_path), limit=30)
    assert len(rows) == 30 and len(Rows(as_stream(tmp_path), limit=5)) == 5
    with pytest.raises(DataError, match=r"^streamed row 26: there is no such row; expected the 30 of `limit`$"):
        rows[26]
    assert rows[2]["question"] == "wie viel ist 2"


@pytest.mark.parametrize("make", [as_lines, as_parquet, as_tar, as_dataset])
def test_a_task_reads_pictures_and_words_of_any_format(make: Make, tmp_path: Path) -> None:
    row = {**Rows(make(tmp_path))[17], "question": "where"}
    (media,) = [part for part in VQA(answer_length=1).prompt(row, toy.backbone().vocab) if isinstance(part, Media)]
    assert np.array_equal(np.asarray(read_image(media.data)), np.full((4, 4, 3), 17))


def test_a_damaged_picture_is_named_by_shard_and_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And skipped: the next row has its position, whose picture it is."""
    rows = [{**row, "question": "where"} for row in ROWS[:4]]
    rows[2]["image"] = rows[2]["image"][:40]
    tar(tmp_path / "s.tar", shard(rows, 0))
    words = new_backbone(tokenizer=word_tokenizer(["where", "ä"]), hidden_size=8, layers=1, heads=1).vocab
    readers: Any = {"image": ConvTower(24, 8, 12)}
    name = rf"row 2: {tmp_path}/s\.tar a\.b/002: picture of 40 bytes: "
    for on_error in ("stop", "skip"):
        source = Rows(str(tmp_path / "s.tar"), on_error=on_error)  # type: ignore[arg-type]
        stream = Stream([Component("", source, VQA(answer_length=1))], seed=0)
        at = next(n for n in range(4) if stream.locate(n)[1] == 2)
        if on_error == "stop":
            with pytest.raises(DataError, match=f"^{name}"):
                stream.sample(at, words, readers)
            continue
        found = [part.data.values for part in stream.sample(at, words, readers) if isinstance(part, Media)]
        assert torch.equal(found[0], readers["image"].read(ROWS[3]["image"]).values)
        stream.sample(at + 4 * 4, words, readers)
        err = capsys.readouterr().err
        assert re.match(f"warning: {name}", err) and err.count("\n") == 1 and stream.skipped == {(0, 2)}


def test_rows_serve_as_documents(tmp_path: Path) -> None:
    documents = Rows(as_parquet(tmp_path))
    assert [text for _, text in texts_of(documents, "question")] == [row["question"] for row in ROWS]


def test_rows_have_a_length_without_their_media(tmp_path: Path) -> None:
    by_format = {make.__name__: Rows(make(tmp_path)) for make in (as_parquet, as_tar)}
    short, long = (by_format["as_tar"].length(n) for n in (3, 13))
    assert long == short + 2  # a digit in the question and one in the answer
    assert by_format["as_parquet"].length(13) == len("wie viel ist 13") + len("ä") + len("13")
    stage = Stream([Component("", by_format["as_tar"], Numbered())], seed=0, batch=2, bucket=3)  # type: ignore[arg-type]
    assert sorted(stage.locate(stage._bucketed(n))[1] for n in range(N)) == list(range(N))


def test_splits_and_generators_that_fail_are_one_line() -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise RuntimeError("no more\nof these")

    one = datasets.Dataset.from_dict({"a": [1]})
    for splits in (datasets.DatasetDict(train=one), datasets.IterableDatasetDict(train=one.to_iterable_dataset())):
        with pytest.raises(ConfigError, match=r"^source: holds the splits train, expected one of them$"):
            Rows(splits)
    with pytest.raises(DataError, match=r"^streamed row 1: cannot be read \(no more of these\)$"):
        Rows(datasets.IterableDataset.from_generator(rows))


@pytest.mark.parametrize(
    "line", ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '[{"c": 1}, {"c": 1, "d": 2, "c": 3}]']
)
def test_a_key_that_stands_twice_in_an_object_is_refused(line: str) -> None:
    """Readers of JSON differ in which one counts."""
    with pytest.raises(RowError, match="a key twice: '[abc]'"):
        parse_json(line)
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


def test_lines_of_json_that_end_in_a_carriage_return_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}\r\r\n')
    assert [Rows(str(tmp_path / "a.jsonl"))[n]["a"] for n in (0, 1)] == [1, 2]
    (tmp_path / "b.jsonl").write_bytes(b'{"a": 1}\r{"a": 2}\r')
    with pytest.raises(DataError, match=r"b.jsonl line 1: not JSON: several values; lines end in a carriage return,"):
        Rows(str(tmp_path / "b.jsonl"))[0]
    with pytest.raises(RowError, match="Extra data at column 10"):
        parse_json('{"a": 1} {"a": 2}')
