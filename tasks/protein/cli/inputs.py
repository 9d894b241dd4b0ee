"""What a word on the command line of the protein verbs stands for: residues, sequences, pairs, rows of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.config import build, load_config
from mmdiff.errors import DataError, UserError, nearest, short
from mmdiff.files import digest
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.data.fasta import Fasta, Pairs, read_sequences
from mmdiff.tasks.protein.data.files import FASTA, TABLES, suffix
from mmdiff.tasks.protein.data.tables import entries
from mmdiff.tasks.protein.residues import GAP
from mmdiff.tasks.protein.session import load_protein_session
from mmdiff.tasks.protein.task import Protein

KNOWN = 200_000
"""Training rows that are compared with; of more (or of rows drawn without an end) there is no novelty."""


def open_session(run: str, overrides: Sequence[str], *, seed: int | None = None) -> Session[Protein]:
    """The session of a run, saved model or backbone. seed: the sampler's, where overrides name no other."""
    return load_protein_session(run, [*([f"sampler.seed={seed}"] if seed is not None else []), *overrides])


def first_sequence(option: str, text: str) -> str:
    """Residues as they stand, or the first sequence of a file, whole and without gaps. Raises UserError."""
    if text.isascii() and text.isalpha() and text.isupper():
        return text
    try:
        is_there = Path(text).is_file()
    except OSError:  # too long for a name
        is_there = False
    if not is_there:
        raise UserError(
            f"{option}: {text!r:.60}, expected residues in upper case, or a file of sequences that is there"
        )
    return next(iter(read_sequences(text, lower="upper", gaps="drop"))).sequence


def content(path: Path) -> dict[str, str]:
    """Name and content of a file, as settings that results depend on: edited in place, it is another file."""
    try:
        return {"file": str(path), "sha256": digest(path)[:16]}
    except OSError as error:
        raise DataError(f"{short(path)}: {error.strerror}") from None


def sequences_of(path: str, ids: Sequence[str]) -> list[str]:
    """The sequences of a file in the order of `ids`. Raises DataError for one that is not there."""
    known: dict[str, str] = {}
    twice: dict[str, str] = {}
    for record in read_sequences(path):
        if known.setdefault(record.id, record.sequence) != record.sequence:
            twice.setdefault(record.id, record.where)
    for name in ids:
        if name not in known:
            raise DataError(f"{path}: no sequence of the id {short(repr(name), 60)}{short(nearest(name, known))}")
        if name in twice:
            raise DataError(f"{twice[name]}: the id of another sequence too, and embeddings of that id are asked for")
    return [known[name] for name in ids]


def pairs_or_records(path: Path, policy: Mapping[str, Any]) -> Iterable[Any]:
    """Pairs, where a table has columns `target` and `binder`; else its sequences."""
    if suffix(path) in TABLES and {"target", "binder"} <= next(entries(path, ())).cells.keys():
        pairs = Pairs(str(path), **policy)
        return (pairs[i] for i in range(len(pairs)))
    return read_sequences(path, **policy)


def evaluation_rows(
    run: str, test: Path | None, train: str | None, limit: int | None
) -> tuple[list[Row], list[Row] | None]:
    """(held-out rows, training rows or None): of files, or what the run's configuration has in its last stage.

    Raises UserError.
    """
    if test is not None:
        rows: Any = _source(test)
        known: Any = _source(train) if train is not None else None
    else:
        if train is not None:
            raise UserError("--train goes with a file of held-out sequences")
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


def _source(path: str | Path) -> Any:
    ending = suffix(path)
    if ending in FASTA:
        return Fasta(str(path), gaps="keep", lower="drop" if ending in (".a3m", ".afa") else "upper")
    return [record.row for record in read_sequences(path, gaps="keep")]


def aligned_rows(session: Session[Protein], rows: Sequence[Row]) -> bool:
    """Whether they are an alignment that the task generates column by column."""
    lengths = {len(row["sequence"]) for row in rows}
    return GAP in session.task.letters and len(lengths) == 1
