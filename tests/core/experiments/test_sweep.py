"""Sweeps: each cell is what `evaluate_run` says of its settings, none is run twice, and none that is wrong is run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import toy

from mmdiff.commands import cli
from mmdiff.config import flatten
from mmdiff.errors import ConfigError
from mmdiff.evaluation.evaluate import evaluate_run
from mmdiff.experiments import scoring, sweep_report
from mmdiff.experiments import sweep as module
from mmdiff.experiments.cells import read_cells
from mmdiff.experiments.grid import label, names, read_axes, shown
from mmdiff.experiments.sweep import sweep
from mmdiff.model import MMDiff

RULES = "mmdiff.samplers.rules.select"
STEPS: dict[str, Sequence[Any]] = {"sampler.steps": [1, 2]}


class Summed(toy.Where):
    """Scores that are no numbers of a row alone."""

    def score_all(self, records: Sequence[Any]) -> dict[str, Any]:
        rate = sum(r["scores"]["exact"] for r in records) / len(records)
        return {"error": 1 - rate, "error_low": 0.5 - rate / 2, "error_high": 1.0}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The same run without any sweep."""
    folder = tmp_path / "toy"
    folder.mkdir()
    for name in ("model", "config.yaml"):
        (folder / name).symlink_to(trained / name)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a sweep of a toy goes into its picture."""
    monkeypatch.setattr(module, "write_plot", lambda file, *_: file.touch())


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The sets that are evaluated, in order."""
    sets: list[str] = []
    original = scoring.evaluate

    def spy(session: Any, rows: Any, **named: Any) -> Any:
        sets.append(named["name"])
        return original(session, rows, **named)

    monkeypatch.setattr(scoring, "evaluate", spy)
    yield sets


