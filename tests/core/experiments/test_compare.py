"""`mmdiff compare`: what differs is found, intervals are those of other hands, and only the same rows are paired."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.commands import cli
from mmdiff.errors import ConfigError, DataError
from mmdiff.evaluation.evaluate import evaluate_run
from mmdiff.experiments.comparison.compare import compare
from mmdiff.experiments.comparison.intervals import bootstrap
from mmdiff.experiments.comparison.report import as_lines, as_tables
from mmdiff.runs.notes import write_note


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "first"
    shutil.copytree(trained, folder)
    evaluate_run(str(folder))
    return folder


@pytest.fixture
def pair(evaluated: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and a copy that is called another."""
    for name in ("first", "second"):
        shutil.copytree(evaluated, tmp_path / name)
    return tmp_path / "first", tmp_path / "second"


def records(folder: Path, name: str = "a") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"predictions-{name}.jsonl").read_text().splitlines()]


def rewrite(folder: Path, found: Sequence[Mapping[str, Any]], name: str = "a", figure: float | None = None) -> None:
    """Write records, and the figure that is their mean unless another is given."""
    (folder / f"predictions-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    result = json.loads((folder / "metrics.json").read_text())
    mean = sum(line["scores"]["exact"] for line in found) / len(found)
    result["eval"][name]["exact"] = mean if figure is None else figure
    (folder / "metrics.json").write_text(json.dumps(result))


def scored(folder: Path, scores: Sequence[float]) -> None:
    found = records(folder)
    assert len(found) == len(scores)
    rewrite(folder, [{**line, "scores": {"exact": score}} for line, score in zip(found, scores, strict=True)])


def test_nothing_differs_between_a_run_and_its_copy(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    assert found["settings"] == {} and found["changed"] == [] and found["notes"] == []
    assert found["rows"] == [{"a": 12, "b": 8}]
    for key, (difference,) in found["differences"].items():
        assert key in ("eval.a.exact", "eval.b.exact")
        assert (difference["mean"], difference["low"], difference["high"]) == (0, 0, 0)
    assert all(a == b for a, b in found["figures"].values())


def test_settings_that_differ(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "config.yaml"
    text = file.read_text().replace("lr: 0.01", "lr: 0.5").replace("name: toy", "name: other")
    file.write_text(re.sub(r"  clip: .*\n", "", text))  # a default that a file leaves out is no difference
    write_note(pair[1], "a higher lr\nmore of it")
    found = compare(pair)
    assert found["settings"] == {"train.stages.only.lr": [0.01, 0.5]}
    assert found["runs"][1]["note"] == "a higher lr\nmore of it"
    file.write_text(text + "some: {new: field}\n")
    found = compare(pair)
    assert found["settings"]["some.new"] == [None, "field"] and found["notes"][0].startswith(
        "second: its configuration is compared as it stands"
    )


def test_figures_have_the_intervals_of_their_rows(pair: tuple[Path, Path]) -> None:
    scored(pair[0], [1.0] * 6 + [0.0] * 6)
    scored(pair[1], [1.0] * 5 + [0.0] * 5 + [1.0] * 2)
    found = compare(pair)
    first, second = found["figures"]["eval.a.exact"]
    assert first["value"] == 0.5 and second["value"] == pytest.approx(7 / 12)
    assert (first["low"], first["high"]) == bootstrap([1.0] * 6 + [0.0] * 6)
    (difference,) = found["differences"]["eval.a.exact"]
    gains = [0.0] * 5 + [-1.0] + [0.0] * 4 + [1.0] * 2
    assert difference["mean"] == pytest.approx(1 / 12) and (difference["higher"], difference["lower"]) == (2, 1)
    assert (difference["low"], difference["high"]) == bootstrap(gains) and difference["rows"] == 12
    # the interval of paired rows is narrower than that of two sets of rows, which is why they are paired
    assert difference["high"] - difference["low"] < first["high"] - first["low"] + second["high"] - second["low"]
    assert "0.5 [0.25, 0.75]" in as_lines(found, most=5) and "(2 up, 1 down of 12)" in as_lines(found, most=5)


def test_an_interval_of_the_task_goes_first_and_a_figure_of_the_whole_set_has_none(pair: tuple[Path, Path]) -> None:
    rewrite(pair[0], records(pair[0]), figure=0.123)  # not the mean of its rows: a rate over a corpus, say
    found = compare(pair)
    assert found["figures"]["eval.a.exact"][0] == {"value": 0.123} and "eval.a.exact" not in found["differences"]
    result = json.loads((pair[0] / "metrics.json").read_text())
    result["eval"]["a"] |= {"exact_low": 0.1, "exact_high": 0.2}
    (pair[0] / "metrics.json").write_text(json.dumps(result))
    found = compare(pair)
    assert found["figures"]["eval.a.exact"][0] == {"value": 0.123, "low": 0.1, "high": 0.2}
    assert "eval.a.exact_low" not in found["figures"]


def test_predictions_that_changed(pair: tuple[Path, Path]) -> None:
    scored(pair[0], [0.0] * 12)
    found = records(pair[0])
    found[2] |= {"prediction": "north  east", "canvas": []}
    found[7] |= {"prediction": "west", "scores": {"exact": 1.0}}
    rewrite(pair[1], found)
    out = compare(pair)
    assert [(line["set"], line["row"]) for line in out["changed"]] == [("a", 7), ("a", 2)]  # scores first
    first = out["changed"][0]
    assert first["after"] == "west" and first["before"] == records(pair[0])[7]["prediction"]
    assert (
        first["scores_before"] == {"exact": 0.0} and first["fields"]["question"] == "where" and first["run"] == "second"
    )
    text = as_lines(out, most=1)
    assert "Predictions that changed: 2 of 20, 1 of them shown" in text and "exact 0 -> 1" in text
    assert "north  east" not in text


def test_only_the_same_rows_are_paired(pair: tuple[Path, Path]) -> None:
    scored(pair[0], [0.0] * 12)
    found = records(pair[0])
    found[0] |= {"question": "another", "prediction": "x", "scores": {"exact": 1.0}}  # of another seed, say
    rewrite(pair[1], found[:6])  # and of another limit
    out = compare(pair)
    assert out["changed"] == [] and out["rows"] == [{"a": 5, "b": 8}]
    assert out["notes"] == ["second: 1 rows of a are others than those of first"]
    assert out["differences"]["eval.a.exact"][0]["rows"] == 5


def test_predictions_that_never_end_are_refused(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = pair[1] / "predictions-a.jsonl"
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="predictions-a.jsonl: is a device or pipe"):
        compare(pair)
    file.unlink()
    file.write_text("x" * 1000)
    monkeypatch.setattr("mmdiff.experiments.comparison.compare.MOST", 500)
    with pytest.raises(DataError, match="predictions-a.jsonl line 1: has more than 500 bytes"):
        compare(pair)


def test_three_runs_and_what_some_lack(pair: tuple[Path, Path], evaluated: Path, tmp_path: Path) -> None:
    third = tmp_path / "more" / "first"  # of the same name
    shutil.copytree(evaluated, third)
    for file in third.glob("predictions-*"):
        file.unlink()
    (third / "metrics.json").unlink()
    (pair[1] / "predictions-b.jsonl").write_text('{"row": 1}\n\x00\n[]\n{"row": 0, "sco')
    found = compare([*pair, third])
    assert [run["run"] for run in found["runs"]] == [str(pair[0]), "second", str(third)]
    assert found["runs"][2]["state"] == "unfinished"
    assert found["figures"]["eval.a.exact"][2] is None and found["rows"] == [{"a": 12, "b": 0}, {}]
    assert found["differences"]["eval.a.exact"][1] is None and "eval.b.exact" not in found["differences"]
    assert found["notes"] == ["second: predictions-b.jsonl: 4 lines are no records"]
    assert all(len(row) == len(table[0]) for table in as_tables(found, most=9).values() for row in table)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first"], "compare: expected two runs or more"),
        ([], "compare: expected two runs or more"),
        (["first", "./first"], "first: given twice"),
        (["first", "none"], "none: no such folder"),
        (["first", "empty"], "empty: config.yaml is missing"),
    ],
)
def test_refusals(names: list[str], message: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0].parent)
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        compare(names)


