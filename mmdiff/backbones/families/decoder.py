"""The common base of families: a decoder of transformers, with what its published checkpoints call differently.

A family is one `Decoder`. Its functions are those that `mmdiff.backbones.family.Family` asks for.

Shape letters: R rows, L canvas length, D width, V rows of the embedding table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.backbones import forward
from mmdiff.errors import ConfigError, nearest

from ..family import Facts, Sizes, checked_mask_id, first, required, token_id, transformers_config
from ..shares import Share, experts
from .options import check_options, stock_fields, with_options

if TYPE_CHECKING:
    from torch import Tensor

    from mmdiff.canvas.pattern import Pattern

IDS = ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
"""Fields that transformers makes one of."""
NEEDED = tuple(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
    "rms_norm_eps".split()
)
NO_EFFECT = frozenset(
    "architectures auto_map attn_implementation model_type torch_dtype dtype transformers_version use_cache is_causal "
    "reserve mmdiff lora_alpha quantization_config sep_token_id decoder_start_token_id tokenizer_class".split()
)
"""Fields of a config.json that change nothing in the arithmetic, or are read elsewhere."""


def unchanged(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the fields of a config.json as they are."""
    return raw


def nothing(_: Any) -> Any:
    """Returns what a family has that differs in nothing: no further names or fields."""
    return {}


