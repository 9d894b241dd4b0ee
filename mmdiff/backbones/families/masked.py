"""Masked language models of transformers as they are: BERT, RoBERTa, XLM-R, DistilBERT, ModernBERT and their kin.

They were trained to fill in some masked tokens; every position sees every other, and logits are not shifted. A folder
in transformers' layout is read, and saved so that `AutoModelForMaskedLM` reads it. `MASKED` of
`mmdiff.backbones.family` lists them: those of transformers' masked language models that attend as a mask of pairs says,
so that documents of a packed row are kept apart, under sdpa and eager. MobileBERT is not among them, whose embeddings
look at their neighbours, and those are not whose attention is of another kind or takes no mask of pairs.

[SEP] or </s> ends an answer, [CLS] or <s> begins a text. Dropout is off: a noised copy is noise enough, and a gradient
must not depend on how a step is split.

Shape letters: R rows, L canvas length, D width, V rows of the embedding table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError, DataError, nearest

from ..family import Facts, Sizes, checked_mask_id, required, transformers_config
from ..shares import Share
from .decoder import NO_EFFECT
from .published.masked import ELSEWHERE, HEADS, HUB, NEEDED, OFFSET, ONLY, READ, WITHOUT_EFFECT, names_of
from .tokenizers import byte_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def run_body(model: Any, **inputs: Any) -> Any:
    """Returns the output of the body, without the head."""
    return model.base_model(**inputs)


@dataclass(frozen=True)
class MaskedLM:
    """The family of a `model_type`. Its functions are those that `mmdiff.backbones.family.Family` asks for.

    body: runs the model without its head on `inputs_embeds`, `attention_mask` and so on. tokenizer: of a toy twin;
    None: one id per byte, and BERT's special tokens.
    """

    name: str
    body: Callable[..., Any] = run_body
    tokenizer: Callable[[], Any] | None = None

    AUTO_CLASS = "AutoModelForMaskedLM"
    CACHES = False  # an encoder runs all positions
    GROWS = False  # the head has a bias as well

    @property
    def PUBLISHED(self) -> Mapping[str, Mapping[str, Any]]:
        return {HUB[self.name]: {"model_type": self.name}} if self.name in HUB else {}

    def settle(self, raw: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        return raw

    def config(self, raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        """Returns the transformers configuration without dropout; its field `mmdiff` holds what `raw` had besides.

        Raises ConfigError for a missing size, a field that is not known, and one that the class cannot express.
        """
        self._no_options(options)
        for field, only in ONLY.items():
            if raw.get(field, only) not in (only, None):
                raise ConfigError(f"config.json: {field}: {raw[field]!r}, expected {only!r}")
        own, aliases = self._fields()
        for field in NEEDED:
            if aliases.get(field) not in raw:
                required(raw, field)
        fields, kept = {}, {}
        for field, value in raw.items():
            if field in own and _is_dropout(field, value):
                fields[aliases.get(field, field)] = 0.0
                kept[field] = value
            elif field in own and field not in (*NO_EFFECT, *ONLY):
                fields[aliases.get(field, field)] = value
            else:
                kept[field] = value
                if field in READ:
                    fields[field] = value
                elif field not in (*NO_EFFECT, *ONLY, "mmdiff") and not WITHOUT_EFFECT.fullmatch(field):
                    hint = nearest(field, own)
                    raise ConfigError(
                        f"config.json: {field}: {self.name} has no such field, its effect is unknown{hint}"
                    )
        return self._made(fields, raw.get("mmdiff", kept))

    def new_config(self, sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
        """Returns the architecture at any size, the feed-forward four times wider.

        Raises ConfigError for grouped heads.
        """
        self._no_options(options)
        if sizes.kv_heads != sizes.heads:
            raise ConfigError(f"kv_heads {sizes.kv_heads}: {self.name} has as many as heads = {sizes.heads}")
        own, aliases = self._fields()
        pad = self._config_class()().pad_token_id
        pad = pad if pad is not None and pad < sizes.vocab_size else None
        wide = 4 * sizes.hidden_size if sizes.intermediate_size is None else sizes.intermediate_size
        fields = {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads,
            "head_dim": sizes.hidden_size // sizes.heads,
            "intermediate_size": wide,
            "hidden_dim": wide,
            "max_position_embeddings": sizes.max_length + (0 if self.name not in OFFSET else (pad or 0) + 1),
            "initializer_range": sizes.init_std,
            "pad_token_id": pad,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        }
        if sizes.rope_theta is not None and self.name != "modernbert":  # which has two
            fields["rope_theta"] = sizes.rope_theta
        off = {field: 0.0 for field, value in self._config_class()().to_dict().items() if _is_dropout(field, value)}
        kept = {aliases.get(field, field): value for field, value in fields.items() if field in own or field in READ}
        return self._made({**kept, **off}, {})

    def facts(self, raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts:
        """Returns ids from the tokenizer, then from config.json."""

        def first(*names: str) -> int | None:
            found = [*(getattr(tokenizer, name, None) for name in names), *(raw.get(name) for name in names)]
            return next((value for value in found if isinstance(value, int)), None)

        eos = first("sep_token_id", "eos_token_id")
        return Facts.found(
            mask_id=checked_mask_id(raw, tokenizer, tokenizer.mask_token or "[MASK]"),
            eos_id=eos,
            pad_id=first("pad_token_id"),
            bos_id=first("cls_token_id", "bos_token_id"),
            end_ids=(eos, tokenizer.eos_token_id),
            max_length=self._most(config),
        )

    def published_config(self, config: Any, facts: Facts) -> dict[str, Any]:
        """Returns a config.json of transformers', with every field that the folder's had."""
        fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
        kept = fields.pop("mmdiff")
        if "mask_token_id" in fields:
            kept = {"mask_token_id": facts.mask_id, **kept}
        return {**fields, "model_type": self.name, "is_causal": False, **kept}

    def published_names(self, config: Any) -> Mapping[str, tuple[Share, ...]]:
        """Returns {published name of a tensor: the parameter that it holds}; of several, the last is written."""
        import torch
        from transformers import AutoModelForMaskedLM

        with torch.device("meta"):
            model = AutoModelForMaskedLM.from_config(config)
        model.tie_weights()
        own = [name for name, _ in model.named_parameters()]
        return names_of(own, model.base_model_prefix, model.all_tied_weights_keys)

    def fields_of(self, facts: Facts) -> dict[str, Any]:
        return {}

    def is_elsewhere(self, name: str) -> bool:
        """Returns whether a tensor is of a pooler, a head of another task, or a buffer of positions or frequencies."""
        return ELSEWHERE.match(name) is not None

    def toy_options(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def toy_tokenizer(self) -> Any:
        if self.tokenizer is not None:
            return self.tokenizer()
        made = byte_tokenizer(bos=None, eos="[SEP]", special=())
        tokens = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        made.add_special_tokens(tokens)
        return made

    def folder_tokenizer(self, folder: Path) -> Any:
        return None

    def finished(self, model: Any) -> Any:
        """Returns the model with a gradient for the row of padding, too: it may be that of the end of a text."""
        model.get_input_embeddings().padding_idx = None
        return model

    def embed(self, model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor:
        embedded: Tensor = model.get_input_embeddings()(ids_RL)
        return embedded

    def run(
        self,
        model: Any,
        x_RLD: Tensor,
        mask: Any,
        attend_RL: Tensor | None,
        position_ids_RL: Tensor | None,
        every: bool,
        memory: Any = None,
    ) -> Any:
        """Returns transformers' output of the body, as `mmdiff.backbones.forward.run` does.

        Learned positions are those of a row without its padding, whichever side that is on. Raises DataError for a
        canvas longer than their table.
        """
        config, positions = model.config, position_ids_RL
        if hasattr(getattr(model.base_model, "embeddings", None), "position_embeddings"):
            most, length = self._most(config), x_RLD.shape[1]
            if length > most:
                raise DataError(f"a canvas of {length} positions; this backbone has learned positions for {most}")
            if positions is None:
                attend_RL = x_RLD.new_ones(x_RLD.shape[:2]).bool() if attend_RL is None else attend_RL
                positions = (attend_RL.long().cumsum(1) - 1).clamp(min=0)
            positions = positions + config.max_position_embeddings - most
        return self.body(
            model,
            inputs_embeds=x_RLD,
            attention_mask=_by_kind_of_layer(config, mask),
            position_ids=positions,
            return_dict=True,
            output_hidden_states=every,
        )

    def head(self, model: Any, h: Tensor, ids_K: Tensor | None = None) -> Tensor:
        beside = [name for name, child in model.named_children() if child is not model.base_model]
        for name in HEADS.get(self.name, beside):
            h = getattr(model, name)(h)
        return h if ids_K is None else h[..., ids_K]

    def _most(self, config: Any) -> int:
        """Returns how many positions there are."""
        most: int = config.max_position_embeddings - (config.pad_token_id + 1 if self.name in OFFSET else 0)
        return most

    def _made(self, fields: Mapping[str, Any], kept: Mapping[str, Any]) -> Any:
        fields = {name: value for name, value in fields.items() if name not in ("is_causal", "use_cache")}
        made = transformers_config(self._config_class().__name__, **fields)
        if (width := getattr(made, "embedding_size", made.hidden_size)) != made.hidden_size:
            raise ConfigError(f"config.json: embedding_size: {width}, expected hidden_size {made.hidden_size}")
        made.mmdiff = dict(kept)
        return made

    def _config_class(self) -> Any:
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.name]

    def _fields(self) -> tuple[set[str], Mapping[str, str]]:
        """Returns the names of the fields of the class, and other names that these have."""
        made = self._config_class()
        return {*made().to_dict(), *made.attribute_map}, made.attribute_map

    def _no_options(self, options: Mapping[str, Any] | None) -> None:
        if options:
            raise ConfigError(f"options.{next(iter(options))}: {self.name} has no options")


@cache
def family(name: str) -> MaskedLM:
    """Returns the family of a `model_type`."""
    return MaskedLM(name)


def _is_dropout(field: str, value: Any) -> bool:
    return "drop" in field and isinstance(value, int | float) and not isinstance(value, bool)


def _by_kind_of_layer(config: Any, mask: Any) -> Any:
    """Returns the mask; where some layers see a window only, one of pairs by kind of layer.

    Given a single one, transformers would use it for all layers. Raises ConfigError for one of flex_attention there.
    """
    import torch

    if mask is None or "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return mask
    if not isinstance(mask, torch.Tensor):
        raise ConfigError("attention 'flex_attention': layers that see a window need sdpa or eager for a mask of pairs")
    if mask.ndim == 2:
        return mask
    at_Q, at_K = (torch.arange(n, device=mask.device) for n in mask.shape[2:])
    near_QK = (at_Q[:, None] - at_K).abs() <= config.sliding_window
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return {"full_attention": mask, "sliding_attention": mask.masked_fill(~near_QK, hidden)}
