"""`mmdiff demo protein` from beginning to end at two steps: what it prints, writes, takes up again and refuses; and its
figures of the exact posterior in the place of a model, which has nothing left to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from protein_models import VOCAB, exact_session
from torch import Tensor

from mmdiff.commands.cli import main
from mmdiff.session import Session
from mmdiff.tasks.protein.cli.demo import (
    STEPS,
    bound_and_entropy,
    exact_mask_filling,
    infill,
    likeness,
    model_mask_filling,
    motif,
)
from mmdiff.tasks.protein.data.markov import LETTERS, family

SHORT = ["train.stages.fit.steps=2", "train.stages.fit.eval.n=8", "train.workers=0", "eval.data.heldout.n=12"]
RATES = {"5", "15", "30", "50", "70", "90"}
FIRST = 4  # id of the first residue; the others follow in the order of LETTERS


def posterior(ids_RL: Tensor) -> Tensor:
    """log p(residue | what is visible) of the family. L is 34, with both ends."""
    ids_RN = ids_RL[:, 1:-1].numpy()
    masked_RN = ids_RN == VOCAB.mask_id
    letters_RN = np.array(list(LETTERS))[np.where(masked_RN, 0, ids_RN - FIRST)]
    p_RNK = family().posterior(["".join(letters) for letters in letters_RN], masked_RN)
    out_RLV = torch.full((*ids_RL.shape, VOCAB.size), -100.0, dtype=torch.float64)
    out_RLV[:, 1:-1, FIRST : FIRST + 20] = torch.from_numpy(p_RNK).clamp(min=1e-40).log()
    return out_RLV


@pytest.fixture(scope="module")
def exact() -> Session:
    return exact_session(posterior)


def test_the_exact_posterior_guesses_as_bayes_and_its_bound_is_the_entropy(
    exact: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdiff.data.token_budget.CPU", 2000)  # several batches
    natural = family().draw(150, seed=5)
    model, bayes = model_mask_filling(exact, natural), exact_mask_filling(family(), natural)
    assert set(model) == RATES
    for rate, figures in bayes.items():
        assert model[rate] == pytest.approx(figures, abs=1e-5)  # the very same positions
    price = bound_and_entropy(exact, family(), natural)
    assert abs(price["excess"]) < 4 * price["excess_se"] and price["excess_se"] < 0.01
    assert abs(price["bound"] - price["entropy"]) < 4 * price["bound_se"]


def test_the_exact_posterior_writes_sequences_of_the_family(exact: Session) -> None:
    """In random order and one position a step; in one step, and by confidence, it does not."""
    chain, n = family(), 200
    found = {}
    ways: dict[str, dict[str, Any]] = {"full": {}, "one": {"steps": 1}, "sure": {"remasking": "low_confidence"}}
    for name, named in ways.items():
        found[name] = likeness(chain, [one["sequence"] for one in infill(exact, ["_" * 32] * n, **named)])
    natural = chain.log_likelihood(chain.draw(2000, seed=6)) / 32
    assert abs(found["full"]["loglik"] + chain.entropy(32) / 32) < 4 * natural.std() / n**0.5
    assert found["one"]["loglik"] < -3.5 and found["sure"]["loglik"] > -1
    assert found["full"]["jsd1"] < 0.002 and found["sure"]["jsd1"] > 0.2
    whole = chain.draw(20, seed=7)
    written = infill(exact, [motif(s) for s in whole])
    assert [motif(one["sequence"]) for one in written] == [motif(s) for s in whole]
    assert motif(whole[0]).count("_") == 32 - 9


def test_the_demonstration_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "protein", *SHORT, "--json"]) == 0
    said = capsys.readouterr()
    first = json.loads(said.out.splitlines()[-1])
    for name in ("accuracy", "bayes", "cross_entropy", "bayes_cross_entropy"):
        assert set(first[name]) == RATES
    assert first["entropy"] == pytest.approx(1.4342, abs=5e-5)
    assert first["excess"] > 0.5  # two steps teach nothing
    assert set(first["loglik_by_steps"]) == {str(n) for n in STEPS} and first["jsd1_floor"] < first["jsd1"]
    assert first["motif_kept"] is True and first["only_residues"] is True
    assert "excess" in said.err and "all nine kept" in said.err
    page = (tmp_path / first["report"]).read_text()
    assert page.count("data:image/png;base64,") == 4 and "order of confidence" in page
    kept = json.loads((tmp_path / "runs/demo-protein/metrics.json").read_text())
    assert kept["accuracy"] == first["accuracy"] and kept["steps"] == 2

    weights = (tmp_path / "runs/demo-protein/model/model.safetensors").stat().st_mtime_ns
    assert main(["demo", "protein", *SHORT, "--json"]) == 0  # a finished run is taken as it is
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert (tmp_path / "runs/demo-protein/model/model.safetensors").stat().st_mtime_ns == weights

    assert main(["demo", "protein", *SHORT, "train.stages.fit.lr=1e-4"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "another configuration (train.stages.fit.lr was 0.004, is 0.0001)" in error[-1]

    assert main(["eval", "runs/demo-protein", "--json"]) == 0  # half of each sequence is open
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["eval"]["heldout"]
    assert 0 <= scores["recovery"] <= 1 and scores["forwards"] == 16


def test_its_configuration_can_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "protein-demo"]) == 0, capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
