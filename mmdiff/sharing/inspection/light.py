"""What a folder is without torch and transformers, which take seconds to import: dense decoders, as most are published.

Fields of config.json, ids of tokenizer.json and names in the heads of weight files are data, and the memory of these
models is arithmetic (`dense.py`). Whatever is not plain here (another architecture, a field of unknown effect, a
tokenizer that transformers would complete) is left to `thorough.py`, which has the same answers for all families.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmdiff.backbones.bounds import SLACK_NUMBERS, SLACK_TENSORS
from mmdiff.backbones.families.decoder import NEEDED, Decoder
from mmdiff.backbones.families.options import with_options
from mmdiff.backbones.family import Family
from mmdiff.backbones.shares import Outline
from mmdiff.backbones.weights import Header, match
from mmdiff.errors import UserError
from mmdiff.model.published.llava import is_multimodal

from .dense import Dense, memory_of
from .folder import Folder, NoTokenizer, Seen, has_tokenizer
from .strict import read_object

CLASSES = {
    "LlamaConfig": "LlamaForCausalLM",
    "Qwen2Config": "Qwen2ForCausalLM",
    "Qwen3Config": "Qwen3ForCausalLM",
    "Ministral3Config": "Ministral3ForCausalLM",
}
WHOLE = frozenset(NEEDED[:-1])
FIELDS = WHOLE | frozenset(
    "rms_norm_eps num_key_value_heads head_dim hidden_act initializer_range tie_word_embeddings attention_bias "
    "mlp_bias attention_dropout rope_theta rope_scaling rope_parameters sliding_window use_sliding_window "
    "max_window_layers layer_types".split()
)
"""Fields of these classes whose effect is known here."""
USUAL = {
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "output_attentions": False,
    "output_hidden_states": False, "problem_type": None, "return_dict": True,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "pretraining_tp": 1,
    "_name_or_path": "",
}  # fmt: skip
"""Fields of all classes, with what transformers writes for these models."""
YARN = frozenset("rope_type rope_theta factor original_max_position_embeddings beta_fast beta_slow mscale "
                 "mscale_all_dim llama_4_scaling_beta".split())  # fmt: skip
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
SPECIAL = ("eos_token", "pad_token", "bos_token", "mask_token", "unk_token")
GENERIC, KNOWN = ("PreTrainedTokenizerFast", "TokenizersBackend"), ("Qwen2Tokenizer", "Qwen2TokenizerFast")
"""Classes of tokenizers: those whose special tokens are the named ones, and those that have defaults for some."""


def look(folder: Folder, raw: Mapping[str, Any], own: Family, headers: list[Header], dtype: str) -> Seen | None:
    """Returns what there is to see; None where torch is needed for it, or for the error that there is."""
    if not isinstance(own, Decoder) or folder.described or is_multimodal(raw):
        return None
    try:
        tokenizer = read_tokenizer(folder.home) if has_tokenizer(folder.home, own) else NoTokenizer()
        config = plain_config(own, raw)
        if tokenizer is None or config is None:
            return None
        model = dense_of(own, config)
        shapes = model.shapes
        numbers, there = sum(map(prod, shapes.values())), sum(prod(h.shape) for h in headers)
        if numbers > 2 * there + SLACK_NUMBERS or len(shapes) > 4 * len(headers) + SLACK_TENSORS:
            return None
        return Seen(
            tokenizer=tokenizer,
            facts=own.facts(raw, config, tokenizer),
            rows=model.rows,
            kind=CLASSES[own.config_class],
            parameters=numbers,
            found=match(_Model(shapes), headers, own.names_of(config, shapes), own.is_elsewhere),
            memory=lambda of: memory_of(model, WIDTHS[dtype], of),
        )
    except UserError:
        return None


class _Model:
    """What `match` asks of a model."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def named_parameters(self) -> list[tuple[str, Outline]]:
        return [(name, Outline(shape)) for name, shape in self.shapes.items()]

    def named_buffers(self) -> list[tuple[str, Outline]]:
        return []

    def state_dict(self) -> dict[str, Outline]:
        return {}


# Fields ---------------------------------------------------------------------------------------------------------------