@dataclass(frozen=True)
class Decoder:
    """A family. `raw` is a config.json as it was read, `config` the transformers one.

    name: the `model_type`. config_class: transformers' configuration. published: hub id -> config.json; the first of
        them is what `original_format` writes, with the sizes at hand.
    renamed: published field -> field of `config_class`. translate: makes of `raw` one without fields that need thought;
        publish: gives those of a `config` back.
    only: published fields with the one value that the class can express. without: published fields without effect on
        the arithmetic, as patterns. fixed: fields of the class that all models of the family have.
    shares: `config` -> {published tensor: the parameters, or parts of them, that it holds}, where names differ.
    elsewhere: patterns of published tensors that belong to another part of a model.
    mask, eos, ends: spellings of tokens. ids: the published ids, for a config.json and tokenizer that name none; they
        hold in a vocabulary of the published size.
    shift: the logits of position p come from hidden state p - shift; causal_shift: where it is run from left to right.
    attention: `raw` -> who sees whom. needed: fields of the class without a default that would be right for the family.
    options: what `options` of a backbone may hold, with defaults: `shift`, and `mask`, the spelling of the mask token
        that a tokenizer without one is given; null: the model has none, and its noise is uniform.
    block_field: the published field that holds the size of blocks. small: further fields of new models.
    usual: fields of the class that the published layout has no room for, with the value they must have there.
    hidden_ratio, theta, eps: of new models: the feed-forward's width over the model's, rope_theta, the norms' epsilon.
    tokenizer: of a toy twin.
    """

    name: str
    config_class: str
    published: Mapping[str, Mapping[str, Any]]
    mask: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    translate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = unchanged
    publish: Callable[[Any], Mapping[str, Any]] = nothing
    only: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    shares: Callable[[Any], Mapping[str, tuple[Share, ...]]] = nothing
    elsewhere: tuple[str, ...] = ()
    eos: str | None = None
    ends: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    shift: int = 0
    causal_shift: int | None = None
    attention: Callable[[Mapping[str, Any]], Pattern | None] = lambda raw: None
    usual: Mapping[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = NEEDED
    options: Mapping[str, Any] = field(default_factory=dict)
    block_field: str = "block_size"
    small: Mapping[str, Any] = field(default_factory=dict)
    hidden_ratio: float = 3
    theta: float = 10_000.0
    eps: float = 1e-6
    tokenizer: Callable[[], Any] | None = None

    AUTO_CLASS = "AutoModelForCausalLM"
    CACHES = forward.CACHES
    GROWS = LINEAR = forward.GROWS  # there is nothing but a table behind the body

    @property
    def PUBLISHED(self) -> Mapping[str, Mapping[str, Any]]:
        return self.published

    def settle(self, raw: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        return raw

    def config(self, raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        """Returns the transformers configuration of `raw`, published or of transformers' own fields.

        Raises ConfigError for a missing field, one that is not known, and one that the class cannot express.
        """
        check_options(self.name, self.options, options)
        if raw.get("is_causal"):
            raise ConfigError(
                "config.json: is_causal: true, expected false: diffusion needs attention in both directions"
            )
        own = self._fields()
        for name, one in self.only.items():
            if name in raw and raw[name] != one:
                what = "null" if one is None else repr(one)
                raise ConfigError(
                    f"config.json: {name}: {raw[name]!r}: {self.config_class} cannot express it, expected {what}"
                )
        fields: dict[str, Any] = {}
        known = {*own, *ROPE, *self.renamed, *self.only, *NO_EFFECT, *self.options}
        for name, value in self.translate(raw).items():
            if name in (*self.only, *self.options) or self.without_effect(name):
                continue
            if name not in known:
                hint = nearest(name, known)
                raise ConfigError(f"config.json: {name}: {self.name} has no such field, its effect is unknown{hint}")
            if value is not None:
                fields[self.renamed.get(name, name)] = value
        for name in self.needed:
            if name not in fields and name not in self.fixed:
                required(raw, name)
        if self.needed and fields.get("rope_parameters") is None:
            required(raw, "rope_theta")
        return with_options(self._made({**fields, **self.fixed}), self.options, raw, options)

    def new_config(self, sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
        """Returns the architecture at any size."""
        check_options(self.name, self.options, options)
        wide = int(self.hidden_ratio * sizes.hidden_size)
        fields = {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.hidden_size // sizes.heads,
            "intermediate_size": wide if sizes.intermediate_size is None else sizes.intermediate_size,
            "max_position_embeddings": sizes.max_length,
            "rope_theta": self.theta if sizes.rope_theta is None else sizes.rope_theta,
            "initializer_range": sizes.init_std,
            "rms_norm_eps": self.eps,
        }
        own = {*self._fields(), *ROPE, "head_dim"}
        kept = {name: value for name, value in fields.items() if name in own}
        return with_options(self._made({**kept, **self.small, **self.fixed}), self.options, {}, options)

    def facts(self, raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts:
        """Returns ids from config.json, then from the tokenizer, then (in the published vocabulary only) published.

        The beginning of a text is the tokenizer's alone: config.json often names an id of another vocabulary.
        """
        base, chosen = next(iter(self.published.values()), {}), getattr(config, "mmdiff", {})
        ids = self.ids if config.vocab_size == base.get("vocab_size") else {}
        mask = first(checked_mask_id(raw, tokenizer, self.mask), tokenizer.mask_token_id, ids.get("mask_token_id"))
        masks = chosen.get("mask", "") is not None
        if masks and mask is None and "mask" in chosen:  # a model that never had one
            tokenizer.add_special_tokens({"mask_token": str(chosen["mask"])})
            mask = tokenizer.mask_token_id
        given = raw.get("eos_token_id")
        ends = list(given) if isinstance(given, list) else [given]
        spelled = None if self.eos is None else token_id(tokenizer, self.eos)
        eos = first(*ends, tokenizer.eos_token_id, spelled, ids.get("eos_token_id"))
        found = Facts.found(
            mask_id=mask if masks else None,
            masks=masks,
            eos_id=eos,
            pad_id=first(raw.get("pad_token_id"), tokenizer.pad_token_id),
            bos_id=tokenizer.bos_token_id,
            end_ids=(eos, *ends, *(token_id(tokenizer, end) for end in self.ends)),
            max_length=config.max_position_embeddings,
        )
        found = replace(found, causal_shift=self.causal_shift, attention=self.attention(raw))
        return replace(found, shift=chosen.get("shift", self.shift))

    def published_config(self, config: Any, facts: Facts) -> dict[str, Any]:
        """Returns the config.json that the family's own code reads. Raises ConfigError for what it has no field for."""
        base = dict(next(iter(self.published.values()), {}))
        if not base:  # of no published layout: transformers' own
            return stock_fields(config) | {"mask_token_id": facts.mask_id, "eos_token_id": facts.eos_id}
        usual = {"head_dim": config.hidden_size // config.num_attention_heads, **self.usual}
        for name, one in usual.items():
            value = getattr(config, name, one)
            if name not in base and name not in self.renamed.values() and value != one:
                raise ConfigError(f"original_format: {name}: {value!r}, the published layout has {one!r} only")
        rope = config.rope_parameters
        if (kind := rope["rope_type"]) != "default" and "rope_parameters" not in base:
            raise ConfigError(f"original_format: the published layout has no {kind!r} rope")
        own = self._fields()
        ids = dict(zip(IDS, (facts.mask_id, facts.eos_id, facts.pad_id, facts.bos_id), strict=True))
        # Qwen's tokenizers have no bos, and its config.json names one of no effect
        ids["bos_token_id"] = facts.eos_id if facts.bos_id is None else facts.bos_id
        ids = {name: value for name, value in ids.items() if name in base or name == "mask_token_id"}
        out: dict[str, Any] = {}
        for name, value in base.items():
            ours = self.renamed.get(name, name)
            if name == "rope_parameters":
                value = dict(rope)
            elif name in rope:
                value = rope[name]
            elif name in ids:
                value = ids[name]
            elif ours in own and name not in NO_EFFECT:
                value = getattr(config, ours)
            out[name] = value
        return {**out, **ids, **self.fields_of(facts), **self.publish(config)}

    def fields_of(self, facts: Facts) -> dict[str, Any]:
        """Returns fields of config.json that hold facts: the size of blocks."""
        size = getattr(facts.attention, "size", None)
        chosen: dict[str, Any] = {"shift": facts.shift} if "shift" in self.options else {}
        chosen |= {"mask": None} if facts.mask_id is None else {}
        return chosen if size is None else {**chosen, self.block_field: size}

    def published_names(self, config: Any) -> Mapping[str, tuple[Share, ...]]:
        """Returns {published tensor: the parts of parameters that it holds}, of all parameters of the model."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config)
        return self.names_of(config, {name: tuple(value.shape) for name, value in made.named_parameters()})

    def names_of(self, config: Any, sizes: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[Share, ...]]:
        """Returns the same of a model whose parameters have these shapes."""
        shares = dict(self.shares(config))
        for name, shape in sizes.items():
            if name.endswith(merged := "gate_up_proj"):
                shares |= experts(name.removesuffix(merged), shape[0], shape[1] // 2)
        held = {share.ours for group in shares.values() for share in group}
        return {**shares, **{name: (Share(name),) for name in sizes if name not in held}}

    def is_elsewhere(self, name: str) -> bool:
        return any(re.match(pattern, name) for pattern in self.elsewhere)

    def toy_options(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def toy_tokenizer(self) -> Any:
        assert self.tokenizer is not None
        return self.tokenizer()

    def folder_tokenizer(self, folder: Path) -> Any:
        return None

    def finished(self, model: Any) -> Any:
        return model

    def embed(self, model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor:
        return forward.embed(model, ids_RL, attend_RL)

    def run(self, *args: Any) -> Any:
        return forward.run(*args)

    def head(self, model: Any, h: Tensor, ids_K: Tensor | None = None) -> Tensor:
        return forward.head(model, h, ids_K)

    def _made(self, fields: Mapping[str, Any]) -> Any:
        """Returns a configuration that names no padding id: with one, transformers would keep the gradient from that
        row of the embedding table, and answers are filled up with the end-of-sequence id, which has to be learnt.
        """
        none = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        config = transformers_config(self.config_class, **{**none, **fields})
        if sliding := {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
            raise ConfigError(f"config.json: layer_types: {min(sliding)!r}, expected full attention in all layers")
        forward.check_head(config)
        return config

    def _fields(self) -> set[str]:
        import transformers

        made = getattr(transformers, self.config_class)
        return {*made().to_dict(), *made.attribute_map, "head_dim"}

    def without_effect(self, name: str) -> bool:
        """Returns whether a published field changes nothing in the arithmetic."""
        return name in NO_EFFECT or any(re.fullmatch(pattern, name) for pattern in (r"\w+_token_id", *self.without))
