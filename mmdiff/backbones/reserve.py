"""Reserved ids: named ranges behind the tokenizer's ids, in rows of the embedding table that stand for no text.

`reserve: {action: 256}` gives `vocab.range("action")` of 256 ids. Where a published table has too few free rows, that
of a decoder grows. `grow` adds words and ranges to a model that is there.

Shape letters: V rows of the embedding table, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.vocab import NO_MASK, unknown_words
from mmdiff.errors import ConfigError

from .backbone import Backbone
from .bounds import padded_rows, reserve_ranges, reserved_ids
from .family import find_family, token_id

NEAR = 0.01
"""Deviation of a new row's numbers, as a share of that of the table's."""


@torch.no_grad()
def resize(backbone: Backbone, rows: int) -> None:
    """Put rows behind the embedding table and the head: each is the mean of those that there are, and a little noise.

    The same to the bit each time that it is done to the same table. Rows drawn like other weights are not of the
    table's scale, and a model that is made a masked one learns slower from such a mask (`docs/text.md`).
    """
    model = backbone.model
    old = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    model.resize_token_embeddings(rows, mean_resizing=False)
    backbone.vocab_size = rows
    for layer, table_VD in zip((model.get_input_embeddings(), model.get_output_embeddings()), old, strict=True):
        layer.weight[len(table_VD) :] = near_mean(table_VD, range(len(table_VD), rows)).to(layer.weight)


def near_mean(table_VD: Tensor, ids: Iterable[int]) -> Tensor:
    """Returns (N, D), rows of new ids near the mean of a table's; its numbers and the ids alone decide them."""
    table_VD = table_VD.float()
    draws, width = torch.Generator(), table_VD.shape[1]
    noise_ND = torch.stack([torch.randn(width, generator=draws.manual_seed(v)) for v in ids]).to(table_VD)
    return table_VD.mean(0) + NEAR * table_VD.std(0, correction=0) * noise_ND


def reserve_more(backbone: Backbone, reserve: Mapping[str, int]) -> None:
    """Reserve ids in a table that has too few free rows for them, which grows. The rows it has stay as they are."""
    first = len(backbone.vocab.tokenizer)
    rows = padded_rows(first + reserved_ids(reserve))
    _name_ranges(backbone, reserve_ranges(reserve, first, rows), rows)
    resize(backbone, rows)


@torch.no_grad()
def grow(
    backbone: Backbone, words: Sequence[str], reserve: Mapping[str, int], tables: Mapping[str, Any] | None = None
) -> None:
    """Add words to the tokenizer, and reserved ids.

    tables: further modules of the vocabulary's size by name, which grow by `grow(source_V)`. source_V: int64 (V,), the
        old id of each id, -1 of one that is new.
    reserve: names that are new, or had fewer ids. Words come behind those that the tokenizer has, ranges behind all
    words, so that old ranges may move: their rows move along. Numbers of old ids stay, to the bit; rows of new ids are
    near the mean of the table's, as those of `resize`, the same to the bit each time.
    Raises ConfigError, before anything is changed, for words that the tokenizer knows, ranges that would shrink, and
    for a family, an adapted layer or a module that cannot grow.
    """
    for name, module in (tables or {}).items():
        if not hasattr(module, "grow"):
            raise ConfigError(f"{name}: {type(module).__name__} has no method `grow`, take it out")
    old, model = backbone.vocab, backbone.model
    had = {name: high - low for name, (low, high) in old.ranges.items()}
    for name, count in reserve.items():
        if count < had.get(name, 0):
            raise ConfigError(f"reserve.{name}: {count!r} ids, but the model has {had[name]} of that name")
    if not find_family(backbone.family).GROWS:
        raise ConfigError(f"backbone: the vocabulary of the family {backbone.family!r} cannot grow")
    layers = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name, layer in layers.items():
        if type(layer) not in (nn.Embedding, nn.Linear) or getattr(layer, "bias", None) is not None:
            raise ConfigError(f"backbone: its {name} is a {type(layer).__name__}, which cannot grow (an adapter?)")
    tokenizer = with_words(old.tokenizer, words)
    counts = {**had, **reserve}
    first, last = len(old.tokenizer), len(tokenizer)
    needed = last + reserved_ids(counts)
    rows = old.size if needed <= old.size else padded_rows(needed)
    ranges = reserve_ranges(counts, last, rows)
    source_V = torch.full((rows,), -1)
    source_V[:first] = torch.arange(first)
    source_V[needed : old.size] = torch.arange(needed, max(old.size, needed))  # rows that stand for nothing, still
    for name, count in had.items():
        low, was = ranges[name][0], old.ranges[name][0]
        source_V[low : low + count] = torch.arange(was, was + count)
    ids = (old.mask_id, old.eos_id, old.pad_id, old.bos_id, *old.end_ids)
    taken = {i for i in ids if i is not None and i != NO_MASK}
    if moved := sorted(i for i in taken if source_V[i] != i):
        raise ConfigError(f"backbone: id {moved[0]} is a special token, but not of the tokenizer: it cannot grow")
    weights = [layer.weight.clone() for layer in layers.values()]
    if rows != old.size:
        resize(backbone, rows)
    backbone.vocab = replace(old, tokenizer=tokenizer, _known={}, _named=set())
    _name_ranges(backbone, ranges, rows)
    for layer, table_VD in zip((model.get_input_embeddings(), model.get_output_embeddings()), weights, strict=True):
        layer.weight.copy_(regrown(table_VD, source_V))
    for module in (tables or {}).values():
        module.grow(source_V)


def regrown(old_VD: Tensor, source_V: Tensor) -> Tensor:
    """Returns a table whose row v is row `source_V[v]` of the old one, and near the mean of these where that is -1."""
    new_VD = old_VD.new_empty((len(source_V), *old_VD.shape[1:]))
    kept_V = source_V >= 0
    new_VD[kept_V] = old_VD[source_V[kept_V]]
    if not kept_V.all():
        new_VD[~kept_V] = near_mean(old_VD, (~kept_V).nonzero()[:, 0].tolist()).to(new_VD)
    return new_VD


def with_words(tokenizer: Any, words: Sequence[str]) -> Any:
    """Returns a copy of a tokenizer that has more words, each one token. Raises ConfigError for what is no new word."""
    from tokenizers import AddedToken

    grown = copy.deepcopy(tokenizer)
    for word in words:
        if word.split() != [word] or not word.isprintable():
            raise ConfigError(f"words: {word!r:.80} is not a word, expected text without white space")
        ids = grown(word, add_special_tokens=False)["input_ids"]
        if token_id(grown, word) is not None or (len(ids) == 1 and not unknown_words(word, ids, grown)):
            raise ConfigError(f"words: {word!r:.80} is a token already, or given twice")
        # a word of letters is one by itself only: "cat" must not be found in "catalogue"
        grown.add_tokens(AddedToken(word, single_word=word[0].isalnum() and word[-1].isalnum(), normalized=True))
    return grown


def _name_ranges(backbone: Backbone, ranges: Mapping[str, tuple[int, int]], rows: int) -> None:
    backbone.vocab = replace(backbone.vocab, size=rows, ranges=ranges)
    backbone.node["reserve"] = {name: high - low for name, (low, high) in ranges.items()}