def figures(out: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of the lines, without what a clock said."""
    return [{k: v for k, v in line["figures"].items() if k != "rows_per_second"} for line in out["cells"]]


@pytest.mark.usefixtures("undrawn")
def test_a_cell_is_what_an_evaluation_with_its_settings_says(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    original = MMDiff.from_pretrained
    monkeypatch.setattr(MMDiff, "from_pretrained", lambda f, **how: loads.append(f) or original(f, **how))
    axes = {"sampler.steps": [1, 3], "task": ["toy.Where", f"{__name__}.Summed"], "eval.data.a.seed": [0, 1]}
    overrides = ["sampler.temperature=0.7"]
    out = sweep(run, axes, overrides)
    assert len(loads) == 1 and out["evaluated"] == len(out["cells"]) == 16
    for line, found in zip(out["cells"], figures(out), strict=True):
        words = [f"{key}={json.dumps(value)}" for key, value in line["cell"].items()]
        expected = flatten(evaluate_run(str(run), [*overrides, *words])["eval"][line["set"]])
        del expected["rows_per_second"]
        assert found == expected
    assert len({json.dumps(found) for found in figures(out)}) > 4  # the settings matter
    first, last = out["cells"][0]["cell"], out["cells"][-1]["cell"]
    assert list(first.values()) == [1, "toy.Where", 0] and list(last.values()) == [3, f"{__name__}.Summed", 1]
    assert out["cells"][2]["cell"]["eval.data.a.seed"] == 1  # the last axis changes fastest
    assert figures(sweep(run, axes, overrides, name="again")) == figures(out)


@pytest.mark.usefixtures("undrawn")
def test_what_is_done_is_not_done_again(
    run: Path, trained: Path, evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(run, STEPS)
    assert evaluated == ["a", "b", "a", "b"] and first["folder"] == str(run / "sweeps" / "steps")
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "load", None)  # not even the model is loaded
        again = sweep(run, STEPS, ["eval.examples=3"])  # of which no figure depends
    assert again == {**first, "evaluated": 0}
    assert sweep(run, {"sampler.steps": [4, 2, 1]})["evaluated"] == 2
    assert sweep(run, STEPS, ["sampler.seed=1"])["evaluated"] == 4
    assert sweep(run, STEPS, ["eval.data.b.n=7"])["evaluated"] == 2
    assert sweep(run, STEPS, ["eval.batch_size=6"])["evaluated"] == 4
    assert sweep(run, STEPS)["evaluated"] == 0  # other grids of the same name took nothing away
    assert sweep(run, STEPS, fresh=True)["evaluated"] == 4
    (run / "model").unlink()
    (run / "checkpoints").symlink_to(trained / "checkpoints")
    assert sweep(run, STEPS)["evaluated"] == 4  # another model


def test_a_killed_sweep_goes_on(run: Path, evaluated: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(run, STEPS, name="whole")
    evaluated.clear()
    counting = scoring.evaluate

    def killed(*args: Any, **named: Any) -> Any:
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return counting(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(run, STEPS)
    file = run / "sweeps" / "steps" / "cells.jsonl"
    assert len(read_cells(file)) == 3 and not (file.parent / "table.csv").exists()
    text = file.read_text()
    file.write_text(text[: -len(text.splitlines()[-1]) // 2])  # the last line is cut short, by a full disk say
    assert len(read_cells(file)) == 2
    evaluated.clear()
    assert figures(sweep(run, STEPS)) == figures(whole) and evaluated == ["a", "b"]
    lines = file.read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(line) for line in lines)


@pytest.mark.parametrize("junk", ["", "{", "[]", "3", "null", '{"cell": {}}', '{"settings": {}, "figures": {}}', "\0"])
def test_no_line_is_believed_that_is_not_whole(junk: str, tmp_path: Path) -> None:
    good = {"cell": {}, "settings": {"set": "a"}, "figures": {"exact": 1.0}}
    (tmp_path / "cells.jsonl").write_text(f"{junk}\n{json.dumps(good)}\n{junk}")
    assert list(read_cells(tmp_path / "cells.jsonl").values()) == [good]
    assert read_cells(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize(
    ("axes", "overrides", "message"),
    [
        ({}, [], "a sweep needs an axis"),
        ({"sampler.steps": []}, [], "sampler.steps: an axis without values"),
        ({"sampler.steps": [1, 1]}, [], "sampler.steps: a value stands twice"),
        (STEPS, ["sampler.steps=3"], "sampler.steps: an axis, and a setting of all cells"),
        ({"smpler.steps": [1]}, [], 'smpler.steps: .* changes `sampler`.*did you mean "sampler"'),
        ({"train.seed": [1]}, [], "train.seed: a sweep of a run loads one model"),
        (STEPS, ["model.weights=x"], "model.weights: a sweep of a run loads one model"),
        (STEPS, ["seed"], "'seed' is not an override"),
        ({"sampler.stps": [1]}, [], r'sampler.stps: no such field \(did you mean "steps"\?\)'),
        ({"sampler.steps": [1, "many"]}, [], "sampler.steps: 'many' is not a whole number"),
        ({"sampler.steps": [1, 0]}, [], "sampler.steps=0: expected a whole number of at least 1"),
        ({"sampler.threshold": [0.9, 1.5]}, [], "sampler.threshold=1.5: expected a number above 0 and up to 1"),
        ({"sampler.remasking": ["random", "randm"]}, [], 'sampler.remasking: .*did you mean "random"'),
        ({"sampler.select": [f"{RULES}.Quota", f"{RULES}.Quote"]}, [], 'no "Quote".*did you mean "Quota"'),
        ({"sampler.select.target": [f"{RULES}.Quota", f"{RULES}.Threshold"]}, [], 'Threshold needs "threshold"'),
        (
            {"sampler.draft.ratio": [0.5, 3.0]},
            ["sampler.draft=mmdiff.samplers.deliberation.MaskRandom"],
            "sampler.draft.ratio=3.0: expected a number above 0 and up to 1",
        ),
        ({"task.image": [True]}, ["task.imag=true"], "task.imag: toy.Where takes no such argument"),
        ({"eval.data.a.m": [3]}, [], "eval.data.a.m: toy.Corners takes no such argument"),
        ({"eval.data.c.target": ["toy.Corner"]}, [], 'toy has no "Corner"'),
        (STEPS, ["eval.data.a=null", "eval.data.b=null"], "eval.data names no set of rows"),
    ],
)
def test_nothing_is_evaluated_before_all_is_checked(
    axes: Any,
    overrides: list[str],
    message: str,
    run: Path,
    evaluated: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "draft" not in message:  # which only the rule itself knows
        monkeypatch.setattr(scoring, "load", None)  # an 8B model takes a while
    with pytest.raises(ConfigError, match=message):
        sweep(run, axes, overrides)
    assert not evaluated and not (run / "sweeps").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b"])
def test_a_sweep_has_the_name_of_a_folder(name: str, run: Path) -> None:
    with pytest.raises(ConfigError, match="not a name of a folder"):
        sweep(run, STEPS, name=name)


def test_the_plotted_figure(run: Path, evaluated: list[str]) -> None:
    assert sweep(run, STEPS)["metric"] == "exact"
    assert sweep(run, STEPS, metric="by_kind.north.exact")["metric"] == "by_kind.north.exact"
    evaluated.clear()
    with pytest.raises(ConfigError, match=r'--metric: no set has a figure \'exct\' \(did you mean "exact"\?\)'):
        sweep(run, STEPS, metric="exct", fresh=True)
    assert evaluated == ["a", "b"]  # the first cell
    out = sweep(run, STEPS, [f"task={__name__}.Summed"])
    assert out["metric"] == "exact" and out["cells"][0]["figures"]["error_high"] == 1.0


def test_nodes_are_values(run: Path) -> None:
    selects = [f"{RULES}.Quota", {"target": f"{RULES}.Threshold", "threshold": 0.001}]
    out = sweep(run, {"sampler.select": selects})
    assert [line["figures"]["forwards"] for line in out["cells"]] == [4, 4, 1, 1]
    # a field of the node that an axis puts in place, wherever it is given
    axes = {"sampler.select.threshold": [0.001, 1.0], "sampler.select": [f"{RULES}.Threshold"]}
    for order in (axes, dict(reversed(axes.items()))):
        lines = sweep(run, order, name="fields")["cells"]
        forwards = {line["cell"]["sampler.select.threshold"]: line["figures"]["forwards"] for line in lines}
        assert forwards == {0.001: 1, 1.0: 4}


def test_short_names() -> None:
    assert names(["sampler.steps", "sampler.draft.target"]) == {
        "sampler.steps": "steps",
        "sampler.draft.target": "draft",
    }
    assert names(["a.x", "b.x", "c"]) == {"a.x": "a.x", "b.x": "b.x", "c": "c"}
    node = {"target": "m.drafts.Random", "ratio": 0.3, "inner": {"target": "m.K"}}
    assert [shown(v) for v in (node, "m.Random", "v1.2", 4, 0.5, None, True, [1, "é"])] == [
        "Random(ratio=0.3, inner=K)",
        "Random",
        "v1.2",
        "4",
        "0.5",
        "null",
        "true",
        '[1, "é"]',
    ]
    axes = {"sampler.steps": [2], "sampler.select": [node, "m.Random", "n.Random"]}
    assert label({"sampler.steps": 2, "sampler.select": node}, axes) == "steps=2 select=Random(ratio=0.3, inner=K)"
    assert label({"sampler.select": "n.Random"}, axes) == 'select="n.Random"'  # there is another Random


def test_the_table_is_tidy(tmp_path: Path) -> None:
    axes = {"x": [None, "a,b"]}
    lines = [
        {"cell": {"x": None}, "set": "s", "figures": {"n": 3, "wer": 0.1}},
        {"cell": {"x": "a,b"}, "set": "s", "figures": {"n": 3, "cer": 0.2}},
    ]
    sweep_report.write_table(tmp_path / "table.csv", axes, lines)
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert rows == [["x", "set", "n", "wer", "cer"], ["null", "s", "3", "0.1", ""], ["a,b", "s", "3", "", "0.2"]]


def plotted(axes: Any, lines: Any, metric: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure that `write_plot` draws."""
    made = []
    original = matplotlib.figure.Figure

    def spy(*args: Any, **named: Any) -> Any:
        made.append(original(*args, **named))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(matplotlib.figure, "Figure", spy)
        sweep_report.write_plot(folder / "sweep.png", axes, lines, metric)
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    return made[0]


def test_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes: Any = {"rule": ["m.A", "m.B"], "steps": [8, 2, 32], "seed": [0, 1]}
    lines = [
        {"cell": {"rule": rule, "steps": steps, "seed": seed}, "set": name, "figures": {"wer": steps + seed}}
        for rule in axes["rule"]
        for steps in axes["steps"]
        for seed in axes["seed"]
        for name in ("clean", "noisy", "c", "d")
    ]
    for line in lines:
        if line["set"] == "clean":
            line["figures"] |= {"wer_low": 0, "wer_high": 99}
        if line["set"] == "c":  # this set has no such figure
            line["figures"] = {"cer": 1}
    for line in lines:  # a set may lack a curve, or a point of one
        if line["set"] == "clean" and line["cell"] | {"steps": 0} == {"rule": "m.A", "steps": 0, "seed": 0}:
            line["figures"] = {"n": 1}
        if line["set"] == "clean" and line["cell"] == {"rule": "m.B", "steps": 2, "seed": 1}:
            line["figures"] = {"n": 1}
    curves = ["rule=A seed=0", "rule=A seed=1", "rule=B seed=0", "rule=B seed=1"]
    figure = plotted(axes, lines, "wer", tmp_path, monkeypatch)
    clean, noisy, _ = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["clean", "noisy", "d"]
    assert [line.get_color() for line in noisy.lines] == ["C0", "C1", "C2", "C3"]
    assert [line.get_color() for line in clean.lines] == ["C1", "C2", "C3"]
    assert list(clean.lines[2].get_xdata()) == [8, 32]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in noisy.lines][1] == ([2, 8, 32], [3, 9, 33])
    assert noisy.get_xlabel() == "steps" and noisy.get_ylabel() == "wer" and noisy.get_xscale() == "log"
    assert {text.get_text() for text in noisy.get_xticklabels()} == {"2", "8", "32"}
    assert [len(panel.collections) for panel in figure.axes] == [3, 0, 0]  # intervals
    assert [text.get_text() for text in figure.legends[0].texts] == curves


