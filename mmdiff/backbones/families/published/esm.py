"""config.json of ESM-2, DSM and DPLM, by hub id, and the values that all models of a family share.

They recognise a hub id without a download (`load_backbone.toy`), stand in for fields that a config.json leaves out, and
are what `original_format` writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ESM_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ESM_COMMON: dict[str, Any] = {
    "architectures": ["EsmForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": None,
    "emb_layer_norm_before": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "is_folding_model": False,
    "layer_norm_eps": 1e-05,
    "mask_token_id": 32,
    "max_position_embeddings": 1026,
    "model_type": "esm",
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "vocab_size": 33,
}


def _esm(layers: int, width: int, heads: int, **more: Any) -> dict[str, Any]:
    return {**ESM_COMMON, **dict(zip(ESM_SIZES, (width, layers, heads, 4 * width), strict=True)), **more}


_DSM = {
    "model_type": "esm_diff",
    "architectures": ["ESM_Diff"],
    "at_vocab_size": 30000,
    "num_at_layers": 1,
    "tie_word_embeddings": False,
}
_DPLM = {"architectures": ["EsmForDPLM"]}
ESM: Mapping[str, Mapping[str, Any]] = {
    "facebook/esm2_t6_8M_UR50D": _esm(6, 320, 20),
    "facebook/esm2_t12_35M_UR50D": _esm(12, 480, 20),
    "facebook/esm2_t30_150M_UR50D": _esm(30, 640, 20),
    "facebook/esm2_t33_650M_UR50D": _esm(33, 1280, 20),
    "facebook/esm2_t36_3B_UR50D": _esm(36, 2560, 40),
    "GleghornLab/DSM_150": _esm(30, 640, 20, **_DSM),
    "GleghornLab/DSM_650": _esm(33, 1280, 20, **_DSM),
    "GleghornLab/DSM_150_ppi_lora": _esm(30, 640, 20, **_DSM),
    "GleghornLab/DSM_650_ppi_lora": _esm(33, 1280, 20, **_DSM),
    "Synthyra/DSM_ppi_full": _esm(33, 1280, 20, **_DSM),
    "airkingbd/dplm_150m": _esm(30, 640, 20, **_DPLM),
    "airkingbd/dplm_650m": _esm(33, 1280, 20, **_DPLM),
    "airkingbd/dplm_3b": _esm(36, 2560, 40, **_DPLM),
}

KNOWN = frozenset(
    "_name_or_path add_cross_attention auto_map chunk_size_feed_forward dtype esmfold_config id2label is_causal "
    "is_decoder is_encoder_decoder label2id mmdiff output_attentions output_hidden_states problem_type reserve "
    "quantization_config return_dict rope_theta tie_word_embeddings torch_dtype transformers_version use_cache "
    "vocab_list".split()
) | {*ESM_COMMON, *ESM_SIZES}
WITHOUT_EFFECT = re.compile(
    r"\w+_token_id|(num_)?at_\w+|lora_\w+|classifier_\w+|num_labels|finetuning_task|gradient_checkpointing|torchscript"
)
"""Fields of transformers' configuration, and others, by pattern, that change nothing of states and logits: DSM's
annotations (`at_vocab_size`), of training, of other heads."""


def unknown_field(raw: Mapping[str, Any]) -> str | None:
    """Returns a field of a config.json whose effect is not known; None where there is none."""
    return next((name for name in raw if name not in KNOWN and not WITHOUT_EFFECT.fullmatch(name)), None)
