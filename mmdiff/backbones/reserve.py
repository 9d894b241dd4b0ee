"""Reserved ids: named ranges behind the tokenizer's ids, in rows of the embedding table that stand for no text.

`reserve: {action: 256}` gives `vocab.range("action")` of 256 ids. Where a published table has too few free rows, that
of a decoder grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mmdiff.errors import ConfigError

from .backbone import Backbone


def reserved_ids(reserve: Mapping[str, int] | None) -> int:
    """Returns the number of reserved ids of all names. What is no number is left to `reserve_ranges` to refuse."""
    return sum(n for n in (reserve or {}).values() if isinstance(n, int))


def reserve_ranges(reserve: Mapping[str, int] | None, first: int, rows: int) -> dict[str, tuple[int, int]]:
    """Returns half-open ranges by name, one behind the other from the id `first` on.

    rows: of the embedding table. Raises ConfigError for a count below 1 and for more ids than there are free rows.
    """
    ranges, low = {}, first
    for name, count in (reserve or {}).items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"reserve.{name}: {count!r} is not a whole number of at least 1")
        ranges[name] = (low, low + count)
        low += count
    if low > rows:
        raise ConfigError(f"reserve: {low - first} ids, but {rows - first} rows of the {rows} are free")
    return ranges


def padded_rows(ids: int) -> int:
    """Returns the rows of an embedding table for so many ids: a multiple of 128, as LLaDA's 126464 is."""
    return -(-ids // 128) * 128


def grow(backbone: Backbone, reserve: Mapping[str, int]) -> None:
    """Put rows behind the embedding table and the head, drawn as the model's other weights once were."""
    first = len(backbone.vocab.tokenizer)
    rows = padded_rows(first + reserved_ids(reserve))
    ranges = reserve_ranges(reserve, first, rows)
    backbone.model.resize_token_embeddings(rows, mean_resizing=False)
    backbone.vocab = replace(backbone.vocab, size=rows, ranges=ranges)
    backbone.vocab_size = rows
    backbone.node["reserve"] = dict(reserve)
