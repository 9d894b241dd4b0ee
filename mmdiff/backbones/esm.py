"""ESM-2, and the diffusion models of its architecture: DSM and DPLM. transformers' `EsmForMaskedLM` runs all three.

    ESM-2 (Lin et al., 2023): a masked language model, of 15 % masked residues. Its "token dropout" zeroes the embedding
        of the mask and scales the others by 0.88 / (share that is not masked). At diffusion's mask rates that scale
        goes to infinity, so it is off here, and training adapts (as DSM did); `options: {token_dropout: true}` gives
        the published function, which is the right one for scoring with ESM-2 as it was trained.
    DSM (arXiv 2506.08293): ESM-2 trained on by masked diffusion without token dropout, whatever its config.json says;
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

from .family import Facts, token_id

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()
AUTO_CLASS = "AutoModelForMaskedLM"
CACHES = False  # an encoder: all positions are run
GROWS = False  # its head has a bias besides
TRAINED_RATE = 0.15 * 0.8  # of mask tokens, when ESM-2 was trained: what token dropout makes up for
CAP = 30.0  # of DSM's logits
DSM = ("esm_diff", "dsm")
POSITIONS = ("rotary", "absolute")

_SIZES = {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 20, "intermediate_size": 1280}
_COMMON: dict[str, Any] = {
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


def _published(layers: int, width: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = dict(zip(_SIZES, (width, layers, heads, 4 * width), strict=True))
    return {**_COMMON, **sizes, **more}


_DSM = {
    "model_type": "esm_diff",
    "architectures": ["ESM_Diff"],
    "at_vocab_size": 30000,
    "num_at_layers": 1,
    "tie_word_embeddings": False,
}
_DPLM = {"architectures": ["EsmForDPLM"]}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "facebook/esm2_t6_8M_UR50D": _published(6, 320, 20),
    "facebook/esm2_t12_35M_UR50D": _published(12, 480, 20),
    "facebook/esm2_t30_150M_UR50D": _published(30, 640, 20),
    "facebook/esm2_t33_650M_UR50D": _published(33, 1280, 20),
    "facebook/esm2_t36_3B_UR50D": _published(36, 2560, 40),
    "GleghornLab/DSM_150": _published(30, 640, 20, **_DSM),
    "GleghornLab/DSM_650": _published(33, 1280, 20, **_DSM),
    "GleghornLab/DSM_150_ppi_lora": _published(30, 640, 20, **_DSM),
    "GleghornLab/DSM_650_ppi_lora": _published(33, 1280, 20, **_DSM),
    "Synthyra/DSM_ppi_full": _published(33, 1280, 20, **_DSM),
    "airkingbd/dplm_150m": _published(30, 640, 20, **_DPLM),
    "airkingbd/dplm_650m": _published(33, 1280, 20, **_DPLM),
    "airkingbd/dplm_3b": _published(36, 2560, 40, **_DPLM),
}

_KEPT = (
    "vocab_size mask_token_id pad_token_id hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "max_position_embeddings rope_theta initializer_range layer_norm_eps position_embedding_type emb_layer_norm_before"
).split()
_ELSEWHERE = ("esm.contact_head.", "esm.pooler.", "pooler.", "esm.embeddings.position_ids")
OPTIONS = ("token_dropout", "logit_cap", "positions")
"""What `options` of a backbone may hold: token_dropout (bool), logit_cap (above 0, or null), and positions (rotary or
absolute) of a new one."""


# Configuration --------------------------------------------------------------------------------------------------------


def config(raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """Returns an `EsmConfig` without dropout and token dropout. Its `mmdiff` is what this file adds to transformers.

    Raises ConfigError for missing fields, an unknown option, and ESMFold.
    """
    options = checked(options, positions=False)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if raw.get(name) is None:
            raise ConfigError(f"config.json: {name} is missing")
    if raw.get("is_folding_model") or raw.get("is_decoder"):
        name = "is_folding_model" if raw.get("is_folding_model") else "is_decoder"
        raise ConfigError(f"config.json: {name}: true, expected false")
    kind = raw.get("position_embedding_type", "absolute")
    if kind not in POSITIONS:
        raise ConfigError(f"config.json: position_embedding_type: {kind!r}{nearest(str(kind), POSITIONS)}")
    is_dsm = raw.get("model_type") in DSM
    classes = [str(name) for name in raw.get("architectures") or ()]
    if other := [name for name in classes if "DPLM2" in name]:  # says `esm` too; its positions start again at structure
        raise ConfigError(f"config.json: architectures: {other[0]!r} is not EsmForDPLM: DPLM-2 is another function")
    is_dplm = any("DPLM" in name for name in classes)
    ours = {"token_dropout": is_dplm, "logit_cap": CAP if is_dsm else None, "bias_in_decoder": is_dsm}
    ours |= {**(raw.get("mmdiff") or {}), **options}
    fields = {name: raw[name] for name in _KEPT if raw.get(name) is not None}
    return _esm(**fields, tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)), ours=ours)


def settle(raw: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Returns config.json with what its tensors decide: head and embeddings are tied unless both are in the file.

    DSM's code ties them when it is made and unties them when it is loaded; its files hold two tensors that differ.
    """
    tied = not {"lm_head.decoder.weight", "esm.embeddings.word_embeddings.weight"} <= set(names)
    return {**raw, "tie_word_embeddings": tied}


