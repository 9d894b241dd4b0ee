"""What holds of every family alike: its own small model is trained under recomputation as without, is saved for other
stacks, and refuses what it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmdiff.backbones import Backbone, load_backbone, new_backbone
from mmdiff.backbones.family import FAMILIES, find_family
from mmdiff.backbones.load import tokenizer_of
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.replacing.hybrid import HybridBound
from mmdiff.samplers.processes.hybrid import Hybrid

EVERY = [*FAMILIES, "llama", "qwen3", "mistral"]
STOCK = {
    "llada": "LlamaForCausalLM", "llava_llada": "LlamaForCausalLM",
    **dict.fromkeys(("Dream", "llava_dream", "dream-vl", "diffusionvl_qwen", "Fast_dLLM_Qwen"), "Qwen2ForCausalLM"),
    "sdar": "Qwen3ForCausalLM", "nemotron_labs_diffusion": "Ministral3ForCausalLM",
    **dict.fromkeys(("llada_moe", "sdar_moe"), "Qwen3MoeForCausalLM"), "llada2_moe": "Glm4MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM",
}  # fmt: skip
"""Family of a decoder -> the class of transformers' that reads what is saved of it."""


def small(name: str) -> Backbone:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "layers": 2, "heads": 4, "init_std": 0.2}
    return new_backbone(family=name, tokenizer=find_family(name).toy_tokenizer(), **sizes)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_without_checkpointing(name: str) -> None:
    model = MMDiff(small(name)).train()
    batch = collate([[Text([5, 6]), Target([7, 8, 9, 10])], [Text([9]), Target([11, 12])]], model.vocab)
    objective: Any = HybridBound(Hybrid(uniform=1.0, given="all")) if name == "diffusion_gemma" else Denoise()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        plan = objective.plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        sum(term.value for term in objective.terms(model, plan).values()).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.backbone.gradient_checkpointing(True)
    again = gradients()
    assert again.keys() == plain.keys() and sum(float(g.abs().sum()) for g in plain.values()) > 0
    for at, gradient in plain.items():
        torch.testing.assert_close(again[at], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_field_that_is_not_known_is_refused(name: str, tmp_path: Path) -> None:
    small(name).save_pretrained(tmp_path, original_format=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "looped_layers": 2}))
    with pytest.raises(ConfigError, match=r"config.json: looped_layers: ") as error:
        load_backbone(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "esmc"])  # whose class came with transformers 5
@pytest.mark.parametrize("original_format", [True, False])
def test_a_saved_tokenizer_is_one_of_transformers_4(name: str, original_format: bool, tmp_path: Path) -> None:
    """By a name that it has; no list of `extra_special_tokens`, which is a dict there; and nothing is lost here."""
    backbone = small(name)
    backbone.save_pretrained(tmp_path, original_format=original_format)
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] in ("PreTrainedTokenizerFast", "EsmTokenizer")
    assert not isinstance(fields.get("extra_special_tokens"), list)
    before, after = backbone.vocab.tokenizer, tokenizer_of(tmp_path, find_family(name))
    text = "a cat" + "".join(before.all_special_tokens)
    assert after(text)["input_ids"] == before(text)["input_ids"] and len(after) == len(before)
    assert set(after.all_special_tokens) == set(before.all_special_tokens)


@pytest.mark.parametrize("name", STOCK)
@torch.no_grad()
def test_stock_transformers_reads_a_saved_decoder(name: str, tmp_path: Path) -> None:
    """Every tensor, none besides, and the same logits, where every position sees every other."""
    backbone = small(name).eval()
    backbone.save_pretrained(tmp_path)
    found, info = getattr(transformers, STOCK[name]).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = backbone(ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.eval()(ids).logits, expected, atol=1e-5, rtol=1e-5)
