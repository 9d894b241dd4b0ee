"""Rows of speech from the folders of LibriSpeech.

    root/dev-clean/1272/128104/1272-128104-0000.flac
    root/dev-clean/1272/128104/1272-128104.trans.txt    1272-128104-0000 MISTER QUILTER IS THE APOSTLE

What all sources of speech share, their arguments too, is in `mmdiff.tasks.asr.data.utterances`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdiff.encoders.media.audio import write_tones
from mmdiff.errors import DataError, nearest
from mmdiff.tasks.dialogue.rows import OnError, RowError

from .utterances import Entry, SpeechRows, audio_path, folder_at, id_lines, usable


class LibriSpeech(SpeechRows):
    """The folders of LibriSpeech as they are: `root/split/speaker/chapter/*.flac`, and the chapter's `*.trans.txt`.

    root: the folder of the splits. split: the name of one, or a list of them.
    """

    def __init__(
        self,
        root: str,
        split: str | Sequence[str],
        on_error: OnError = "stop",
        limit: int | None = None,
        verify: bool = True,
        empty: bool = False,
    ) -> None:
        top = folder_at("root", Path(root))
        splits = [split] if isinstance(split, str) else list(split)
        for name in splits:
            if not name or not (top / name).is_dir():
                there = [p.name for p in top.iterdir() if p.is_dir()]
                raise DataError(f"split: no folder {name!r} in {root}{nearest(name, there)}")
        entries = (entry for name in splits for entry in _librispeech_entries(top / name))
        self.rows, self.skipped = usable(entries, root, on_error, limit, verify, empty)

    @classmethod
    def toy(cls, root: str, split: str | Sequence[str], **checks: Any) -> LibriSpeech:
        """A split of one chapter of tones instead of those named."""
        kept = TemporaryDirectory()
        chapter = Path(kept.name) / "toy" / "7" / "42"
        chapter.mkdir(parents=True)
        files = write_tones(chapter, "flac", name="7-42-{:04d}")
        lines = [f"{file.stem} {text.upper()}" for file, text in files]
        (chapter / "7-42.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = cls(kept.name, "toy", **checks)
        source.kept = kept
        return source


def _librispeech_entries(split: Path) -> Iterator[Entry]:
    for chapter in sorted(path for path in split.glob("*/*") if path.is_dir()):
        transcribed = set()
        for transcripts in sorted(chapter.glob("*.trans.txt")):
            for where, id, text in id_lines(transcripts):
                transcribed.add(id)
                yield where, partial(_librispeech_row, chapter, id, text)
        for file in sorted(chapter.glob("*.flac")):
            if file.stem not in transcribed:
                yield str(file), partial(_untranscribed, chapter)


def _librispeech_row(chapter: Path, id: str, text: str) -> dict[str, Any]:
    return {"audio": audio_path(f"{id}.flac", chapter), "text": text, "id": id, "speaker": chapter.parent.name}


def _untranscribed(chapter: Path) -> dict[str, Any]:
    raise RowError("missing transcript", f"no line in {chapter}/*.trans.txt")
