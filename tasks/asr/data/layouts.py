"""Which source reads a file or a folder of speech that a command line names.

    data/clips.jsonl                  Manifest
    data/kaldi (with wav.scp)         KaldiDir
    data/LibriSpeech/dev-clean        LibriSpeech, its split dev-clean

Any other source is named by its dotted path, with its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.config import build
from mmdiff.errors import UserError
from mmdiff.protocols import Source

PACKAGE = "mmdiff.tasks.asr.data"


def speech_rows(path: str | None, arguments: Mapping[str, Any]) -> Source:
    """Returns the rows of a file or folder, or those of the source that `arguments` name as their `target`.

    Raises ConfigError for arguments that the source does not take, and DataError as the source does.
    """
    if path is not None and "target" in arguments:
        raise UserError("give --manifest, or rows.target with its arguments")
    node = arguments if path is None else {**node_of(Path(path)), "empty": True, **arguments}
    rows: Source = build(node, where="rows")
    return rows


def node_of(path: Path) -> dict[str, Any]:
    """Returns the node of the source that reads `path`."""
    if not path.is_dir():
        return {"target": f"{PACKAGE}.manifests.Manifest", "path": str(path)}
    if not (path / "wav.scp").is_file() and any(path.glob("*/*/*.trans.txt")):
        return {"target": f"{PACKAGE}.librispeech.LibriSpeech", "root": str(path.parent), "split": path.name}
    return {"target": f"{PACKAGE}.kaldi.KaldiDir", "path": str(path)}
