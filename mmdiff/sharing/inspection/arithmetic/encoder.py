"""The memory of encoders (BERT, RoBERTa and their kin; ESM-2) by arithmetic: that of `counting`, without torch.

BERT's layers have their norms behind what is added, and learned positions; ESM-2's before it, rotated positions in fp32
and a GELU of its own, of five operations.

Shape letters: N positions of all rows, D width, H heads, C width of a head, F width of the feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from ..figures import Canvases, Kept, inference, training
from .dense import WIDTHS, angles, other_half
from .tape import FP32, INT64, Shape, Tape, Weight

BOOL = 1
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Encoder:
    """rows, width, layers, heads, wide: V, D, of layers, H, F. body: the name of the model without its head. head: what
    lies before the decoder in the head, by name: the layer, its norm, and the decoder's bias. table: rows of the table
    of positions; 0: they are rotated (ESM-2). types: of tokens (BERT). tied: whether the head is the table.
    """

    rows: int
    width: int
    layers: int
    heads: int
    wide: int
    body: str
    head: tuple[str, str, str]
    table: int = 0
    types: int = 0
    tied: bool = True

    @property
    def rotates(self) -> bool:
        return not self.table

    @property
    def linear(self) -> Shapes:
        """Layer that LoRA adapts -> its width out and in."""
        d, f = self.width, self.wide
        layer: Shapes = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        layer |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
        out = {f"{self._layer(i)}{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        return out | {self.head[0]: (d, d)}

    @property
    def shapes(self) -> Shapes:
        """Parameter of transformers' class -> its shape."""
        d = self.width
        tables = {"word_embeddings": self.rows, "position_embeddings": self.table, "token_type_embeddings": self.types}
        norms = [] if self.rotates else [f"{self.body}.embeddings.LayerNorm"]
        inner = (
            ("attention.LayerNorm", "LayerNorm") if self.rotates else ("attention.output.LayerNorm", "output.LayerNorm")
        )
        norms += [f"{self._layer(i)}{name}" for i in range(self.layers) for name in inner]
        norms += [f"{self.body}.encoder.emb_layer_norm_after"] if self.rotates else []
        out: Shapes = {f"{self.body}.embeddings.{name}.weight": (n, d) for name, n in tables.items() if n}
        out |= {f"{name}.{kind}": (d,) for name in [*norms, self.head[1]] for kind in ("weight", "bias")}
        out |= {f"{name}.weight": shape for name, shape in self.linear.items()}
        out |= {f"{name}.bias": shape[:1] for name, shape in self.linear.items()}
        out[self.head[2]] = (self.rows,)
        return out if self.tied else {**out, "lm_head.decoder.weight": (self.rows, d)}

    @property
    def buffers(self) -> Shapes:
        return {f"{self.body}.rotary_embeddings.inv_freq": (self.width // self.heads // 2,)} if self.rotates else {}

    def _layer(self, i: int) -> str:
        return f"{self.body}.encoder.layer.{i}."


def run(tape: Tape, model: Encoder, batch: int, length: int, rank: int = 0) -> Shape:
    """Run the body on (B, L) positions. rank: of LoRA factors, which alone are trained; 0: all weights are."""
    weight = partial(Weight, trained=not rank)
    matrix = partial(weight, rank=rank)
    n, d = batch * length, model.width
    ids = tape.new(n, 1, INT64)
    if not rank:
        tape.save(ids)
    words = x = tape.new(n, d, tape.width, trained=not rank)
    layer = _rotated if model.rotates else _learned
    if model.rotates:
        at = tape.new(length, 1, INT64)
        held: Any = (at, *angles(tape, at, d // model.heads))
    else:
        held = _positions(tape, n)
        x = _embedded(tape, words, held[1], not rank)
    embedded = x
    for i in range(model.layers):
        with tape.within(i, x):
            x = layer(tape, model, x, held, weight, matrix)
    out = tape.layer_norm(x, weight(d)) if model.rotates else x
    del ids, words, embedded, held  # which who calls a model holds
    return out


def _learned(tape: Tape, model: Encoder, x: Shape, held: Any, weight: Any, matrix: Any) -> Shape:
    d = model.width
    y = _attended(tape, model, x, None, matrix)
    z = _added(tape, tape.linear(y, matrix(d, d)), x, weight)
    del y
    y = tape.linear(z, matrix(model.wide, d))
    y = tape.silu(y)  # GELU keeps what SiLU does
    return _added(tape, tape.linear(y, matrix(d, model.wide)), z, weight)


def _added(tape: Tape, out: Shape, x: Shape, weight: Any) -> Shape:
    return tape.layer_norm(tape.like(out, x), weight(x.last))


def _rotated(tape: Tape, model: Encoder, x: Shape, held: Any, weight: Any, matrix: Any) -> Shape:
    d = model.width
    z = _self(tape, model, x, held, weight, matrix)
    normed = tape.layer_norm(z, weight(d))
    y = _gelu(tape, tape.linear(normed, matrix(model.wide, d)))
    return tape.like(tape.linear(y, matrix(d, model.wide)), z)


def _self(tape: Tape, model: Encoder, x: Shape, held: Any, weight: Any, matrix: Any) -> Shape:
    normed = tape.layer_norm(x, weight(model.width))
    y = _attended(tape, model, normed, held, matrix)
    return tape.like(tape.linear(y, matrix(model.width, model.width)), x)


def _attended(tape: Tape, model: Encoder, x: Shape, held: Any, matrix: Any) -> Shape:
    """Returns what a layer attends to. held: positions, cosines and sines; None: nothing is rotated."""
    n, d, c = x.rows, model.width, model.width // model.heads
    query = tape.linear(x, matrix(d, d)).view(n * model.heads, c)
    key = tape.linear(x, matrix(d, d)).view(n * model.heads, c)
    value = tape.linear(x, matrix(d, d)).view(n * model.heads, c)
    if held is not None:
        query = tape.like(query)
        query, key = _turned(tape, query, key, *held[1:])
    return tape.attention(query, key, value).view(n, d)


def _turned(tape: Tape, query: Shape, key: Shape, cos: Shape, sin: Shape) -> tuple[Shape, Shape]:
    def turned(x: Shape) -> Shape:
        return _sum(tape, tape.mul(tape.cast(x, FP32), cos), tape.mul(_half(tape, x), sin))

    first, second = turned(query), turned(key)
    return tape.cast(first, query.width), tape.cast(second, key.width)


def _half(tape: Tape, x: Shape) -> Shape:
    return other_half(tape, tape.cast(x, FP32))


def _sum(tape: Tape, a: Shape, b: Shape) -> Shape:
    return tape.like(a, b, width=max(a.width, b.width))


def _gelu(tape: Tape, x: Shape) -> Shape:
    """Returns x / 2 (1 + erf(x / sqrt 2))."""
    half = tape.like(x)
    return tape.mul(half, tape.like(_erf(tape, tape.like(x))))


def _erf(tape: Tape, x: Shape) -> Shape:
    if x.grad:
        tape.save(x)
    return tape.like(x)


def _positions(tape: Tape, n: int) -> tuple[Shape, Shape]:
    """Returns which positions are attended to, and their numbers, counted from those."""
    attend = _bool(tape, tape.new(n, 1, tape.width))
    at = _counted(tape, tape.new(n, 1, INT64))
    at = tape.like(tape.like(at))
    at = tape.like(tape.like(at))
    return attend, at


def _bool(tape: Tape, x: Shape) -> Shape:
    return tape.new(x.rows, 1, BOOL)


def _counted(tape: Tape, x: Shape) -> Shape:
    return tape.like(x)


def _embedded(tape: Tape, x: Shape, at: Shape, trained: bool) -> Shape:
    """Returns words, types and positions together, normed."""
    kinds = tape.new(x.rows, 1, INT64)
    if trained:
        tape.save(kinds)
    types = tape.new(x.rows, x.last, tape.width, trained=trained)
    whole = tape.like(x, types)
    if trained:
        tape.save(at)
    positions = tape.new(x.rows, x.last, tape.width, trained=trained)
    whole = tape.like(whole, positions)
    out = tape.layer_norm(whole, Weight(x.last, trained=trained))
    del types, positions
    return out


# The figures ----------------------------------------------------------------------------------------------------------


def memory_of(model: Encoder, dtype: str, of: Canvases) -> dict[str, Any]:
    """Returns what `memory.memory_of` does of the model in transformers' class. dtype: of its weights."""
    width = WIDTHS[dtype]
    weights = width * sum(map(prod, model.shapes.values()))
    own = FP32 * of.rank * sum(map(sum, model.linear.values()))
    quiet = Tape(width, records=False)
    run(quiet, model, of.batch, of.length)
    return {
        "inference": inference(weights, 0, quiet.most, model.rows, of),
        "full_training": training(weights, weights, kept(model, width, of), model.rows, of),
        "lora_training": training(weights + own, own, kept(model, width, of, of.rank), model.rows, of),
    }


def kept(model: Encoder, width: int, of: Canvases, rank: int = 0) -> Kept:
    """Returns what autograd keeps of a forward. rank: as for `run`."""
    tape = Tape(width, records=True)
    return tape.total(run(tape, model, of.batch, of.length, rank))
