"""ESM-2, and the diffusion models of its architecture: DSM and DPLM. transformers' `EsmForMaskedLM` runs all three.

    ESM-2 (Lin et al., 2023): a masked language model, of 15 % masked residues. Its "token dropout" zeroes the embedding
        of the mask and scales the others by 0.88 / (share that is not masked). At diffusion's mask rates that scale
        goes to infinity, so it is off here, as in DSM; `options: {token_dropout: true}` is for scoring as published.
    DSM (arXiv 2506.08293): ESM-2 trained on by masked diffusion without token dropout, whatever is in its config.json;
        logits capped at 30 tanh(logits / 30); the head's bias lies in `lm_head.decoder`; some files hold LoRA factors.
    DPLM (arXiv 2402.18567): masked diffusion with token dropout, which stays on.

Shape letters: R rows, L canvas length, D width, V rows of the embedding table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.parts import part

from ..family import Facts, Sizes, checked_mask_id, required, token_id, transformers_config
from ..shares import Share
from .published.esm import ESM, ESM_COMMON, ESM_SIZES, KNOWN, unknown_field

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()
PUBLISHED = ESM
AUTO_CLASS = "AutoModelForMaskedLM"
CACHES = False  # an encoder runs all positions
GROWS = False  # the head has a bias as well
TRAINED_RATE = 0.15 * 0.8  # the share of mask tokens when ESM-2 was trained, which token dropout makes up for
CAP = 30.0  # of DSM's logits
DSM = ("esm_diff", "dsm")
POSITIONS = ("rotary", "absolute")

_KEPT = (
    "vocab_size mask_token_id pad_token_id hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "max_position_embeddings rope_theta initializer_range layer_norm_eps position_embedding_type emb_layer_norm_before"
).split()
_ELSEWHERE = ("esm.contact_head.", "esm.pooler.", "pooler.", "esm.embeddings.position_ids")
OPTIONS = ("token_dropout", "logit_cap", "positions")
"""Of a backbone: token_dropout (bool), logit_cap (above 0, or null), and positions (rotary, absolute) of a new one."""


# Configuration --------------------------------------------------------------------------------------------------------


def config(raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """Returns an `EsmConfig` without dropout and token dropout; its field `mmdiff` holds the options of this file.

    Raises ConfigError for missing and unknown fields, an unknown option, and ESMFold.
    """
    options = checked(options, positions=False)
    for name in ("vocab_size", *ESM_SIZES):
        required(raw, name)
    if (unknown := unknown_field(raw)) is not None:
        hint = nearest(unknown, KNOWN)
        raise ConfigError(f"config.json: {unknown}: ESM has no such field, its effect is unknown{hint}")
    for name in ("is_folding_model", "is_decoder"):
        if raw.get(name):
            raise ConfigError(f"config.json: {name}: true, expected false")
    kind = raw.get("position_embedding_type", "absolute")
    if kind not in POSITIONS:
        raise ConfigError(f"config.json: position_embedding_type: {kind!r}{nearest(str(kind), POSITIONS)}")
    is_dsm = raw.get("model_type") in DSM
    classes = [str(name) for name in raw.get("architectures") or ()]
    if other := [name for name in classes if "DPLM2" in name]:  # also `esm`, but positions start again at structure
        raise ConfigError(f"config.json: architectures: {other[0]!r} is not EsmForDPLM: DPLM-2 is another function")
    is_dplm = any("DPLM" in name for name in classes)
    ours = {"token_dropout": is_dplm, "logit_cap": CAP if is_dsm else None, "bias_in_decoder": is_dsm}
    ours |= {**(raw.get("mmdiff") or {}), **options}
    fields = {name: raw[name] for name in _KEPT if raw.get(name) is not None}
    return _esm(**fields, tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)), ours=ours)


def settle(raw: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Returns config.json with head and embeddings tied unless `names`, those of the tensors, have both.

    DSM's code ties them when a model is made and unties them when it is loaded; its files hold two tensors that differ.
    """
    tied = not {"lm_head.decoder.weight", "esm.embeddings.word_embeddings.weight"} <= set(names)
    return {**raw, "tie_word_embeddings": tied}


