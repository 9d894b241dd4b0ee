"""Folders for engines: transformers reads what an engine asks it for, and what an engine cannot take is one line.

The values that are expected here were read from the sources of SGLang 0.5.23, vLLM 0.33 and LMDeploy 0.18.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.families.tokenizers import byte_tokenizer
from mmdiff.backbones.family import find_family
from mmdiff.commands import cli
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.model.saving import save_model
from mmdiff.session import load
from mmdiff.sharing.export import export
from mmdiff.sharing.inspection.inspect import inspect

FAMILIES = {
    "llada2_moe": (157184, 32, "llada2.1-mini"),
    "sdar": (151936, 4, "sdar-4b-chat"),
    "sdar_moe": (151936, 4, "sdar-4b-chat"),
}
TASK = {"target": "mmdiff.tasks.text.PlainText"}
ADAPTER = {"part": "backbone", "r": 2, "alpha": 4.0, "dropout": 0.0, "modules": "q_proj"}


def made(family: str) -> MMDiff:
    """A tiny model with the vocabulary, and so the mask id, of the published ones."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(bos=None, eos="<|endoftext|>", special=())
    sizes: dict[str, Any] = {"hidden_size": 16, "layers": 2, "heads": 2, "vocab_size": FAMILIES[family][0]}
    return MMDiff(new_backbone(tokenizer=tokenizer, family=family, **sizes)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, and one of SDAR with an adapter."""
    folder = tmp_path_factory.mktemp("engines")
    for family in FAMILIES:
        save_model(made(family), folder / family, extra={"task": TASK})
    model = made("sdar")
    add_adapters(model, ADAPTER)
    save_model(model, folder / "adapted", extra={"task": TASK})
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies code of a folder before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ["sglang", "lmdeploy"])
def test_an_engine_finds_what_it_asks_for(saved: Path, tmp_path: Path, family: str, engine: str) -> None:
    from transformers import AutoConfig, AutoTokenizer

    _, block, preset = FAMILIES[family]
    out = tmp_path / "out"
    if (engine, family) == ("lmdeploy", "llada2_moe"):
        with pytest.raises(ConfigError, match="lmdeploy: does not serve llada2_moe .* expected sdar, sdar_moe"):
            export(saved / family, out, engine=engine)
        return
    found = export(saved / family, out, engine=engine, overrides=[f"sampler.preset={preset}"])
    raw = json.loads((out / "config.json").read_text())
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    published = next(iter(find_family(family).PUBLISHED.values()))
    assert config.architectures == published["architectures"] and config.model_type == family
    assert published.keys() - {"mask_token_id"} <= raw.keys()
    for name, value in raw.items():
        if name not in ("torch_dtype", "dtype", "use_cache", "auto_map"):
            assert getattr(config, name) == value, name
    assert set(raw["auto_map"]) == {"AutoConfig"} and config.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(out)) == 257
    words = shlex.split(found["serve"])
    if engine == "sglang":
        settings = yaml.safe_load((out / "sglang.yaml").read_text())
        assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", str(out)]
        assert words[5:] == [
            "--trust-remote-code",
            "--dllm-algorithm", {"llada2_moe": "JointThreshold"}.get(family, "LowConfidence"),
            "--dllm-algorithm-config", str(out / "sglang.yaml"),
        ]  # fmt: skip
        expected = {"llada2_moe": {"threshold": 0.7, "edit_threshold": 0.5, "max_post_edit_steps": 16}}
        assert settings == {"block_size": block, **expected.get(family, {"threshold": 0.85})}
    else:
        settings = json.loads((out / "lmdeploy.json").read_text())
        assert settings == {
            "dllm_block_length": 4,
            "dllm_unmasking_strategy": "low_confidence_dynamic",
            "dllm_confidence_threshold": 0.85,
        }
        given = dict(zip(words[-6::2], words[-5::2], strict=True))
        assert given == {f"--{name.replace('_', '-')}": str(value) for name, value in settings.items()}
        assert words[:4] == ["lmdeploy", "serve", "api_server", str(out)] and "--trust-remote-code" in words
    assert inspect(out)["loads"] and load(out).sampler.threshold == (0.7 if family == "llada2_moe" else 0.85)
    ids = torch.arange(5, 13)[None]
    assert torch.equal(load_backbone(out)(ids), MMDiff.from_pretrained(saved / family).backbone(ids))
    assert not list(out.glob("mmdiff_parts*"))


def test_a_folder_of_the_hub_names_the_authors_code(saved: Path, tmp_path: Path) -> None:
    export(saved / "sdar", tmp_path / "out")
    code = json.loads((tmp_path / "out/config.json").read_text())["auto_map"]
    assert code["AutoConfig"] == "JetLM/SDAR-4B-Chat--configuration_sdar.SDARConfig"
    assert not list((tmp_path / "out").glob("*.py"))


EDITS = "sampler.process=mmdiff.samplers.processes.editing.Editing"
SDAR = ["sampler.preset=sdar-4b-chat"]


@pytest.mark.parametrize(
    ("folder", "words", "said"),
    [
        ("sdar", ["--for", "sglng", *SDAR], "'sglng': no such engine (did you mean \"sglang\"?)"),
        ("sdar", ["--for", "vllm", *SDAR], "vllm: does not serve sdar as a diffusion model, expected diffusion_gemma"),
        ("sdar", ["--for", "sglang"], "expected sampler.block_start=row"),
        ("sdar", ["--for", "sglang", "sampler.block_start=row"], "sglang: commits by a threshold"),
        ("sdar", ["--for", "sglang", *SDAR, "sampler.block_length=8"], "but the model's blocks have 4"),
        ("sdar", ["--for", "sglang", *SDAR, "sampler.temperature=1"], "its algorithms are greedy"),
        ("sdar", ["--for", "sglang", *SDAR, "sampler.guidance_scale=1"], "guidance_scale: it has no such"),
        ("sdar", ["--for", "lmdeploy", *SDAR, EDITS], "no such noise"),
        ("adapted", ["--for", "sglang", *SDAR], "takes no LoRA factors of a diffusion model, expected --merge"),
        ("sdar", ["--tower", "x"], "tower: an engine asks for it"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_take_is_one_line(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], folder: str, words: list[str], said: str
) -> None:
    assert cli.main(["export", str(saved / folder), "--out", str(tmp_path / "out"), *words]) == 2
    err = capfd.readouterr().err
    assert said in err.splitlines()[-1] and "Traceback" not in err and not (tmp_path / "out").exists()


def test_merged_it_is_served(saved: Path, tmp_path: Path) -> None:
    assert "serve" in export(saved / "adapted", tmp_path / "out", engine="sglang", overrides=SDAR, merge=True)


def test_a_mask_of_another_id_and_pictures_are_refused(tmp_path: Path) -> None:
    from mmdiff.sharing.engines import check_engine

    sampler = GenerationConfig(block_start="row", threshold=0.9)
    tokenizer = find_family("sdar").toy_tokenizer()
    toy = MMDiff(new_backbone(tokenizer=tokenizer, family="sdar", hidden_size=16, layers=1, heads=2))
    with pytest.raises(ConfigError, match="sglang: the mask id is 259, but it has 151669 built in"):
        check_engine("sglang", toy, sampler, None)
    toy.encoders["image"] = torch.nn.Identity()
    with pytest.raises(ConfigError, match="sglang: takes no encoders \\(image\\)"):
        check_engine("sglang", toy, sampler, None)
