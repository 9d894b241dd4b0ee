"""What `mmdiff check` trains on: the first rows of files that are there, toy rows in words of the vocabulary else."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmdiff.config import build, locate
from mmdiff.config.settings import Config
from mmdiff.protocols import Row, Source

FEW = 4
FILES = ("path", "root")  # arguments of a source that say where its rows are
TEXTS = ("text", "question", "answer", "instruction", "hypothesis", "value")  # fields of a row that hold words


@dataclass(frozen=True)
class Few:
    """The first rows of a source."""

    source: Any

    def __len__(self) -> int:
        return min(FEW, len(self.source))

    def __getitem__(self, index: int) -> Row:
        row: Row = self.source[index]
        return row

    def length(self, index: int) -> float:
        return float(self.source.length(index))


@dataclass(frozen=True)
class Worded:
    """Rows in which words that are not of a vocabulary give way to some that are. words: an object that holds them."""

    rows: Any
    words: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return {name: self._field(name, value) for name, value in self.rows[index].items()}

    def length(self, index: int) -> float:
        return float(self.rows.length(index))

    def _field(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and name in TEXTS:
            return " ".join(map(self.words.known, value.split()))
        if isinstance(value, Mapping):
            return {key: self._field(key, inner) for key, inner in value.items()}
        return [self._field(name, inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Words:
    """The words of a vocabulary in which a word is one token or none."""

    all: tuple[str, ...]

    def known(self, word: str) -> str:
        """Returns the word, or one in its place; marks such as `<image>` stay."""
        if word.lower() in self.all or word.startswith("<"):
            return word
        return self.all[zlib.crc32(word.encode()) % len(self.all)]


def with_own_rows(config: Config, progress: Callable[[str], None]) -> Config:
    """Returns the configuration with nodes of rows that can be read here and now.

    A source whose file is there is opened, with a limit of a few rows, and read as in the real run. Training takes them
    where the tokenizer is that of the real run; else, and where no file is there, the toy twin is made later. Raises
    what the source raises. progress: is called with a line for each file.
    """
    words = words_of(config)
    backbone = config.model.backbone
    # a toy twin of a published backbone spells in bytes: lengths of answers would not be those of the real run
    exact = bool(config.model.weights) or (isinstance(backbone, Mapping) and "tokenizer" in backbone)

    def changed(node: Any, key: str) -> Any:
        if isinstance(node, list):
            return [changed(item, f"{key}.{i}") for i, item in enumerate(node)]
        if not isinstance(node, Mapping):
            return node
        inner = {name: changed(value, f"{key}.{name}") for name, value in node.items()}
        if "target" not in node:
            return inner
        function = locate(node["target"], f"{key}.target")
        if not hasattr(function, "toy"):
            return inner
        files = [Path(str(node[name])) for name in FILES if name in node]
        there = bool(files) and all(file.exists() for file in files)
        is_source = hasattr(function, "__getitem__")  # documents, of which a source is made, are none
        if there and is_source and "limit" in inspect.signature(function).parameters:
            source: Source = build({**node, "limit": min(FEW, node.get("limit") or FEW)}, where=key)
            few = Few(source)
            read = [few[i] for i in range(len(few))]
            progress(f"{key}: {len(read)} rows of {files[0]}")
            if exact:
                return {"target": f"{__name__}.Few", "source": source}
        return {"target": f"{__name__}.Worded", "rows": inner, "words": words} if words else inner

    stages = {
        name: replace(
            stage,
            data=changed(stage.data, f"train.stages.{name}.data"),
            eval=changed(stage.eval, f"train.stages.{name}.eval"),
        )
        for name, stage in config.train.stages.items()
    }
    data = {name: changed(node, f"eval.data.{name}") for name, node in config.eval.data.items()}
    return replace(config, train=replace(config.train, stages=stages), eval=replace(config.eval, data=data))


def words_of(config: Config) -> Words | None:
    """Returns the words of a tokenizer of whole words that the configuration names, None for any other."""
    backbone = config.model.backbone
    node = backbone.get("tokenizer") if isinstance(backbone, Mapping) else None
    if not isinstance(node, Mapping) or "target" not in node:
        return None
    tokenizer = build(node, where="model.backbone.tokenizer", toy=True)  # not from all of somebody's files
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None or type(core.model).__name__ != "WordLevel":
        return None
    special = set(tokenizer.all_special_tokens)
    found = tuple(word for word in tokenizer.get_vocab() if word not in special and not word.startswith("<"))
    return Words(found) if found else None
