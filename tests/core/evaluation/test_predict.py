"""`mmdiff predict`: a line per row in order, the same whatever the batches, the workers and the interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import toy
from paths import ROOT

from mmdiff import train
from mmdiff.commands import cli
from mmdiff.evaluation.predict import predict
from mmdiff.session import load

N = 23
DRAWN = "sampler.temperature=1.5"  # predictions depend on the noise of their rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and rows of answers of two lengths with two that cannot be used."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(toy.config(stage={"steps": 4}))
    rows = toy.Corners(n=N, lengths=(2, 3))
    lines = [{**rows[i], "image": rows[i]["image"].tolist(), "id": f"r{i}"} for i in range(N)]
    (folder / "good.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines[5], lines[7] = {**lines[5], "answer": ""}, {**lines[7], "question": "\ud800"}
    (folder / "bad.jsonl").write_text("".join("{\n" if i == 11 else json.dumps(x) + "\n" for i, x in enumerate(lines)))
    return folder


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def alone(home: Path) -> list[Any]:
    """What the session predicts for each row by itself."""
    session, rows = load(home / "runs/toy", DRAWN, trust=True), records(home / "good.jsonl")
    return [session.predict_many([row], first=i)[0]["prediction"] for i, row in enumerate(rows)]


@pytest.mark.parametrize("size", [1, 4, 64])
def test_each_row_is_predicted_as_alone(home: Path, tmp_path: Path, size: int) -> None:
    found = predict(home / "runs/toy", home / "good.jsonl", tmp_path / "out", overrides=[DRAWN], batch_size=size)
    lines = records(tmp_path / "out")
    assert [line["row"] for line in lines] == list(range(N)) and [x["id"] for x in lines] == [f"r{i}" for i in range(N)]
    assert [line["prediction"] for line in lines] == alone(home) and found["predicted"] == N
    assert found["forwards"] == sum(line["forwards"] for line in lines) / N


def test_a_row_that_cannot_be_used_is_named_or_skipped(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", f"{home}/runs/toy", f"{home}/bad.jsonl", DRAWN, "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "bad.jsonl line 6: " in line and [r["row"] for r in records(tmp_path / "out")] == list(range(5))
    assert cli.main([*words, "--on-error", "skip", "--json"]) == 0
    out = capfd.readouterr()
    assert json.loads(out.out.splitlines()[-1]) | {"resumed": 5, "skipped": 3, "predicted": N - 3} == json.loads(
        out.out.splitlines()[-1]
    )
    told = [line for line in out.err.splitlines() if line.startswith("skipped: ")]
    assert [f"line {i}: " in line for i, line in zip((6, 8, 12), told, strict=True)] == [True] * 3
    lines = records(tmp_path / "out")
    assert [line.get("prediction") for line in lines] == [
        None if i in (5, 7, 11) else prediction for i, prediction in enumerate(alone(home))
    ]
    assert lines[5]["id"] == "r5" and lines[11]["id"] is None and "not JSON" in lines[11]["error"]


@pytest.mark.slow
def test_a_killed_command_resumes(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmdiff", "predict", "runs/toy", "good.jsonl", DRAWN]
    command += ["--out", str(tmp_path / "out"), "--batch-size", "1"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
    child = subprocess.Popen(command, cwd=home, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() or len((tmp_path / "out").read_text().splitlines()) < 2:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1]
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    begun = len((tmp_path / "out").read_text().splitlines())
    with open(tmp_path / "out", "a") as file:
        file.write('{"row": 99, "pred')  # what a kill may leave
    found = predict(home / "runs/toy", home / "good.jsonl", tmp_path / "out", overrides=[DRAWN])
    assert found["resumed"] == begun and [r["prediction"] for r in records(tmp_path / "out")] == alone(home)


def test_other_settings_have_another_file(home: Path, tmp_path: Path) -> None:
    predict(home / "runs/toy", home / "good.jsonl", tmp_path / "out", limit=3)
    before = (tmp_path / "out").read_bytes()
    for words in (["sampler.steps=1"], ["--limit", "4"]):
        command = ["predict", f"{home}/runs/toy", f"{home}/good.jsonl", "--out", str(tmp_path / "out")]
        assert cli.main([*command, *([] if "--limit" in words else ["--limit", "3"]), *words]) == 2
    (tmp_path / "good.jsonl").write_text((home / "good.jsonl").read_text().replace("r1", "s1"))
    command = ["predict", f"{home}/runs/toy", f"{tmp_path}/good.jsonl", "--out", str(tmp_path / "out"), "--limit", "3"]
    assert cli.main(command) == 2 and (tmp_path / "out").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["good.jsonl", "sampler.step=3"], 'sampler.step: no such field (did you mean "steps"?)'),
        (["good.jsonl", "--batch-size", "0"], "batch-size"),
        (["good.jsonl", "--on-error", "skipp"], "skip"),
        (["good.jsonl", "--ray", "127.0.0.1:1"], "ray: 127.0.0.1:1 cannot be reached"),
        (["good.jsonl", "--ray", "here"], "ray: 'here' is no address"),
    ],
)
def test_slips_are_one_line(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(home)
    if "--ray" in words:
        pytest.importorskip("ray")
    assert cli.main(["predict", "runs/toy", *words, "--out", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert said in err.splitlines()[-1] and "Traceback" not in err
