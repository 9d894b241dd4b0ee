"""A backbone in the folder of its authors, which names no task: it gets the one that its tokenizer suggests.

Residues make it `mmdiff.tasks.protein.Protein`, a chat template `mmdiff.tasks.text.chat.Chat`, anything else
`mmdiff.tasks.text.PlainText`. The settings of generation are those published for the family, where there are any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiff.backbones.family import FAMILIES, model_type_of
from mmdiff.backbones.weights import read_json
from mmdiff.config.presets import preset

from .layout import is_exported
from .layouts import is_multimodal

RESIDUES = ("esm", "esm_diff", "dsm", "esmc")
PRESETS = {
    "llada": "llada-8b-instruct",
    "llada2_moe": "llada2.0-mini",
    "Dream": "dream-7b-instruct",
    "sdar": "sdar-4b-chat",
    "sdar_moe": "sdar-4b-chat",
    "Fast_dLLM_Qwen": "fast-dllm-v2-7b",
    "nemotron_labs_diffusion": "nemotron-labs-diffusion",
    "diffusion_gemma": "diffusion-gemma",
}
"""Family -> the settings of generation that its authors publish, see `mmdiff.config.presets`."""


def is_bare(folder: Path) -> bool:
    """Returns whether a folder is a backbone as it was published, of a family of diffusion models, and no more."""
    if is_exported(folder) or not (folder / "config.json").is_file():
        return False
    raw = read_json(folder / "config.json")
    return isinstance(raw, dict) and model_type_of(raw) in FAMILIES and not is_multimodal(raw, folder)


def described(folder: Path) -> dict[str, Any]:
    """Returns the task and the sampler's settings of a bare backbone, as a saved model has them."""
    family = model_type_of(read_json(folder / "config.json"))
    if family in RESIDUES:
        return {"task": {"target": "mmdiff.tasks.protein.Protein"}, "sampler": {}}
    target = "mmdiff.tasks.text.chat.Chat" if _has_template(folder) else "mmdiff.tasks.text.PlainText"
    return {"task": {"target": target}, "sampler": preset(PRESETS[family]) if family in PRESETS else {}}


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    file = folder / "tokenizer_config.json"
    raw = read_json(file) if file.is_file() else None
    return isinstance(raw, dict) and bool(raw.get("chat_template"))
