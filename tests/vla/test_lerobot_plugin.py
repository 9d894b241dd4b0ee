"""The policy plug-in of lerobot: against lerobot where it is installed, else against robots/lerobot_stub.py."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import make_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from robots import lerobot_stub
from safetensors import safe_open

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.connectors.mlp import MLP
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.state import StateMLP
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.session import load
from mmdiff.tasks.vla.codecs.normalise import Statistics

PLUGIN = ROOT / "plugins" / "lerobot_policy_mmdiff"
CAMERA = "observation.images.front"
RNG = np.random.default_rng(0)
ACTIONS, STATES = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 3))
REAL = find_spec("lerobot") is not None


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """The plug-in's modules with what the tests use of lerobot."""
    before = dict(sys.modules)
    if not REAL:
        sys.modules.update(lerobot_stub.modules())
    sys.path.insert(0, str(PLUGIN))
    try:
        root = importlib.import_module("lerobot_policy_mmdiff")  # what lerobot does
        parts = ("configuration_mmdiff", "modeling_mmdiff", "processor_mmdiff", "export")
        modules = {name: importlib.import_module(f"lerobot_policy_mmdiff.{name}") for name in parts}
        yield SimpleNamespace(
            Config=root.MMDiffVLAConfig,
            Policy=modules["modeling_mmdiff"].MMDiffVLAPolicy,
            export=modules["export"].export,
            main=modules["export"].main,
            modeling=modules["modeling_mmdiff"],
            configs=importlib.import_module("lerobot.configs"),
            factory=importlib.import_module("lerobot.policies.factory"),
        )
    finally:
        sys.path.remove(str(PLUGIN))
        if not REAL:
            for name in set(sys.modules) - set(before):
                if name.split(".")[0] in ("lerobot", "lerobot_policy_mmdiff"):
                    del sys.modules[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has random weights: K = 3, D = 2, S = 3, one camera."""
    torch.manual_seed(0)
    words = word_tokenizer("reach the red blue disc".split())
    backbone = new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2, reserve={"action": 32})
    encoders = {"image": ConvTower(16, 16, 8), "state": StateMLP(3, 16, 16)}
    model = MMDiff(backbone, encoders, {name: MLP(width_in=16, width_out=32) for name in encoders})
    task = {
        "target": "mmdiff.tasks.vla.VLA",
        "chunk": 3,
        "statistics": {
            "arm": {
                "action": Statistics.of(ACTIONS, ("x", "y")).to_json(),
                "state": Statistics.of(STATES).to_json(),
            }
        },
    }
    folder = tmp_path_factory.mktemp("runs") / "arm"
    folder.mkdir()
    save_model(model, folder / "model", extra={"task": task, "sampler": {"steps": 3, "temperature": 1.0}})
    return folder


@pytest.fixture
def policy(plugin: Any, run: Path) -> Any:
    return plugin.Policy(plugin.Config(run=str(run), device="cpu"))


def a_batch(n: int = 2, seed: int = 0) -> dict[str, Any]:
    """As lerobot's loader gives it."""
    draws = torch.Generator().manual_seed(seed)
    return {
        CAMERA: torch.randint(0, 256, (n, 3, 20, 24), generator=draws).float() / 255,
        "observation.state": torch.randn(n, 3, generator=draws),
        "task": ["reach the red disc", "reach the blue disc"][:n],
        "action": torch.randn(n, 3, 2, generator=draws),
        "action_is_pad": torch.zeros(n, 3, dtype=torch.bool),
    }


def features(plugin: Any, action: int = 2, state: int = 3, cameras: tuple[str, ...] = (CAMERA,)) -> dict[str, Any]:
    Feature, Type = plugin.configs.PolicyFeature, plugin.configs.FeatureType
    pictures = {name: Feature(Type.VISUAL, (3, 20, 24)) for name in cameras}
    return {
        "input_features": {"observation.state": Feature(Type.STATE, (state,)), **pictures},
        "output_features": {"action": Feature(Type.ACTION, (action,))},
    }


# What lerobot finds


def test_names_that_lerobot_goes_by(plugin: Any, run: Path) -> None:
    assert tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["name"] == "lerobot_policy_mmdiff"
    assert plugin.configs.PreTrainedConfig.get_choice_class("mmdiff_vla") is plugin.Config
    assert plugin.factory.get_policy_class("mmdiff_vla") is plugin.Policy
    config = plugin.Config(run=str(run), device="cpu")
    assert config.type == plugin.Policy.name == "mmdiff_vla" and plugin.Policy.config_class is plugin.Config
    assert len(plugin.factory.make_pre_post_processors(config)) == 2


def test_the_configuration(plugin: Any, run: Path) -> None:
    config = plugin.Config(run=str(run), n_action_steps=2)
    assert config.chunk_size == 3  # known before there is a policy: a data set is made first
    assert config.action_delta_indices == [0, 1, 2]
    assert config.observation_delta_indices is None and config.reward_delta_indices is None
    assert config.get_optimizer_preset().lr == config.get_scheduler_preset().peak_lr == 1e-4
    with pytest.raises(ValueError, match="run: missing"):
        _ = plugin.Config().action_delta_indices
    mode = plugin.configs.NormalizationMode
    for named, said in (
        ({"n_action_steps": 4}, "n_action_steps: 4, expected at most the chunk's 3"),
        ({"n_obs_steps": 2}, "n_obs_steps: 2, expected 1"),
        ({"statistics": "data"}, 'statistics: "data", expected "model" or "dataset"'),
        ({"normalization_mapping": {"ACTION": mode.MEAN_STD}}, "normalization_mapping.ACTION: MEAN_STD, expected"),
    ):
        with pytest.raises(ValueError, match=said):
            plugin.Config(run=str(run), **named)
    with pytest.raises(ValueError, match="chunk_size: 4, but the model of .* has chunks of 3"):
        plugin.Policy(plugin.Config(run=str(run), chunk_size=4))
    assert plugin.Config(run="gone", chunk_size=3).chunk_size == 3  # that of a training which is gone on with
    with pytest.raises(ConfigError, match="no such folder"):
        plugin.Config(run=str(run / "none"))
    with pytest.raises(ValueError, match="run: missing"):
        plugin.Policy(plugin.Config())


# Acting


def test_it_acts_as_the_model_of_mmdiff(plugin: Any, run: Path, policy: Any) -> None:
    batch = a_batch()
    torch.manual_seed(5)
    chunk_BKD = policy.predict_action_chunk(batch)
    assert chunk_BKD.shape == (2, 3, 2) and chunk_BKD.dtype == torch.float32
    torch.manual_seed(5)
    first = plugin.modeling.drawn() >> 8
    pictures = (batch[CAMERA] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = [
        {"image": pictures[i], "state": batch["observation.state"][i].numpy(), "instruction": batch["task"][i]}
        for i in range(2)
    ]
    right = [one["prediction"] for one in load(run).predict_many(rows, first=first)]
    torch.testing.assert_close(chunk_BKD, torch.tensor(right, dtype=torch.float32), rtol=0, atol=0)
    low, high = np.quantile(ACTIONS, [0.01, 0.99], axis=0)
    assert (chunk_BKD.numpy() >= low - 1e-6).all() and (chunk_BKD.numpy() <= high + 1e-6).all()  # robot units


def test_actions_of_a_chunk_are_used_up_before_the_next(plugin: Any, run: Path, monkeypatch: Any) -> None:
    policy = plugin.Policy(plugin.Config(run=str(run), n_action_steps=2, device="cpu"))
    chunks: list[Any] = []
    ask = policy.predict_action_chunk
    monkeypatch.setattr(policy, "predict_action_chunk", lambda batch: chunks.append(ask(batch)) or chunks[-1])
    actions = [policy.select_action(a_batch()) for _ in range(5)]
    assert len(chunks) == 3 and actions[0].shape == (2, 2)
    right = [chunks[0][:, 0], chunks[0][:, 1], chunks[1][:, 0], chunks[1][:, 1], chunks[2][:, 0]]
    assert all(torch.equal(a, b) for a, b in zip(actions, right, strict=True))
    assert len(policy._action_queue) == 1
    policy.reset()
    assert not policy._action_queue
    policy.select_action(a_batch())
    assert len(chunks) == 4


def test_several_cameras_need_an_order(plugin: Any, run: Path, policy: Any) -> None:
    wrist = "observation.images.wrist"
    both = features(plugin, cameras=(wrist, CAMERA))
    with pytest.raises(ValueError, match=f"cameras: {wrist}, {CAMERA}; the model has 1"):
        plugin.Policy(plugin.Config(run=str(run), **both))
    with pytest.raises(ValueError, match=r"there is no observation.images.top among the pictures"):
        plugin.Policy(plugin.Config(run=str(run), cameras=["observation.images.top"], **both))
    chosen = plugin.Policy(plugin.Config(run=str(run), cameras=[CAMERA], device="cpu", **both))
    batch = {**a_batch(), wrist: torch.zeros(2, 3, 8, 8)}
    torch.manual_seed(1)
    found = chosen.predict_action_chunk(batch)
    torch.manual_seed(1)
    assert torch.equal(found, policy.predict_action_chunk(a_batch()))
    with pytest.raises(ValueError, match="cameras: .*the model has 1"):
        policy.predict_action_chunk(batch)


def test_a_robot_that_does_not_fit(plugin: Any, run: Path, policy: Any) -> None:
    for named, said in (
        ({"action": 7}, r"action: \(7,\) numbers, but the model's actions have 2"),
        ({"state": 8}, r"observation.state: \(8,\) numbers, but the model's state has 3"),
    ):
        with pytest.raises(ValueError, match=said):
            plugin.Policy(plugin.Config(run=str(run), **features(plugin, **named)))
    for name in ("task", CAMERA, "observation.state"):
        batch = a_batch()
        del batch[name]
        with pytest.raises(ValueError, match="cameras: none" if name == CAMERA else f"{name}: missing in the batch"):
            policy.predict_action_chunk(batch)
    with pytest.raises(ValueError, match="action: missing in the batch"):
        policy({k: v for k, v in a_batch().items() if k != "action"})
    with pytest.raises(ValueError, match=r"front: shape \(2, 20, 24\), expected"):
        policy.predict_action_chunk({**a_batch(), CAMERA: torch.zeros(2, 20, 24)})


# Training


def test_the_loss_of_a_model_that_knows_nothing(policy: Any) -> None:
    """Equal logits: -log 1/32 for every action token, whatever is masked."""
    with torch.no_grad():
        policy.model.backbone.model.get_output_embeddings().weight.zero_()
    loss, figures = policy.forward(a_batch())
    assert float(loss.detach()) == pytest.approx(math.log(32), rel=1e-5)
    assert figures["nll"] == pytest.approx(math.log(32), rel=1e-5)
    assert all(type(value) is float for value in figures.values())


def test_padded_actions_do_not_count(policy: Any) -> None:
    batch = a_batch()
    batch["action_is_pad"][:, 2] = True
    other = {**batch, "action": batch["action"].clone()}
    other["action"][:, 2] = -3.0
    losses = []
    for each in (batch, other, {**other, "action_is_pad": None}):
        torch.manual_seed(7)
        losses.append(float(policy.forward(each)[0].detach()))
    assert losses[0] == losses[1] != losses[2]


def test_it_learns(plugin: Any, run: Path) -> None:
    policy = plugin.Policy(plugin.Config(run=str(run), device="cpu", views=4, optimizer_lr=6e-3))
    params = policy.get_optim_params()
    assert sum(p.numel() for p in params) == sum(p.numel() for p in policy.parameters())
    optimizer = policy.config.get_optimizer_preset().build(params)
    batch, losses = a_batch(), []
    policy.train()
    for _ in range(30):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in params)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_rules_say_what_is_trained(plugin: Any, run: Path, tmp_path: Path) -> None:
    rules = [{"match": "backbone", "lora": {"r": 2}}, {"match": "encoders", "train": False}, {"match": "connectors"}]
    policy = plugin.Policy(plugin.Config(run=str(run), device="cpu", train=rules))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or name.startswith("model.connectors") for name in trained) and trained
    assert len(policy.get_optim_params()) == len(trained)
    with torch.no_grad():
        for p in policy.get_optim_params():
            p.add_(0.1)
    again = saved_and_loaded(plugin, policy, tmp_path / "out")
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained
    same(again, policy)


