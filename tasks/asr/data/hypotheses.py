"""Hypotheses of a first pass, by any recogniser, joined to rows by id or by order.

    {"id": "a", "hypothesis": "turn lift", "nbest": [["turn lift", -1.0], ["turn left", -1.5]]}

Files, by ending: `.trn` is `text (id)` per line (sclite); `.json` and `.jsonl` are JSON; all others are text, one
hypothesis per line, with its id in front (Kaldi) or not. `layout` names it where the ending does not.

A hypothesis in JSON is a text, or {"id": ..., "hypothesis": ..., "nbest": [...]}. Of the fields `hypothesis`,
`pred_text` (NeMo) and `text` the first that is present is read: beside one of the others, `text` is the reference. An
entry of `nbest` is a text, a [text, score], or {"text": ..., "score": ...}; the best comes first, and is the hypothesis
where no field gives one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdiff.data.fields import text_fault
from mmdiff.errors import ConfigError, DataError, RowError, located, nearest
from mmdiff.parts import part
from mmdiff.protocols import Row, Source
from mmdiff.tasks.dialogue.rows import begin_with, read_json, read_lines

LAYOUTS = ("lines", "ids", "trn", "json")
ENDINGS = {".trn": "trn", ".json": "json", ".jsonl": "json"}
FIELDS = ("hypothesis", "pred_text", "text")
TRN = re.compile(r"(.*)\(([^()\s]+)\)\s*")

Hypothesis = Mapping[str, Any]
"""`hypothesis`, `where` (file and line), and where the file has them `nbest`, a list of {"text": ..., "score": ...}."""


@part
class WithHypotheses:
    """Rows with the `hypothesis`, and the `nbest` list, that a file has for them.

    rows: any source. path, layout: as `read_hypotheses` takes them.
    subset: the file may have hypotheses for other rows too; joined by id only.

    Joined by id where the file has ids, else by order. Raises DataError, in one line, for ids that are missing or left
    over, and for a file without ids that has not as many hypotheses as there are rows.
    """

    def __init__(self, rows: Source, path: str, layout: str | None = None, subset: bool = False) -> None:
        self.rows = rows
        ids = [rows[i].get("id") for i in range(len(rows))]
        found = read_hypotheses(path, layout, [str(i) for i in ids if i is not None])
        self._found = _by_id(ids, found, path, subset) if isinstance(found, dict) else _by_order(ids, found, path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row, hypothesis = dict(self.rows[index]), self._found[index]
        row.pop("nbest", None)  # of another first pass
        where = f"{row['where']} with {hypothesis['where']}" if row.get("where") else hypothesis["where"]
        return {**row, **hypothesis, "where": where}

    @classmethod
    def toy(cls, rows: Source, path: str, layout: str | None = None, subset: bool = False) -> WithHypotheses:
        """A file, written and read back, of a recogniser without errors."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "heard.jsonl"
            lines = [json.dumps({"hypothesis": rows[i]["text"]}) for i in range(len(rows))]
            file.write_text("\n".join(lines), encoding="utf-8")
            return cls(rows, str(file))


