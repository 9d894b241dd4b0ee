"""ProteinGym: its files are read and written, and its average is that of its own script."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protein_models import saved

from mmdiff.commands import cli
from mmdiff.evaluation.bench import bench
from mmdiff.tasks.protein.score.dms import read_scan, scan
from mmdiff.tasks.protein.score.proteingym import ASSAYS, SUMMARY, averages, bootstrap_error
from mmdiff.tasks.protein.session import load_protein_session

pytest.importorskip("scipy")
WILD = "MKTAYIAKQR"
ASSAYS_OF = [("A1", "P1", "Stability"), ("A2", "P1", "Stability"), ("A3", "P2", "Stability"), ("A4", "P2", "Activity")]


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def gym(tmp_path: Path) -> Path:
    folder = tmp_path / "DMS"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with open(tmp_path / "DMS_substitutions.csv", "w", newline="") as handle:
        write = csv.writer(handle)
        names = "DMS_id DMS_filename UniProt_ID target_seq coarse_selection_type taxon MSA_Neff_L_category"
        write.writerow(names.split())
        for name, protein, kind in [*ASSAYS_OF, ("A5", "P9", "Binding")]:
            write.writerow([name, f"{name}.csv", protein, WILD, kind, "Human", "low" if protein == "P1" else "High"])
    for name, _, _ in ASSAYS_OF:  # the fifth is listed, and not there
        with open(folder / f"{name}.csv", "w", newline="") as handle:
            write = csv.writer(handle)
            write.writerow(["mutant", "mutated_sequence", "DMS_score", "DMS_score_bin"])
            for i, old in enumerate(WILD):
                for new in "ACDEW":
                    if new != old:
                        text = WILD[:i] + new + WILD[i + 1 :]
                        write.writerow([f"{old}{i + 1}{new}", text, round(float(rng.normal()), 4), 1])
    return folder


def test_files_and_average(gym: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    found = bench(model, "protein", overrides=[f"gym.path={gym}"])
    out = Path(found["table"]).parent
    session: Any = load_protein_session(model)
    rhos = {}
    for name, _, _ in ASSAYS_OF:
        result = scan(session, read_scan(gym / f"{name}.csv", WILD), ["masked_marginal"])
        rhos[name] = round(result["columns"]["DMS_score"]["spearman"]["masked_marginal"], 3)
        scores = rows(out / f"scores/{name}.csv")
        assert list(scores[0]) == ["mutant", "mutated_sequence", "DMS_score", "mmdiff"]
        measured = {row["mutant"]: row for row in rows(gym / f"{name}.csv")}
        assert all(row["mutated_sequence"] == measured[row["mutant"]]["mutated_sequence"] for row in scores)
        assert [float(row["mmdiff"]) for row in scores] == [one["masked_marginal"] for one in result["mutants"]]
    lines = rows(out / ASSAYS)
    assert {line["DMS ID"]: float(line["mmdiff"]) for line in lines} == rhos
    stability = np.mean([np.mean([rhos["A1"], rhos["A2"]]), rhos["A3"]])  # by protein first
    average = np.mean([stability, rhos["A4"]])
    figures = {line["metric"]: line for line in found["figures"]}
    assert figures["Average_Spearman"]["value"] == pytest.approx(average)
    assert figures["Function_Stability"]["value"] == pytest.approx(stability) and figures["proteins"]["value"] == 2
    (summary,) = rows(out / SUMMARY)
    assert float(summary["Average_Spearman"]) == pytest.approx(average, abs=6e-4) and summary["Function_Binding"] == ""
    assert float(summary["Function_Activity"]) == rhos["A4"] and summary["Model_rank"] == "1"
    assert float(summary["Low_MSA_depth"]) == pytest.approx(np.mean([rhos["A1"], rhos["A2"]]), abs=6e-4)
    assert float(summary["High_MSA_depth"]) == pytest.approx(np.mean([rhos["A3"], rhos["A4"]]), abs=6e-4)
    error = float(summary["Bootstrap_standard_error_Spearman"])
    assert figures["Average_Spearman"]["error"] == pytest.approx(error, abs=6e-4)


def test_the_average_and_its_error_are_those_of_the_published_script() -> None:
    """The script's groups by pandas, and a bootstrap of its own, on many proteins."""
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    kinds = ["Activity", "Binding", "Stability"]
    found = [(f"P{rng.integers(25)}", kinds[rng.integers(3)], round(float(rng.normal(0.4, 0.2)), 3)) for _ in range(90)]
    frame = pd.DataFrame(found, columns=["UniProt_ID", "Selection Type", "rho"])
    groups = frame.groupby(["UniProt_ID", "Selection Type"]).mean()
    average, types = averages(found)
    by_type = groups.groupby("Selection Type").mean()["rho"]
    assert average == pytest.approx(by_type.mean()) and types == pytest.approx(by_type.to_dict())
    error = bootstrap_error(found)
    variance = sum(g["rho"].var(ddof=0) / len(g) for _, g in groups.groupby("Selection Type")) / 9
    assert error == pytest.approx(np.sqrt(variance), rel=0.05)  # of 10,000 draws: 0.7 % are expected
    assert bootstrap_error(found[:1]) is None


def test_slips_are_one_line(gym: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = str(saved(tmp_path / "model"))
    for words, said in (
        (["gym.path=nowhere"], "protein.gym: path: nowhere: no such folder"),
        ([f"gym.path={gym}", "gym.method=masked"], "method: 'masked' (known: bound, chain, masked_marginal"),
        ([f"gym.path={tmp_path}"], "has the measurements of none of the 5 assays"),
        ([f"gym.path={gym}", f"gym.reference={gym}/A1.csv"], "no column DMS_id"),
    ):
        assert cli.main(["bench", model, "--suite", "protein", *words]) == 2
        assert said in capfd.readouterr().err.splitlines()[-1]
