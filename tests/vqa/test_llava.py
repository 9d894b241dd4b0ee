"""LLaVA files: what is read, and every refusal, by stopping and by skipping."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vqa import scenes
from mmdiff.tasks.vqa.llava import LlavaJSON, write_scenes
from mmdiff.tasks.vqa.task import VQA

pytestmark = pytest.mark.needs("PIL")

Write = Callable[..., str]


def turn(who: str, value: Any) -> dict[str, Any]:
    return {"from": who, "value": value}


ASK, REPLY = turn("human", "<image>\nwhat is at the top left"), turn("gpt", "red cross")
GOOD = {"id": "good", "image": "a.png", "conversations": [ASK, REPLY]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several sorts, good and damaged, beside the file."""
    from PIL import Image

    picture = Image.fromarray(scenes.Scenes(1, seed=0)[0]["image"]).resize((96, 96))
    picture.save(tmp_path / "a.png")
    picture.convert("L").save(tmp_path / "b.jpg")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("cut.png", "cut.jpg"):
        picture.save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    def write(*rows: Any, name: str = "rows.json") -> str:
        lines = name.endswith(".jsonl")
        text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1)
        (folder / name).write_text(text, encoding="utf-8")
        return str(folder / name)

    return write


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_both_forms_in_both_layouts(name: str, write: Write, folder: Path) -> None:
    text_only = {"conversations": [turn("human", "is there a red cross"), turn("gpt", "no")], "image": None}
    plain = {
        "image": ["b.jpg"],
        "question": "what color is the circle",
        "answer": ["red", "red", "blue"],
        "kind": "color",
    }
    path = write(GOOD, text_only, plain, name=name)
    rows = LlavaJSON(path)
    assert len(rows) == 3 and not rows.skipped
    assert rows[0] == {
        **GOOD,
        "image": [str(folder / "a.png")],
        "where": f"{path} {'row 0' if name == 'rows.json' else 'line 1'}",
        "question": "what is at the top left",
        "answer": "red cross",
    }
    assert "image" not in rows[1] and rows[1]["answer"] == "no"
    assert rows[2]["kind"] == "color" and rows[2]["answer"] == ["red", "red", "blue"]
    made = scenes.tokenizer()
    vocab = Vocab(made, len(made), mask_id=2, eos_id=1, pad_id=0, slot_id=2)
    task = VQA(answer_length=3, metrics=["vqa_accuracy"])
    for row, answer in zip(rows, ["red cross", "no", "red"], strict=True):
        assert task.parse(list(task.sample(row, vocab)[-1].ids or []), vocab) == answer
        assert task.score(answer, row)["vqa_accuracy"] > 0.6
    with pytest.raises(DataError, match=rf"^{path} .* answer 'red cross' takes 2 positions, answer_length is 1$"):
        VQA(answer_length=1).sample(rows[0], vocab)


