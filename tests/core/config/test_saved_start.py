"""`model.weights`: the model comes whole from a folder, and a run's configuration says so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import toy

from mmdiff import check, load, train
from mmdiff.config import load_config, to_yaml
from mmdiff.config.settings import Config, ModelConfig
from mmdiff.errors import ConfigError
from mmdiff.model import build_model


def written(folder: Path, text: str, base: Config) -> str:
    (folder / "base.yaml").write_text(to_yaml(base))
    (folder / "mine.yaml").write_text(f"base: base.yaml\n{text}")
    return str(folder / "mine.yaml")


def test_a_file_that_names_a_saved_model_takes_the_parts_of_its_base_away(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = toy.config(stage={"steps": 1})
    assert small.model.backbone is not None
    small.model.backbone["width"] = 512
    name = written(tmp_path, f"model: {{weights: {trained / 'model'}}}\n", small)
    for config in (load_config(name), load_config(str(tmp_path / "base.yaml"), [f"model.weights={trained / 'model'}"])):
        assert config.model == ModelConfig(weights=str(trained / "model"))
    config = load_config(name)
    assert check(config)["loss"]["only"] > 0  # a toy twin of the saved model's parts
    train(config)
    kept = load_config("runs/mine").model
    assert kept.backbone is None and kept.encoders == {} and kept.weights == str(trained / "model")
    assert load("runs/mine").model.backbone.dim == load(trained).model.backbone.dim == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone.width=512", "model.backbone: the model comes whole from model.weights="),
        ("model.encoders.image=toy.Patches", "model.encoders: the model comes whole"),
        ("model.connectors.image={target: toy.Project}", "model.connectors: the model comes whole"),
        ("model.heads.image={target: mmdiff.objectives.heads.WordHead}", "model.heads: the model comes whole"),
    ],
)
def test_parts_beside_it_are_refused(trained: Path, tmp_path: Path, override: str, message: str) -> None:
    name = written(tmp_path, f"model: {{weights: {trained / 'model'}}}\n", toy.config())
    assert load_config(name, ["model.encoders.image=null"]).model.weights  # nothing is lost
    with pytest.raises(ConfigError) as raised:
        load_config(name, [override])
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_parts_beside_it_are_refused_in_python_too(trained: Path) -> None:
    config = toy.config().model
    config.weights = str(trained / "model")
    with pytest.raises(ConfigError, match="model.backbone: the model comes whole"):
        build_model(config)


def test_a_run_of_before_is_read_as_what_it_was(trained: Path, tmp_path: Path) -> None:
    config = toy.config()
    config.model.weights = str(trained / "model")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config))
    assert asdict(load_config(str(run)).model) == asdict(ModelConfig(weights=str(trained / "model")))