def new_config(sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
    """Returns the architecture at any size, the feed-forward four times wider. Raises ConfigError for grouped heads."""
    if sizes.kv_heads != sizes.heads:
        raise ConfigError(f"kv_heads {sizes.kv_heads}: ESM has as many as heads = {sizes.heads}")
    options = dict(checked(options, positions=True))
    positions = options.pop("positions", "rotary")
    return _esm(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.hidden_size if sizes.intermediate_size is None else sizes.intermediate_size,
        max_position_embeddings=sizes.max_length + 2,  # the first two rows of the table belong to padding
        rope_theta=10_000.0 if sizes.rope_theta is None else sizes.rope_theta,
        initializer_range=sizes.init_std,
        layer_norm_eps=1e-5,
        position_embedding_type=positions,
        emb_layer_norm_before=False,
        tie_word_embeddings=True,
        ours={"token_dropout": False, "logit_cap": None, "bias_in_decoder": False} | options,
    )


def checked(options: Mapping[str, Any] | None, *, positions: bool) -> Mapping[str, Any]:
    """Returns the options, {} for None. Raises ConfigError for one that ESM does not have, or a value out of range."""
    options = options or {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(f"options.{name}: no such option of ESM{nearest(name, OPTIONS)}")
        if name == "positions" and not positions:
            raise ConfigError("options.positions: a published model brings its own; only a new one can choose")
        if name == "positions" and value not in POSITIONS:
            raise ConfigError(f"options.positions: {value!r}{nearest(str(value), POSITIONS)}")
        if name == "token_dropout" and not isinstance(value, bool):
            raise ConfigError(f"options.token_dropout: {value!r} is not true or false")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "logit_cap" and value is not None and not (is_number and value > 0):
            raise ConfigError(f"options.logit_cap: {value!r}, expected a number above 0, or null")
    return options


def toy_options(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the options of a toy twin of the model of `raw`: the cap of DSM, the token dropout of DPLM."""
    ours = config({**dict.fromkeys(ESM_SIZES, 4), "vocab_size": 33, **raw}).mmdiff
    return {"token_dropout": ours["token_dropout"], "logit_cap": ours["logit_cap"]}


def facts(raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts:
    """Returns ids from config.json, then by their spelling in the tokenizer. `<cls>` is the beginning of a sequence."""
    eos, pad, cls = (token_id(tokenizer, f"<{name}>") for name in ("eos", "pad", "cls"))
    out = Facts.found(
        mask_id=checked_mask_id(raw, tokenizer, "<mask>"),
        eos_id=eos,
        pad_id=raw.get("pad_token_id") if pad is None else pad,
        bos_id=cls,
        end_ids=(eos,),
        max_length=config.max_position_embeddings - 2,
    )
    config.mask_token_id, config.pad_token_id = out.mask_id, out.pad_id
    return out


def published_config(config: Any, facts: Facts) -> dict[str, Any]:
    """Returns a config.json that transformers reads, and DSM's code where the model is one."""
    ours = config.mmdiff
    more = {"model_type": DSM[0], "architectures": ["ESM_Diff"]} if ours["bias_in_decoder"] else {}
    if ours["token_dropout"]:
        more = {"architectures": ["EsmForDPLM"]}
    fields = {name: getattr(config, name) for name in (*_KEPT, "tie_word_embeddings")}
    own = {"token_dropout": ours["token_dropout"], "eos_token_id": facts.eos_id, "mmdiff": ours}
    return ESM_COMMON | fields | own | more


def published_names(config: Any) -> dict[str, tuple[Share, ...]]:
    """Returns {published name of a tensor: the parameter that it holds}; of several, the last is written.

    They differ in the head's bias in DSM, the rotary frequencies of older files, which hold them in every layer, and
    what transformers 5 writes: norms as `gamma` and `beta`, and frequencies of layer `*`.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    with torch.device("meta"):
        model = finished(AutoModelForMaskedLM.from_config(config))
    return names_of(config, [name for name, _ in model.named_parameters()])


def names_of(config: Any, own: Collection[str]) -> dict[str, tuple[Share, ...]]:
    """Returns the same of a model whose parameters are `own`."""
    names = {}
    if config.position_embedding_type == "rotary":
        for layer in ("*", *range(config.num_hidden_layers)):
            at = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            names[at] = "esm.rotary_embeddings.inv_freq"
        names["esm.rotary_embeddings.inv_freq"] = "esm.rotary_embeddings.inv_freq"
    for kind, other in (("weight", "gamma"), ("bias", "beta")):
        names |= {name.removesuffix(kind) + other: name for name in own if name.endswith(f"LayerNorm.{kind}")}
    names |= {name: name for name in own}
    biases = ["lm_head.decoder.bias", "lm_head.bias"]
    for name in biases if not config.mmdiff["bias_in_decoder"] else reversed(biases):
        names.pop(name, None)
        names[name] = "lm_head.bias"
    return {name: (Share(ours),) for name, ours in names.items()}


def fields_of(facts: Facts) -> dict[str, Any]:
    """Returns no fields: an ESM's config.json has none of its facts."""
    return {}


def is_elsewhere(name: str) -> bool:
    """Returns whether a tensor is of the contact head, the pooler, or the unused positions of ESM-2's files."""
    return name.startswith(_ELSEWHERE) or name == "esm.embeddings.position_embeddings.weight"


# The model ------------------------------------------------------------------------------------------------------------


def finished(model: Any) -> Any:
    """Returns the model without its contact head, which no language model uses and weight decay would train."""
    model.esm.contact_head = None
    return model


def embed(model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor:
    """Returns (R, L, D), rows of the embedding table, under token dropout scaled by the masked share of each row.

    transformers does the latter only where ids come in, so that embeddings with media in them would be another input.
    """
    import torch

    x_RLD: Tensor = model.esm.embeddings.word_embeddings(ids_RL)
    if not model.config.mmdiff["token_dropout"]:
        return x_RLD
    masked_RL = ids_RL == model.config.mask_token_id
    real_R = torch.full_like(ids_RL[:, 0], ids_RL.shape[1]) if attend_RL is None else attend_RL.sum(-1)
    visible_R = 1 - masked_RL.sum(-1) / real_R
    scale_R = (1 - TRAINED_RATE) / visible_R.clamp(min=1e-6)  # a row of masks alone is zero whatever the scale
    return (x_RLD.masked_fill(masked_RL[..., None], 0.0) * scale_R[:, None, None]).to(x_RLD.dtype)


def run(
    model: Any,
    x_RLD: Tensor,
    mask: Any,
    attend_RL: Tensor | None,
    position_ids_RL: Tensor | None,
    every: bool,
    memory: Any = None,
) -> Any:
    """Returns transformers' output of the body, as `mmdiff.backbones.forward.run` does.

    What transformers' embedding module does after the table is done here, since the model leaves it out where
    embeddings come in. Raises DataError for a canvas longer than the table of absolute positions.
    """
    import torch

    config, positions = model.config, position_ids_RL
    if config.position_embedding_type == "absolute":
        most = config.max_position_embeddings - config.pad_token_id - 1
        if x_RLD.shape[1] > most:
            raise DataError(f"a canvas of {x_RLD.shape[1]} positions; this backbone has absolute positions for {most}")
        rows_L = torch.arange(x_RLD.shape[1], device=x_RLD.device) if positions is None else positions
        positions = (rows_L + config.pad_token_id + 1).expand(x_RLD.shape[:2])
    x_RLD = model.esm.embeddings(inputs_embeds=x_RLD, attention_mask=attend_RL, position_ids=positions)
    return model.esm(
        inputs_embeds=x_RLD,
        attention_mask=mask,
        position_ids=position_ids_RL,
        return_dict=True,
        output_hidden_states=every,
    )


def head(model: Any, h: Tensor, ids_K: Tensor | None = None) -> Tensor:
    """Returns logits (..., V), or those of `ids_K`; `cap * tanh(logits / cap)` where the model has a cap."""
    logits: Tensor = model.lm_head(h) if ids_K is None else model.lm_head(h)[..., ids_K]
    cap = model.config.mmdiff["logit_cap"]
    return logits if cap is None else cap * (logits / cap).tanh()


# Tokenizer ------------------------------------------------------------------------------------------------------------


@part
def tokenizer() -> Any:
    """Returns transformers' `EsmTokenizer` with the 33 tokens of ESM-2.

    Sequences do not go through it: see `mmdiff.tasks.protein.residues`.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
        return folder_tokenizer(Path(folder))


def folder_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of vocab.txt, ESM-2's where a folder has no tokenizer (as DSM's), None otherwise."""
    from transformers import EsmTokenizer

    if (folder / "vocab.txt").is_file():
        return EsmTokenizer(vocab_file=str(folder / "vocab.txt"))
    return None if (folder / "tokenizer.json").is_file() else tokenizer()


toy_tokenizer = tokenizer


def _esm(*, ours: dict[str, Any], **architecture: Any) -> Any:
    off = {"token_dropout": False, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made = transformers_config("EsmConfig", **{"mask_token_id": None, "pad_token_id": 1, **architecture, **off})
    made.mmdiff = ours
    return made