def new_config(
    *,
    vocab_size: int,
    hidden_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate_size: int | None,
    max_length: int,
    rope_theta: float | None,
    init_std: float,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Returns the architecture at any size, the feed-forward four times wider. Raises ConfigError for grouped heads."""
    if kv_heads != heads:
        raise ConfigError(f"kv_heads {kv_heads}: ESM has as many as heads = {heads}")
    options = dict(checked(options, positions=True))
    positions = options.pop("positions", "rotary")
    return _esm(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size if intermediate_size is None else intermediate_size,
        max_position_embeddings=max_length + 2,  # the first two rows belong to padding
        rope_theta=10_000.0 if rope_theta is None else rope_theta,
        initializer_range=init_std,
        layer_norm_eps=1e-5,
        position_embedding_type=positions,
        emb_layer_norm_before=False,
        tie_word_embeddings=True,
        ours={"token_dropout": False, "logit_cap": None, "bias_in_decoder": False} | options,
    )


def checked(options: Mapping[str, Any] | None, *, positions: bool) -> Mapping[str, Any]:
    """Raises ConfigError for an option or value that is not there."""
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
    ours = config({**dict.fromkeys(_SIZES, 4), "vocab_size": 33, **raw}).mmdiff
    return {"token_dropout": ours["token_dropout"], "logit_cap": ours["logit_cap"]}


def facts(raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts:
    """Ids from config.json, then by their spelling in the tokenizer. `<cls>` is the beginning of a sequence."""
    spelled = {name: token_id(tokenizer, f"<{name}>") for name in ("mask", "eos", "pad", "cls")}
    given = raw.get("mask_token_id")
    if given is not None and spelled["mask"] is not None and given != spelled["mask"]:
        raise ConfigError(f"mask_token_id: {given} in config.json, but <mask> is {spelled['mask']} in the tokenizer")
    mask, eos = given if given is not None else spelled["mask"], spelled["eos"]
    if mask is None or eos is None:
        missing = "mask" if mask is None else "eos"
        raise ConfigError(f"tokenizer: no {missing} token, and config.json has no {missing}_token_id")
    pad = spelled["pad"] if spelled["pad"] is not None else raw.get("pad_token_id")
    config.mask_token_id, config.pad_token_id = mask, eos if pad is None else pad
    return Facts(
        mask_id=mask,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        bos_id=spelled["cls"],
        end_ids=(eos,),
        shift=0,
        attention="full",
        max_length=config.max_position_embeddings - 2,
    )


def published_config(config: Any, facts: Facts) -> dict[str, Any]:
    """Returns a config.json that transformers reads, and DSM's code where the model is one."""
    ours = config.mmdiff
    is_dsm = ours["bias_in_decoder"]
    more = {"model_type": DSM[0], "architectures": ["ESM_Diff"]} if is_dsm else {}
    if ours["token_dropout"]:
        more = {"architectures": ["EsmForDPLM"]}
    fields = {name: getattr(config, name) for name in _KEPT}
    tied = {"tie_word_embeddings": config.tie_word_embeddings}
    return (
        _COMMON
        | fields
        | tied
        | {"token_dropout": ours["token_dropout"], "eos_token_id": facts.eos_id, "mmdiff": ours}
        | more
    )


def published_names(config: Any) -> dict[str, str]:
    """Names are transformers' own, but for the head's bias in DSM, the rotary frequencies of older files, which hold
    them in every layer, and what transformers 5 writes: norms as `gamma` and `beta`, and frequencies of layer `*`.
    A name that is written comes last."""
    import torch
    from transformers import AutoModelForMaskedLM

    with torch.device("meta"):
        model = finished(AutoModelForMaskedLM.from_config(config))
    names = {}
    if config.position_embedding_type == "rotary":
        for layer in ("*", *range(config.num_hidden_layers)):
            at = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            names[at] = "esm.rotary_embeddings.inv_freq"
        names["esm.rotary_embeddings.inv_freq"] = "esm.rotary_embeddings.inv_freq"
    own = [name for name, _ in model.named_parameters()]
    for kind, other in (("weight", "gamma"), ("bias", "beta")):
        names |= {name.removesuffix(kind) + other: name for name in own if name.endswith(f"LayerNorm.{kind}")}
    names |= {name: name for name in own}
    biases = ["lm_head.decoder.bias", "lm_head.bias"]
    for name in biases if not config.mmdiff["bias_in_decoder"] else reversed(biases):
        names.pop(name, None)
        names[name] = "lm_head.bias"
    return names


def is_elsewhere(name: str) -> bool:
    """Whether a tensor is of the contact head or pooler, or of positions that ESM-2's files hold and do not use."""
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
    """As in `forward.py`. What transformers' embedding module does besides the table is done here, since the model
    leaves it out where embeddings come in. Raises DataError beyond the table of absolute positions."""
    import torch

    config = model.config
    positions = position_ids_RL
    if config.position_embedding_type == "absolute":
        room = config.max_position_embeddings - config.pad_token_id - 1
        if x_RLD.shape[1] > room:
            raise DataError(f"a canvas of {x_RLD.shape[1]} positions; this backbone has absolute positions for {room}")
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
    logits: Tensor = model.lm_head(h)
    logits = logits if ids_K is None else logits[..., ids_K]
    cap = model.config.mmdiff["logit_cap"]
    return logits if cap is None else cap * (logits / cap).tanh()


# Tokenizer ------------------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    """transformers' `EsmTokenizer` with the 33 tokens of ESM-2. Sequences do not go through it: see
    `mmdiff.tasks.protein.residues`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
        return folder_tokenizer(Path(folder))


def folder_tokenizer(folder: Path) -> Any:
    """That of vocab.txt, and ESM-2's where a folder has no tokenizer at all, as those of DSM; None otherwise."""
    from transformers import EsmTokenizer

    if (folder / "vocab.txt").is_file():
        return EsmTokenizer(vocab_file=str(folder / "vocab.txt"))
    return None if (folder / "tokenizer.json").is_file() else tokenizer()


toy_tokenizer = tokenizer


def _esm(*, ours: dict[str, Any], **architecture: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import EsmConfig

    switches: dict[str, Any] = {"is_causal": False, "use_cache": False, "token_dropout": False}
    switches |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture = {"mask_token_id": None, "pad_token_id": 1, **architecture}
    try:
        made = EsmConfig(**architecture, **switches)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"config.json: {' '.join(str(error).split())[:200]}") from error
    made.mmdiff = ours
    return made
