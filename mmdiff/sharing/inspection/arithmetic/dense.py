"""The memory of decoders (Llama, Qwen2, Qwen3, Ministral 3, Qwen3-MoE, GLM-4-MoE) by arithmetic: that of `counting`,
without torch. `mixture.py` has the experts.

Shape letters: N positions of all rows, D width, H heads, C width of a head, F width of the feed-forward.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from ..figures import ADAPTED, Canvases, Kept, inference, training
from .mixture import Mixture, mix
from .tape import FP32, INT64, Shape, Tape, Weight

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Dense:
    """A decoder. qkv_bias: of query, key and value. norms: whether query and key have one each, per head.
    scaled: whether queries are multiplied by a number of their position (Ministral 3). turned: how many numbers of a
    head are turned by their position (GLM-4); None: all. mixture: of the layers that it names; None: all are dense."""

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
    turned: int | None = None
    mixture: Mixture | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter of transformers' class -> its shape."""
        d, q, k = self.width, self.heads * self.head, self.kv_heads * self.head

        def linear(*layers: tuple[str, int, int, bool]) -> dict[str, tuple[int, ...]]:
            made: dict[str, tuple[int, ...]] = {}
            for name, out, into, biased in layers:
                made |= {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if biased else {})
            return made

        attention = linear(
            ("self_attn.q_proj", q, d, self.qkv_bias),
            ("self_attn.k_proj", k, d, self.qkv_bias),
            ("self_attn.v_proj", k, d, self.qkv_bias),
            ("self_attn.o_proj", d, q, self.out_bias),
        )
        if self.norms:
            attention |= {"self_attn.q_norm.weight": (self.head,), "self_attn.k_norm.weight": (self.head,)}
        dense = linear(
            ("mlp.gate_proj", self.wide, d, self.mlp_bias),
            ("mlp.up_proj", self.wide, d, self.mlp_bias),
            ("mlp.down_proj", d, self.wide, self.mlp_bias),
        )
        norms: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        whole: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.rows, d)}
        for i in range(self.layers):
            feed = self.mixture.shapes(d) if self.mixes(i) and self.mixture else dense
            whole |= {f"model.layers.{i}.{name}": shape for name, shape in (attention | feed | norms).items()}
        whole["model.norm.weight"] = (d,)
        return whole if self.tied else {**whole, "lm_head.weight": (self.rows, d)}

    @property
    def buffers(self) -> dict[str, tuple[int, ...]]:
        """Buffer that files hold -> its shape."""
        if self.mixture is None or not self.mixture.groups:
            return {}
        layers = [i for i in range(self.layers) if self.mixes(i)]
        return {f"model.layers.{i}.mlp.gate.e_score_correction_bias": (self.mixture.experts,) for i in layers}

    def mixes(self, layer: int) -> bool:
        """Returns whether a layer has experts."""
        return self.mixture is not None and layer not in self.mixture.dense

    def width_of(self, name: str, width: int) -> int:
        """Returns the bytes of a number of a parameter in a model of that width: GLM-4's routers are in fp32."""
        routes = self.mixture is not None and bool(self.mixture.groups) and name.endswith(".mlp.gate.weight")
        return FP32 if routes else width


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
    cos, sin = angles(tape, at, c if model.turned is None else model.turned)
    for i in range(model.layers):
        with tape.within(i, x):
            y = tape.norm(x, weight(d))
            query = tape.linear(y, matrix("q_proj", q, d)).view(n * model.heads, c)
            if model.norms and model.turned is None:
                query = tape.norm(query, weight(c))
            key = tape.linear(y, matrix("k_proj", k, d)).view(n * model.kv_heads, c)
            if model.norms and model.turned is None:
                key = tape.norm(key, weight(c))
            value = tape.linear(y, matrix("v_proj", k, d)).view(n * model.kv_heads, c)
            if model.norms and model.turned is not None:
                query = tape.norm(query, weight(c))
                key = tape.norm(key, weight(c))
            query, key = _turned(tape, query, key, cos, sin, model.turned)
            query = tape.mul(query, _scale(tape, at)) if model.scaled else query
            out = tape.attention(query, key, value).view(n, q)
            out = tape.linear(out, matrix("o_proj", d, q))
            del query, key, value, y
            z = tape.like(x, out)
            del out
            y = tape.norm(z, weight(d))
            if model.mixes(i) and model.mixture:
                out = mix(tape, model.mixture, y, matrix)
            else:
                out = tape.gated(y, matrix, model.wide)
            del y
            x = tape.like(z, out)
            del out, z
    out = tape.norm(x, weight(d))
    del ids, at, embedded  # which who calls a model holds
    return out


