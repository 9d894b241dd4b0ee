"""ProteinGym's benchmark of substitutions: its files, its reference scores and its summary (Notin et al., 2023).

    DMS_substitutions.csv    an assay per row: DMS_id, DMS_filename, UniProt_ID, coarse_selection_type, target_seq, ...
    <DMS_filename>           mutant, mutated_sequence, DMS_score

Written are, as its own scripts read and write them: `scores/<DMS_id>.csv`, the scores of an assay's mutants beside the
measurements; `DMS_substitutions_Spearman_DMS_level.csv`, Spearman's correlation of each assay; and
`Summary_performance_DMS_substitutions_Spearman.csv`.

The average is that of `performance_DMS_benchmarks.py`: correlations, rounded to three places, are averaged over the
assays of one protein and one selection type, then over the proteins of a selection type, then over the types. Its
standard error is a bootstrap over the proteins within types; ProteinGym's is that of the difference to another model.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, DataError, nearest, require
from mmdiff.evals.harnesses import Figure
from mmdiff.tasks.protein.session import load_protein_session

from .dms import METHODS, mutated, read_scan, scan
from .mutants import parse_mutant

NEEDED = ("DMS_id", "DMS_filename", "UniProt_ID", "coarse_selection_type", "target_seq")
TYPES = ("Activity", "Binding", "Expression", "OrganismalFitness", "Stability")
DEPTHS = {"Low_MSA_depth": "Low", "Medium_MSA_depth": "Medium", "High_MSA_depth": "High"}
TAXA = {
    "Taxa_Human": "Human", "Taxa_Other_Eukaryote": "Eukaryote", "Taxa_Prokaryote": "Prokaryote", "Taxa_Virus": "Virus"
}  # fmt: skip
SAMPLES = 10_000  # of the bootstrap, as ProteinGym draws
SUMMARY = "Summary_performance_DMS_substitutions_Spearman.csv"
ASSAYS = "DMS_substitutions_Spearman_DMS_level.csv"

Row = Mapping[str, str]
Assay = tuple[str, str, float]
"""A protein, a selection type, and a correlation."""


@dataclass
class ProteinGym:
    """The assays of a reference file whose measurements are in a folder, as an entry of a suite.

    path: the folder of measurements. reference: the file of assays; None: `DMS_substitutions.csv` in or beside it.
    method: of `mmdiff protein score`. name: of the model, in the files.
    """

    path: str
    reference: str | None = None
    method: str = "masked_marginal"
    name: str = "mmdiff"

    def __call__(self, run: Path, *, limit: int | None, out: Path) -> list[Figure]:
        """Returns the average correlation and that of each selection type. limit: mutants per assay.

        Raises ConfigError for files and methods that there are not, DataError that names a file and its line.
        """
        require("scipy", "protein")
        if self.method not in METHODS:
            raise ConfigError(f"method: {self.method!r}{nearest(self.method, METHODS)}")
        assays = self._assays()
        session = load_protein_session(run)
        (out / "scores").mkdir(exist_ok=True)
        lines, found = [], []
        for row, file in assays:
            measured = read_scan(file, row["target_seq"], score_column="DMS_score")
            if limit is not None:
                measured.names[limit:], measured.mutants[limit:] = [], []
                for values in measured.scores.values():
                    del values[limit:]
            result = scan(session, measured, [self.method])
            rho = result["columns"]["DMS_score"]["spearman"][self.method]
            self._write_scores(out / "scores" / f"{row['DMS_id']}.csv", row["target_seq"], result["mutants"])
            if rho is None:
                raise DataError(f"{file}: no correlation of {len(measured.names)} mutants, expected 3 that differ")
            found.append((row["UniProt_ID"], row["coarse_selection_type"], round(rho, 3)))
            lines.append(self._assay_line(row, found[-1][2], len(measured.names)))
        _write(out / ASSAYS, lines)
        average, types = averages(found)
        error = bootstrap_error(found)
        _write(out / SUMMARY, [self._summary(assays, found, average, error, types)])
        proteins = {protein for protein, _, _ in found}
        return [
            Figure("ProteinGym", "Average_Spearman", average, error, len(found)),
            *(
                Figure("ProteinGym", f"Function_{kind}", value, None, sum(kind == k for _, k, _ in found))
                for kind, value in sorted(types.items())
            ),
            Figure("ProteinGym", "proteins", float(len(proteins)), None, len(found)),
        ]

    def _assays(self) -> Sequence[tuple[Row, Path]]:
        folder = Path(self.path)
        if not folder.is_dir():
            raise ConfigError(f"path: {self.path}: no such folder")
        near = [folder / "DMS_substitutions.csv", folder.parent / "DMS_substitutions.csv"]
        file = Path(self.reference) if self.reference else next((f for f in near if f.is_file()), near[0])
        if not file.is_file():
            raise ConfigError(f"reference: {file}: no such file, expected ProteinGym's DMS_substitutions.csv")
        with open(file, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        for name in NEEDED:
            if not rows or name not in rows[0]:
                raise DataError(f"{file}: no column {name}{nearest(name, rows[0] if rows else ())}")
        there = [(row, folder / row["DMS_filename"]) for row in rows if (folder / row["DMS_filename"]).is_file()]
        if not there:
            raise ConfigError(f"path: {self.path}: has the measurements of none of the {len(rows)} assays of {file}")
        return there

    def _write_scores(self, file: Path, wild_type: str, mutants: Sequence[Mapping[str, Any]]) -> None:
        _write(
            file,
            [
                {
                    "mutant": one["mutant"],
                    "mutated_sequence": mutated(wild_type, parse_mutant(one["mutant"], wild_type)),
                    "DMS_score": one["DMS_score"],
                    self.name: one[self.method],
                }
                for one in mutants
            ],
        )

    def _assay_line(self, row: Row, rho: float, count: int) -> dict[str, Any]:
        rest = {"MSA_Neff_L_category": row.get("MSA_Neff_L_category", ""), "Taxon": row.get("taxon", "")}
        kind = {"Selection Type": row["coarse_selection_type"], "UniProt_ID": row["UniProt_ID"]}
        return {"DMS ID": row["DMS_id"], self.name: rho, "number_mutants": count, **kind, **rest}

    def _summary(
        self,
        assays: Sequence[tuple[Row, Path]],
        found: Sequence[Assay],
        average: float,
        error: float | None,
        types: Mapping[str, float],
    ) -> dict[str, Any]:
        """Returns the line of a model in the columns of ProteinGym's summary, empty where there is nothing of them."""
        out: dict[str, Any] = {"Model_rank": 1, "Model_name": self.name, "Model type": "Protein language model"}
        out |= {"Average_Spearman": round(average, 3)}
        out |= {"Bootstrap_standard_error_Spearman": "" if error is None else round(error, 3)}
        out |= {f"Function_{kind}": round(types[kind], 3) if kind in types else "" for kind in TYPES}
        for columns, name in ((DEPTHS, "MSA_Neff_L_category"), (TAXA, "taxon")):
            for column, value in columns.items():
                some = [a for a, (row, _) in zip(found, assays, strict=True) if row.get(name, "").capitalize() == value]
                out[column] = round(float(np.mean(list(_grouped(some, 0).values()))), 3) if some else ""
        return out


