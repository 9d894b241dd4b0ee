"""`mmdiff export --for ENGINE`: what an engine needs besides a folder of the hub, and what it cannot take.

Read from the sources of SGLang 0.5.23 (srt/dllm), vLLM 0.33 (diffusion_gemma.py) and LMDeploy 0.18 (pytorch/models):
they know a model by `architectures`, have its mask id built in, decode blocks from the row's first position, and need a
class of configuration in the folder where transformers has none. None of them serves LoRA factors, encoders or extras.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from mmdiff.backbones.family import find_family
from mmdiff.backbones.weights import INDEX, SINGLE, read_json, weight_files
from mmdiff.canvas.patterns import CausalContext
from mmdiff.config import as_node
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest

GEMMA, SDAR = "diffusion_gemma", ("sdar", "sdar_moe")
SERVES = {"sglang": ("llada2_moe", *SDAR, GEMMA), "vllm": (GEMMA,), "lmdeploy": SDAR}
"""Engine -> the families that it serves as block diffusion."""
MASK_IDS = {"llada2_moe": 156895, "sdar": 151669, "sdar_moe": 151669}
"""Family -> the mask id that engines have built in (SGLang's DLLM_PARAMS, LMDeploy's SDARModelConfigBuilder)."""
USUAL: dict[str, Any] = {  # settings of a sampler that no engine has, with the value at which they do nothing
    "guidance_scale": 0.0, "constraint": None, "revise": None, "draft": None, "denoise": [],
    "suppress_ids": [], "suppress_tokens": [], "eos_policy": "none", "schedule": "linear",
}  # fmt: skip
EDITING = "mmdiff.samplers.processes.editing.Editing"
RENOISING = "mmdiff.samplers.processes.hybrid.Renoising"
BOUND = "mmdiff.samplers.rules.adaptive.EntropyBound"
CLASS = '''"""The fields of config.json, for engines whose transformers has no such class. It computes nothing."""

from transformers import PretrainedConfig


class {name}(PretrainedConfig):
    model_type = "{model_type}"
'''


@dataclass
class Served:
    """What is written for an engine. file: its configuration. command: that serves the folder."""

    file: str
    command: str


def check_engine(engine: str, model: Any, sampler: GenerationConfig, tower: Path | None) -> None:
    """Raise ConfigError, in one line, for a model or a sampler that an engine cannot take."""
    if engine not in SERVES:
        raise ConfigError(f"for: {engine!r}: no such engine{nearest(engine, ['hub', *SERVES])}")
    family, facts = model.backbone.family, model.backbone.facts
    if family not in SERVES[engine]:
        raise ConfigError(
            f"{engine}: does not serve {family} as a diffusion model, expected {', '.join(SERVES[engine])}"
        )
    if model.adapters:
        raise ConfigError(f"{engine}: takes no LoRA factors of a diffusion model, expected --merge")
    whole = family == GEMMA and model.published is not None  # with its own tower, which is served too
    for kind in ("extras", "heads") if whole else ("encoders", "extras", "heads"):
        if found := list(getattr(model, kind)):
            raise ConfigError(f"{engine}: takes no {kind} ({', '.join(found)}), expected a model of text alone")
    if facts.mask_id != MASK_IDS.get(family):
        raise ConfigError(f"{engine}: the mask id is {facts.mask_id}, but it has {MASK_IDS.get(family)} built in")
    attention = CausalContext(model.attention.size) if whole and model.attention.media else model.attention
    if facts.attention is None or attention != facts.attention:
        raise ConfigError(f"{engine}: attends as {facts.attention}, but the model as {model.attention}")
    size = getattr(facts.attention, "size", None)
    if sampler.block_length not in (None, size):
        raise ConfigError(f"{engine}: sampler.block_length: {sampler.block_length}, but the model's blocks have {size}")
    for name, usual in USUAL.items():
        if getattr(sampler, name) != usual:
            raise ConfigError(f"{engine}: sampler.{name}: it has no such setting, expected {usual!r}")
    if family == GEMMA:
        if gemma_defaults(sampler) is None:
            raise ConfigError(f"{engine}: has the published sampler alone, expected sampler.preset=diffusion-gemma")
        if tower is None and not whole:
            raise ConfigError(f"{engine}: needs the vision tower, which this model has not, expected --tower FOLDER")
        return
    if sampler.block_start != "row":
        raise ConfigError(f"{engine}: counts blocks from the row's first position, expected sampler.block_start=row")
    if sampler.temperature and engine == "sglang":
        raise ConfigError("sglang: its algorithms are greedy, expected sampler.temperature=0")
    if sampler.select is not None or sampler.remasking != "low_confidence":
        raise ConfigError(f"{engine}: commits by confidence alone, expected sampler.select and remasking as usual")
    process = as_node(sampler.process)
    if process is not None and (engine != "sglang" or process.get("target") != EDITING or family != "llada2_moe"):
        raise ConfigError(f"{engine}: has no such noise process for {family}, expected sampler.process=null")
    if sampler.threshold is None and (engine == "sglang" or sampler.steps is not None):
        raise ConfigError(f"{engine}: commits by a threshold, expected sampler.threshold")


def write_engine(
    engine: str, model: Any, sampler: GenerationConfig, folder: Path, out: Path, tower: Path | None
) -> Served:
    """Write what an engine needs into an exported folder. out: where the folder will stand."""
    family = model.backbone.family
    size = getattr(model.backbone.facts.attention, "size", None)
    if family == GEMMA:
        if tower is not None and not model.published:
            _add_tower(family, tower, folder)
    else:
        _write_class(folder, family)
    if engine == "vllm":
        return Served("generation_config.json", f"vllm serve {out}")
    if engine == "lmdeploy":
        if sampler.threshold:
            rule: dict[str, Any] = {"strategy": "low_confidence_dynamic", "confidence_threshold": sampler.threshold}
        else:  # one position per step
            rule = {"strategy": "low_confidence_static", "denoising_steps": size}
        fields = {"dllm_block_length": size, "dllm_unmasking_strategy": rule.pop("strategy")}
        fields |= {f"dllm_{name}": value for name, value in rule.items()}
        _write_json(folder / "lmdeploy.json", fields)
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in fields.items())
        return Served("lmdeploy.json", f"lmdeploy serve api_server {out} --backend pytorch --trust-remote-code {words}")
    algorithm, fields = _sglang(family, sampler, size)
    (folder / "sglang.yaml").write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    trust = "" if family == GEMMA else " --trust-remote-code"
    command = f"python -m sglang.launch_server --model-path {out}{trust} --dllm-algorithm {algorithm}"
    return Served("sglang.yaml", f"{command} --dllm-algorithm-config {out / 'sglang.yaml'}")


def _sglang(family: str, sampler: GenerationConfig, size: int | None) -> tuple[str, dict[str, Any]]:
    """Returns the algorithm of SGLang that decodes as a sampler does, and its settings."""
    if family == GEMMA:
        found = gemma_defaults(sampler)
        assert found is not None
        return "Gemma4Renoise", {
            "max_denoising_steps": found["max_denoising_steps"],
            "sampler_config": {"entropy_bound": found["sampler_config"]["entropy_bound"]},
            "temperature_schedule": {"t_min": found["t_min"], "t_max": found["t_max"]},
            "stopping_config": {name: found[name] for name in ("confidence_threshold", "stability_threshold")},
        }
    if sampler.process is None:
        return "LowConfidence", {"block_size": size, "threshold": sampler.threshold}
    process = as_node(sampler.process)
    edited = {"edit_threshold": process.get("threshold", 0.9), "max_post_edit_steps": process.get("most", 16)}
    return "JointThreshold", {"block_size": size, "threshold": sampler.threshold, **edited}


def gemma_defaults(sampler: GenerationConfig) -> dict[str, Any] | None:
    """Returns a sampler as DiffusionGemma's generation_config.json has it; None for one of another kind."""
    process, select = as_node(sampler.process) or {}, as_node(sampler.select) or {}
    steps = process.get("steps")
    published = process.get("target") == RENOISING and select.get("target") == BOUND
    if not (published and steps and sampler.temperature_end is not None):
        return None
    first, last = sampler.temperature, sampler.temperature_end
    least = (last - first / steps) / (1 - 1 / steps) if steps > 1 else last  # the last step stands one above the end
    return {
        "max_denoising_steps": steps,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": select.get("bound", 0.1)},
        "t_min": round(least, 10),
        "t_max": first,
        "confidence_threshold": process.get("confident") or 0.0,
        "stability_threshold": process.get("stable", 1),
    }