def test_pictures_elsewhere_and_absolute_paths(write: Write, folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    os.rename(folder / "b.jpg", other / "b.jpg")
    path = write({**GOOD, "image": "b.jpg"}, {**GOOD, "image": str(folder / "a.png")})
    rows = LlavaJSON(path, images=str(other))
    assert [row["image"] for row in rows] == [[str(other / "b.jpg")], [str(folder / "a.png")]]
    inside = write({**GOOD, "image": f"../{folder.name}/a.png"}, {**GOOD, "image": "x/../a.png"})
    (folder / "x").mkdir()
    with pytest.raises(DataError, match=r"row 0: picture outside the folder: '../"):
        LlavaJSON(inside)
    assert len(LlavaJSON(inside, on_error="skip")) == 1


def row(*turns: Any, **fields: Any) -> dict[str, Any]:
    return {**GOOD, "conversations": list(turns), **fields}


BAD: list[tuple[str, Any, str]] = [
    ("missing picture", row(ASK, REPLY, image="none.png"), "none.png$"),
    ("unreadable picture", row(ASK, REPLY, image="text.png"), "text.png .cannot identify"),
    ("unreadable picture", row(ASK, REPLY, image="cut.png"), "cut.png .image file is truncated"),
    ("unreadable picture", row(ASK, REPLY, image="cut.jpg"), "cut.jpg .image file is truncated"),
    ("unreadable picture", row(ASK, REPLY, image="empty.png"), "empty.png"),
    ("picture outside the folder", row(ASK, REPLY, image="../a.png"), "'../a.png' leads out of"),
    ("picture outside the folder", row(ASK, REPLY, image="x/../../a.png"), "leads out of"),
    ("image is not a path", row(ASK, REPLY, image=7), "7$"),
    ("image is not a path", row(ASK, REPLY, image=""), "''$"),
    ("empty answer", row(ASK, turn("gpt", " \n")), "turn 2$"),
    ("empty answer", {"question": "where", "answer": ""}, "empty answer$"),
    ("no answer", row(ASK), "no answer$"),
    ("no answer", row(ASK, REPLY, turn("human", "why")), "no answer$"),
    ("no answer", {"question": "where"}, "no answer$"),
    ("answer is not text", {"question": "where", "answer": {"a": 1}}, "{'a': 1}$"),
    ("unknown from", row(turn("humen", "<image>"), REPLY), r"turn 1 is from 'humen' \(did you mean \"human\"\?\)"),
    ("unknown from", row(turn("system", "x"), ASK, REPLY), r"turn 1 is from 'system' \(known: gpt, human\)"),
    ("two human turns in a row", row(ASK, turn("human", "well"), REPLY), "turns 1 and 2$"),
    ("gpt turn without a human turn before it", row(REPLY, ASK, REPLY), "turn 1$"),
    ("gpt turn without a human turn before it", row(ASK, REPLY, REPLY), "turn 3$"),
    ("more <image> slots than pictures", row(turn("human", "<image> <image>"), REPLY), "2 slots, 1 pictures$"),
    ("more <image> slots than pictures", {"conversations": [ASK, REPLY]}, "1 slots, 0 pictures$"),
    ("more <image> slots than pictures", {"question": "is <image> a tag", "answer": "yes"}, "1 slots, 0 pictures$"),
    ("fewer <image> slots than pictures", row(turn("human", "what"), REPLY), "0 slots, 1 pictures$"),
    ("fewer <image> slots than pictures", row(ASK, REPLY, image=["a.png", "b.jpg"]), "1 slots, 2 pictures$"),
    ("no conversation", row(), r"conversations: \[\]"),
    ("no conversation", {"conversations": "hello"}, "'hello'"),
    ("turn is not a mapping", row("hello"), "turn 1 is 'hello'$"),
    ("value is not text", row(turn("human", None), REPLY), "turn 1 value: None$"),
    ("no question", {"answer": "yes"}, "no question"),
    ("question is not text", {"question": None, "answer": "yes"}, "question: None$"),
    ("not a JSON object", ["a"], r"\['a'\]$"),
]  # fmt: skip


@pytest.mark.parametrize("reason, bad, detail", BAD)
def test_every_refusal(reason: str, bad: Any, detail: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(GOOD, bad, GOOD)
    with pytest.raises(DataError, match=detail) as caught:
        LlavaJSON(path)
    said = str(caught.value)
    assert said.startswith(f"{path} row 1: {reason}") and "\n" not in said
    rows = LlavaJSON(path, on_error="skip")
    assert [r["where"] for r in rows] == [f"{path} row 0", f"{path} row 2"]
    assert rows.skipped == {reason: 1}
    assert capsys.readouterr().err == f"{path}: skipped 1 of 3 rows (1 {reason})\n"


def test_skipping_counts_by_reason_in_one_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{**GOOD, "image": name} for name in ("none.png", "cut.jpg", "no.png", "gone.png", "empty.png")]
    rows = LlavaJSON(write(*bad, GOOD, row(ASK)), on_error="skip")
    assert len(rows) == 1
    assert rows.skipped == {"missing picture": 3, "unreadable picture": 2, "no answer": 1}
    said = capsys.readouterr().err
    assert said.endswith("skipped 6 of 7 rows (3 missing picture, 2 unreadable picture, 1 no answer)\n")
    assert said.count("\n") == 1
    LlavaJSON(write(GOOD), on_error="skip")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"no row can be used \(1 missing picture\)"):
        LlavaJSON(write(bad[0]), on_error="skip")


