"""Rows of speech from the folders of LibriSpeech.

    root/dev-clean/1272/128104/1272-128104-0000.flac
    root/dev-clean/1272/128104/1272-128104.trans.txt    1272-128104-0000 MISTER QUILTER IS THE APOSTLE

Arguments that all sources of speech share are described in `mmdiff.tasks.asr.data.utterances`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmdiff.encoders.media.audio import write_tones
from mmdiff.errors import DataError, RowError, nearest
from mmdiff.parts import part
from mmdiff.tasks.dialogue.rows import Entry, file_under, folder_at

from .utterances import SpeechRows, id_lines


@part
@dataclass(eq=False)
class LibriSpeech(SpeechRows):
    """The folders of LibriSpeech as they are: `root/split/speaker/chapter/*.flac`, and the chapter's `*.trans.txt`.

    root: the folder of the splits. split: the name of one, or a list of them.
    """

    root: str
    split: str | Sequence[str]

    def origin(self) -> str:
        return self.root

    def utterances(self) -> Iterator[Entry]:
        top = folder_at("root", Path(self.root))
        splits = [self.split] if isinstance(self.split, str) else list(self.split)
        for name in splits:
            if not name or not (top / name).is_dir():
                there = [p.name for p in top.iterdir() if p.is_dir()]
                raise DataError(f"split: no folder {name!r} in {self.root}{nearest(name, there)}")
        chapters = (path for name in splits for path in sorted((top / name).glob("*/*")) if path.is_dir())
        for chapter in chapters:
            transcribed = set()
            for transcripts in sorted(chapter.glob("*.trans.txt")):
                for where, id, text in id_lines(transcripts):
                    transcribed.add(id)
                    yield where, partial(_librispeech_row, chapter, id, text)
            for file in sorted(chapter.glob("*.flac")):
                if file.stem not in transcribed:
                    yield str(file), partial(_untranscribed, chapter)

    @classmethod
    def toy_files(cls, folder: Path, **arguments: Any) -> dict[str, Any]:
        """A split of one chapter of tones."""
        chapter = folder / "toy" / "7" / "42"
        chapter.mkdir(parents=True)
        files = write_tones(chapter, "flac", name="7-42-{:04d}")
        lines = [f"{file.stem} {text.upper()}" for file, text in files]
        (chapter / "7-42.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(folder), "split": "toy"}


def _librispeech_row(chapter: Path, id: str, text: str) -> dict[str, Any]:
    return {
        "audio": file_under(chapter, f"{id}.flac", "audio", "audio"),
        "text": text,
        "id": id,
        "speaker": chapter.parent.name,
    }


def _untranscribed(chapter: Path) -> dict[str, Any]:
    raise RowError("missing transcript", f"no line in {chapter}/*.trans.txt")