def test_a_plot_over_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes: Any = {"rule": ["m.B", "m.A", None]}
    lines = [{"cell": {"rule": r}, "set": "s", "figures": {"wer": i}} for i, r in enumerate(axes["rule"])]
    figure = plotted(axes, lines, "wer", tmp_path, monkeypatch)
    (curve,) = figure.axes[0].lines
    assert list(curve.get_xdata()) == [0, 1, 2] and figure.axes[0].get_xscale() == "linear" and not figure.legends
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["B", "A", "null"]
    # two rules of one name are two curves
    axes = {"steps": [1, 2], "rule": ["m.A", "n.A"]}
    lines = [{"cell": {"steps": s, "rule": r}, "set": "s", "figures": {"wer": 1}} for s in (1, 2) for r in axes["rule"]]
    figure = plotted(axes, lines, "wer", tmp_path, monkeypatch)
    assert [text.get_text() for text in figure.legends[0].texts] == ['rule="m.A"', 'rule="n.A"']
    # truth values are no numbers
    figure = plotted(
        {"on": [True, False]}, [{"cell": {"on": True}, "set": "s", "figures": {"wer": 1}}], "wer", tmp_path, monkeypatch
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["true", "false"]


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(run), "--axis", "sampler.steps=[1,2]", "eval.limit=4", "--name", "<b>", "--axis"]
    words += ["sampler.remasking=[low_confidence,random]", "--metric", "forwards", "sampler.seed=3"]
    assert cli.main([*words, "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["metric"] == "forwards" and out["evaluated"] == 8
    assert [line["figures"]["forwards"] for line in out["cells"]] == [1, 1, 1, 1, 2, 2, 2, 2]
    folder = Path(out["folder"])
    assert {file.name for file in folder.iterdir()} == {"cells.jsonl", "table.csv", "sweep.png", "sweep.html"}
    with open(folder / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["exact"]) for row in rows] == [line["figures"]["exact"] for line in out["cells"]]
    assert rows[3] | {"sampler.steps": "1", "sampler.remasking": "random", "set": "b"} == rows[3]
    html = (folder / "sweep.html").read_text()
    assert html.count("<img") == html.count("<table") == 1 and 'src="data:image/png;base64,' in html
    assert "http" not in html and "<link" not in html and "&lt;b&gt;" in html and "<b>" not in html
    assert html.count("<tr>") == 9 and "<code>sampler.seed=3</code>" in html
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "steps=1 remasking=low_confidence a  1\n" in text and text.startswith("metric ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler.steps=4"], r"sampler.steps: 4 is not a list of values, expected --axis sampler.steps=\[a,b\]"),
        (["sampler.steps=[4"], "sampler.steps: '\\[4' is not YAML"),
        (["sampler.steps"], "'sampler.steps' is not an override"),
        (["sampler.steps=[1]", "sampler.steps=[2]"], "sampler.steps: two axes of one key"),
    ],
)
def test_axes_that_cannot_be_read(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_axes(words)


def test_axes_are_yaml() -> None:
    read = read_axes(["a.b=[1, 0.5, null, low, [x], {target: m.K}]", "c=[1e-3]"])
    assert read == {"a.b": [1, 0.5, None, "low", ["x"], {"target": "m.K"}], "c": [0.001]}
