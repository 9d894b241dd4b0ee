"""Training that diverges stops in one line and keeps what was saved; a diverged model answers nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from logit_tables import MASK, VOCAB, asked, by_query, likely

from mmdiff import load, train
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.files import without_nan
from mmdiff.model.likelihood import bound
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.protocols import Model
from mmdiff.samplers.deliberation import rewrite
from mmdiff.samplers.loop import sample


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Turning(Denoise):
    """Denoising whose loss is not a number from step `at` on, or whose gradient is not, where the loss is."""

    at, gradient = 3, False

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        self.__dict__["step"] = key.step
        return super().plan(batch, key, vocab)

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Any]:
        terms = super().terms(model, plan)
        if self.__dict__["step"] >= self.at:
            value = terms["denoise"].value
            terms["denoise"].value = (value * 0).sqrt() + value.detach() if self.gradient else value * math.nan
        return terms


class TurningGradient(Turning):
    gradient = True


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("Turning", {}, "the loss or its gradient is not a finite number at step 4 (lr 0.01)"),
        ("Turning", {"log_every": 50}, "at step 4 (lr 0.01)"),  # found when the next checkpoint is due
        ("TurningGradient", {}, "at step 4 (lr 0.01)"),
        ("TurningGradient", {"clip": 0.0, "log_every": 50}, "the weight "),  # the norm of the gradient is not taken
    ],
)
def test_divergence_ends_training_and_the_last_checkpoint_stays(
    objective: str, settings: dict[str, Any], message: str
) -> None:
    stage = {"objective": {"target": f"{__name__}.{objective}"}, "steps": 8}
    with pytest.raises(ConfigError) as raised:
        train(toy.config(stage=stage, keep=1, **settings))
    text = str(raised.value)
    assert text.startswith("train.stages.only: ") and message in text and "\n" not in text
    kept = "runs/toy/checkpoints/step-00000002"
    if "weight" not in message:
        assert f"the last checkpoint, {kept}, is as it was" in text and "a smaller lr" in text
    assert load(kept).predict(toy.Corners()[0])["prediction"]
    assert not Path("runs/toy/metrics.json").exists() and not Path("runs/toy/model").exists()
    for line in Path("runs/toy/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # called for NaN and Infinity


def test_a_model_of_nan_answers_nothing() -> None:
    model = toy_model()
    rows = [toy.Corners()[0]]
    where = toy.Where(image=False)
    batch = collate([where.prompt(row, model.vocab) for row in rows], model.vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(DataError, match="logits are not finite"):
        model.generate(batch)
    with pytest.raises(ConfigError, match="likelihood of row 0 is not a number"):
        bound(model, collate([where.sample(row, model.vocab) for row in rows], model.vocab))


def toy_model() -> Any:
    from mmdiff.model import build_model

    return build_model(toy.config(image=False).model)


def test_logits_of_nan_are_refused_wherever_they_come() -> None:
    batch = collate([[Text([1]), Target([MASK, 7])], [Text([1, 2]), Target([MASK, 6])]], VOCAB)
    table = likely([0] * 4, [0] * 4)

    @by_query
    def wrong(ids_RL: Any, predict_RL: Any, row_R: Any, media_R: Any = None) -> torch.Tensor:
        logits_PV = asked(table, ids_RL, predict_RL, row_R)
        logits_PV[-1] = math.nan
        return logits_PV

    with pytest.raises(DataError, match="logits are not finite"):
        sample(wrong, batch, VOCAB, GenerationConfig())
    draft = {"target": "mmdiff.samplers.deliberation.MaskLeastConfident"}
    with pytest.raises(DataError, match=r"NaN\) in row 1, position 3"):
        rewrite(wrong, batch, VOCAB, GenerationConfig(draft=draft))


def test_json_has_no_nan() -> None:
    value = {"a": [math.nan, 1.0, (math.inf,)], 2: {"b": -math.inf}, "c": "nan"}
    assert without_nan(value) == {"a": [None, 1.0, [None]], "2": {"b": None}, "c": "nan"}