def averages(found: Sequence[Assay]) -> tuple[float, dict[str, float]]:
    """Returns ProteinGym's average of correlations, and that of each selection type."""
    types = {kind: float(np.mean(values)) for kind, values in _by_type(found).items()}
    return float(np.mean(list(types.values()))), types


def bootstrap_error(found: Sequence[Assay]) -> float | None:
    """Returns the standard deviation of the average when the proteins of every type are drawn again; None where each
    type has one protein."""
    types = _by_type(found)
    if all(len(values) < 2 for values in types.values()):
        return None
    rng = np.random.default_rng(0)
    drawn = [np.array(v)[rng.integers(0, len(v), (SAMPLES, len(v)))].mean(1) for _, v in sorted(types.items())]
    return float(np.mean(drawn, axis=0).std(ddof=1))


def _by_type(found: Sequence[Assay]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = defaultdict(list)
    for (_, kind), value in _grouped(found, 0, 1).items():
        out[kind].append(value)
    return out


def _grouped(found: Sequence[Assay], *keys: int) -> dict[Any, float]:
    """Returns mean correlations of the assays that have the same protein (0), or protein and type (0, 1)."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for one in found:
        groups[tuple(one[key] for key in keys)].append(one[2])
    return {key: float(np.mean(values)) for key, values in groups.items()}


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from mmdiff.files import write_text

    write_text(file, "".join(_lines(rows)))


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    yield text.getvalue()
