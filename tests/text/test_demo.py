"""`mmdiff demo text` from beginning to end at two steps a stage: what it prints, writes, takes up again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdiff.commands.cli import main

READ = [
    "model.backbone.tokenizer.documents",
    *(f"train.stages.{stage}.data{of}.documents" for stage in ("near", "fit") for of in ("", ".tokenizer")),
    "eval.data.heldout.documents",
    "eval.data.heldout.tokenizer.documents",
]
SHORT = [
    *(f"{at}.documents.limit=16" for at in READ),
    *(f"{at}.heldout=0.5" for at in READ),  # of so few, a tenth may be none: texts differ between versions of Python
    *(f"train.stages.{stage}.steps=2" for stage in ("near", "fit")),
    *(f"train.stages.{stage}.batch_size=2" for stage in ("near", "fit")),
    "model.backbone.hidden_size=32",
    "model.backbone.layers=1",
    "task.max_new_tokens=8",
]
KEYS = ("bound_bpb", "causal_bpb", "unigram_bpb", "gzip_bpb")


@pytest.mark.slow
def test_the_demonstration_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert main(["demo", "text", *SHORT, "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(first[key] > 0.5 for key in KEYS) and first["bound_se"] > 0 and first["seconds"] > 0
    assert len(first["samples"]) == 4 and 1 <= len(first["infills"]) <= 4
    assert first["bound_bpb"] > first["unigram_bpb"]  # two steps teach nothing
    page = (tmp_path / first["report"]).read_text()
    assert "infilled" in page and "left-to-right" in page
    kept = json.loads((tmp_path / "runs/demo-text/metrics.json").read_text())
    assert {key: kept[key] for key in KEYS} == {key: first[key] for key in KEYS}
    causal = (tmp_path / "runs/demo-text-causal/config.yaml").read_text()
    assert causal.count("limit: 16") == 5 and "hidden_size: 32" in causal and "NextToken" in causal

    assert main(["demo", "text", *SHORT, "--json"]) == 0  # finished runs are taken as they are
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: again[key] for key in KEYS} == {key: first[key] for key in KEYS}
