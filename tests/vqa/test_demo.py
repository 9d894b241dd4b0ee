"""`mmdiff demo vqa` from beginning to end at two steps a stage: what it prints, writes, takes up again and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdiff.commands.cli import main
from mmdiff.errors import UserError
from mmdiff.tasks.vqa.demo import in_background

SHORT = [
    *(f"train.stages.{stage}.steps=2" for stage in ("tower", "align", "tune")),
    *(f"eval.data.{rows}.n=32" for rows in ("overall", "heldout", "shuffled.rows", "blank.rows")),
]


@pytest.mark.slow  # `make demo` is the same, trained
@pytest.mark.needs("PIL")
def test_the_demonstration_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "vqa", *SHORT, "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"overall", "heldout", "shuffled", "blank", "language_only", "seconds"} <= set(first)
    page = (tmp_path / first["report"]).read_text()
    assert page.count("data:image/png;base64,") >= 33  # 32 pictures and the curves
    kept = json.loads((tmp_path / "runs/demo-vqa/metrics.json").read_text())
    assert kept["overall"] == first["overall"] and kept["eval"]["heldout"]["n"] == 32

    weights = (tmp_path / "runs/demo-vqa/model/model.safetensors").stat().st_mtime_ns
    assert main(["demo", "vqa", *SHORT, "--json"]) == 0  # finished runs are taken as they are
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["overall"] == first["overall"] and again["language_only"] == first["language_only"]
    assert (tmp_path / "runs/demo-vqa/model/model.safetensors").stat().st_mtime_ns == weights

    assert main(["demo", "vqa", *SHORT, "train.stages.tune.lr=1e-4"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "another configuration (train.stages.tune.lr was 0.003, is 0.0001)" in error[-1]


def test_what_fails_in_the_background_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="no verb"), in_background(["frobnicate"]):
        pass