# Folders


def same(one: Any, other: Any) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    chunks = []
    for each in (one, other):
        torch.manual_seed(3)
        chunks.append(each.predict_action_chunk(a_batch()))
    assert torch.equal(*chunks)


def saved_and_loaded(plugin: Any, policy: Any, folder: Path) -> Any:
    policy.save_pretrained(folder)
    return plugin.Policy.from_pretrained(folder)


def test_a_saved_policy(plugin: Any, run: Path, policy: Any, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01)
    again = saved_and_loaded(plugin, policy, folder)
    assert policy.config.run == str(run)  # saving changed nothing
    assert not again.training
    same(again, policy)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "mmdiff/config.json"} < files
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["type"], config["run"], config["chunk_size"]) == ("mmdiff_vla", None, 3)
    elsewhere = tmp_path / "moved"
    shutil.move(folder, elsewhere)
    moved = plugin.Policy.from_pretrained(elsewhere)
    same(moved, policy)
    same(saved_and_loaded(plugin, moved, tmp_path / "twice"), policy)
    same(plugin.Policy(plugin.Config(run=str(elsewhere), device="cpu")), policy)  # a policy to start from, too


def test_damaged_folders(plugin: Any, run: Path, policy: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match="no saved policy of mmdiff .*export a run first"):
        plugin.Policy.from_pretrained(run / "model")
    policy.save_pretrained(tmp_path / "policy")
    file = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.connectors.state.0.weight", None) or tensors.pop(
        next(name for name in tensors if "connectors" in name)
    )
    save_file(tensors, file)
    with pytest.raises(RuntimeError, match="connectors"):
        plugin.Policy.from_pretrained(tmp_path / "policy")
    with pytest.raises(RuntimeError, match="connectors"):
        plugin.Policy(plugin.Config(run=str(tmp_path / "policy" / "mmdiff")))
    described = tmp_path / "policy" / "mmdiff" / "config.json"
    config = json.loads(described.read_text())
    described.write_text(json.dumps({**config, "task": {"target": "os.system"}}))
    with pytest.raises((ConfigError, ValueError)):
        plugin.Policy.from_pretrained(tmp_path / "policy")


