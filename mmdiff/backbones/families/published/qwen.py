"""config.json of published models of Qwen's architectures, by hub id, and the values that all models of a family share.

They recognise a hub id without a download (`load_backbone.toy`), stand in for fields that a config.json leaves out, and
are what `original_format` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "use_sliding_window": False,
}
_QWEN2_7B: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
_DREAM: dict[str, Any] = {
    **_QWEN2_7B,
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "model_type": "Dream",
    "pad_token_id": 151643,
}
DREAM: Mapping[str, Mapping[str, Any]] = dict.fromkeys(
    [
        "Dream-org/Dream-v0-Base-7B",
        "Dream-org/Dream-v0-Instruct-7B",
        "Dream-org/Dream-Coder-v0-Instruct-7B",
        "Dream-org/DreamOn-v0-7B",
        "apple/DiffuCoder-7B-Base",
        "apple/DiffuCoder-7B-Instruct",
        "apple/DiffuCoder-7B-cpGRPO",
    ],
    _DREAM,
)
_SDAR: dict[str, Any] = {
    **_COMMON,
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "block_size": 4,
    "fuse_cross_entropy": True,
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "max_window_layers": 36,
    "model_type": "sdar",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_theta": 1000000,
    "vocab_size": 151936,
}
SDAR: Mapping[str, Mapping[str, Any]] = {
    "JetLM/SDAR-4B-Chat": _SDAR,
    "JetLM/SDAR-1.7B-Chat": _SDAR,
    "JetLM/SDAR-8B-Chat": _SDAR,
    "Gen-Verse/TraDo-4B-Instruct": _SDAR,
    "Gen-Verse/TraDo-8B-Instruct": _SDAR,
}
DREAM_VL: Mapping[str, Mapping[str, Any]] = {  # vl/eval/lmms_eval/dreamvl/config.json of DreamLM/Dream-VLX
    "Dream-org/Dream-VL-7B": {
        **{name: value for name, value in _DREAM.items() if name not in ("architectures", "auto_map")},
        "full_attn_mask": True,
        "image_token_id": 151655,
        "model_type": "dream-vl",
        "mrope_section": [16, 24, 24],
        "projector_hidden_act": "gelu",
        "video_token_id": 151656,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_act": "quick_gelu",
            "hidden_size": 3584,
            "in_chans": 3,
            "mlp_ratio": 4,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
        "vision_token_id": 151654,
    }
}
FAST_DLLM: Mapping[str, Mapping[str, Any]] = {
    "Efficient-Large-Model/Fast_dLLM_v2_7B": {
        **{name: value for name, value in _DREAM.items() if name != "mask_token_id"},
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration.Fast_dLLM_QwenConfig",
            "AutoModel": "modeling.Fast_dLLM_QwenModel",
            "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
        },
        "bd_size": 32,
        "conplemenrary_mask": True,
        "eos_token_id": 151645,
        "max_position_embeddings": 32768,
        "model_type": "Fast_dLLM_Qwen",
        "pad_token_id": 151645,
    }
}

SDAR_MOE: Mapping[str, Mapping[str, Any]] = {
    "JetLM/SDAR-30B-A3B-Chat": {
        **_SDAR,
        "architectures": ["SDARMoeForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_sdar_moe.SDARMoeConfig",
            "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM",
        },
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "sdar_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
}
_DIFFUSION_VL: dict[str, Any] = {  # Qwen2.5-7B-Instruct's, with what its training code adds for blocks
    **_QWEN2_7B,
    "architectures": ["DiffusionVLQwenForCausalLM"],
    "bd3lm_antithetic_sampling": True,
    "bd3lm_block_aligned_eos": True,
    "bd3lm_block_size": 8,
    "bd3lm_sampling_eps_max": 1.0,
    "bd3lm_sampling_eps_min": 0.001,
    "enable_bd3lm": True,
    "eos_token_id": 151645,
    "max_position_embeddings": 32768,
    "model_type": "diffusionvl_qwen",
    "sliding_window": 131072,
    "use_cache": True,
}
DIFFUSION_VL: Mapping[str, Mapping[str, Any]] = {"hustvl/DiffusionVL-Qwen2.5-7B": _DIFFUSION_VL}
