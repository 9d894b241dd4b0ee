"""Fields of config.json to the sizes of a decoder, without transformers: those that are plain, None for any other.

What is not plain (another architecture, a field of unknown effect, a value that transformers would complete or refuse)
is left to transformers, which has the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from mmdiff.backbones.families.decoder import NEEDED, Decoder
from mmdiff.backbones.families.options import with_options
from mmdiff.backbones.rope import checked_sections

from .dense import Dense
from .mixture import Mixture

CLASSES = {
    "LlamaConfig": "LlamaForCausalLM",
    "Qwen2Config": "Qwen2ForCausalLM",
    "Qwen3Config": "Qwen3ForCausalLM",
    "Ministral3Config": "Ministral3ForCausalLM",
    "Qwen3MoeConfig": "Qwen3MoeForCausalLM",
    "Glm4MoeConfig": "Glm4MoeForCausalLM",
}
WHOLE = frozenset(NEEDED[:-1])
FIELDS = WHOLE | frozenset(
    "rms_norm_eps num_key_value_heads head_dim hidden_act initializer_range tie_word_embeddings attention_bias "
    "mlp_bias attention_dropout rope_theta rope_scaling rope_parameters sliding_window use_sliding_window "
    "max_window_layers layer_types".split()
)
"""Fields of these classes whose effect is known here."""
QWEN_MOE = frozenset("num_experts num_experts_per_tok moe_intermediate_size".split())
GLM_MOE = frozenset("n_routed_experts n_shared_experts num_experts_per_tok moe_intermediate_size n_group "
                    "topk_group".split())  # fmt: skip
SPARSE: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "Qwen3MoeConfig": (QWEN_MOE, frozenset(["decoder_sparse_step", "mlp_only_layers", "norm_topk_prob"])),
    "Glm4MoeConfig": (
        GLM_MOE,
        frozenset(
            "first_k_dense_replace norm_topk_prob routed_scaling_factor partial_rotary_factor use_qk_norm "
            "num_nextn_predict_layers".split()
        ),
    ),
}
"""Further fields of mixtures: sizes, and others. All sizes are needed."""
ALIASES = {"num_local_experts": "num_experts"}
USUAL = {
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "output_attentions": False,
    "output_hidden_states": False, "problem_type": None, "return_dict": True,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "pretraining_tp": 1,
    "_name_or_path": "",
}  # fmt: skip
"""Fields of all classes, with what transformers writes for these models."""
YARN = frozenset("rope_type rope_theta factor original_max_position_embeddings beta_fast beta_slow mscale "
                 "mscale_all_dim llama_4_scaling_beta".split())  # fmt: skip


def plain_config(own: Decoder, raw: Mapping[str, Any]) -> SimpleNamespace | None:
    """Returns the fields of transformers' configuration that have an effect here; None for any that is not plain."""
    kind = own.config_class
    if kind not in CLASSES or raw.get("is_causal"):
        return None
    if any(name in raw and raw[name] != one for name, one in own.only.items()):
        return None
    sizes, others = SPARSE.get(kind, (frozenset(), frozenset()))
    fields: dict[str, Any] = {}
    for name, value in own.translate(raw).items():
        if name in (*own.only, *own.options) or own.without_effect(name) or (name in USUAL and value == USUAL[name]):
            if name != "norm_topk_prob":
                continue
        ours = own.renamed.get(name, name)
        if (ours := ALIASES.get(ours, ours) if kind == "Qwen3MoeConfig" else ours) not in FIELDS | sizes | others:
            return None
        if value is not None:
            fields[ours] = value
    fields |= own.fixed
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads") if own.name == "llada" else None)
    if not all(is_size(fields.get(name)) for name in (*WHOLE, "num_key_value_heads", *sizes)):
        return None
    if not _plain(own, fields):
        return None
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    head: Any = fields.get("head_dim") or (128 if kind == "Qwen3Config" else None if sizes else width // heads)
    if not is_size(head) or head % 2 or heads % fields["num_key_value_heads"]:
        return None
    if raw.get("mrope_section") is not None:
        checked_sections(raw["mrope_section"], head // 2)
    defaults = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
    config = SimpleNamespace(**{**defaults, **fields, "head_dim": head})
    if sizes and not _plain_mixture(config):
        return None
    plain: SimpleNamespace = with_options(config, own.options, raw, None)
    return plain


def _plain(own: Decoder, fields: Mapping[str, Any]) -> bool:
    flags = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
    every = ["full_attention"] * fields["num_hidden_layers"]
    rope = fields.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else fields.get("rope_theta")
    return (
        all(isinstance(fields.get(name, False), bool) for name in flags)
        and not fields.get("use_sliding_window")
        and not (own.config_class == "Ministral3Config" and fields.get("sliding_window"))
        and fields.get("hidden_act", "silu") == "silu"
        and fields.get("layer_types", every) == every
        and fields.get("rope_scaling") is None
        and isinstance(theta, int | float)
        and 0 < theta < float("inf")
        and _plain_rope(own, rope)
        and all(isinstance(fields.get(name, 0.0), float) for name in ("rms_norm_eps", "initializer_range"))
        and isinstance(fields.get("attention_dropout", 0.0), int | float)
        and all(is_size(fields.get(name, 1)) for name in ("sliding_window", "max_window_layers"))
    )


def _plain_rope(own: Decoder, rope: Any) -> bool:
    if own.config_class == "Ministral3Config":
        return isinstance(rope, Mapping) and rope.keys() == YARN and rope["rope_type"] == "yarn"
    known = {"rope_type", "rope_theta", *(["partial_rotary_factor"] if own.config_class == "Glm4MoeConfig" else [])}
    return rope is None or (rope.keys() == known and rope["rope_type"] == "default")


def _plain_mixture(of: SimpleNamespace) -> bool:
    """Returns whether a mixture is one; its `dense_layers` and `turned` are then known."""
    fields = vars(of)
    if not isinstance(fields.get("norm_topk_prob"), bool) or fields.get("decoder_sparse_step", 1) != 1:
        return False
    if hasattr(of, "num_experts"):
        listed = fields.get("mlp_only_layers", [])
        if not isinstance(listed, list) or not all(type(i) is int and 0 <= i < of.num_hidden_layers for i in listed):
            return False
        of.dense_layers, experts = frozenset(listed), of.num_experts
    else:
        rope, first = fields.get("rope_parameters"), fields.get("first_k_dense_replace")
        part = rope["partial_rotary_factor"] if rope else fields.get("partial_rotary_factor")
        if type(first) is not int or first < 0 or not isinstance(part, float) or not 0 < part <= 1:
            return False
        of.dense_layers, experts, of.turned = frozenset(range(first)), of.n_routed_experts, int(of.head_dim * part)
        fits = experts % of.n_group == 0 and experts // of.n_group > 1 and of.topk_group <= of.n_group
        scaled = isinstance(fields.get("routed_scaling_factor"), int | float)
        if not fits or not scaled or of.turned < 2 or of.turned % 2 or not of.norm_topk_prob:
            return False
    return len(of.dense_layers) < of.num_hidden_layers and of.num_experts_per_tok <= experts and not of.attention_bias


def is_size(value: Any) -> bool:
    """Returns whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def dense_of(own: Decoder, config: SimpleNamespace) -> Dense:
    """Returns the sizes of the model of a configuration."""
    kind = own.config_class
    return Dense(
        rows=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head=config.head_dim,
        wide=config.intermediate_size,
        tied=config.tie_word_embeddings,
        qkv_bias=kind == "Qwen2Config" or (kind in ("LlamaConfig", "Qwen3Config") and config.attention_bias),
        out_bias=kind in ("LlamaConfig", "Qwen3Config") and config.attention_bias,
        mlp_bias=kind == "LlamaConfig" and config.mlp_bias,
        norms=kind in ("Qwen3Config", *SPARSE),
        scaled=kind == "Ministral3Config",
        turned=getattr(config, "turned", None),
        mixture=_mixture_of(config) if kind in SPARSE else None,
    )


def _mixture_of(config: SimpleNamespace) -> Mixture:
    shared = getattr(config, "n_shared_experts", 0)
    return Mixture(
        experts=config.n_routed_experts if shared else config.num_experts,
        chosen=config.num_experts_per_tok,
        wide=config.moe_intermediate_size,
        dense=config.dense_layers,
        normalised=config.norm_topk_prob,
        groups=getattr(config, "n_group", 0),
        chosen_groups=getattr(config, "topk_group", 0),
        shared=shared * config.moe_intermediate_size,
    )
