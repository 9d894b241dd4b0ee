"""The published audio systems: parameters and places as their papers give them, and every stage at toy width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import nn

from mmdiff import check
from mmdiff.backbones import backbone_from_folder
from mmdiff.backbones.families import llada
from mmdiff.canvas.sample import Item
from mmdiff.config import build, check_nodes, load_config
from mmdiff.config.settings import Config, StageConfig
from mmdiff.connectors.dual import DualAdapter
from mmdiff.model import MMDiff, build_model
from mmdiff.model.params import apply_rules, read_rules
from mmdiff.model.saving import save_model

pytestmark = pytest.mark.needs("soundfile", "torchaudio", "whisper_normalizer")

NAMES = ("asr-whisper-llada", "audio-diffa-align", "audio-diffa")


def stage(config: Config) -> StageConfig:
    (only,) = (s for s in config.train.stages.values() if s)
    return only


def count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MMDiff, int]]:
    """The models at full size, without memory, their stage's rules applied; and how many parameters are trained."""
    folder = tmp_path_factory.mktemp("llada")
    published = llada.FAMILY.PUBLISHED["GSAI-ML/LLaDA-8B-Instruct"]
    ids_aside = {key: value for key, value in published.items() if not key.endswith("token_id")}
    (folder / "config.json").write_text(json.dumps(ids_aside))
    models = {}
    for name in NAMES:
        config = load_config(name)
        with torch.device("meta"):
            backbone = backbone_from_folder(folder, weights=False, tokenizer=llada.toy_tokenizer())
            encoder = build({**config.model.encoders["audio"], "weights": None})
            node = {**config.model.connectors["audio"], "weights": None}
            connector = build(node, width_in=encoder.width, width_out=backbone.dim)
            model = MMDiff(backbone, {"audio": encoder}, {"audio": connector})
            _, lines = apply_rules(model, read_rules(stage(config).params), lr=1.0, weight_decay=0.0)
        assert all(p.is_meta for p in model.parameters())
        models[name] = model, sum(line.count for line in lines)
    return models


def layers(n: int, hidden: int, read: int, ffn: int = 3072) -> int:
    """Of BERT with cross-attention: four maps and a norm each for queries and what is read, the feed-forward."""
    own = 4 * (hidden + 1) * hidden
    other = 2 * (hidden + 1) * hidden + 2 * (read + 1) * hidden
    return n * (own + other + (hidden + 1) * ffn + (ffn + 1) * hidden + 3 * 2 * hidden)


def test_whisper_llada(full: dict[str, tuple[MMDiff, int]]) -> None:
    """About 30 M are trained: a Q-Former of 20.5 M, a map of 3.15 M, adapters of 6.29 M."""
    model, trained = full["asr-whisper-llada"]
    encoder, connector = model.encoders["audio"], model.connectors["audio"]
    assert count(encoder) + 1500 * 1280 == 636_968_960  # transformers counts the table of sinusoids as parameters
    qformer = layers(2, 768, read=1280) + 4 * 768 + 2 * 768
    assert count(connector) - count(connector.proj) == qformer == 20_481_024  # type: ignore[arg-type]
    assert count(connector.proj) == 769 * 4096 == 3_149_824  # type: ignore[arg-type]
    adapters = 32 * 3 * 8 * (4096 + 4096)
    assert trained == qformer + 3_149_824 + adapters and adapters == 6_291_456
    assert count(model.backbone) == 8_015_581_184 + adapters
    (lora,) = model.adapters
    assert (lora["r"], lora["alpha"], lora["dropout"]) == (8, 32, 0.1)


def test_diffa(full: dict[str, tuple[MMDiff, int]]) -> None:
    """36.7 M in all: a semantic adapter of 14.37 M, an acoustic one of 22.25 M, 20 prompts."""
    (first, align), (second, tune) = full["audio-diffa-align"], full["audio-diffa"]
    for model in (first, second):
        assert count(model.encoders["audio"]) + 1500 * 768 == 88_154_112
        assert count(model.backbone) == 8_015_581_184 and not model.adapters
    semantic = (3 * 768 + 1) * 768 + (3 * 768 + 1) * 3072 + 3073 * 768 + 769 * 4096 + 2 * 4096
    acoustic = layers(2, 768, read=768) + 4 * 64 * 768 + 4 * 64 + 2 * 768 + 769 * 4096
    assert count(second.connectors["audio"].semantic) == semantic == 14_369_280  # type: ignore[arg-type]
    assert count(second.connectors["audio"].acoustic) == acoustic == 22_251_776  # type: ignore[arg-type]
    assert align == semantic + 20 * 4096 and tune == semantic + acoustic
    assert tune + 20 * 4096 == 36_702_976