def test_the_command_exports(
    plugin: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lerobot-export-mmdiff", str(run), str(tmp_path / "out"), "--cameras", CAMERA, "--n-action-steps", "2"]
    monkeypatch.setattr("sys.argv", words)
    plugin.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert plugin.Policy.from_pretrained(tmp_path / "out").config.cameras == [CAMERA]
    for wrong, message in ((words, "is there already"), ([*words, "--camera", "x"], "--camera.*--cameras")):
        monkeypatch.setattr("sys.argv", wrong)
        with pytest.raises(SystemExit, match=f"^lerobot-export-mmdiff: error: .*{message}"):
            plugin.main()


def test_an_exported_run(plugin: Any, run: Path, policy: Any, tmp_path: Path) -> None:
    folder = plugin.export(run, tmp_path / "out", cameras=[CAMERA], n_action_steps=2)
    loaded = plugin.Policy.from_pretrained(folder)
    same(loaded, policy)
    assert (loaded.config.cameras, loaded.config.n_action_steps) == ([CAMERA], 2)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) <= set(policy.state_dict())
    with pytest.raises(ValueError, match="is there already and not empty"):
        plugin.export(run, folder)
    pre, post = plugin.factory.make_pre_post_processors(loaded.config, pretrained_path=str(folder))
    batch = a_batch(1)
    one = {CAMERA: batch[CAMERA][0], "observation.state": batch["observation.state"][0], "task": batch["task"][0]}
    found = pre(one)
    assert torch.equal(found[CAMERA], batch[CAMERA]) and found["task"] == batch["task"]
    assert torch.equal(found["observation.state"], batch["observation.state"])
    action = loaded.select_action(found)
    assert torch.equal(post(action), action)