def plain_config(own: Decoder, raw: Mapping[str, Any]) -> SimpleNamespace | None:
    """Returns the fields of transformers' configuration that have an effect here; None for any that is not plain."""
    if own.config_class not in CLASSES or raw.get("is_causal"):
        return None
    if any(name in raw and raw[name] != one for name, one in own.only.items()):
        return None
    fields: dict[str, Any] = {}
    for name, value in own.translate(raw).items():
        if name in (*own.only, *own.options) or own.without_effect(name) or (name in USUAL and value == USUAL[name]):
            continue
        if (ours := own.renamed.get(name, name)) not in FIELDS:
            return None
        if value is not None:
            fields[ours] = value
    fields |= own.fixed
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads") if own.name == "llada" else None)
    if not all(_is_size(fields.get(name)) for name in (*WHOLE, "num_key_value_heads")) or not _plain(own, fields):
        return None
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    head = fields.get("head_dim") or (128 if own.config_class == "Qwen3Config" else width // heads)
    if not _is_size(head) or head % 2 or heads % fields["num_key_value_heads"]:
        return None
    defaults = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
    config = SimpleNamespace(**{**defaults, **fields, "head_dim": head})
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
        and all(_is_size(fields.get(name, 1)) for name in ("sliding_window", "max_window_layers"))
    )


def _plain_rope(own: Decoder, rope: Any) -> bool:
    if own.config_class == "Ministral3Config":
        return isinstance(rope, Mapping) and rope.keys() == YARN and rope["rope_type"] == "yarn"
    return rope is None or (rope.keys() == {"rope_type", "rope_theta"} and rope["rope_type"] == "default")


def _is_size(value: Any) -> bool:
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
        qkv_bias=kind == "Qwen2Config" or (kind != "Ministral3Config" and config.attention_bias),
        out_bias=kind in ("LlamaConfig", "Qwen3Config") and config.attention_bias,
        mlp_bias=kind == "LlamaConfig" and config.mlp_bias,
        norms=kind == "Qwen3Config",
        scaled=kind == "Ministral3Config",
    )


# The tokenizer --------------------------------------------------------------------------------------------------------


class Ids:
    """A tokenizer.json: what a family asks of a tokenizer."""

    def __init__(self, core: Any, special: Mapping[str, str | None]) -> None:
        self.core = core
        for name, token in special.items():
            setattr(self, f"{name}_id", None if token is None else core.token_to_id(token))

    def __len__(self) -> int:
        return int(self.core.get_vocab_size(with_added_tokens=True))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        found: int | None = self.core.token_to_id(token)
        return found

    def convert_ids_to_tokens(self, index: int) -> str | None:
        found: str | None = self.core.id_to_token(index)
        return found

    def add_special_tokens(self, added: Mapping[str, str]) -> None:
        for name, token in added.items():
            self.core.add_special_tokens([token])
            setattr(self, f"{name}_id", self.core.token_to_id(token))


def read_tokenizer(home: Path) -> Ids | None:
    """Returns the tokenizer of a folder; None where transformers would make another of its files."""
    others = [home / name for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer.model")]
    if not (home / "tokenizer.json").is_file() or any(map(Path.exists, others)):
        return None
    named = read_object(home / "tokenizer_config.json") if (home / "tokenizer_config.json").is_file() else {}
    if (kind := named.get("tokenizer_class")) not in (*GENERIC, *KNOWN) or "auto_map" in named:
        return None
    if kind in KNOWN and not {"eos_token", "pad_token", "bos_token"} <= named.keys():
        return None
    special = {name: _spelled(named.get(name)) for name in SPECIAL}
    more = named.get("additional_special_tokens") or named.get("extra_special_tokens") or []
    decoder = named.get("added_tokens_decoder") or {}
    try:
        from tokenizers import Tokenizer

        core = Tokenizer.from_file(str(home / "tokenizer.json"))
        core.decode(core.encode("a").ids)
        listed = [_spelled(token) for token in (more.values() if isinstance(more, Mapping) else more)]
        every = [*filter(None, special.values()), *listed]
        if any(token is None or core.token_to_id(token) is None for token in every):
            return None
        if any(core.token_to_id(token["content"]) != int(i) for i, token in decoder.items()):
            return None
    except BaseException as error:  # of tokenizers, written in Rust: bare ones, and panics, which are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return None
    return Ids(core, special)


def _spelled(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None
