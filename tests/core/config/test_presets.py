"""Presets: each parses, generates on a toy of the checkpoint that it is for, and is found by the command line."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import ROOT

from mmdiff.backbones import load_backbone
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.config.load import load_config, task_and_sampler
from mmdiff.config.presets import preset, presets
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff

LLADA, DREAM = "GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"
LLADA2, SDAR = "inclusionAI/LLaDA2.1-mini", "JetLM/SDAR-4B-Chat"
CHECKPOINTS = {
    "diffucoder": DREAM,
    "diffusion-gemma": "google/diffusiongemma-26B-A4B-it",
    "dparallel-dream": DREAM,
    "dparallel-llada": LLADA,
    "dream": DREAM,
    "dream-vl": "Dream-org/Dream-VL-7B",
    "dreamon": "Dream-org/DreamOn-v0-7B",
    "fast-dllm-dream": DREAM,
    "fast-dllm-llada": LLADA,
    "fast-dllm-v2": "Efficient-Large-Model/Fast_dLLM_v2_7B",
    "lavida-dream": DREAM,
    "lavida-llada": LLADA,
    "llada-1.5": "GSAI-ML/LLaDA-1.5",
    "llada-8b-base": "GSAI-ML/LLaDA-8B-Base",
    "llada-8b-instruct": LLADA,
    "llada-v": LLADA,
    "llada2.0": "inclusionAI/LLaDA2.0-mini",
    "llada2.1": LLADA2,
    "llada2.2": LLADA2,
    "nemotron": "nvidia/Nemotron-Labs-Diffusion-8B",
    "sdar": SDAR,
}
"""Beginning of a preset's name -> the checkpoint whose toy it is tried on; the longest beginning counts."""
TOYS = {
    name: CHECKPOINTS[max((start for start in CHECKPOINTS if name.startswith(start)), key=len)] for name in presets()
}
IDS = {"expand": 5, "delete": 6, "split": 7}  # ids of a toy's for tokens that it does not have


def test_every_preset_has_a_toy_and_names_its_source() -> None:
    for name in presets():
        lines = (ROOT / "configs" / "presets" / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("# ") and "/" in lines[0] and any(x.startswith("# Source: ") for x in lines)
        given = yaml.safe_load("\n".join(lines))
        assert given.keys() <= preset(name).keys() == asdict(GenerationConfig()).keys()


@cache
def toy_of(hub_id: str) -> MMDiff:
    torch.manual_seed(0)
    model = MMDiff(load_backbone.toy(hub_id))  # type: ignore[attr-defined]
    with torch.no_grad():
        model.backbone.model.get_output_embeddings().weight.mul_(20)  # else entropies differ in their last digits only
    return model


@pytest.mark.parametrize(
    ("name", "benchmark", "settings"),
    [
        ("llada-8b-instruct", "LLaDA's EVAL.md, pure diffusion", {"eos_policy": "last", "block_length": None}),
        ("llada-1.5-math", "LLaDA's EVAL.md", {"max_new_tokens": 1024, "block_length": 128, "eos_policy": "last"}),
        ("dream-7b-instruct-mbpp", "Dream's eval.sh", {"max_new_tokens": 1024, "temperature": 0.1, "top_p": 0.9}),
        ("llada-v-mathvista", "LLaDA-V's evaluate.sh", {"max_new_tokens": 96, "steps": 48, "temperature": 0.0}),
        ("dparallel-dream", "dParallel's eval.sh", {"max_new_tokens": 256, "remasking": "entropy"}),
    ],
)
def test_the_numbers_of_some(name: str, benchmark: str, settings: dict[str, Any]) -> None:
    """Read from the authors' files a second time, beside the presets."""
    assert {key: preset(name)[key] for key in settings} == settings, benchmark


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (n % 4 > 0)) for n, one in enumerate(TOYS)]
)
def test_it_generates_on_a_toy(name: str) -> None:
    """Rows of two lengths get what each gets alone, without a masked position left."""
    model = toy_of(TOYS[name])
    settings = preset(name)
    if settings["process"]:
        settings["process"] |= {key: i for key, i in IDS.items() if key in settings["process"]}
    rows: list[Sample] = [[Text([40, 41, 42]), Target(length=9)], [Text([43]), Target(length=5)]]
    many = model.generate(collate(rows, model.vocab, index=[0, 1]), **settings)
    assert all(model.vocab.mask_id not in row for row in many.targets())
    for i, row in enumerate(rows):
        one = model.generate(collate([row], model.vocab, index=[i]), **settings)
        assert one.targets() == [many.targets()[i]]


def test_a_preset_is_published_and_no_more(tmp_path: Path) -> None:
    """A base's own settings do not get into it; what is named beside it lies over it, node by node."""
    (tmp_path / "mine.yaml").write_text("base: vqa-demo\nsampler: {preset: llada2.1-mini, seed: 3}\n")
    (tmp_path / "base.yaml").write_text("base: mine.yaml\nsampler: {threshold: 0.6}\n")
    published: dict[str, Any] = preset("llada2.1-mini")
    assert asdict(load_config(tmp_path / "mine.yaml").sampler) == published | {"seed": 3}
    assert asdict(load_config(tmp_path / "base.yaml").sampler) == published | {"seed": 3, "threshold": 0.6}
    overrides = ["sampler.preset=llada2.1-mini", "sampler.process.most=4"]
    expected = published | {"process": published["process"] | {"most": 4}}
    base = load_config("vqa-demo").sampler
    assert asdict(base)["steps"] is not None and published["steps"] is None
    assert asdict(load_config("vqa-demo", overrides).sampler) == expected
    assert asdict(task_and_sampler({"target": "x"}, asdict(base), overrides)[1]) == expected
    for wrong in ("llada-8b-instuct", 3):
        with pytest.raises(ConfigError, match=f"sampler.preset: {wrong!r}: no preset"):
            load_config("vqa-demo", [f"sampler.preset={wrong}"])
    with pytest.raises(ConfigError, match=r"sampler.tresholt: no such field"):
        load_config("vqa-demo", ["sampler.preset=llada-1.5", "sampler.tresholt=0.5"])