def _add_tower(family: str, tower: Path, folder: Path) -> None:
    """Put the tensors of a vision tower beside the model's, under an index. tower: a published folder with one."""
    own = find_family(family)
    found: dict[str, Any] = {}
    for file in weight_files(tower):
        with safe_open(file, "pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys() if own.is_elsewhere(name)}
    vision = read_json(tower / "config.json").get("vision_config")
    if not found or vision is None:
        raise ConfigError(f"{tower}: has no vision tower of {family}")
    if (single := folder / SINGLE).is_file():  # which some readers take without looking for an index
        first, tower_file = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
        files = dict.fromkeys(_names(single.rename(folder / first)), first)
    else:
        files, tower_file = dict(read_json(folder / INDEX)["weight_map"]), "model-vision-tower.safetensors"
    save_file(found, folder / tower_file, metadata={"format": "pt"})
    files |= dict.fromkeys(found, tower_file)
    _write_json(folder / INDEX, {"metadata": {}, "weight_map": files})
    _write_json(folder / "config.json", read_json(folder / "config.json") | {"vision_config": vision})


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as handle:
        return list(handle.keys())


def _write_class(folder: Path, family: str) -> None:
    """Write the class of configuration that config.json names, and name nothing else: engines have their own model."""
    raw = read_json(folder / "config.json")
    module, _, name = raw["auto_map"]["AutoConfig"].rpartition("--")[2].rpartition(".")
    (folder / f"{module}.py").write_text(CLASS.format(name=name, model_type=family), encoding="utf-8")
    _write_json(folder / "config.json", raw | {"auto_map": {"AutoConfig": f"{module}.{name}"}})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
