"""The folder that is inspected: which one it is, and its files besides weights, which may be anyone's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdiff.backbones.bounds import DOWNLOADED, TOKENIZER_FILES, check_files, check_layers
from mmdiff.backbones.family import Facts, Family
from mmdiff.backbones.weights import INDEX, Match
from mmdiff.backbones.weights import weight_files as files_of
from mmdiff.errors import ConfigError
from mmdiff.model.published.layout import EXPORTED, is_exported, other_files

from .figures import Canvases
from .headers import HEAD_BYTES
from .strict import CONFIG_BYTES, read_object

TOKENIZER_BYTES, TOKENIZER_VALUES = 64 * 1024**2, 6_000_000
"""Of tokenizer.json and vocab.json; a vocabulary of 262,000 words and 514,000 merges has 33 MB and 2,000,000 values."""


@dataclass
class Folder:
    """What is inspected. home: the folder of config.json and tokenizer. saved: the configuration of a saved model.
    exported: that of a model in the hub's layout."""

    path: Path
    home: Path
    saved: Mapping[str, Any] | None
    exported: Mapping[str, Any] | None = None

    @property
    def described(self) -> Mapping[str, Any]:
        """The configuration of a model that mmdiff wrote, in whatever layout; empty for any other."""
        return self.saved or self.exported or {}


def find_folder(path: str | Path) -> Folder:
    """Returns a folder, the newest model of a run, or the snapshot of a hub id in the cache; nothing is downloaded."""
    folder = Path(path)
    if not folder.is_dir():
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
            raise ConfigError(f"{str(path)[:200]}: neither a folder nor a hub id (owner/name)")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(path), allow_patterns=DOWNLOADED, local_files_only=True))
        except (OSError, ValueError):
            raise ConfigError(f"{path}: no such folder, and no model of that name in the hub's cache") from None
    is_run = not (folder / "config.json").exists() and any((folder / x).is_dir() for x in ("model", "checkpoints"))
    if not is_run and not (folder / "backbone").is_dir() and not is_exported(folder):
        return Folder(folder, folder, None)
    from mmdiff.model.published.described import read_config
    from mmdiff.runs.newest import find_model

    folder = find_model(folder)
    for name in ("config.json", EXPORTED, "SHA256SUMS"):
        if (folder / name).exists():
            _bounded(folder / name)
    read_object(folder / "config.json")
    if is_exported(folder):
        read_object(folder / EXPORTED)
        return Folder(folder, folder, None, read_config(folder))
    return Folder(folder, folder / "backbone", read_config(folder))


def read_configuration(folder: Folder) -> dict[str, Any]:
    """Returns config.json. Raises ConfigError for it, and for any other file that is none or is too large."""
    for home in {folder.home, folder.path}:
        check_files(home)
        for file in home.iterdir():
            if file.suffix in (".json", ".jinja", ".txt", ".model") and file.is_file():
                _bounded(file)
    raw = read_object(folder.home / "config.json")
    check_layers(raw, folder.home / "config.json")
    return raw


def _bounded(file: Path) -> None:
    """Raise ConfigError for a file whose content would take far more memory than any published one does."""
    large = file.name in (*TOKENIZER_FILES, "vocab.json", "merges.txt") and file.name != "tokenizer_config.json"
    most = TOKENIZER_BYTES if large else HEAD_BYTES
    if (size := file.stat().st_size) > most:
        raise ConfigError(f"{file}: has {size:,} bytes, expected at most {most:,}")
    if file.suffix == ".json" and size > CONFIG_BYTES:
        text = file.read_bytes()
        if text.count(b"{") + text.count(b"[") + text.count(b",") > TOKENIZER_VALUES // (1 if large else 10):
            raise ConfigError(f"{file}: has more values than any file of that name")


def weight_files(folder: Folder) -> list[Path]:
    """Returns the files of a folder's weights. Raises ConfigError for an index that leads nowhere, or is none."""
    index = folder.path / INDEX
    if index.exists():
        read_object(index, HEAD_BYTES, 200_000)  # what is in it is checked behind this
    elif index.is_symlink():
        raise ConfigError(f"{index}: a link that leads nowhere")
    return [*files_of(folder.path), *(other_files(folder.path) if folder.exported else ())]


def part_of(folder: Folder, name: str) -> str | None:
    """Returns the part of a saved model besides its backbone that a tensor is of, `encoders.image`."""
    kind, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    parts = folder.described.get(kind)
    return f"{kind}.{part}" if kind != "backbone" and isinstance(parts, Mapping) and part in parts else None


# What is seen of its model, with torch (`thorough.py`) or without (`light.py`) ----------------------------------------


@dataclass(frozen=True)
class Seen:
    """rows: of the embedding table. kind: the class of transformers'. parameters: how many numbers the model has.
    found: which tensors are of it. memory: bytes by name, of some canvases. made: the nodes of the parts of a saved or
    multimodal model. multimodal: whether it is of the latter."""

    tokenizer: Any
    facts: Facts
    rows: int
    kind: str
    parameters: int
    found: Match
    memory: Callable[[Canvases], dict[str, Any]]
    made: Mapping[str, Any] = field(default_factory=dict)
    multimodal: bool = False


class NoTokenizer:
    """What a family asks of a tokenizer, where a folder has none."""

    mask_token_id = eos_token_id = pad_token_id = bos_token_id = unk_token_id = None

    def __len__(self) -> int:
        return 0

    def convert_tokens_to_ids(self, token: str) -> None:
        return None

    def convert_ids_to_tokens(self, index: int) -> None:
        return None


def has_tokenizer(home: Path, own: Family) -> bool:
    """Returns whether a folder has the files of a tokenizer."""
    return any((home / name).is_file() for name in TOKENIZER_FILES) or own.folder_tokenizer(home) is not None
