"""LLaDA-8B, LLaDA-1.5 and LLaDA-V's language model: transformers' Llama without its causal mask.

Published checkpoints (Nie et al., arXiv 2502.09992; hub ids in `PUBLISHED`) name fields and tensors as OLMo does.
LLaDA-V (arXiv 2505.16933) publishes Llama's names. The arithmetic is Llama's in both: RMSNorm, rotary halves, SwiGLU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError

from .family import Facts, Sizes, checked_mask_id, required, token_id, transformers_config
from .forward import CACHES, GROWS, embed, head, run
from .published import LLADA, LLADA_8B, LLADA_REQUIRED

__all__ = ["CACHES", "GROWS", "embed", "head", "run"]  # as every decoder does it
PUBLISHED = LLADA
AUTO_CLASS = "AutoModelForCausalLM"

MASK, BOS, EOS, EOT = "<|mdm_mask|>", "<|startoftext|>", "<|endoftext|>", "<|eot_id|>"
HEADER = ("<|start_header_id|>", "<|end_header_id|>")

_RENAMED = {  # fields, published -> Llama
    "embedding_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "weight_tying": "tie_word_embeddings",
    "attention_dropout": "attention_dropout",
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
_REQUIRED_LLAMA = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
    "rms_norm_eps"
).split()
_OPTIONAL_LLAMA = (
    "num_key_value_heads head_dim hidden_act rope_theta rope_scaling rope_parameters attention_bias attention_dropout "
    "mlp_bias tie_word_embeddings initializer_range"
).split()
_VISION = ("model.vision_tower.", "model.mm_projector.", "model.vision_resampler.", "model.image_newline")


def config(raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """Returns a `LlamaConfig` with `is_causal=False`, from a published config.json or one with Llama's fields.

    Raises ConfigError for fields a Llama cannot express and for those that are not there.
    """
    _no_options(options)
    if "d_model" not in raw:
        return _from_llama_fields(raw)
    for name, only in LLADA_REQUIRED.items():
        if required(raw, name) != only:
            raise ConfigError(f"config.json: {name}: {raw[name]!r} has no Llama equivalent, expected {only!r}")
    for name in ("clip_qkv", "rope_scaling"):
        if raw.get(name) is not None:
            raise ConfigError(f"config.json: {name}: {raw[name]!r} has no Llama equivalent, expected null")
    heads = required(raw, "n_heads")
    in_place_of_null = {
        "n_kv_heads": 1 if raw.get("multi_query_attention") else heads,
        "mlp_hidden_size": (raw.get("mlp_ratio") or 4) * required(raw, "d_model"),
        "embedding_size": raw.get("vocab_size"),
    }
    raw = in_place_of_null | {name: value for name, value in raw.items() if value is not None}
    return _llama(
        **{llama: required(raw, name) for name, llama in _RENAMED.items()}, rope_theta=required(raw, "rope_theta")
    )


def new_config(sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
    """Returns a `LlamaConfig` with `is_causal=False`; its feed-forward is three times as wide, LLaDA-8B's ratio."""
    _no_options(options)
    return _llama(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=3 * sizes.hidden_size if sizes.intermediate_size is None else sizes.intermediate_size,
        max_position_embeddings=sizes.max_length,
        rope_theta=500_000.0 if sizes.rope_theta is None else sizes.rope_theta,
        initializer_range=sizes.init_std,
        rms_norm_eps=1e-5,
    )


