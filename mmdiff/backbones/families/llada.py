"""LLaDA-8B, LLaDA-1.5 and LLaDA-V's language model: transformers' Llama without its causal mask.

Published checkpoints (Nie et al., arXiv 2502.09992; hub ids in `LLADA`) name fields and tensors as OLMo does.
LLaDA-V (arXiv 2505.16933) publishes Llama's names. The arithmetic is Llama's in both: RMSNorm, rotary halves, SwiGLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdiff.errors import ConfigError

from ..family import required
from ..shares import Share, per_layer
from .decoder import Decoder
from .published.llada import LLADA, LLADA_8B, LLADA_REQUIRED
from .tokenizers import byte_tokenizer

MASK, BOS, EOS, EOT = "<|mdm_mask|>", "<|startoftext|>", "<|endoftext|>", "<|eot_id|>"
HEADER = ("<|start_header_id|>", "<|end_header_id|>")

RENAMED = {  # fields, published -> Llama
    "embedding_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_LAYER = {  # tensors of a block, published -> Llama
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


_LAYER_OF = "model.transformer.blocks.{}."
_CONSUMED = ("vocab_size", "mlp_ratio", "multi_query_attention", "clip_qkv", "rope_scaling")
_WITHOUT_EFFECT = (
    "alibi_bias_max attention_layer_norm_with_affine flash_attention init_cutoff_factor init_device init_fn precision "
    "rope_full_precision pretraining_tp"
).split()
OF_PICTURES = (  # and of how a model of them was trained (mmdiff.model.published.llava reads the former)
    "mm_.* image_.* vision_.* tokenizer_.* add_faster_video add_time_instruction delay_load faster_token_stride "
    "force_sample pos_skipping_range unfreeze_mm_vision_tower use_mm_proj use_pos_skipping"
).split()
ELSEWHERE = tuple(
    rf"model\.{name}" for name in ("vision_tower\\.", "mm_projector\\.", "vision_resampler\\.", "image_newline")
)


def translate(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the published fields, those that stand in for null ones put in. Raises ConfigError for what is missing,
    and for what a Llama cannot express."""
    if "d_model" not in raw:
        return raw
    for name, only in LLADA_REQUIRED.items():
        if required(raw, name) != only:
            raise ConfigError(f"config.json: {name}: {raw[name]!r} has no Llama equivalent, expected {only!r}")
    for name in ("clip_qkv", "rope_scaling"):
        if raw.get(name) is not None:
            raise ConfigError(f"config.json: {name}: {raw[name]!r} has no Llama equivalent, expected null")
    stand_ins = {
        "n_kv_heads": 1 if raw.get("multi_query_attention") else required(raw, "n_heads"),
        "mlp_hidden_size": (raw.get("mlp_ratio") or 4) * required(raw, "d_model"),
        "embedding_size": raw.get("vocab_size"),
    }
    raw = stand_ins | {name: value for name, value in raw.items() if value is not None}
    for name in (*RENAMED, "rms_norm_eps", "attention_dropout", "rope_theta"):
        required(raw, name)
    return {name: value for name, value in raw.items() if name not in (*LLADA_REQUIRED, *_CONSUMED)}


def shares(config: Any) -> dict[str, tuple[Share, ...]]:
    """Returns `{"model.transformer.ln_f.weight": (Share("model.norm.weight"),), ...}`."""
    kinds = {"self_attn": config.attention_bias, "mlp": config.mlp_bias}
    layer = {
        f"{theirs}.{kind}": f"{llama}.{kind}"
        for theirs, llama in _LAYER.items()
        for kind in (("weight", "bias") if kinds.get(llama.split(".")[0]) else ("weight",))
    }
    whole = {"wte": "model.embed_tokens", "ln_f": "model.norm"} | (
        {} if config.tie_word_embeddings else {"ff_out": "lm_head"}
    )
    return per_layer(config.num_hidden_layers, layer, _LAYER_OF, "model.layers.{}.") | {
        f"model.transformer.{theirs}.weight": (Share(f"{llama}.weight"),) for theirs, llama in whole.items()
    }


def toy_tokenizer() -> Any:
    """Returns a tokenizer of bytes with LLaDA's special tokens."""
    return byte_tokenizer(bos=BOS, eos=EOS, special=(*HEADER, EOT, MASK))


FAMILY = Decoder(
    name="llada",
    config_class="LlamaConfig",
    published=LLADA,
    mask=MASK,
    renamed=RENAMED,
    translate=translate,
    without=(*_WITHOUT_EFFECT, *OF_PICTURES),
    shares=shares,
    elsewhere=ELSEWHERE,
    ends=(EOT,),
    ids={name: LLADA_8B[name] for name in ("mask_token_id", "eos_token_id")},
    usual={"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
    theta=500_000.0,
    eps=1e-5,
    tokenizer=toy_tokenizer,
)
