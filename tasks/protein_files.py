"""The files of the protein verbs: what a word on the command line stands for, and in which form results are left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import build, load_config
from ..errors import ConfigError, DataError, UserError, nearest
from ..protocols import Row
from ..session import Session
from .fasta import Fasta, read_sequences, write_fasta
from .policies import Record
from .residues import GAP
from .sequence_files import suffix, writing
from .tables import Pairs, _entries, write_csv


class Designs:
    """Where written sequences go. `lines`: a file of JSON lines, added to after every window, from which an interrupted
    command goes on. It is the file itself, or lies beside a FASTA or CSV, which is made of it in the end.

    Raises ConfigError for an ending without a format, and for a file that is there and is not of this command.
    """

    def __init__(self, out: str | None) -> None:
        self.file = None if out is None else Path(out)
        self.lines = self.file
        if self.file is None:
            return
        if suffix(self.file) != ".jsonl" or self.file.suffix == ".gz":
            self.lines = self.file.with_name(self.file.name + ".jsonl")
        assert self.lines is not None
        if self.file.exists() and not self.lines.exists():
            raise ConfigError(f"{self.file} is there already and was not written by this command; choose another file")

    def read(self) -> Iterator[dict[str, Any]]:
        assert self.lines is not None
        with open(self.lines, encoding="utf-8") as handle:
            for line in handle:
                yield json.loads(line)

    def finish(self, records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Make the FASTA or CSV of the records; nothing where there is no such file."""
        if self.file is None:
            return {}
        if self.file == self.lines:
            return {"out": str(self.file)}
        if suffix(self.file) in (".csv", ".tsv"):
            write_csv(self.file, map(_with_figures, records), overwrite=True)
        else:
            write_fasta(self.file, map(_with_description, records), overwrite=True)
        return {"out": str(self.file), "records": str(self.lines)}


FIGURES = ("target", "length", "designed", "forwards", "confidence", "attempts", "guard")


def _with_figures(record: Mapping[str, Any]) -> Record:
    fields = {name: record[name] for name in FIGURES if name in record}
    return Record(record["id"], record.get("description") or "", record["sequence"], "", fields)


def _with_description(record: Mapping[str, Any]) -> Record:
    sure = record["confidence"]
    told = f"designed={record['designed']}" + (f" confidence={sure:.3f}" if sure is not None else "")
    if record["guard"] not in ("ok", "off"):
        told += f" guard={record['guard'].replace(' ', '_')}"
    return Record(record["id"], f"{record.get('description') or ''} {told}".strip(), record["sequence"])


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines or CSV, by the ending. Raises ConfigError for a file that is there."""
    import csv

    with writing(file, overwrite=False) as handle:
        if suffix(file) == ".jsonl":
            handle.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(
                handle, list(rows[0]), delimiter="\t" if suffix(file) == ".tsv" else ",", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


def first_sequence(text: str) -> str:
    """Residues as they stand, or the first sequence of a file. Raises UserError."""
    if Path(text).is_file():
        return next(iter(read_sequences(text))).sequence
    if text.isalpha() and text.isupper():
        return text
    raise UserError(f"{text!r}: neither residues (in upper case) nor a file of sequences that is there")


def sequences_of(path: str, ids: Sequence[str]) -> list[str]:
    """The sequences of a file in the order of `ids`. Raises DataError for one that is not there."""
    known = {record.id: record.sequence for record in read_sequences(path)}
    for name in ids:
        if name not in known:
            raise DataError(f"{path}: no sequence of the id {name!r}{nearest(name, known)}")
    return [known[name] for name in ids]


def pairs_or_records(path: Path, policy: Mapping[str, str]) -> Iterable[Any]:
    """Pairs, where a table has columns `target` and `binder`; else its sequences."""
    if suffix(path) in (".csv", ".tsv", ".jsonl") and {"target", "binder"} <= next(_entries(path, ())).cells.keys():
        pairs = Pairs(str(path), **policy)
        return (pairs[i] for i in range(len(pairs)))
    return read_sequences(path, **policy)


def evaluation_rows(
    run: str, test: str | None, train: str | None, limit: int | None
) -> tuple[list[Row], list[Row] | None]:
    """(held-out rows, training rows or None): of files, or what the run's configuration has in its last stage."""
    if train and not test:
        raise UserError("--train goes with a file of held-out sequences")
    if test:
        rows: Any = _source(test)
        known: Any = _source(train) if train else None
    else:
        if not (Path(run) / "config.yaml").is_file():
            raise UserError(f"{run}: a model without a run; give a file of held-out sequences")
        name, stage = list(load_config(run).train.stages.items())[-1]
        if not stage.eval:
            raise UserError(f"{run}: its stage {name} has no `eval` rows; give a file of held-out sequences")
        rows = build(stage.eval, where=f"train.stages.{name}.eval")
        node = stage.data if isinstance(stage.data, Mapping) and "target" in stage.data else None
        known = build(node, where=f"train.stages.{name}.data") if node else None
    count = min(len(rows), limit or len(rows))
    known = None if known is None or len(known) > KNOWN else [known[i] for i in range(len(known))]
    return [rows[i] for i in range(count)], known


KNOWN = 200_000
"""Training rows that are compared with; of more (or of rows drawn without an end) there is no novelty."""


def _source(path: str) -> Any:
    return Fasta(path, gaps="keep", lower="drop" if suffix(path) in (".a3m", ".afa") else "upper")


def aligned_rows(session: Session, rows: Sequence[Row]) -> bool:
    """Whether they are an alignment that the task writes column by column."""
    lengths = {len(row["sequence"]) for row in rows}
    return GAP in getattr(session.task, "letters", "") and len(lengths) == 1
