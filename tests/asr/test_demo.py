"""`mmdiff demo asr` from beginning to end at two steps a stage: what it prints, writes, takes up again and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdiff.commands.cli import main
from mmdiff.tasks.asr.demo import SETS, STRATEGIES

pytestmark = pytest.mark.needs("espeakng_loader", "soundfile", "torchaudio", "jiwer")

SHORT = [
    "model.backbone.hidden_size=32",
    "model.backbone.layers=1",
    "model.backbone.intermediate_size=48",
    "model.encoders.audio.width=32",
    "model.encoders.audio.layers=1",
    *(f"train.stages.{stage}.steps=2" for stage in ("first", "listen", "tune")),
    *(f"train.stages.{stage}.batch_size=4" for stage in ("first", "listen", "tune")),
    *(f"train.stages.{stage}.data.n=16" for stage in ("first", "listen", "tune")),
    "train.stages.tune.eval.n=8",
    *(f"eval.data.{rows}.rows.n=12" for rows in (*SETS, "development")),
]
WAYS = ("first_pass", "standalone", "deliberation", "text_only", "shuffled_audio", "encoder_ctc")


@pytest.mark.slow
def test_the_demonstration_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # the demonstration takes all cores, tests share them
    assert main(["demo", "asr", *SHORT, "--json"]) == 0
    said = capsys.readouterr()
    first = json.loads(said.out.splitlines()[-1])
    for way in WAYS:
        assert set(first[way]) == set(SETS) and all(value >= 0 for value in first[way].values())
    assert set(first["strategies"]) == set(STRATEGIES) and first["strategies"][first["best"]] == first["deliberation"]
    assert first["forwards"]["standalone"] <= 10 and set(first["rtf"]) == {*STRATEGIES, "standalone", "left to right"}
    assert all(name in said.err for name in STRATEGIES)
    page = (tmp_path / first["report"]).read_text()
    assert page.count("data:audio/wav;base64,") >= 24 and first["best"] in page
    kept = json.loads((tmp_path / "runs/demo-asr/metrics.json").read_text())
    assert {way: kept[way] for way in WAYS} == {way: first[way] for way in WAYS}

    weights = (tmp_path / "runs/demo-asr/model/model.safetensors").stat().st_mtime_ns
    assert main(["demo", "asr", *SHORT, "--json"]) == 0  # finished runs are taken as they are
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {way: again[way] for way in WAYS} == {way: first[way] for way in WAYS}
    assert (tmp_path / "runs/demo-asr/model/model.safetensors").stat().st_mtime_ns == weights

    assert main(["demo", "asr", *SHORT, "train.stages.tune.lr=1e-4"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "another configuration (train.stages.tune.lr was 0.003, is 0.0001)" in error[-1]

    # the run's sets carry the first pass as drafts, so strategies can be swept
    axes = [
        "--axis",
        "sampler.draft.ratio=[0.3,0.9]",
        "--axis",
        "sampler.draft.target=[mmdiff.samplers.deliberation.MaskRandom]",
    ]
    assert main(["sweep", "runs/demo-asr", "task.draft=true", "eval.limit=4", *axes, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert len(cells) == 2 * 4 and all("wer" in cell["figures"] for cell in cells)


@pytest.mark.parametrize("name", ["asr-demo", "asr-demo-text"])
def test_its_configurations_can_be_checked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", name]) == 0, capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
