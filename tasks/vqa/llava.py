"""Question rows from a file in the format of LLaVA, checked before anything is trained on them.

    {"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}

A JSON list, or JSON lines, of either form that `mmdiff.tasks.dialogue.turns` reads; pictures and sounds are paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmdiff.errors import DataError, RowError, require
from mmdiff.files import as_object
from mmdiff.parts import part
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import CheckedRows, Entry, check_fields, file_under, folder_at, read_json
from mmdiff.tasks.dialogue.turns import NOUNS, SLOT, SLOTS, answers, media_of, read_turns

from .scenes import SceneCaptions
from .task import VQA


@part
@dataclass(eq=False)
class LlavaJSON(CheckedRows):
    """The rows of one file. Every row must have a question, end in an answer, and have the media that it speaks of.

    path: the file.
    images: the folder of the pictures; None: that of the file. A relative path must not lead out of it; absolute paths
        are taken as they are.
    audio: the folder of the sounds, as `images`.
    on_error, limit, verify: see `mmdiff.tasks.dialogue.rows.CheckedRows`. To verify is to decode every picture and the
        header of every sound.

    Rows are those of the file, with `image` and `audio` lists of full paths (absent where there are none), `where`
    (file and row, named by later errors; the first is row 0) and, of a conversation, its last `question` and `answer`
    (for reports).
    """

    page: ClassVar[str] = "docs/data/llava.md"
    path: str
    images: str | None = None
    audio: str | None = None

    def origin(self) -> str:
        return self.path

    def entries(self) -> Iterator[Entry]:
        rows = read_json(Path(self.path))  # first: without the file there is no folder beside it
        beside = Path(self.path).parent
        folders = {
            "image": folder_at("images", beside if self.images is None else Path(self.images)),
            "audio": folder_at("audio", beside if self.audio is None else Path(self.audio)),
        }
        for where, raw in rows:
            yield where, partial(_checked, raw, where, folders)

    def verified(self, pool: Executor, rows: Sequence[Row]) -> Iterable[Entry]:
        paths = {path: find for row in rows for field, find in FAULT.items() for path in row.get(field, ())}
        faults = {path: pool.submit(find, path) for path, find in paths.items()}  # many rows may share a picture
        return [(row["where"], partial(_readable, row, faults)) for row in rows]

    @classmethod
    def toy_files(cls, folder: Path, audio: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Drawn scenes, or tones where `audio` is given."""
        (write_scenes if audio is None else write_clips)(folder)
        return {"path": str(folder / "rows.json"), "images": None, "audio": None}


def write_scenes(folder: Path, dialogues: int = 4) -> None:
    """Write `rows.json` and its pictures: a small file in this format, of scenes."""
    require("PIL", "vision")
    from PIL import Image

    captions = SceneCaptions(4 * dialogues, seed=0)
    rows: list[dict[str, Any]] = []
    for i in range(dialogues):
        first, second = captions[4 * i], captions[4 * i + 3]
        Image.fromarray(first["image"]).save(folder / f"{i}.png")
        turns = [_turn("human", f"{SLOT}\n{first['question']}"), _turn("gpt", first["answer"])]
        turns += [_turn("human", second["question"]), _turn("gpt", second["answer"])]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    rows.append({"id": "words", "conversations": [_turn("human", "is there a red circle"), _turn("gpt", "no")]})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def write_clips(folder: Path) -> None:
    """Write `rows.json` and its sounds: tones and their transcripts, in both forms by turns."""
    from mmdiff.encoders.media.audio import write_tones

    rows: list[dict[str, Any]] = []
    for i, (path, text) in enumerate(write_tones(folder, "wav")):
        question = "what is said"
        talk = {"conversations": [_turn("human", f"<audio>\n{question}"), _turn("gpt", text)]}
        rows.append({"id": str(i), "audio": path.name, **(talk if i % 2 else {"question": question, "answer": text})})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def _turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def _checked(raw: Any, where: str, folders: Mapping[str, Path]) -> Row:
    """Returns the row of the source. folders: of the media, by field. Raises RowError."""
    turns = read_turns(as_object(raw))
    accepted = answers(raw)
    if turns[-1][1] is None or not accepted:
        raise RowError("no answer")
    check_fields(raw, VQA.fields)
    row = {name: value for name, value in raw.items() if name not in folders} | {"where": where}
    for field, folder in folders.items():
        if paths := [file_under(folder, one, field, NOUNS[field]) for one in media_of(raw, field)]:
            row[field] = paths
    if "conversations" in raw:
        human = [turn["value"] for turn in raw["conversations"] if turn["from"] == "human"]
        row |= {"question": SLOTS.sub("", human[-1]).strip(), "answer": raw.get("answer", accepted[0])}
    return row


def _readable(row: Row, faults: Mapping[str, Future[str | None]]) -> Row:
    for field in FAULT:
        for path in row.get(field, ()):
            if fault := faults[path].result():
                raise RowError(f"unreadable {NOUNS[field]}", f"{path} ({fault})")
    return row


def _picture_fault(path: str) -> str | None:
    """Returns why a picture cannot be decoded, or None."""
    require("PIL", "vision")
    from PIL import Image

    from mmdiff.encoders.media.images import check_opened

    try:
        with Image.open(path) as image:
            check_opened(image, path, path)
            image.load()  # not verify(): it finds nothing wrong with a JPEG that is cut off
    except Exception as error:  # on damaged files, decoders raise almost anything
        return " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
    return None


def _sound_fault(path: str) -> str | None:
    """Returns why a sound has no duration, or None."""
    from mmdiff.encoders.media.audio import duration

    try:
        duration(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


FAULT = {"image": _picture_fault, "audio": _sound_fault}
