"""One part of a saved run in another model: the same numbers, checked, or one line that says where the part differs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from mmdiff import check, train
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config import check_nodes, load_config
from mmdiff.config.settings import Config, ModelConfig
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff, build_model
from mmdiff.model.saving import save_model

TOWER = {"target": "mmdiff.encoders.conv.ConvTower", "size": 24, "width": 8, "cell": 12}
BRIDGE = {"target": "mmdiff.connectors.mlp.MLP", "norm": True}
WORDS = {"target": "mmdiff.objectives.heads.WordHead", "words": 2}
SPEECH = {"target": "mmdiff.encoders.whisper.Whisper", "name": "tiny", "layers": 1}


def described(encoder: dict[str, Any], connector: dict[str, Any] = BRIDGE, head: Any = WORDS) -> ModelConfig:
    backbone = {"target": "toy.backbone", "width": 16, "layers": 1}
    return ModelConfig(backbone, {"image": encoder}, {"image": connector}, {"image": head})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_model(build_model(described(TOWER)), tmp_path / "run" / "model")
    return tmp_path / "run"


def of(model: MMDiff, name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.startswith(name)}


@pytest.mark.parametrize("arguments", ["all", "none"])
@pytest.mark.parametrize("at", ["", "model"])
def test_the_part_is_that_of_the_run_and_nothing_else_is(source: Path, arguments: str, at: str) -> None:
    saved = MMDiff.from_pretrained(source / "model")
    for name, node in (("encoders", TOWER), ("connectors", BRIDGE), ("heads", WORDS)):
        parts = {"encoders": TOWER, "connectors": BRIDGE, "heads": WORDS}
        given = node if arguments == "all" else {"target": node["target"]}
        parts[name] = {**given, "weights": str(source / at)}
        config = described(*parts.values())
        check_nodes(Config(model=config))
        torch.manual_seed(2)
        made = build_model(config)
        for other in ("backbone", "encoders", "connectors", "heads"):
            same = [torch.equal(value, saved.state_dict()[key]) for key, value in of(made, other).items()]
            assert all(same) if other == name else not all(same), other
        assert not getattr(made, name)["image"].node.get("weights")  # a saved folder holds no path
        assert build_model(config, toy=True)


def test_a_run_trains_with_it_and_its_configuration_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = toy.config("second", stage={"steps": 1, "params": [{"match": "encoders", "train": False}, {"match": "*"}]})
    config.model.encoders["image"] = {"target": "toy.Patches", "weights": str(trained)}  # which has no such argument
    assert check(config)["loss"]["only"] > 0
    train(config)
    assert load_config("runs/second").model.encoders["image"] == {"target": "toy.Patches", "weights": str(trained)}
    kept, first = MMDiff.from_pretrained("runs/second/model"), MMDiff.from_pretrained(trained / "model")
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in of(kept, "encoders").items())
    assert asdict(load_config("runs/second")) == asdict(config)


def changed(field: str, value: Any) -> Any:
    def harm(folder: Path) -> None:
        saved = json.loads((folder / "config.json").read_text())
        saved["encoders"]["image"][field] = value
        (folder / "config.json").write_text(json.dumps(saved))
        (folder / "SHA256SUMS").unlink()  # a stranger wrote it

    return harm


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("parts", "harm", "message"),
    [
        ({"encoder": {**TOWER, "width": 16}}, None, "model.encoders.image.width: 16, but the part of "),
        ({"encoder": {**TOWER, "size": 48}}, None, "model.encoders.image.size: 48, but the part of "),
        ({"encoder": {"target": "toy.Patches"}}, None, "model.encoders.image.target: 'toy.Patches', but the part of "),
        ({"connector": {**BRIDGE, "norm": False}}, None, "model.connectors.image.norm: False, but the part of "),
        ({"connector": {**BRIDGE, "hidden": 4}}, None, "model.connectors.image.hidden"),
        ({"head": {**WORDS, "words": 1}}, None, "model.heads.image.words: 1, but the part of "),
        ({"encoder": TOWER}, flip, "model.safetensors: is damaged or was changed"),
        ({"encoder": TOWER}, changed("target", "os.system"), "os.system is not made to be part of a model"),
        ({"encoder": {"target": TOWER["target"]}}, changed("width", 100_000), "a larger model than the weights"),
        ({"encoder": {"target": TOWER["target"]}}, changed("width", 9), "bias has shape (8,), expected (9,)"),
    ],
)
def test_a_part_that_differs_is_refused_in_one_line(source: Path, parts: Any, harm: Any, message: str) -> None:
    (name, node), *_ = parts.items()
    if harm:
        harm(source / "model")
    config = described(**{"encoder": TOWER} | {name: {**node, "weights": str(source)}})
    with pytest.raises(ConfigError) as raised:
        build_model(config)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_widths_and_words_of_the_new_model_count_too(source: Path, tmp_path: Path) -> None:
    wide = described(TOWER, {**BRIDGE, "weights": str(source)})
    wide.backbone["width"] = 32
    with pytest.raises(ConfigError, match="model.connectors.image.width_out: 32, but the part of .* has 16"):
        build_model(wide)
    other = described(TOWER, head={**WORDS, "weights": str(source)})
    other.backbone = {
        **{"target": "mmdiff.backbones.new_backbone", "hidden_size": 16, "layers": 1, "heads": 2},
        "tokenizer": word_tokenizer(["where", "up", "left", "down", "right"]),
    }
    with pytest.raises(ConfigError, match="model.heads.image.weights: the words of .* are others than this model's"):
        build_model(other)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": "toy.Patches", "weights": "nowhere"}, "model.encoders.image.weights: 'nowhere' is neither a saved"),
        ({"target": "toy.Patches", "weights": "begun"}, "begun: this run is not finished, expected a folder of begun"),
        ({"target": "toy.Patches", "weights": 3}, "model.encoders.image.weights: 3 is neither a saved model"),
        (TOWER | {"weights": "nowhere.bin"}, "weights: nowhere.bin: no such file or folder"),
    ],
)
def test_what_is_no_saved_model(node: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("begun/checkpoints/step-00000002").mkdir(parents=True)
    with pytest.raises(ConfigError) as raised:
        build_model(described(node))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_part_that_the_run_has_not(source: Path) -> None:
    config = described(TOWER)
    config.encoders = {"images": {**TOWER, "weights": str(source)}}
    config.connectors, config.heads = {"images": BRIDGE}, {}
    with pytest.raises(ConfigError, match=r"run/model has no encoders.images .did you mean .image"):
        build_model(config)


@pytest.mark.needs("transformers")
def test_a_name_that_stands_for_arguments_must_stand_for_those_of_the_run(tmp_path: Path) -> None:
    """A saved Whisper has its sizes spelled out and no name."""
    config = described(TOWER)
    config.encoders, config.connectors, config.heads = {"audio": SPEECH}, {"audio": BRIDGE}, {}
    save_model(saved := build_model(config), tmp_path / "model")
    config.encoders = {"audio": {**SPEECH, "weights": str(tmp_path / "model")}}
    made = build_model(config)
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in of(made, "encoders").items())
    config.encoders = {"audio": {**SPEECH, "name": "base", "weights": str(tmp_path / "model")}}
    with pytest.raises(ConfigError, match=r"model.encoders.audio.config.\w+: 512, but the part of .* has 384"):
        build_model(config)