def test_numbers_of_a_data_set(plugin: Any, run: Path, policy: Any, tmp_path: Path) -> None:
    """Actions come in the units of the data set, also from what is saved."""
    stats = {}
    for name, values in (("action", 100 * ACTIONS), ("observation.state", STATES)):
        known = Statistics.of(values)
        stats[name] = {k: np.array(getattr(known, k)) for k in ("mean", "std", "min", "max", "q01", "q99")}
        stats[name]["count"] = np.array([50])
    config = plugin.Config(run=str(run), statistics="dataset", device="cpu")
    other = plugin.Policy(config, dataset_stats=stats)
    chunks = []
    for each in (policy, other, saved_and_loaded(plugin, other, tmp_path / "out")):
        torch.manual_seed(3)
        chunks.append(each.predict_action_chunk(a_batch()))
    torch.testing.assert_close(chunks[1], 100 * chunks[0])
    assert torch.equal(chunks[1], chunks[2])
    with pytest.raises(ValueError, match='statistics: "dataset", but there is no data set'):
        plugin.Policy(config)
    for entry in stats.values():
        del entry["q01"], entry["q99"]
    with pytest.raises(ConfigError, match="quantile needs q01"):
        plugin.Policy(config, dataset_stats=stats)


# Against lerobot itself


