"""Backbones from folders (`load_backbone`), at any size (`new_backbone`), and their toy twins (`load_backbone.toy`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdiff.canvas.vocab import NO_MASK, Vocab
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, line_of, nearest
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, Positive, UpTo1000, UpToMillion

from .backbone import Backbone, check_attention
from .bounds import (
    DOWNLOADED,
    DTYPES,
    TOKENIZER_FILES,
    bounded_by,
    check_files,
    check_ids,
    check_layers,
    check_sizes,
    one_line,
    padded_rows,
    reserve_of,
    reserve_ranges,
    reserved_ids,
)
from .family import FAMILIES, Facts, Family, Sizes, find_family, model_type_of, stock_model
from .reserve import reserve_more
from .rope import rope_in_fp32 as use_rope_in_fp32
from .weights import INDEX, SINGLE, read_json, read_weights, tensor_names, weight_files


@part
@typed
def load_backbone(
    path: str | Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    rope_in_fp32: bool = True,
    reserve: Mapping[str, AtLeast0] | None = None,
    options: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> Backbone:
    """Returns a pre-trained backbone from a folder or a hub id, in the published layout or in transformers' own.

    dtype: of the weights: float32 | bfloat16 | float16 | float64. Rotary frequencies are fp32 whatever it is.
    attention: transformers' name: sdpa | eager | flex_attention | flash_attention_2 | ...
    rope_in_fp32: rotate in fp32 under half-precision weights, as the published LLaDA code does.
    reserve: {name: how many} ids that are not text, behind the tokenizer's, in rows of the embedding table that stand
        for nothing yet: `vocab.range(name)`. Where these are too few, a decoder's table and head grow.
    options: what the family offers besides, see its file.
    tokenizer: used instead of the folder's.
    No code of the folder is run and no pickle is read. Raises ConfigError for a folder that is not all there, fields
    that the transformers class cannot express, and attention that turns out causal.
    """
    return backbone_from_folder(
        local_folder(path),
        dtype=dtype,
        attention=attention,
        rope_in_fp32=rope_in_fp32,
        reserve=reserve,
        options=options,
        tokenizer=tokenizer,
    )


def backbone_from_folder(
    folder: str | Path,
    *,
    weights: bool = True,
    dtype: str = "float32",
    attention: str = "sdpa",
    rope_in_fp32: bool = True,
    reserve: Mapping[str, AtLeast0] | None = None,
    options: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> Backbone:
    """Returns `load_backbone` of a local folder; with `weights=False` its architecture alone, not initialised.

    Whoever fills the weights in later calls `check_attention` afterwards.
    """
    folder = Path(folder)
    check_files(folder)
    raw = read_json(folder / "config.json")
    check_layers(raw, folder / "config.json")
    name = model_type_of(raw)
    own = find_family(name)
    if raw.get("quantization_config") is not None:
        raise ConfigError(f"{folder / 'config.json'}: quantization_config: expected plain floats")
    tokenizer = tokenizer_of(folder, own) if tokenizer is None else tokenizer
    with bounded_by(weight_files(folder), folder) if weights else nullcontext(), one_line(folder / "config.json"):
        has_weights = weights or any((folder / name).is_file() for name in (SINGLE, INDEX))
        config = own.config(own.settle(raw, tensor_names(folder)) if has_weights else raw, options)
        check_sizes(config, folder / "config.json")
        facts = own.facts(raw, config, tokenizer)
        if reserve is None:
            reserve = reserve_of(raw, len(tokenizer), config.vocab_size)
        grows = weights and own.GROWS and len(tokenizer) + reserved_ids(reserve) > config.vocab_size
        first = None if grows else reserve
        backbone = _build(name, config, facts, tokenizer, dtype, attention, rope_in_fp32, first, not grows, False)
    if weights:
        read_weights(
            backbone.model, folder, own.published_names(config), own.is_elsewhere, lora_alpha=raw.get("lora_alpha")
        )
        if grows:
            reserve_more(backbone, reserve or {})
        check_attention(backbone, backbone.facts.attention)
    return backbone


@part
def new_backbone(
    *,
    tokenizer: Any,
    hidden_size: UpToMillion,
    layers: UpTo1000,
    heads: UpToMillion,
    family: str = "llada",
    kv_heads: AtLeast1 | None = None,
    intermediate_size: UpToMillion | None = None,
    vocab_size: AtLeast1 | None = None,
    max_length: AtLeast1 = 4096,
    rope_theta: Positive | None = None,
    init_std: Positive = 0.02,
    dtype: str = "float32",
    attention: str = "sdpa",
    rope_in_fp32: bool = True,
    reserve: Mapping[str, AtLeast0] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Returns a backbone of a family's architecture with random weights, at any width.

    tokenizer: a transformers tokenizer; its mask and end-of-sequence tokens (and padding, where it has one) are used.
    intermediate_size, rope_theta: None: as the family's published models have it. kv_heads: None: as many as heads.
    vocab_size: rows of the embedding table, None: as many as the tokenizer has ids, and those that are reserved.
    reserve, options: as in `load_backbone`.
    init_std: of all weights; 0.02 suits widths of some thousands, a width of 100 learns faster with 1 / sqrt(width).
    """
    if not hasattr(tokenizer, "eos_token_id"):
        raise ConfigError(f"tokenizer: {tokenizer!r:.60}, expected one of transformers, {{target: ...}} say")
    if hidden_size % heads or (hidden_size // heads) % 2:
        raise ConfigError(f"hidden_size {hidden_size}: expected a multiple of 2 x heads = {2 * heads}")
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise ConfigError(f"kv_heads {kv_heads}: expected a divisor of heads = {heads}")
    own = find_family(family)
    sizes = Sizes(
        vocab_size=len(tokenizer) + reserved_ids(reserve) if vocab_size is None else vocab_size,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate_size=intermediate_size,
        max_length=max_length,
        rope_theta=rope_theta,
        init_std=init_std,
    )
    config = own.new_config(sizes, options)
    facts = own.facts({}, config, tokenizer)  # which may give the tokenizer a mask token
    if vocab_size is None and (rows := len(tokenizer) + reserved_ids(reserve)) > config.vocab_size:
        config = own.new_config(replace(sizes, vocab_size=rows), options)
    backbone = _build(family, config, facts, tokenizer, dtype, attention, rope_in_fp32, reserve, True, True)
    check_attention(backbone, backbone.facts.attention)
    return backbone


def toy_backbone(
    path: str | Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    rope_in_fp32: bool = True,
    reserve: Mapping[str, AtLeast0] | None = None,
    options: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> Backbone:
    """Returns the family of `path` at toy width with random weights (`load_backbone.toy`); only a config.json is read.

    Its tokenizer encodes any text byte by byte and has the family's special tokens. A hub id that no family lists is
    taken for a LLaDA. Arguments are those of `load_backbone`.
    """
    here = Path(path) / "config.json"
    listed = (found[str(path)] for found in (find_family(name).PUBLISHED for name in FAMILIES) if str(path) in found)
    raw = read_json(here) if here.is_file() else next(listed, {"model_type": "llada"})
    name = model_type_of(raw)
    own = find_family(name)
    tokenizer = own.toy_tokenizer() if tokenizer is None else tokenizer
    return new_backbone(
        family=name,
        tokenizer=tokenizer,
        hidden_size=64,
        layers=2,
        heads=4,
        vocab_size=padded_rows(len(tokenizer) + reserved_ids(reserve)),
        dtype=dtype,
        attention=attention,
        rope_in_fp32=rope_in_fp32,
        reserve=reserve,
        options={**own.toy_options(raw), **(options or {})},
    )


load_backbone.toy = toy_backbone  # type: ignore[attr-defined]


def _build(
    name: str,
    config: Any,
    facts: Facts,
    tokenizer: Any,
    dtype: str,
    attention: str,
    rope_in_fp32: bool,
    reserve: Mapping[str, int] | None,
    fits: bool,
    initialise: bool,
) -> Backbone:
    """Returns the module, made in its dtype: casting it afterwards would cast the rotary frequencies too."""
    from transformers import AttentionInterface
    from transformers.initialization import no_init_weights

    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: not a dtype of weights{nearest(dtype, DTYPES)}")
    known = {"eager", *AttentionInterface().valid_keys()}
    if attention not in known:
        raise ConfigError(f"attention {attention!r}: transformers has none of that name{nearest(attention, known)}")
    rows = config.vocab_size
    room = rows if fits else max(rows, len(tokenizer))
    check_ids(facts, room, len(tokenizer))
    ranges = reserve_ranges(reserve, len(tokenizer), room)
    own = find_family(name)
    with nullcontext() if initialise else no_init_weights():
        model = stock_model(own, config, dtype=dtype, attn_implementation=attention)
    model = own.finished(model)
    model.tie_weights()
    model.eval()
    if rope_in_fp32:
        use_rope_in_fp32(model)
    vocab = Vocab(
        tokenizer=tokenizer,
        size=rows,
        mask_id=NO_MASK if facts.mask_id is None else facts.mask_id,
        eos_id=facts.eos_id,
        pad_id=facts.pad_id,
        slot_id=facts.pad_id,  # its embedding is overwritten by features
        bos_id=facts.bos_id,
        end_ids=facts.end_ids,
        ranges=ranges,
    )
    node = {
        "target": "mmdiff.backbones.backbone_from_folder",
        "weights": False,
        "dtype": dtype,
        "attention": attention,
        "rope_in_fp32": rope_in_fp32,
        **({"reserve": dict(reserve)} if reserve else {}),
    }
    return Backbone(model, facts, vocab, name, node)


def tokenizer_of(folder: Path, own: Family) -> Any:
    """Returns the tokenizer of a folder; no code of it is run. Raises ConfigError for none, and a damaged one."""
    from transformers import AutoTokenizer, PreTrainedConfig

    if (found := own.folder_tokenizer(folder)) is not None:
        return found
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)}); pass tokenizer=")
    with one_line(folder, "the tokenizer "):  # a blank configuration: transformers would look for the folder's own
        found = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)
        found.decode(found("a")["input_ids"])  # what is wrong shows when it is used
        return found


def local_folder(path: str | Path) -> Path:
    """Returns the folder itself, or the snapshot of a hub id (configuration, tokenizer and safetensors only)."""
    if Path(path).is_dir():
        return Path(path)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
        raise ConfigError(f"path {str(path)!r}: neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        published = [name for model_type in FAMILIES for name in find_family(model_type).PUBLISHED]
        hint = "" if str(path) in published else nearest(str(path), published)
        cause = line_of(error) + hint
        raise ConfigError(f"path {str(path)!r}: no such folder, and no download: {cause}") from error
