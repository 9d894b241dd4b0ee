"""config.json of released multimodal checkpoints, by hub id: what a toy twin is made of where no folder is here.

The fields are those that the released training code writes (`train.py` of each repository, with the arguments of its
scripts); sizes are those of LLaDA-8B, Dream 7B and Qwen2.5 7B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdiff.backbones.families.published.gemma import DIFFUSION_GEMMA
from mmdiff.backbones.families.published.llada import LLADA_8B
from mmdiff.backbones.families.published.qwen import DIFFUSION_VL, DREAM, DREAM_VL

from .llava import MUST

_PICTURES: dict[str, Any] = {
    **MUST,
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "mm_hidden_size": 1152,
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": None,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_vision_tower_lr": 2e-06,
    "torch_dtype": "bfloat16",
    "use_mm_proj": True,
    "vision_tower_pretrained": None,
}
_LLADA_V: dict[str, Any] = {
    **_PICTURES,
    "architectures": ["LlavaLLaDAModelLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": LLADA_8B["eos_token_id"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": [[384 * w, 384 * h] for w in range(1, 7) for h in range(1, 7)],
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 16384,
    "mm_vision_tower": "google/siglip2-so400m-patch14-384",
    "model_type": "llava_llada",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": 126464,
}
_LAVIDA: dict[str, Any] = {
    **_PICTURES,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
    "mm_pooler_ratio": 2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
}
_ANY = {name: _LLADA_V[name] for name in ("image_aspect_ratio", "image_grid_pinpoints", "mm_vision_tower")}
RELEASED: Mapping[str, Mapping[str, Any]] = {
    "GSAI-ML/LLaDA-V": _LLADA_V,
    "XZDong123/LLaDA-MedV": _LLADA_V,
    "jacklishufan/lavida-llada-v1.0-instruct": {
        **LLADA_8B,
        **_LAVIDA,
        "architectures": ["LlavaLladaForMaskedDiffusion"],
        "model_type": "llava_llada",
    },
    "jacklishufan/lavida-dream-v1.0-instruct": {
        **next(iter(DREAM.values())),
        **_LAVIDA,
        "architectures": ["LlavaDreamForMaskedDiffusion"],
        "model_type": "llava_dream",
    },
    **{name: {**_PICTURES, **_ANY, **raw} for name, raw in DIFFUSION_VL.items()},
    **DREAM_VL,
    **DIFFUSION_GEMMA,
}
