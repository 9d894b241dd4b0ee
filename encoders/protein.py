"""ESM-2 (Lin et al., 2023) as an encoder: a protein goes in as its sequence, and one feature per residue comes out.

It is the model of `mmdiff.backbones.families.esm` without its head. DSM and DPLM are of that architecture.

Shape letters: N proteins, T residues, L positions of ESM's own canvas (T + 2), E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.backbones import Backbone, new_backbone
from mmdiff.backbones.families.esm import DSM, TOKENS, tokenizer
from mmdiff.backbones.load import backbone_from_folder, local_folder
from mmdiff.backbones.weights import read_json
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts.ranges import AtLeast1, Whole

from .media.towers import check_layer

LETTERS = "".join(token for token in TOKENS if len(token) == 1 and token.isalpha())
"""The letters of a sequence: the 20 residues, X, B, Z, U and O."""
SHOWN = "".join(sorted(LETTERS))

EXPECTED = {
    "vocab_size": len(TOKENS),
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5,
}
"""The settings that all published sizes share, so that four numbers determine a model."""


@saveable
class Esm(nn.Module):
    """An encoder: ids of residues (N, T) -> (N, T, E); inside, `<cls>` and `<eos>` enclose them, without a feature.

    weights: a folder or hub id as published (`facebook/esm2_t33_650M_UR50D`, ...), of ESM-2, DSM or DPLM.
    hidden_size, layers, heads, intermediate_size: of a new one with random weights, where there are no `weights`;
        intermediate_size is four times as wide unless it is given.
    layer: -1 is the last layer, after the final norm, -2 the one before it, without a norm, as in transformers'
        `hidden_states`; those above are dropped.
    token_dropout: whether embeddings are scaled by 0.88, as ESM-2's were in training, where some residues were
        masked. None: as the weights were trained: yes for ESM-2 and DPLM, no for DSM.
    max_length: residues of a protein. crop: of a longer one the first are read; otherwise it is an error.
    Raises ConfigError for what does not exist or does not fit.
    """

    node: dict[str, Any]  # set by @saveable
    takes_text = True  # `read` takes residues, not the path of a file

    def __init__(
        self,
        weights: str | None = None,
        *,
        hidden_size: AtLeast1 | None = None,
        layers: AtLeast1 | None = None,
        heads: AtLeast1 | None = None,
        intermediate_size: AtLeast1 | None = None,
        layer: Whole = -1,
        token_dropout: bool | None = None,
        max_length: AtLeast1 = 1024,
        crop: bool = False,
    ) -> None:
        super().__init__()
        check_layer(layer)
        sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "intermediate_size": intermediate_size}
        if weights is None:
            token_dropout = True if token_dropout is None else token_dropout
            made = _new(sizes, token_dropout, max_length)
        else:
            if given := [name for name, value in sizes.items() if value is not None]:
                raise ConfigError(f"{given[0]}: {sizes[given[0]]}, but weights {weights!r} bring their own size")
            made, token_dropout = _load(weights, token_dropout)
        config = made.model.config
        sizes = {
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
        }
        if config.num_hidden_layers + layer < 0:
            raise ConfigError(f"layer: {layer} lies below the first of {config.num_hidden_layers} layers")
        made.model.lm_head = None  # an encoder predicts no tokens
        if layer < -1:
            del made.model.esm.encoder.layer[layer + 1 :]
            made.model.esm.encoder.emb_layer_norm_after = None  # it belongs to the last layer
        self.backbone = made
        self.width: int = made.dim
        self.tokens = max_length
        self.crop = crop
        self.id_of: dict[str, int] = made.vocab.tokenizer.get_vocab()
        self.node.update(weights=None, token_dropout=token_dropout, **sizes)

    @classmethod
    def toy(
        cls,
        weights: str | None = None,
        *,
        layer: Whole = -1,
        token_dropout: bool | None = None,
        max_length: AtLeast1 = 1024,
        crop: bool = False,
        **sizes: Any,
    ) -> Esm:
        """The same at a width of 32, as shallow as `layer` allows."""
        rest: dict[str, Any] = {"token_dropout": token_dropout, "max_length": max_length, "crop": crop}
        check_layer(layer)
        return cls(hidden_size=32, layers=max(2, -layer), heads=2, layer=layer, **rest)

    def read(self, data: object) -> Item:
        """A sequence, or a mapping with one under `sequence`, to ids: one crop. Raises DataError as `residues` does."""
        sequence = residues(data, None if self.crop else self.tokens)[: self.tokens]
        ids_1T = torch.tensor([[self.id_of[letter] for letter in sequence]])
        return Item(ids_1T, lengths=(len(sequence),), tokens=(len(sequence),))

    def forward(self, values_NT: Tensor, length_N: Tensor | None = None) -> Tensor:
        """Returns features (N, T, E). values_NT: ids as any type of number; those behind `length_N` are ignored."""
        n, t = values_NT.shape
        if length_N is None:
            length_N = torch.full((n,), t, device=values_NT.device)
        position_L = torch.arange(t + 2, device=values_NT.device)
        real_NT = position_L[:t] < length_N[:, None]
        ids_NL = torch.full((n, t + 2), self.id_of["<pad>"], device=values_NT.device)
        ids_NL[:, 0] = self.id_of["<cls>"]
        ids_NL[:, 1:-1] = values_NT.long().where(real_NT, ids_NL[:, 1:-1])
        ids_NL.scatter_(1, length_N[:, None] + 1, self.id_of["<eos>"])
        attend_NL = position_L < length_N[:, None] + 2
        features_NLE = self.backbone.hidden(self.backbone.embed(ids_NL, attend_NL), attend_NL)
        return features_NLE[:, 1:-1]

    def gradient_checkpointing(self, on: bool) -> None:
        self.backbone.gradient_checkpointing(on)


def residues(data: object, max_length: int | None = None) -> str:
    """Returns the sequence that `data` is or holds.

    Raises DataError for anything else, a letter that ESM has no id for (named by its position, counted from 1), no
    residue at all, and more than `max_length`.
    """
    sequence = data.get("sequence") if isinstance(data, Mapping) else data
    if not isinstance(sequence, str):
        raise DataError(f"protein: {data!r:.60} is no sequence, expected a text of residues")
    if not sequence:
        raise DataError("protein: the sequence is empty")
    for position, letter in enumerate(sequence, 1):
        if letter not in LETTERS:
            hint = ", written in upper case" if letter.upper() in LETTERS else ""
            raise DataError(f"protein: residue {position} is {letter!r}, expected one of {SHOWN}{hint}")
    if max_length is not None and len(sequence) > max_length:
        raise DataError(f"protein: {len(sequence)} residues, max_length is {max_length}")
    return sequence


def _new(sizes: Mapping[str, int | None], token_dropout: bool, max_length: int) -> Backbone:
    known = {name: value for name, value in sizes.items() if value is not None}
    for name in ("hidden_size", "layers", "heads"):
        if name not in known:
            raise ConfigError(f"{name}: is missing, and no `weights` say it")
    options = {"token_dropout": token_dropout}
    return new_backbone(family="esm", tokenizer=tokenizer(), max_length=max_length, options=options, **known)  # type: ignore[arg-type]


def _load(weights: str, token_dropout: bool | None) -> tuple[Backbone, bool]:
    folder = local_folder(weights)
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind != "esm" and kind not in DSM:
        raise ConfigError(f"weights: {folder / 'config.json'}: model_type: {kind!r}, expected 'esm'")
    if token_dropout is None:  # DSM's config.json says yes, as the model it was made from, and its code has none
        token_dropout = kind not in DSM and bool((raw.get("mmdiff") or raw).get("token_dropout", False))
    made = backbone_from_folder(folder, tokenizer=tokenizer(), options={"token_dropout": token_dropout})
    for name, expected in EXPECTED.items():
        if (found := getattr(made.model.config, name)) != expected:
            raise ConfigError(
                f"weights: {folder / 'config.json'}: {name}: {found!r}, expected {expected!r} as in ESM-2"
            )
    return made, token_dropout