def test_places_of_half_a_minute(full: dict[str, tuple[MMDiff, int]]) -> None:
    item = Item(torch.zeros(1, 1, 3000))
    slots = {name: model.connectors["audio"].slots(1500, item) for name, (model, _) in full.items()}  # type: ignore
    # 88 windows of four; 12.5 a second behind 20 prompts, or behind 64 acoustic places
    assert slots == {"asr-whisper-llada": 4 * 89, "audio-diffa-align": 20 + 375, "audio-diffa": 64 + 375}
    as_published = load_config("asr-whisper-llada", ["model.connectors.audio.keep_tail=false"])
    with torch.device("meta"):
        connector = build(as_published.model.connectors["audio"], width_in=1280, width_out=4096)
    assert connector.slots(1500, item) == 352
    for name, keep_tail, expected in (("audio-diffa-align", True, 13), ("audio-diffa-align", False, 12)):
        node = load_config(name, [f"model.connectors.audio.semantic.keep_tail={keep_tail}".lower()]).model.connectors
        with torch.device("meta"):
            connector = build(node["audio"], width_in=768, width_out=4096)
        assert connector.slots(49, item) == 20 + expected


@pytest.mark.parametrize("name", NAMES)
def test_check(name: str) -> None:
    out = check(load_config(name))
    assert all(loss > 0 for loss in out["loss"].values()) and len(out["forwards"]) == 2


def test_the_second_stage_of_diffa_goes_on_from_the_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = build_model(load_config("audio-diffa-align").model, toy=True)
    save_model(first, tmp_path / "model")
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        **load_config("audio-diffa").model.connectors["audio"],
        "weights": str(tmp_path / "model"),
    }
    small = {**settings.pop("acoustic"), "hidden": 32, "heads": 2, "ffn": 64}
    del settings["target"]
    width = first.encoders["audio"].width
    second = DualAdapter(5 * width, first.backbone.dim, acoustic=small, **settings)  # type: ignore[operator]
    taken, made = second.semantic.state_dict(), first.connectors["audio"].semantic.state_dict()  # type: ignore
    assert taken.keys() == made.keys() and all(torch.equal(taken[key], made[key]) for key in made)
    assert second.prompts_RD is None and second.acoustic is not None
    assert load_config("audio-diffa").model.connectors["audio"]["weights"] == "runs/audio-diffa-align/model"


@pytest.mark.parametrize(
    "name, override",
    [
        ("asr-whisper-llada", "sampler.draft={target: mmdiff.samplers.deliberation.MaskChunks, ratio: 0.25}"),
        (
            "asr-whisper-llada",
            "sampler.draft={target: mmdiff.samplers.deliberation.MaskLeastConfident, ratio: 0.3, probe: eos}",
        ),
        ("asr-whisper-llada", "task.min_slack=0"),
        ("asr-whisper-llada", "model.encoders.audio.trim=false"),
        ("audio-diffa", "model.connectors.audio.weights=null"),
        ("audio-diffa", "task.template.learn_header=true"),
        ("audio-diffa", "model.connectors.audio.semantic.keep_tail=false"),
        ("audio-diffa-align", "model.connectors.audio.semantic.keep_tail=false"),
        ("audio-diffa", "task.max_new_tokens=16"),
        ("audio-diffa", "sampler.early_stop=false"),
        (
            "audio-diffa",
            "task={target: mmdiff.tasks.dialogue.choice.MultipleChoice, "
            "template: {target: mmdiff.tasks.dialogue.audio_templates.DIFFAChat, marker: true}}",
        ),
    ],
)
def test_what_the_files_say_can_be_changed(name: str, override: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    text += (ROOT / "configs" / "audio-diffa-align.yaml").read_text()
    said = " ".join(line.lstrip("# ") for line in text.splitlines())
    key, _, value = override.partition("=")
    assert override in said or f'{key}="{value}"' in said or f"'{override}'" in said
    config = load_config(name, [override])
    check_nodes(config)
    if config.task:
        build(config.task, where="task")


@pytest.mark.needs("espeakng_loader")
def test_a_converted_model_behind_whisper_runs_at_toy_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the folders of trained weights, which only the real run needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMDIFF_REAL_WEIGHTS", raising=False)
    found = check(load_config("asr-whisper-convert"))
    assert found["loss"].keys() == {"align", "tune"}