def read_hypotheses(
    path: str, layout: str | None = None, ids: Collection[str] | None = None
) -> dict[str, Hypothesis] | list[Hypothesis]:
    """Returns the hypotheses by id where the file has ids, else in its order.

    layout: "lines" (a blank line is an empty hypothesis), "ids" (`id text`), "trn", "json" (a list, a mapping of ids,
        or one object per line). None: by the ending; a text file is "ids" if most of its lines begin with one of `ids`.
    Raises ConfigError for the layout; DataError naming file and line.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout: {layout!r}{nearest(str(layout), LAYOUTS)}")
    layout = layout or ENDINGS.get(Path(path).suffix.lower())
    if layout == "json":
        pairs = list(_from_json(Path(path)))
    else:
        lines = read_lines(Path(path))
        layout = layout or ("ids" if begin_with(ids or (), lines) else "lines")
        pairs = list({"lines": _from_lines, "ids": _from_ids, "trn": _from_trn}[layout](lines))
    if not pairs:
        raise DataError(f"{path}: no hypotheses")
    without = [hypothesis for id, hypothesis in pairs if id is None]
    if len(without) == len(pairs):
        return without
    if without:
        raise DataError(f"{without[0]['where']}: no id, others have one")
    found: dict[str, Hypothesis] = {}
    for id, hypothesis in pairs:
        if id in found:
            raise DataError(f"{hypothesis['where']}: duplicate id {id!r}, that of {found[id]['where']} too")
        found[str(id)] = hypothesis
    return found


def hypothesis_of(fields: Mapping[str, Any], names: Sequence[str] = FIELDS) -> dict[str, Any]:
    """Returns `hypothesis` and `nbest` of an object, or {} when it has neither. Raises RowError for other types."""
    nbest = fields.get("nbest")
    if nbest is not None and not isinstance(nbest, list):
        raise RowError("nbest is not a list", f"{nbest!r:.60}")
    entries = [_entry(one) for one in nbest or ()]
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is not None:
        text = fields[name]
    elif entries:
        text = entries[0]["text"]
    else:
        return {}
    if not isinstance(text, str):
        raise RowError(f"{name} is not text", f"{text!r:.60}")
    if fault := text_fault([text, *(entry["text"] for entry in entries)]):
        raise RowError(*fault)
    return {"hypothesis": text.strip()} | ({"nbest": entries} if entries else {})


Pairs = Iterable[tuple[str | None, Hypothesis]]


def _from_lines(lines: Sequence[tuple[str, str]]) -> Pairs:
    return [(None, {"hypothesis": line, "where": where}) for where, line in lines]


def _from_ids(lines: Sequence[tuple[str, str]]) -> Pairs:
    for where, line in lines:
        if line:
            id, *text = line.split(maxsplit=1)
            yield id, {"hypothesis": text[0] if text else "", "where": where}


def _from_trn(lines: Sequence[tuple[str, str]]) -> Pairs:
    for where, line in lines:
        if line and not line.startswith(";;"):  # a comment
            match = TRN.fullmatch(line)
            if match is None:
                raise DataError(f"{where}: {line!r:.60} does not end in an (id)")
            yield match[2], {"hypothesis": match[1].strip(), "where": where}


def _from_json(path: Path) -> Iterator[tuple[str | None, Hypothesis]]:
    rows = read_json(path)
    if len(rows) == 1 and isinstance(rows[0][1], dict) and not rows[0][1].keys() & {"nbest", *FIELDS}:
        for id, value in rows[0][1].items():  # a mapping of ids
            where = f"{path} id {id!r}"
            fields = value if isinstance(value, dict) else {"nbest": value} if isinstance(value, list) else None
            yield id, _hypothesis(where, fields or {"hypothesis": value})
        return
    for where, value in rows:
        fields = {"hypothesis": value} if isinstance(value, str) else value
        if isinstance(fields, RowError) or not isinstance(fields, dict):
            problem = fields if isinstance(fields, RowError) else f"{value!r:.60} is neither a text nor an object"
            raise DataError(f"{where}: {problem}")
        id = fields.get("id")
        yield None if id is None else str(id), _hypothesis(where, fields)


def _hypothesis(where: str, fields: Mapping[str, Any]) -> Hypothesis:
    with located(where, RowError):
        found = hypothesis_of(fields)
    if not found:
        raise DataError(f"{where}: no hypothesis, expected a field {', '.join(FIELDS)} or nbest")
    return found | {"where": where}


def _entry(one: Any) -> dict[str, Any]:
    """Returns one hypothesis of several as {"text", "score"}. Raises RowError."""
    if isinstance(one, dict):
        text, score = one.get("text"), one.get("score")
    else:
        text, score = one if isinstance(one, list) and len(one) == 2 else (one, None)
    if not isinstance(text, str) or isinstance(score, bool) or not isinstance(score, int | float | None):
        raise RowError("nbest entry is not text and score", f"{one!r:.60}")
    if score is not None and not -1e300 < score < 1e300:
        raise RowError("nbest entry is not text and score", f"{one!r:.60}")
    return {"text": text.strip()} | ({} if score is None else {"score": float(score)})


def _by_id(ids: Sequence[Any], hypotheses: Mapping[str, Hypothesis], path: str, subset: bool) -> list[Hypothesis]:
    if None in ids:
        raise DataError(f"{path}: has ids, and row {list(ids).index(None)} has none to join it by")
    names = [str(id) for id in ids]
    missing = [id for id in names if id not in hypotheses]
    surplus = [] if subset else sorted(hypotheses.keys() - set(names))
    faults = [f"no hypothesis for {len(missing)} of {len(names)} rows ({_named(missing)})"] if missing else []
    faults += [f"{len(surplus)} ids that no row has ({_named(surplus)})"] if surplus else []
    if faults:
        raise DataError(f"{path}: {', '.join(faults)}")
    return [hypotheses[id] for id in names]


def _by_order(ids: Sequence[Any], hypotheses: Sequence[Hypothesis], path: str) -> list[Hypothesis]:
    if len(hypotheses) != len(ids):
        raise DataError(f"{path}: {len(hypotheses)} hypotheses without ids for {len(ids)} rows, expected as many")
    return list(hypotheses)


def _named(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, ids[:most])) + (", ..." if len(ids) > most else "")