def angles(tape: Tape, at: Shape, c: int) -> tuple[Shape, Shape]:
    """Returns cosines and sines, which are computed in fp32, of the positions `at`."""
    half = _outer(tape, tape.new(at.rows, 1, FP32, at), c)
    angle = tape.new(at.rows, c, FP32, half)
    cos = tape.like(tape.like(angle))
    sin = tape.like(tape.like(angle))
    return tape.cast(cos, tape.width), tape.cast(sin, tape.width)


def _outer(tape: Tape, at: Shape, c: int) -> Shape:
    frequencies = tape.new(c // 2, 1, FP32) if tape.recast else None
    half = tape.new(at.rows, c // 2, FP32, at)
    del frequencies
    return half


def _scale(tape: Tape, at: Shape) -> Shape:
    share = tape.new(at.rows, 1, FP32, at)
    return tape.cast(tape.like(tape.like(tape.like(tape.like(tape.like(share))))), tape.width)


def _turned(tape: Tape, query: Shape, key: Shape, cos: Shape, sin: Shape, part: int | None) -> tuple[Shape, Shape]:
    def turned(x: Shape) -> Shape:
        x = x if part is None else x.view(x.rows, part)
        return tape.like(tape.mul(x, cos), tape.mul(other_half(tape, x), sin))

    first = turned(query)
    second = turned(key)
    if part is not None:
        first = tape.like(query, first)
        second = tape.like(key, second)
    return first, second


def other_half(tape: Tape, x: Shape) -> Shape:
    """Returns the second half of every row, negated, before the first."""
    return tape.like(x, tape.new(x.rows, x.last // 2, x.width, x))


# The figures ----------------------------------------------------------------------------------------------------------


def memory_of(model: Dense, dtype: str, of: Canvases) -> dict[str, Any]:
    """Returns what `memory.memory_of` does of the model in transformers' class. dtype: of its weights."""
    shapes, width = model.shapes, WIDTHS[dtype]
    weights = sum(model.width_of(name, width) * prod(shape) for name, shape in shapes.items())
    states = 2 * model.layers * of.batch * model.kv_heads * (of.length + 1) * model.head * width
    scale = width / tape_of(model, dtype, False).width
    quiet = tape_of(model, dtype, False)
    run(quiet, model, of.batch, of.length)
    own = FP32 * sum(
        of.rank * sum(shape) for name, shape in shapes.items() if re.fullmatch(rf".*\.({ADAPTED})\.weight", name)
    )
    whole, adapted = (kept(model, dtype, of, rank).times(scale) for rank in (0, of.rank))
    return {
        "inference": inference(weights, states, int(scale * quiet.most), model.rows, of),
        "full_training": training(weights, weights, whole, model.rows, of),
        "lora_training": training(weights + own, own, adapted, model.rows, of),
    }


def tape_of(model: Dense, dtype: str, records: bool) -> Tape:
    """Returns an empty tape: experts are counted in bfloat16, the one dtype that has kernels for them."""
    recast = model.mixture is not None and dtype != "bfloat16"
    return Tape(2 if model.mixture else WIDTHS[dtype], records, recast)


def kept(model: Dense, dtype: str, of: Canvases, rank: int = 0) -> Kept:
    """Returns what autograd keeps of a forward. rank: as for `run`."""
    tape = tape_of(model, dtype, True)
    return tape.total(run(tape, model, of.batch, of.length, rank))