def test_the_command_and_its_page(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = records(pair[1])
    found[3] |= {"prediction": "<b>&", "scores": {"exact": 1.0 - found[3]["scores"]["exact"]}}
    rewrite(pair[1], found)
    write_note(pair[1], "<i>")
    page = tmp_path / "page.html"
    words = ["compare", *map(str, pair), "--html", str(page)]
    assert cli.main([*words, "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["html"] == str(page) and len(out["changed"]) == 1
    html = page.read_text()
    assert "&lt;b&gt;&amp;" in html and "<b>" not in html and "<i>" not in html and "http" not in html
    assert html.count('src="data:image/png;base64,') == 1 and html.count("<table") == 3 and "<link" not in html
    assert cli.main([*words, "--rows", "0"]) == 0
    assert "<b>&" not in capsys.readouterr().out
    code = (
        "import sys; from mmdiff.commands.cli import main\n"
        f"assert main(['compare', *{list(map(str, pair))!r}]) == 0\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.needs("scipy")
@pytest.mark.parametrize("kind", ["binary", "thirds", "normal"])
def test_the_bootstrap_is_that_of_scipy(kind: str) -> None:
    from scipy.stats import bootstrap as theirs

    rng = np.random.default_rng(3)
    drawn = {"binary": rng.random(80) < 0.3, "thirds": rng.integers(0, 4, 80) / 3, "normal": rng.normal(2, 3, 80)}
    values = drawn[kind]
    found = theirs((values.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=1)
    low, high = bootstrap(values.tolist(), draws=20_000)
    width = found.confidence_interval.high - found.confidence_interval.low
    # an end is a quantile of 20,000 draws: its own standard error is below 0.02 of the width
    assert low == pytest.approx(found.confidence_interval.low, abs=0.06 * width)
    assert high == pytest.approx(found.confidence_interval.high, abs=0.06 * width)


def test_the_bootstrap_of_few_rows_and_of_equal_ones() -> None:
    assert bootstrap([0.25] * 7) == (0.25, 0.25) and bootstrap([2.0]) == (2.0, 2.0)
    assert bootstrap([0.0, 1.0]) == (0.0, 1.0)
    values = [0.1, 0.9, 0.4, 0.4]
    assert bootstrap(values) == bootstrap(values[::-1])
    big = np.random.default_rng(0).normal(size=20_000)
    low, high = bootstrap(big.tolist())
    assert high - low == pytest.approx(2 * 1.96 / 20_000**0.5, rel=0.1)