def facts(raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts:
    """Returns ids from config.json, then from the tokenizer, then (in the published vocabulary only) LLaDA-8B's.

    The beginning of a text is the tokenizer's alone: LLaDA-V's config.json names an id of another vocabulary.
    """
    published = LLADA_8B if config.vocab_size == LLADA_8B["vocab_size"] else {}
    mask = _first(checked_mask_id(raw, tokenizer, MASK), tokenizer.mask_token_id, published.get("mask_token_id"))
    ends = raw.get("eos_token_id")
    ends = list(ends) if isinstance(ends, list) else [ends]
    eos = _first(*ends, tokenizer.eos_token_id, published.get("eos_token_id"))
    return Facts.found(
        mask_id=mask,
        eos_id=eos,
        pad_id=_first(raw.get("pad_token_id"), tokenizer.pad_token_id),
        bos_id=tokenizer.bos_token_id,
        end_ids=(eos, *ends, token_id(tokenizer, EOT)),
        max_length=config.max_position_embeddings,
    )


def published_config(config: Any, facts: Facts) -> dict[str, Any]:
    """Returns the config.json that LLaDA's own code reads. Raises ConfigError for what it has no field for."""
    usual = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    usual["head_dim"] = config.hidden_size // config.num_attention_heads
    for name, only in usual.items():
        if getattr(config, name) != only:
            raise ConfigError(
                f"original_format: {name}: {getattr(config, name)!r}, the published layout has {only!r} only"
            )
    if config.rope_parameters["rope_type"] != "default":
        raise ConfigError(f"original_format: the published layout has no {config.rope_parameters['rope_type']!r} rope")
    return (
        LLADA_8B
        | {theirs: getattr(config, llama) for theirs, llama in _RENAMED.items()}
        | {
            "vocab_size": config.vocab_size,
            "rope_theta": config.rope_parameters["rope_theta"],
            "mask_token_id": facts.mask_id,
            "eos_token_id": facts.eos_id,
            "pad_token_id": facts.pad_id,
        }
    )


def published_names(config: Any) -> dict[str, str]:
    """Returns `{"model.transformer.blocks.3.attn_out.weight": "model.layers.3.self_attn.o_proj.weight", ...}`."""
    names = {"model.transformer.wte.weight": "model.embed_tokens.weight"}
    for layer in range(config.num_hidden_layers):
        for theirs, llama in _LAYER.items():
            for kind in _kinds(config, llama):
                names[f"model.transformer.blocks.{layer}.{theirs}.{kind}"] = f"model.layers.{layer}.{llama}.{kind}"
    names["model.transformer.ln_f.weight"] = "model.norm.weight"
    if not config.tie_word_embeddings:
        names["model.transformer.ff_out.weight"] = "lm_head.weight"
    return names


def settle(raw: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    return raw


def folder_tokenizer(folder: Path) -> Any:
    return None


def toy_options(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def finished(model: Any) -> Any:
    return model


def is_elsewhere(name: str) -> bool:
    """Returns whether a tensor is of the vision tower or projector, which LLaDA-V's files hold too."""
    return name.startswith(_VISION)


def toy_tokenizer() -> Any:
    """Returns a tokenizer of one id per byte, then LLaDA's special tokens: it encodes any text and needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        additional_special_tokens=[*HEADER, EOT, MASK],
    )


def _no_options(options: Mapping[str, Any] | None) -> None:
    if options:
        raise ConfigError(f"options.{next(iter(options))}: LLaDA has no options")


def _from_llama_fields(raw: Mapping[str, Any]) -> Any:
    if raw.get("is_causal"):
        raise ConfigError("config.json: is_causal: true, expected false: diffusion needs attention in both directions")
    sizes = {name: required(raw, name) for name in _REQUIRED_LLAMA}
    if raw.get("rope_parameters") is None:
        required(raw, "rope_theta")
    return _llama(**sizes, **{name: raw[name] for name in _OPTIONAL_LLAMA if name in raw})


def _llama(**architecture: Any) -> Any:
    """Returns a `LlamaConfig` that names no padding id: with one, transformers would keep the gradient from that row of
    the embedding table, and LLaDA fills answers up with the end-of-sequence id it has to learn.
    """
    return transformers_config("LlamaConfig", pad_token_id=None, bos_token_id=None, eos_token_id=None, **architecture)


def _first(*values: Any) -> int | None:
    return next((int(value) for value in values if value is not None), None)


def _kinds(config: Any, llama: str) -> tuple[str, ...]:
    bias = config.attention_bias if llama.startswith("self_attn.") else config.mlp_bias and llama.startswith("mlp.")
    return ("weight", "bias") if bias else ("weight",)