@pytest.mark.skipif(not REAL, reason="lerobot is not installed")
def test_lerobot_makes_it(plugin: Any, run: Path, policy: Any, tmp_path: Path) -> None:
    import draccus
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    whole = make_dataclass("Whole", [("policy", plugin.configs.PreTrainedConfig)])  # as lerobot's programs have it
    words = ["type=mmdiff_vla", f"run={run}", "device=cpu", 'sampler={"steps": 2}', "views=2", f'cameras=["{CAMERA}"]']
    parsed = draccus.parse(whole, args=[f"--policy.{word}" for word in words]).policy
    assert (parsed.type, parsed.chunk_size, parsed.sampler, parsed.views) == ("mmdiff_vla", 3, {"steps": 2}, 2)
    shapes = {CAMERA: (20, 24, 3), "observation.state": (3,), "action": (2,)}
    meta = SimpleNamespace(
        features={
            name: {
                "dtype": "image" if name == CAMERA else "float32",
                "shape": shape,
                "names": ["height", "width", "channels"] if name == CAMERA else None,
            }
            for name, shape in shapes.items()
        },
        stats={name: {"mean": np.zeros(2), "std": np.ones(2)} for name in ("action",)},
    )
    fresh = make_policy(parsed, ds_meta=meta)
    assert fresh.session.sampler.steps == 2 and fresh.config.output_features["action"].shape == (2,)
    plugin.export(run, tmp_path / "out", cameras=[CAMERA])
    config = plugin.configs.PreTrainedConfig.from_pretrained(tmp_path / "out")
    config.pretrained_path = tmp_path / "out"
    loaded = make_policy(config, ds_meta=meta)
    same(loaded, policy)
    overrides = {  # those of lerobot-train
        "device_processor": {"device": "cpu"},
        "normalizer_processor": {
            "stats": meta.stats,
            "features": {**config.input_features, **config.output_features},
            "norm_map": config.normalization_mapping,
        },
        "rename_observations_processor": {"rename_map": {}},
    }
    pre, _ = make_pre_post_processors(
        config,
        pretrained_path=str(tmp_path / "out"),
        preprocessor_overrides=overrides,
        postprocessor_overrides={
            "unnormalizer_processor": {
                "stats": meta.stats,
                "features": config.output_features,
                "norm_map": config.normalization_mapping,
            }
        },
    )
    batch = pre(a_batch())
    assert torch.equal(batch["action"], a_batch()["action"]) and "action_is_pad" in batch
    assert float(loaded.forward(batch)[0].detach()) > 0
