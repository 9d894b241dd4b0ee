"""Folders of wav2vec 2.0, HuBERT and WavLM as Hugging Face publishes them, under the names of torchaudio's models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiff.backbones.weights import read_json
from mmdiff.errors import ConfigError
from mmdiff.model.published.tensors import tensor_files, tensors_around

THEIRS = {
    "extractor_conv_bias": "conv_bias",
    "encoder_embed_dim": "hidden_size",
    "encoder_pos_conv_kernel": "num_conv_pos_embeddings",
    "encoder_pos_conv_groups": "num_conv_pos_embedding_groups",
    "encoder_num_layers": "num_hidden_layers",
    "encoder_num_heads": "num_attention_heads",
    "encoder_ff_interm_features": "intermediate_size",
    "encoder_layer_norm_first": "do_stable_layer_norm",
    "encoder_num_buckets": "num_buckets",
    "encoder_max_distance": "max_bucket_distance",
}
FIXED = {  # what torchaudio's models always are
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
}
FIRST = "feature_projection.projection.weight"


def published_config(weights: str) -> dict[str, Any] | None:
    """Returns the arguments of torchaudio's models for `config.json`; None without that file.

    Raises ConfigError for settings that those models do not have.
    """
    tensor_files(weights)  # raises for missing files
    where = Path(weights) / "config.json"
    if not where.is_file():
        return None
    from transformers import AutoConfig

    content = read_json(where)
    families = ("wav2vec2", "hubert", "wavlm")
    family = content.get("model_type")
    if family not in families:
        raise ConfigError(f"{where}: model_type: {family!r} is not one of {', '.join(families)}")
    facts = {**AutoConfig.for_model(family).to_dict(), **content}
    for key, value in FIXED.items():
        if facts.get(key, value) != value:
            raise ConfigError(f"{where}: {key}: {facts[key]!r}, but torchaudio's models have {value!r}")
    sizes = [facts[key] for key in ("conv_dim", "conv_kernel", "conv_stride")]
    if len({len(of_layer) for of_layer in sizes}) > 1:
        raise ConfigError(f"{where}: conv_dim, conv_kernel and conv_stride are not of one length")
    return {
        "extractor_mode": f"{facts['feat_extract_norm']}_norm",
        "extractor_conv_layer_config": [list(conv) for conv in zip(*sizes, strict=True)],
        **{ours: facts[theirs] for ours, theirs in THEIRS.items() if theirs in facts},
    }


def published_normalize(weights: str) -> bool | None:
    """Returns `do_normalize` of `preprocessor_config.json`, whether recordings are normalised; None without it."""
    file = Path(weights) / "preprocessor_config.json"
    return read_json(file).get("do_normalize") if file.is_file() else None


def published_tensors(weights: str, relative: bool) -> dict[str, Tensor]:
    """Returns the tensors under torchaudio's names, whatever the prefix: none, `wav2vec2.`, `hubert.`."""
    found = tensors_around(weights, FIRST, "speech model")
    tensors = {_renamed(name): value for name, value in found.items()}
    return _joined(tensors) if relative else tensors


def _renamed(name: str) -> str:
    name = name.replace(".weight_g", ".parametrizations.weight.original0")
    name = name.replace(".weight_v", ".parametrizations.weight.original1")
    if name.startswith("encoder."):
        return f"encoder.transformer.{name.removeprefix('encoder.')}"
    return f"encoder.{name}" if name.startswith("feature_projection.") else name


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with query, key and value of WavLM's attention as the one matrix of `nn.MultiheadAttention`."""
    joined = dict(tensors)
    for name in tensors:
        if name.endswith((".attention.q_proj.weight", ".attention.q_proj.bias")):
            kind = name.rpartition(".")[2]
            stem = name.removesuffix(f"q_proj.{kind}")
            parts = [f"{stem}{letter}_proj.{kind}" for letter in "qkv"]
            if all(part in joined for part in parts):
                joined[f"{stem}attention.in_proj_{kind}"] = torch.cat([joined.pop(part) for part in parts])
        elif ".attention.out_proj." in name:
            joined[name.replace(".attention.out_proj.", ".attention.attention.out_proj.")] = joined.pop(name)
    return joined
