"""The memory of dense decoders (Llama, Qwen2, Qwen3, Ministral 3) by arithmetic: that of `memory.py`, without torch.

Shape letters: N positions of all rows, D width, H heads, C width of a head, F width of the feed-forward.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from .figures import ADAPTED, Canvases, Kept, inference, training
from .tape import FP32, INT64, Shape, Tape, Weight, total


@dataclass(frozen=True)
class Dense:
    """A decoder. qkv_bias: of query, key and value. norms: whether query and key have one each, per head.
    scaled: whether queries are multiplied by a number of their position (Ministral 3)."""

    rows: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    wide: int
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norms: bool = False
    scaled: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter of transformers' class -> its shape."""
        d, q, k = self.width, self.heads * self.head, self.kv_heads * self.head
        layer: dict[str, tuple[int, ...]] = {}
        for name, out, into, biased in (
            ("self_attn.q_proj", q, d, self.qkv_bias),
            ("self_attn.k_proj", k, d, self.qkv_bias),
            ("self_attn.v_proj", k, d, self.qkv_bias),
            ("self_attn.o_proj", d, q, self.out_bias),
            ("mlp.gate_proj", self.wide, d, self.mlp_bias),
            ("mlp.up_proj", self.wide, d, self.mlp_bias),
            ("mlp.down_proj", d, self.wide, self.mlp_bias),
        ):
            layer |= {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if biased else {})
        if self.norms:
            layer |= {"self_attn.q_norm.weight": (self.head,), "self_attn.k_norm.weight": (self.head,)}
        layer |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        whole: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.rows, d)}
        whole |= {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        whole["model.norm.weight"] = (d,)
        return whole if self.tied else {**whole, "lm_head.weight": (self.rows, d)}


def run(tape: Tape, model: Dense, batch: int, length: int, rank: int = 0) -> Shape:
    """Run the body on (B, L) positions. rank: of LoRA factors, which alone are trained; 0: all weights are."""
    weight = partial(Weight, trained=not rank)

    def matrix(name: str, out: int, into: int) -> Weight:
        return weight(out, into, rank=rank if rank and re.fullmatch(ADAPTED, name) else 0)

    n, d, c = batch * length, model.width, model.head
    q, k = model.heads * c, model.kv_heads * c
    ids, at = tape.new(n, 1, INT64), tape.like(tape.new(length, 1, INT64))
    if not rank:
        tape.save(ids)  # the table's gradient is of these rows
    embedded = x = tape.new(n, d, tape.width, trained=not rank)
    cos, sin = _angles(tape, at, c)
    for i in range(model.layers):
        with tape.within(i, x):
            y = tape.norm(x, weight(d))
            query = tape.linear(y, matrix("q_proj", q, d)).view(n * model.heads, c)
            query = tape.norm(query, weight(c)) if model.norms else query
            key = tape.linear(y, matrix("k_proj", k, d)).view(n * model.kv_heads, c)
            key = tape.norm(key, weight(c)) if model.norms else key
            value = tape.linear(y, matrix("v_proj", k, d)).view(n * model.kv_heads, c)
            query, key = _turned(tape, query, key, cos, sin)
            query = tape.mul(query, _scale(tape, at)) if model.scaled else query
            out = tape.attention(query, key, value).view(n, q)
            out = tape.linear(out, matrix("o_proj", d, q))
            del query, key, value, y
            z = tape.like(x, out)
            del out
            y = tape.norm(z, weight(d))
            gated = tape.mul(
                tape.silu(tape.linear(y, matrix("gate_proj", model.wide, d))),
                tape.linear(y, matrix("up_proj", model.wide, d)),
            )
            out = tape.linear(gated, matrix("down_proj", d, model.wide))
            del gated, y
            x = tape.like(z, out)
            del out, z
    out = tape.norm(x, weight(d))
    del ids, at, embedded  # which who calls a model holds
    return out


def _angles(tape: Tape, at: Shape, c: int) -> tuple[Shape, Shape]:
    """Returns cosines and sines, which are computed in fp32, of the positions `at`."""
    half = tape.new(at.rows, c // 2, FP32, tape.new(at.rows, 1, FP32, at))
    angle = tape.new(at.rows, c, FP32, half)
    cos = tape.like(tape.like(angle))
    sin = tape.like(tape.like(angle))
    return tape.cast(cos, tape.width), tape.cast(sin, tape.width)


def _scale(tape: Tape, at: Shape) -> Shape:
    share = tape.new(at.rows, 1, FP32, at)
    return tape.cast(tape.like(tape.like(tape.like(tape.like(tape.like(share))))), tape.width)


def _turned(tape: Tape, query: Shape, key: Shape, cos: Shape, sin: Shape) -> tuple[Shape, Shape]:
    def turned(x: Shape) -> Shape:
        return tape.like(tape.mul(x, cos), tape.mul(_other_half(tape, x), sin))

    first = turned(query)
    return first, turned(key)


def _other_half(tape: Tape, x: Shape) -> Shape:
    return tape.like(x, tape.new(x.rows, x.last // 2, x.width, x))


# The figures ----------------------------------------------------------------------------------------------------------


def memory_of(model: Dense, width: int, of: Canvases) -> dict[str, Any]:
    """Returns what `memory.memory_of` does of the model in transformers' class. width: bytes of a number."""
    shapes = model.shapes
    weights = width * sum(map(prod, shapes.values()))
    states = 2 * model.layers * of.batch * model.kv_heads * (of.length + 1) * model.head * width
    quiet = Tape(width, records=False)
    run(quiet, model, of.batch, of.length)
    own = FP32 * sum(
        of.rank * sum(shape) for name, shape in shapes.items() if re.fullmatch(rf".*\.({ADAPTED})\.weight", name)
    )
    return {
        "inference": inference(weights, states, quiet.most, model.rows, of),
        "full_training": training(weights, weights, kept(model, width, of), model.rows, of),
        "lora_training": training(weights + own, own, kept(model, width, of, of.rank), model.rows, of),
    }


def kept(model: Dense, width: int, of: Canvases, rank: int = 0) -> Kept:
    """Returns what autograd keeps of a forward. rank: as for `run`."""
    tape = Tape(width, records=True)
    out = run(tape, model, of.batch, of.length, rank)
    outside = tape.kept.pop(-1) + (0 if out.storage in tape.saved else out.storage.size)
    inputs = [storage for storage in tape.inputs if storage in tape.saved]
    whole = outside + total(inputs) + sum(tape.kept.values())
    return Kept(whole, outside + total(tape.inputs) + max(tape.kept.values(), default=0))
