"""`mmdiff bench`: the harnesses of a suite in one table; what is not installed is skipped with a reason."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from mmdiff import train
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.tokenizers import byte_tokenizer
from mmdiff.commands import cli
from mmdiff.config import build
from mmdiff.evals.harnesses import figures_of
from mmdiff.evaluation.bench import bench, read_suite, suites
from mmdiff.evaluation.evaluate import evaluate
from mmdiff.model import MMDiff
from mmdiff.session import load

TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
"""
SUITE = """# a suite of one's own
language: {target: mmdiff.evals.harnesses.LmEval, tasks: [local_choice], path: PATH, settings: {levels: 8}}
pictures: {target: mmdiff.evals.harnesses.LmmsEval, tasks: [mme]}
robot: {target: mmdiff.evals.harnesses.Lerobot, env: pusht}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    config = toy.config(stage={"steps": 4})
    held = {"target": "toy.Corners", "lengths": [4]}
    config.eval = replace(config.eval, data={"a": {**held, "n": 12}, "b": {**held, "n": 8, "seed": 5}}, batch_size=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config)
    return folder / "runs/toy"


def test_every_packaged_suite_can_be_built() -> None:
    for name in suites():
        _, nodes = read_suite(name)
        assert all(callable(build(node, where=key)) for key, node in nodes.items()), name
    assert {"own", "text", "vision", "protein", "robots"} == set(suites())


def test_means_of_own_sets_have_their_error(run: Path) -> None:
    found = bench(run, "own")
    _, records = evaluate(load(run, trust=True), toy.Corners(n=12, lengths=[4]), name="a", batch_size=5)
    scores = np.array([record["scores"]["exact"] for record in records])
    (line,) = [x for x in found["figures"] if (x["task"], x["metric"]) == ("a", "exact")]
    assert line["value"] == pytest.approx(scores.mean()) and line["n"] == 12 and line["entry"] == "own"
    assert line["error"] == pytest.approx(scores.std(ddof=1) / math.sqrt(12))
    assert {x["task"] for x in found["figures"]} == {"a", "b"}
    assert json.loads((run / "bench/own/bench.json").read_text())["figures"] == found["figures"]
    table = (run / "bench/own/bench.md").read_text()
    assert f"| own   | a    | exact  | {scores.mean():.4f} |" in table and "standard error" in table
    assert bench(run, "own", limit=3, overrides=["own.names=[b]"])["figures"][0]["n"] == 3
    assert "at most 3 rows per task" in (run / "bench/own/bench.md").read_text()


@pytest.mark.slow
@pytest.mark.needs("lm_eval")
def test_the_real_harness_on_a_local_task(tmp_path: Path) -> None:
    """Its figures with its standard errors; what is not installed is skipped, by name."""
    tokenizer = byte_tokenizer(bos=None, eos="<eos>", special=("<mask>",))
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    sizes: dict[str, Any] = {"hidden_size": 32, "layers": 1, "heads": 2, "init_std": 0.2, "max_length": 64}
    MMDiff(new_backbone(tokenizer=tokenizer, **sizes)).save_pretrained(tmp_path / "model")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"question": f"{i} is", "choices": ["up", "down", "left"], "gold": i % 3} for i in range(6)]
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tasks / "local_choice.yaml").write_text(TASK.replace("FILE", str(tasks / "rows.jsonl")))
    (tmp_path / "mine.yaml").write_text(SUITE.replace("PATH", str(tasks)))
    found = bench(tmp_path / "model", str(tmp_path / "mine.yaml"))
    figures = {x["metric"]: x for x in found["figures"] if x["entry"] == "language"}
    hits = round(figures["acc"]["value"] * 6)
    assert figures["acc"]["n"] == 6 and figures["acc"]["task"] == "local_choice"
    values = np.array([1.0] * hits + [0.0] * (6 - hits))
    assert figures["acc"]["error"] == pytest.approx(values.std(ddof=1) / math.sqrt(6), abs=1e-4)
    if find_spec("lmms_eval") is None:
        assert found["skipped"]["pictures"] == "lmms_eval is not installed: pip install 'mmdiff[lmms]'"
    if shutil.which("lerobot-eval") is None:
        assert found["skipped"]["robot"].startswith("lerobot-eval is not installed")
    assert "pictures was skipped" in (tmp_path / "model/bench/mine/bench.md").read_text() or not found["skipped"]


def test_figures_of_a_harness_are_read_by_name() -> None:
    results = {
        "t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25, "f1_stderr,strict": "N/A"}
    }
    found = figures_of({"results": results, "n-samples": {"t": {"original": 9, "effective": 4}}})
    assert [tuple(x) for x in found] == [("t", "acc", 0.5, 0.1, 4), ("t", "f1,strict", 0.25, None, 4)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "onw"], 'no suite of that name (did you mean "own"?)'),
        (["--suite", "own", "onw.names=[a]"], 'the suite own has no such entry (did you mean "own"?)'),
        (["--suite", "own", "own.name=[a]"], "name"),
        (["--suite", "own", "own.names=[c]"], "own.own: names: 'c': eval.data has no such set (known: a, b)"),
        (["--suite", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--suite", "bad.yaml"], "expected entries {name: {target: dotted.path, ...}}"),
        (["--suite", "own", "--limit", "0"], "limit"),
        ([], "--suite is missing (known: own, protein, robots, text, vision)"),
    ],
)
def test_slips_are_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("[1, 2]")
    assert cli.main(["bench", str(run), *words]) == 2
    err = capfd.readouterr().err
    assert said in err.splitlines()[-1] and "Traceback" not in err


def test_suites_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 0
    assert "ProteinGym" in capfd.readouterr().out
