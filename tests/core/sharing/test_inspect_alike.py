"""Layers that are alike are run a few times only: every figure is that of all of them, to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.sparse import sparse

from mmdiff.backbones.family import MASKED, Sizes, find_family
from mmdiff.sharing.inspection.counting import alike, memory
from mmdiff.sharing.inspection.figures import Canvases
from mmdiff.sharing.inspection.inspect import inspect
from mmdiff.sharing.inspection.thorough import on_meta

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 9, "num_attention_heads": 4, "pad_token_id": None,
         "intermediate_size": 48, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 9, "n_head": 4}
MIXTURE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2Config": GPT,
    "GPTNeoXConfig": {},
    "OPTConfig": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "PhiConfig": {},
    "MistralConfig": {"num_key_value_heads": 2, "sliding_window": None},
    "MixtralConfig": {"num_key_value_heads": 2, "num_local_experts": 4},
    "SmolLM3Config": {"num_key_value_heads": 2, "layer_types": None},  # angles in three layers of four
    "Qwen2MoeConfig": {**MIXTURE, "num_experts": 4, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 2},
    "DeepseekV3Config": {**MIXTURE, **LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "CohereConfig": {"logit_scale": 1.0, "num_key_value_heads": 4},
}
SLOW = ("OPTConfig", "PhiConfig", "CohereConfig", "MixtralConfig")


def counted(
    make: Callable[[], Any], own: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """What is counted with few layers and with all of them, and whether any could be left out."""
    of, left_out = Canvases(12, 2, 5, 4), []
    whole = alike.few_layers

    def watched(model: Any, few: bool) -> Any:
        left_out.append(few)
        return whole(model, few)

    monkeypatch.setattr(memory, "few_layers", watched)
    few = memory.memory_of(make(), own, of)
    used = all(left_out)
    monkeypatch.setattr(memory, "few_layers", lambda model, few: whole(model, False))
    return few, memory.memory_of(make(), own, of), used


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in CAUSAL])
def test_layers_of_a_causal_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = getattr(transformers, name)(**{**SMALL, **CAUSAL[name], "is_causal": False, "use_cache": False})
    own = find_family(config.model_type)
    for dtype in ("bfloat16", "float32"):
        few, whole, used = counted(partial(on_meta, own, config, dtype), own, monkeypatch)
        assert few == whole and used


OTHERS = ("bert", "ernie", "camembert", "data2vec-text")  # whose layers are RoBERTa's
FULL = [name for name in (*MASKED, "esmc", "esm", "diffusion_gemma") if name not in OTHERS]


@pytest.mark.parametrize("family", [pytest.param(x, marks=[pytest.mark.slow] * ("roberta" in x)) for x in FULL])
def test_layers_of_a_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = find_family(family)
    config = own.new_config(Sizes(97, 32, 11, 4, 4, 128, 40, None, 0.02))
    few, whole, used = counted(partial(on_meta, own, config, "float32"), own, monkeypatch)
    assert few == whole and used


def test_layers_that_differ_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer's feed-forward is wider, by a module that its configuration says nothing of."""
    own = find_family("llama")
    config = transformers.LlamaConfig(**{**SMALL, "is_causal": False, "use_cache": False})
    model = on_meta(own, config, "float32")
    for name in ("gate_proj", "up_proj"):
        setattr(model.model.layers[-1].mlp, name, torch.nn.Linear(32, 480, device="meta"))
    model.model.layers[-1].mlp.down_proj = torch.nn.Linear(480, 32, device="meta")
    few, whole, used = counted(lambda: model, own, monkeypatch)
    assert few == whole and used


def test_a_class_that_keeps_states_of_all_layers_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    own = find_family("llama")
    model = on_meta(own, transformers.LlamaConfig(**{**SMALL, "is_causal": False, "use_cache": False}), "float32")
    states: list[Any] = []
    monkeypatch.setattr(own.__class__, "embed", lambda *args: states.clear() or model.model.embed_tokens(args[2]))
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: states.append(out))
    few, whole, used = counted(lambda: model, own, monkeypatch)
    assert few == whole and not used


def test_weights_that_are_larger_than_the_memory_there_is(tmp_path: Path) -> None:
    """A file that torch could not map: only its head is needed."""
    width, rows = 2**14, 2**25
    layer = {"self_attn.q_proj": [width, width], "self_attn.k_proj": [width, width], "self_attn.v_proj": [width, width],
             "self_attn.o_proj": [width, width], "mlp.gate_proj": [64, width], "mlp.up_proj": [64, width],
             "mlp.down_proj": [width, 64], "input_layernorm": [width], "post_attention_layernorm": [width]}  # fmt: skip
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {
        "model.norm.weight": [width],
        "model.embed_tokens.weight": [rows, width],
        "lm_head.weight": [rows, width],
    }
    sparse(tmp_path / "model.safetensors", shapes)
    fields = {"model_type": "mistral", "vocab_size": rows, "hidden_size": width, "intermediate_size": 64,
              "num_hidden_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 128, "sliding_window": None,
              "max_position_embeddings": 64, "eos_token_id": 2, "mask_token_id": 3}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = inspect(tmp_path)
    assert found["bytes"] > 2e12 and found["missing"] == found["unexpected"] == []
