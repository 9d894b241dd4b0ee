"""Scaffolds: what a schema fixes is written on the canvas, and only values are masked (S^3).

A gap has more positions than most values need. The null token fills the rest: it may stand anywhere, and is no part of
the text. The idea is that of self-adaptive schema scaffolding; here the grammar is held as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmdiff.canvas.vocab import Vocab

from .automaton import null_id
from .schema import Schema


def scaffold(grammar: Schema, vocab: Vocab, gap: int = 16) -> list[int]:
    """Returns ids for a `Target`: all properties of an object, and of objects in it, with `gap` masked positions for
    each other value; the quotes of a string are written.
    """

    def of(node: Any) -> list[int]:
        if isinstance(node, Mapping) and node.get("type") == "object" and node.get("properties"):
            out: list[int] = []
            for name, value in node["properties"].items():
                out += vocab.encode((", " if out else "{") + json.dumps(name, ensure_ascii=False) + ": ") + of(value)
            return out + vocab.encode("}")
        if isinstance(node, Mapping) and node.get("type") == "string":
            return [*vocab.encode('"'), *[vocab.mask_id] * gap, *vocab.encode('"')]
        return [vocab.mask_id] * gap

    return of(grammar.mapping())


def text_of(ids: Iterable[int], vocab: Vocab, null: str) -> str:
    """Returns the text of ids of a target, without its null tokens, up to the first other id that ends it."""
    nothing = null_id(vocab, null)
    return vocab.decode(vocab.until_end(int(i) for i in ids if int(i) != nothing))
