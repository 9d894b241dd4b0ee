"""Fields of config.json to the sizes of an encoder, without transformers, as `plain.py` does for decoders.

ESM-2, DSM, and BERT's and RoBERTa's kin; not ESM-2 with token dropout (DPLM), and none whose norms lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from mmdiff.backbones.families import esm
from mmdiff.backbones.families.decoder import NO_EFFECT
from mmdiff.backbones.families.masked import MaskedLM
from mmdiff.backbones.families.published.esm import unknown_field
from mmdiff.backbones.families.published.masked import ONLY, WITHOUT_EFFECT, names_of
from mmdiff.backbones.shares import Published

from .encoder import Encoder
from .plain import USUAL, is_size

CLS = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
LM = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
KIN = {
    "bert": ("BertForMaskedLM", "bert", CLS),
    "ernie": ("ErnieForMaskedLM", "ernie", CLS),
    "roberta": ("RobertaForMaskedLM", "roberta", LM),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "roberta", LM),
    "camembert": ("CamembertForMaskedLM", "roberta", LM),
    "data2vec-text": ("Data2VecTextForMaskedLM", "data2vec_text", LM),
}
"""Family -> transformers' class, and what that calls its body and its head."""
SIZES = tuple(
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings".split()
)
KNOWN = frozenset([*SIZES, "type_vocab_size", "pad_token_id", "layer_norm_eps", "initializer_range", "mmdiff"])
ERNIE = {"use_task_id": False, "task_type_vocab_size": 3}
"""Of a table that is not there."""
NUMBERS = ("layer_norm_eps", "initializer_range")


class Plain(NamedTuple):
    """kind: the class of transformers'. config: what a family reads. names: published tensor -> parameter."""

    kind: str
    model: Encoder
    config: SimpleNamespace
    names: Published


def plain_encoder(own: Any, raw: Mapping[str, Any], tensors: Collection[str]) -> Plain | None:
    """Returns the encoder of a config.json; None for any that is not plain. tensors: those of the folder."""
    if own is esm:
        return _esm(esm.settle(raw, tensors))
    return _kin(own, raw) if isinstance(own, MaskedLM) and own.name in KIN else None


def _esm(raw: Mapping[str, Any]) -> Plain | None:
    dsm = raw.get("model_type") in esm.DSM
    ours = {"token_dropout": False, "logit_cap": esm.CAP if dsm else None, "bias_in_decoder": dsm}
    ours |= raw.get("mmdiff") or {}
    if (
        not _sized(raw)
        or unknown_field(raw) is not None
        or raw.get("position_embedding_type") != "rotary"
        or raw["hidden_size"] // raw["num_attention_heads"] % 2
        or any(raw.get(name) for name in ("is_folding_model", "is_decoder", "emb_layer_norm_before"))
        or any("DPLM" in str(name) for name in raw.get("architectures") or ())
        or ours["token_dropout"]
        or not _numbers(raw, (*NUMBERS, "rope_theta"))
        or any(not _id(raw, name) for name in ("pad_token_id", "mask_token_id"))
    ):
        return None
    model = _encoder(raw, "esm", LM, 0, 0, bool(raw["tie_word_embeddings"]))
    config = SimpleNamespace(**{name: raw[name] for name in SIZES}, position_embedding_type="rotary", mmdiff=ours)
    return Plain("EsmForMaskedLM", model, config, esm.names_of(config, model.shapes))


def _kin(own: MaskedLM, raw: Mapping[str, Any]) -> Plain | None:
    if not _sized(raw) or not is_size(raw.get("type_vocab_size")) or not _numbers(raw, NUMBERS):
        return None
    if raw.get("pad_token_id") is None or not _id(raw, "pad_token_id") or not all(map(_is_known, raw, raw.values())):
        return None
    kind, body, head = KIN[own.name]
    model = _encoder(raw, body, head, raw["max_position_embeddings"], raw["type_vocab_size"], True)
    config = SimpleNamespace(**{name: raw[name] for name in (*SIZES, "pad_token_id")})
    decoder = head[2].removesuffix("bias") + "decoder."
    tied = {f"{decoder}weight": f"{body}.embeddings.word_embeddings.weight", f"{decoder}bias": head[2]}
    return Plain(kind, model, config, names_of(model.shapes, body, tied))


def _encoder(
    raw: Mapping[str, Any], body: str, head: tuple[str, str, str], table: int, types: int, tied: bool
) -> Encoder:
    return Encoder(
        rows=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        wide=raw["intermediate_size"],
        body=body,
        head=head,
        table=table,
        types=types,
        tied=tied,
    )


def _sized(raw: Mapping[str, Any]) -> bool:
    return all(is_size(raw.get(name)) for name in SIZES) and raw["hidden_size"] % raw["num_attention_heads"] == 0


def _numbers(raw: Mapping[str, Any], names: Collection[str]) -> bool:
    return all(isinstance(raw.get(name, 1.0), float) and 0 < raw.get(name, 1.0) < float("inf") for name in names)


def _id(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    return value is None or (type(value) is int and 0 <= value < raw["vocab_size"])


def _is_known(name: str, value: Any) -> bool:
    if name in ONLY:
        return value in (ONLY[name], None)
    if name in ("hidden_act", "tie_word_embeddings"):
        return value == ("gelu" if name == "hidden_act" else True)
    if name == "classifier_dropout" and value is None:
        return True
    if "drop" in name:
        return isinstance(value, float) and 0 <= value <= 1
    usual = (name in USUAL and value == USUAL[name]) or (name in ERNIE and value == ERNIE[name])
    return usual or name in KNOWN or name in NO_EFFECT or WITHOUT_EFFECT.fullmatch(name) is not None
