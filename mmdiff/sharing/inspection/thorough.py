"""What a folder is, for every family: its configuration makes a model on torch's meta device, without numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmdiff.backbones.bounds import bounded_to, check_sizes, one_line
from mmdiff.backbones.family import Family, stock_model
from mmdiff.backbones.load import tokenizer_of
from mmdiff.backbones.weights import Header, Match, match
from mmdiff.config import build_saved
from mmdiff.model.published.folder import names_of
from mmdiff.model.published.layouts import is_multimodal, layout_of, with_files

from .counting.attention import ATTENTION, register_attention
from .counting.memory import memory_of
from .figures import Canvases
from .folder import Folder, NoTokenizer, Seen, has_tokenizer
from .matching import matched


def look(folder: Folder, raw: Mapping[str, Any], own: Family, headers: list[Header], dtype: str) -> Seen:
    """Returns what there is to see. Raises ConfigError, in one line, for what cannot be a model of the family."""
    file, sizes = folder.home / "config.json", [header.shape for header in headers]
    tokenizer = tokenizer_of(folder.home, own) if has_tokenizer(folder.home, own) else NoTokenizer()
    with bounded_to(sizes, folder.path), one_line(file):
        config = own.config(raw if folder.saved else own.settle(raw, {header.name for header in headers}))
        check_sizes(config, file)
        facts = own.facts(raw, config, tokenizer)
        model = on_meta(own, config, dtype)
    with bounded_to(sizes, folder.path), one_line(file):
        published = {} if folder.saved else own.published_names(config)
        shapes = {header.name: header.shape for header in headers}
        made: Mapping[str, Any] = folder.saved or {}
        if folder.saved is None and is_multimodal(raw, shapes):
            made = layout_of(raw).parts(with_files(raw, folder.home), shapes)
        whole = on_meta_whole(model, made) if "published" in made and folder.saved is None else None
    found = matched(folder, model, headers, published, own) if whole is None else _matched_whole(whole, raw, headers)

    def memory(of: Canvases) -> dict[str, Any]:
        return memory_of(model, own, of)

    return Seen(
        tokenizer=tokenizer,
        facts=facts,
        rows=config.vocab_size,
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in (whole or model).parameters()),
        found=found,
        memory=memory,
        made=made,
        multimodal=whole is not None,
    )


def on_meta(own: Family, config: Any, dtype: str) -> Any:
    """Returns the model of a configuration, without numbers, to be counted."""
    from transformers.initialization import no_init_weights

    register_attention()
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0  # a loop over the canvas that changes no result, and takes minutes
    with torch.device("meta"), no_init_weights():
        try:
            model = stock_model(own, config, dtype=getattr(torch, dtype), attn_implementation=ATTENTION)
        except KeyError:  # of a class that has attention of its own (Falcon)
            model = stock_model(own, config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model = own.finished(model)
    model.tie_weights()
    return model


def on_meta_whole(model: Any, made: Mapping[str, Any]) -> nn.Module:
    """Returns a multimodal checkpoint without numbers, its parts under the names that they have in an `MMDiff`."""
    whole = nn.Module()
    whole.backbone = nn.Module()
    whole.backbone.model = model
    with torch.device("meta"):
        for name in ("encoders", "connectors"):
            built = {kind: build_saved(node, f"{name}.{kind}") for kind, node in made[name].items()}
            setattr(whole, name, nn.ModuleDict(built))
    return whole


def _matched_whole(whole: nn.Module, raw: Mapping[str, Any], headers: list[Header]) -> Match:
    return match(whole, headers, names_of(whole, raw), lambda name: False)
