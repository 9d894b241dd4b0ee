"""Where the protein verbs leave their records: JSON lines that an interrupted command resumes, and the FASTA or
table that is made of them in the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdiff.commands.arguments import Output
from mmdiff.commands.cli import log, table
from mmdiff.errors import ConfigError, UserError, short
from mmdiff.files import aside, output_file, writable
from mmdiff.tasks.protein.data.fasta import write_fasta
from mmdiff.tasks.protein.data.files import FASTA, TABLES, is_packed, reading, suffix
from mmdiff.tasks.protein.data.records import Record
from mmdiff.tasks.protein.data.tables import write_table

FIGURES = ("id", "description", "sequence", "target", "length", "designed", "forwards", "confidence", "attempts")
"""What a table has of a sampled sequence, besides `guard`."""
WIDTH = 60  # letters per line of FASTA

Row = Mapping[str, Any]


class Results:
    """The file of an option. `lines`: JSON lines, added to after every window. They are the file itself, or lie beside
    it under `<file>.jsonl` where it is a FASTA, a table or packed; that file is made of them in the end.

    Raises UserError, before any work, for an ending without a format, a folder, a path that cannot be written, and a
    file that no such lines are beside.
    """

    def __init__(self, option: str, out: str | None, endings: tuple[str, ...] = FASTA + TABLES) -> None:
        self.file = self.lines = output_file(option, out)
        if self.file is None:
            return
        self.ending = _ending(option, self.file, endings)
        if self.ending != ".jsonl" or is_packed(self.file):
            self.lines = self.file.with_name(self.file.name + ".jsonl")
        if self.file.exists() and self.lines is not None and not self.lines.exists():
            raise ConfigError(f"{self.file} is there already and was not written by this command; choose another file")

    @property
    def is_fasta(self) -> bool:
        """Nothing given, too: then FASTA is what is printed."""
        return self.file is None or self.ending in FASTA

    def finish(self, shown: Callable[[Row], Row]) -> dict[str, str]:
        """Make the file of the lines: {"out", "lines": beside it}. shown: the row of a table.

        What is there already and is not the beginning of what it would become has been changed by someone: it stays.
        """
        if self.file is None or self.lines is None or self.file == self.lines:
            return {} if self.file is None else {"out": str(self.file)}
        with writable(self.file), aside(self.file) as part:
            if self.ending in FASTA:
                write_fasta(part, map(_headed, self._read()), WIDTH, overwrite=True)
            elif self.ending == ".jsonl":
                write_table(part, self._read(), overwrite=True)
            else:
                write_table(part, map(shown, self._read()), overwrite=True)
            if self.file.exists() and not _begins_with(part, self.file):
                raise ConfigError(
                    f"{self.file} was changed since it was written, and stays; {self.lines} has all records"
                )
        return {"out": str(self.file), "lines": str(self.lines)}

    def output(
        self,
        found: Mapping[str, Any],
        records: Iterable[Row],
        shown: Callable[[Row], Row],
        text: Callable[[Iterable[Row]], str],
    ) -> Output:
        """What a verb returns: with a file its figures and where the records are; without one its figures, which are
        logged, and the records, which `text` prints. shown: the row of a table."""
        if self.file is not None:
            return table({**found, **self.finish(shown)})
        log(table(found)[1])
        return {**found, "records": records}, text(records)

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self.lines is not None
        with open(self.lines, encoding="utf-8", newline="\n") as handle:
            for record in map(json.loads, handle):
                record.pop("settings", None)
                yield record


def new_table(option: str, path: str | None) -> Path | None:
    """A table that is not there yet. Raises UserError."""
    named = output_file(option, path, new=True)
    if named is not None:
        _ending(option, named, TABLES)
    return named


def _ending(option: str, file: Path, endings: tuple[str, ...]) -> str:
    try:
        ending = suffix(file)
    except ConfigError:
        ending = ""
    if ending not in endings:
        raise UserError(f"{option}: {short(file)}, expected a name ending in {', '.join(endings)}, or these with .gz")
    return ending


def design_row(record: Row) -> dict[str, Any]:
    """The row of a sampled sequence."""
    return {name: record[name] for name in (*FIGURES, "guard") if name in record}


def score_row(record: Row) -> dict[str, Any]:
    """The row of a scored sequence: `control.bound` and so on in one column each, figures per residue as JSON."""
    out: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            out |= {f"{name}.{inner}": figure for inner, figure in score_row(value).items()}
        elif name != "row":
            out[name] = json.dumps(value) if isinstance(value, list) else value
    return out


def tabbed(rows: Iterable[Row]) -> str:
    """Lines of cells between tabs, a header first; a dash where there is no figure."""
    lines: list[str] = []
    for row in rows:
        if not lines:
            lines.append("\t".join(row))
        lines.append(
            "\t".join("-" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values())
        )
    return "\n".join(lines)


def fasta(records: Iterable[Row]) -> str:
    """What a FASTA file of the records has, without its last end of a line."""
    lines = []
    for one in map(_headed, records):
        lines.append(f">{one.id} {one.description}".rstrip())
        lines += [one.sequence[i : i + WIDTH] for i in range(0, len(one.sequence), WIDTH)]
    return "\n".join(lines)


def _headed(record: Row) -> Record:
    sure = record["confidence"]
    facts = f"designed={record['designed']}" + (f" confidence={sure:.3f}" if sure is not None else "")
    if record["guard"] not in ("ok", "off"):
        facts += f" guard={record['guard'].replace(' ', '_')}"
    description = " ".join(str(record.get("description") or "").split())  # of a table it may have several lines
    return Record(record["id"], f"{description} {facts}".strip(), record["sequence"])


def _begins_with(longer: Path, shorter: Path) -> bool:
    """Whether a file has all of another at its head, packed or not."""
    with reading(longer) as a, reading(shorter) as b:
        while block := b.read(1 << 20):
            if a.read(len(block)) != block:
                return False
    return True


def page_file(option: str, path: str | None, run: Path, rows: Path | None = None) -> Path | None:
    """The page of an evaluation, beside which its `metrics.json` is written: of a run its own, called by the file of
    `rows` where they are not the run's; of another model none unless it is named. Raises UserError where a metrics.json
    of something else is there, such as a run's."""
    if path is None and not (run / "config.yaml").is_file():
        return None
    folder = "protein" if rows is None else f"protein-{rows.name.partition('.')[0]}"
    page = output_file(option, str(run / folder / "report.html") if path is None else path)
    beside = None if page is None else page.with_name("metrics.json")
    if beside is not None and beside.exists():
        try:
            found = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or "mask_filling" not in found:
            raise UserError(f"{option}: {beside} is of something else and would be lost; choose another folder")
    return page