def test_lines_that_are_not_json(folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n\n{{"id": 1,\n{json.dumps(GOOD)}\n')
    with pytest.raises(DataError, match=rf"^{path} line 3: not JSON: .* at column \d+; expected a list, or one object"):
        LlavaJSON(str(path))
    rows = LlavaJSON(str(path), on_error="skip")
    assert [row["where"] for row in rows] == [f"{path} line 1", f"{path} line 4"]
    assert rows.skipped == {"not JSON": 1}


def test_files_that_cannot_be_read(folder: Path, write: Write) -> None:
    write(GOOD)
    whole = folder / "rows.json"
    cut = folder / "cut.json"
    cut.write_text('[{"question": "a"},\n{"question":\n')
    (folder / "latin.json").write_bytes(b'[{"question": "o\xf9"}]')
    (folder / "none.json").write_text("[]")
    for on_error in ("stop", "skip"):  # there is nothing to go on with
        for name, message in [
            ("row.json", r'row.json: no such file \(did you mean "rows.json"\?\)'),
            ("cut.json", "cut.json: not JSON: .* at line 3"),
            ("latin.json", "latin.json: not UTF-8 at byte 16"),
            ("none.json", r"none.json: no row can be used \(it has none\)"),
            (".", "cannot be read"),
        ]:
            with pytest.raises(DataError, match=message):
                LlavaJSON(str(folder / name), on_error=on_error)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="images: .*nowhere is not a folder"):
        LlavaJSON(str(whole), images=str(folder / "nowhere"))


def test_limit(write: Write) -> None:
    path = write(GOOD, row(ASK), GOOD)
    assert len(LlavaJSON(path, limit=1)) == 1  # the second row is not looked at
    assert len(LlavaJSON(path, limit=3, on_error="skip")) == 2
    assert len(LlavaJSON(write(GOOD, GOOD, GOOD, name="rows.jsonl"), limit=2)) == 2


def test_without_verification_only_the_files_are_looked_for(write: Write) -> None:
    path = write({**GOOD, "image": "cut.jpg"}, {**GOOD, "image": "none.png"})
    rows = LlavaJSON(path, on_error="skip", verify=False)
    assert len(rows) == 1 and rows.skipped == {"missing picture": 1}


@pytest.mark.parametrize(
    "arguments, message",
    [({"on_error": "skpi"}, r"on_error: 'skpi' .*\(did you mean \"skip\"\?\)"), ({"limit": 0}, "limit=0")],
)
def test_arguments(arguments: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=message):
        LlavaJSON(write(GOOD), **arguments)


def test_toy_needs_no_files_and_leaves_none() -> None:
    rows = LlavaJSON.toy("not/there.json", images="not/there", on_error="skip")
    assert len(rows) == 5 and not rows.skipped
    assert [len(r["conversations"]) for r in rows] == [4, 4, 4, 4, 2]
    picture = Path(rows[0]["image"][0])
    assert picture.is_file()
    del rows
    assert not picture.exists()


def test_scenes_as_a_file(tmp_path: Path) -> None:
    """What `toy` writes are the rows of the renderer: pictures pixel for pixel, answers word for word."""
    import numpy as np
    from PIL import Image

    write_scenes(tmp_path, dialogues=2)
    rows, captions = LlavaJSON(str(tmp_path / "rows.json")), scenes.SceneCaptions(8, seed=0)
    for i in range(2):
        assert np.array_equal(np.asarray(Image.open(rows[i]["image"][0])), captions[4 * i]["image"])
        assert [t["value"] for t in rows[i]["conversations"]][1::2] == [captions[4 * i + n]["answer"] for n in (0, 3)]


def test_a_trap_among_the_pictures_is_found_at_the_start(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (9000, 5000)).save(tmp_path / "trap.png")
    row = {"image": "trap.png", "question": "what", "answer": "red"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"trap\.png \(9000 x 5000 pixels in \d+ bytes, a trap\)"):
        LlavaJSON(str(tmp_path / "rows.json"))
