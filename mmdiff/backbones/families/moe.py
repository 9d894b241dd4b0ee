"""Families of mixtures of experts: LLaDA-MoE, LLaDA2.x, SDAR's mixture.

transformers keeps the experts of a layer in one tensor each for gate and up, and for down; published files have three
tensors per expert.

    LLaDA-MoE-7B-A1B (arXiv 2509.24389): transformers' Qwen3-MoE, every position sees every other.
    LLaDA2.0, 2.1, 2.2 (arXiv 2512.15745): transformers' GLM-4-MoE, block-causal of 32; query, key and value are one
        tensor; the sigmoid router has a bias that is not trained.
    SDAR 30B-A3B (arXiv 2510.06303): Qwen3-MoE, block-causal of `block_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import BlockCausal
from mmdiff.errors import ConfigError

from ..family import required
from ..shares import Share, per_layer
from .decoder import Decoder
from .dense import END, EOS, SLIDING, blocks
from .published.llada import LLADA2 as LLADA2_MODELS
from .published.llada import LLADA_MOE as LLADA_MOE_MODELS
from .published.qwen import SDAR_MOE as SDAR_MOE_MODELS
from .tokenizers import byte_tokenizer

MASK, ROLE_END = "<|mask|>", "<|role_end|>"
LAYER = "model.layers.{}."


# LLaDA-MoE ------------------------------------------------------------------------------------------------------------


def _moe_fields(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the fields with the layers that have no experts by number."""
    if "moe_layer_freq" not in raw:
        return raw
    dense = [i for i, sparse in enumerate(raw["moe_layer_freq"] or ()) if not sparse]
    head = required(raw, "hidden_size") // required(raw, "num_attention_heads")
    rest = {name: value for name, value in raw.items() if name not in ("moe_layer_freq", "partial_rotary_factor")}
    return {"head_dim": head, **rest, "mlp_only_layers": dense}


def _moe_published(config: Any) -> Mapping[str, Any]:
    sparse = [int(i not in config.mlp_only_layers) for i in range(config.num_hidden_layers)]
    return {"moe_layer_freq": sparse, "norm_topk_prob": None}


LLADA_MOE = Decoder(
    name="llada_moe",
    config_class="Qwen3MoeConfig",
    published=LLADA_MOE_MODELS,
    mask=MASK,
    renamed={"expert_intermediate_size": "moe_intermediate_size", "dense_intermediate_size": "intermediate_size"},
    translate=_moe_fields,
    publish=_moe_published,
    only={
        "shared_expert_intermediate_size": None,
        "qk_layernorm": True,
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "routed_scaling_factor": 1.0,
        "clip_qkv": None,
        "rope_scaling": None,
        "attention_bias": False,
    },
    without=("router_num_group", "router_topk_group", "output_router_logits", "router_aux_loss_coef"),
    fixed={"decoder_sparse_step": 1, "norm_topk_prob": False},
    eos=EOS,
    ends=(ROLE_END,),
    ids={"mask_token_id": 156895, "eos_token_id": 156892},
    hidden_ratio=4,
    small={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    eps=1e-5,
    theta=50_000.0,
    tokenizer=lambda: byte_tokenizer(bos=None, eos=EOS, special=(ROLE_END, MASK)),
)
SDAR_MOE = Decoder(
    name="sdar_moe",
    config_class="Qwen3MoeConfig",
    published=SDAR_MOE_MODELS,
    mask="<|MASK|>",
    only={**SLIDING, "attention_bias": False},
    without=("block_size", "debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep",
             "output_router_logits", "router_aux_loss_coef", "max_window_layers"),
    eos=EOS,
    ends=(END,),
    ids={"mask_token_id": 151669, "eos_token_id": 151643},
    attention=blocks,
    small={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    theta=1_000_000.0,
    tokenizer=lambda: byte_tokenizer(bos=None, eos=EOS, special=("<|im_start|>", END, "<|MASK|>")),
)  # fmt: skip


# LLaDA2.x -------------------------------------------------------------------------------------------------------------


def _glm_fields(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the fields without the width of the rotated part, which must be what its share says."""
    if (wide := raw.get("rotary_dim")) is not None:
        head = raw.get("head_dim") or required(raw, "hidden_size") // required(raw, "num_attention_heads")
        if wide != int(head * raw.get("partial_rotary_factor", 1.0)):
            raise ConfigError(f"config.json: rotary_dim: {wide!r} is not partial_rotary_factor of head_dim {head}")
    return {name: value for name, value in raw.items() if name not in ("rotary_dim", "sliding_window")}


def _glm_shares(config: Any) -> dict[str, tuple[Share, ...]]:
    names = {
        "attention.dense.weight": "self_attn.o_proj.weight",
        "attention.query_layernorm.weight": "self_attn.q_norm.weight",
        "attention.key_layernorm.weight": "self_attn.k_norm.weight",
    }
    layers, head = config.num_hidden_layers, config.head_dim
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    out: dict[str, tuple[Share, ...]] = {"model.word_embeddings.weight": (Share("model.embed_tokens.weight"),)}
    out |= per_layer(layers, names, LAYER, LAYER)
    rows = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
    for i in range(layers):
        at = LAYER.format(i)
        out[f"{at}attention.query_key_value.weight"] = tuple(
            Share(f"{at}self_attn.{name}_proj.weight", (), span) for name, span in rows.items()
        )
    for i in range(config.first_k_dense_replace, layers):
        at = f"{LAYER.format(i)}mlp.gate."
        out[f"{at}expert_bias"] = (Share(f"{at}e_score_correction_bias"),)
    return out


def _blocks_of_32(raw: Mapping[str, Any]) -> Pattern | None:
    return BlockCausal(int(raw.get("block_size") or 32))


LLADA2 = Decoder(
    name="llada2_moe",
    config_class="Glm4MoeConfig",
    published=LLADA2_MODELS,
    mask=MASK,
    renamed={"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"},
    translate=_glm_fields,
    publish=lambda config: {"rotary_dim": int(config.head_dim * config.rope_parameters["partial_rotary_factor"])},
    only={
        "use_qkv_bias": False,
        "use_bias": False,
        "use_qk_norm": True,
        "use_rmsnorm": True,
        "use_sliding_window": False,
        "using_split_qkv_in_self_attention": False,
        "norm_head": False,
        "norm_softmax": False,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "rope_scaling": None,
    },
    without=(
        "_moe_implementation", "block_size", "max_window_layers", "output_router_logits", "router_dtype",
        "delete_token_id", "split_token_id", "sliding_window",
    ),
    fixed={"use_qk_norm": True, "num_nextn_predict_layers": 0, "attention_bias": False},
    shares=_glm_shares,
    eos=EOS,
    ends=(ROLE_END,),
    ids={"mask_token_id": 156895, "eos_token_id": 156892},
    attention=_blocks_of_32,
    small={
        "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
        "partial_rotary_factor": 0.5,
    },
    theta=600_000.0,
    tokenizer=lambda: byte_tokenizer(bos=None, eos=EOS, special=(ROLE_END, MASK)),
)  # fmt: skip
