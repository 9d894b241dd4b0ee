"""Question rows from a file in the format of LLaVA, checked before anything is trained on them.

    {"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}

A JSON list, or JSON lines, of either form that `mmdiff.tasks.dialogue.turns` reads; pictures and sounds are paths.
"""

from __future__ import annotations

import json
import os.path
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mmdiff.errors import ConfigError, DataError, nearest, require
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import RowError, UnusableRows
from mmdiff.tasks.dialogue.turns import NOUNS, SLOT, SLOTS, answers, media_of, read_turns

from .scenes import SceneCaptions


class LlavaJSON:
    """The rows of one file. Every one must say something, end in an answer, and have the media it speaks of.

    path: the file.
    images: the folder of the pictures, None: the file's own. A relative path must not lead out of it; absolute paths
        are taken as they are.
    on_error: "stop" raises a DataError for the first row that cannot be used; "skip" leaves such rows out, says so in
        one line on stderr, and counts them by reason in `skipped`. Either way before any row is handed out.
    limit: read the first rows of the file only.
    verify: decode every picture, and the header of every sound, now (threads share the work). False looks only whether
        the files are there, which is for a large set that was verified before: a damaged one then ends the run when it
        is met.
    audio: the folder of the sounds, as `images`.

    Rows are those of the file, with `image` and `audio` lists of full paths (no such field: none of them), `where`
    (file and row, named by later errors) and, of a conversation, its last `question` and `answer` (for reports).
    Raises ConfigError for arguments; DataError for the file, named by line or by row (the first is row 0).
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        on_error: Literal["stop", "skip"] = "stop",
        limit: int | None = None,
        verify: bool = True,
        audio: str | None = None,
    ) -> None:
        if on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error: {on_error!r}{nearest(str(on_error), ['stop', 'skip'])}")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit: {limit} rows, expected at least 1")
        self.on_error = on_error
        self._unusable = UnusableRows(on_error)
        self.skipped = self._unusable.skipped
        folders = {}
        for field, name, given in (("image", "images", images), ("audio", "audio", audio)):
            folders[field] = Path(path).parent if given is None else Path(given)
            if not folders[field].is_dir():
                raise DataError(f"{name}: {folders[field]} is not a folder")
        self._rows: list[Row] = []
        for where, raw in _read(Path(path), limit):
            with self._unusable.checked(where):
                self._rows.append(_checked(raw, where, folders))
        if verify:
            self._rows = self._with_readable_media()
        report = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
        if not self._rows:
            raise DataError(f"{path}: no row can be used ({report or 'it has none'})")
        if report:
            total = len(self._rows) + self.skipped.total()
            print(f"{path}: skipped {self.skipped.total()} of {total} rows ({report})", file=sys.stderr)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    @classmethod
    def toy(
        cls,
        path: str,
        images: str | None = None,
        on_error: Literal["stop", "skip"] = "stop",
        limit: int | None = None,
        verify: bool = True,
        audio: str | None = None,
    ) -> LlavaJSON:
        """A small file instead of `path`, written and read back: drawn scenes, or sounds where `audio` is given."""
        folder = TemporaryDirectory()
        (write_scenes if audio is None else write_clips)(Path(folder.name))
        source = cls(f"{folder.name}/rows.json", None, on_error, limit, verify)
        source._folder = folder  # lives as long as the rows that name its media
        return source

    _folder: TemporaryDirectory[str] | None = None

    def _with_readable_media(self) -> list[Row]:
        kept = []
        pool = ThreadPoolExecutor()
        try:
            faults = {
                path: pool.submit(FAULT[field], path)
                for row in self._rows
                for field in FAULT
                for path in row.get(field, ())
            }
            for row in self._rows:
                with self._unusable.checked(row["where"]):
                    for field in FAULT:
                        for path in row.get(field, ()):
                            if fault := faults[path].result():
                                raise RowError(f"unreadable {NOUNS[field]}", f"{path} ({fault})")
                    kept.append(row)
        finally:
            pool.shutdown(cancel_futures=True)
        return kept


def write_scenes(folder: Path, dialogues: int = 4) -> None:
    """`rows.json` and its pictures: a small file in this format, of scenes."""
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
    """`rows.json` and its sounds: tones, and what each says, in both forms by turns."""
    from mmdiff.encoders.media.audio import write_tones

    rows: list[dict[str, Any]] = []
    for i, (path, text) in enumerate(write_tones(folder, "wav")):
        question = "what is said"
        talk = {"conversations": [_turn("human", f"<audio>\n{question}"), _turn("gpt", text)]}
        rows.append({"id": str(i), "audio": path.name, **(talk if i % 2 else {"question": question, "answer": text})})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def _turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def _read(path: Path, limit: int | None) -> Iterator[tuple[str, Any]]:
    """(where, row); a RowError in the place of a line that is not JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = [p.name for p in path.parent.glob("*.json*")]
        raise DataError(f"{path}: no such file{nearest(path.name, there)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {error.lineno}: not JSON ({error.msg})") from None
        yield from ((f"{path} row {i}", row) for i, row in enumerate(rows[:limit]))
        return
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for n, line in lines[:limit]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = RowError("not JSON", f"{error.msg} at column {error.colno}; expected a list, or one object a line")
        yield f"{path} line {n}", row


def _checked(raw: Any, where: str, folders: Mapping[str, Path]) -> Row:
    """The row as it is handed out. folders: of the media, by field. Raises RowError."""
    if isinstance(raw, RowError):
        raise raw
    if not isinstance(raw, dict):
        raise RowError("not a JSON object", f"{raw!r:.60}")
    turns = read_turns(raw)
    accepted = answers(raw)
    if turns[-1][1] is None or not accepted:
        raise RowError("no answer")
    row = {name: value for name, value in raw.items() if name not in folders} | {"where": where}
    for field, folder in folders.items():
        if paths := [_path(one, field, folder) for one in media_of(raw, field)]:
            row[field] = paths
    if "conversations" in raw:
        human = [turn["value"] for turn in raw["conversations"] if turn["from"] == "human"]
        row |= {"question": SLOTS.sub("", human[-1]).strip(), "answer": raw.get("answer", accepted[0])}
    return row


def _path(given: Any, field: str, folder: Path) -> str:
    if not isinstance(given, str) or not given:
        raise RowError(f"{field} is not a path", f"{given!r:.60}")
    if not os.path.isabs(given) and os.path.normpath(given).split(os.sep)[0] == os.pardir:
        raise RowError(f"{NOUNS[field]} outside the folder", f"{given!r} leads out of {folder}")
    path = folder / given
    if not path.is_file():
        raise RowError(f"missing {NOUNS[field]}", str(path))
    return str(path)


def _picture_fault(path: str) -> str | None:
    """Why a picture cannot be decoded."""
    require("PIL", "vision")
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # not verify(): it finds nothing wrong with a JPEG that is cut off
    except Exception as error:  # on damaged files, decoders raise almost anything
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _sound_fault(path: str) -> str | None:
    """Why a sound has no length."""
    from mmdiff.encoders.media.audio import duration

    try:
        duration(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


FAULT = {"image": _picture_fault, "audio": _sound_fault}
