"""Tensors without numbers and without torch: their bytes while they live, and what autograd keeps of a forward.

What `counting/memory.py` counts of torch's meta tensors, operation by operation, for models whose arithmetic is known
(`dense.py`): importing torch takes longer than the whole inspection. `tests/core/sharing/test_inspect_light.py`
compares the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..figures import Kept

FP32, INT64 = 4, 8


class Storage:
    """The bytes of one or more tensors. layer_input: whether gradient checkpointing keeps it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.layer_input = False


@dataclass(eq=False, slots=True)
class Shape:
    """A tensor. rows: its numbers besides those of the last axis. last: numbers of that. width: bytes of a number.
    grad: whether autograd follows it."""

    rows: int
    last: int
    width: int
    grad: bool
    storage: Storage

    def view(self, rows: int, last: int) -> Shape:
        """Returns a tensor of the same storage."""
        return Shape(rows, last, self.width, self.grad, self.storage)


@dataclass(frozen=True)
class Weight:
    """A matrix or vector of the model, whose bytes are counted elsewhere. rank: of its LoRA factors, 0: none."""

    out: int
    into: int = 1
    trained: bool = True
    rank: int = 0


@dataclass
class Tape:
    """Counts. width: bytes of a number of the model's dtype. records: whether autograd keeps what it needs. recast:
    whether what a model has in fp32 was cast to that dtype, and is cast back where it is used.

    now, most: bytes that are alive, and the most that were. kept: by layer, -1 outside of layers, what autograd keeps
    besides the inputs of layers. inputs: these.
    """

    width: int
    records: bool
    recast: bool = False
    now: int = 0
    most: int = 0
    layer: int = -1
    kept: dict[int, int] = field(default_factory=lambda: {-1: 0})
    inputs: list[Storage] = field(default_factory=list)
    saved: dict[Storage, None] = field(default_factory=dict)

    def new(self, rows: int, last: int, width: int, *made_of: Shape, trained: bool = False) -> Shape:
        """Returns the tensor that an operation makes of others. trained: whether a trained weight is among them."""
        storage = Storage(rows * last * width)
        self.now += storage.size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage.size).atexit = False
        return Shape(rows, last, width, self.records and (trained or any(x.grad for x in made_of)), storage)

    def _gone(self, size: int) -> None:
        self.now -= size

    def save(self, x: Shape) -> None:
        if self.records and x.storage not in self.saved:
            self.saved[x.storage] = None
            if not x.storage.layer_input:
                self.kept[self.layer] = self.kept.get(self.layer, 0) + x.storage.size

    @contextmanager
    def within(self, layer: int, x: Shape) -> Iterator[None]:
        """Within it, operations are those of a layer, whose input is `x`."""
        if self.records and not x.storage.layer_input:
            x.storage.layer_input = True
            self.inputs.append(x.storage)
        self.layer = layer
        yield
        self.layer = -1

    # Operations -------------------------------------------------------------------------------------------------------

    def cast(self, x: Shape, width: int) -> Shape:
        return x if x.width == width else self.new(x.rows, x.last, width, x)

    def mul(self, a: Shape, b: Shape) -> Shape:
        """Returns a product of the shape of `a`."""
        if b.grad:
            self.save(a)
        if a.grad:
            self.save(b)
        return self.new(a.rows, a.last, max(a.width, b.width), a, b)

    def like(self, x: Shape, *others: Shape, width: int | None = None) -> Shape:
        """Returns what a sum, a negation, a product with a number and the like make: they keep nothing."""
        return self.new(x.rows, x.last, width or x.width, x, *others)

    def silu(self, x: Shape) -> Shape:
        if x.grad:
            self.save(x)
        return self.like(x)

    def scaled(self, x: Shape, weight: Weight) -> Shape:
        """Returns the product with a vector of the model."""
        if weight.trained:
            self.save(x)
        return self.new(x.rows, x.last, x.width, x, trained=weight.trained)

    def linear(self, x: Shape, weight: Weight) -> Shape:
        """Returns a linear layer's output, with the sum of its LoRA factors' in fp32."""
        if weight.trained:
            self.save(x)
        out = self.new(x.rows, weight.out, x.width, x, trained=weight.trained)
        if not weight.rank:
            return out
        low = self._factor(self.cast(x, FP32), weight.rank)
        low = self.like(self._factor(low, weight.out))
        return self.cast(self.like(out, low, width=max(FP32, out.width)), out.width)

    def _factor(self, x: Shape, out: int) -> Shape:
        self.save(x)
        return self.new(x.rows, out, x.width, x, trained=True)

    def gated(self, x: Shape, matrix: Any, wide: int) -> Shape:
        """Returns the output of a gated feed-forward. matrix: of name, width out and width in."""
        up = self.mul(
            self.silu(self.linear(x, matrix("gate_proj", wide, x.last))),
            self.linear(x, matrix("up_proj", wide, x.last)),
        )
        return self.linear(up, matrix("down_proj", x.last, wide))

    def norm(self, x: Shape, weight: Weight) -> Shape:
        """Returns RMSNorm's output, whose mean and product are in fp32."""
        y = self.cast(x, FP32)
        squared = self._power(y)
        mean = self.new(y.rows, 1, FP32, squared)
        del squared
        root = self._root(self.like(mean))
        y = self.mul(y, root)
        del root
        return self.scaled(self.cast(y, x.width), weight)

    def _power(self, x: Shape) -> Shape:
        if x.grad:
            self.save(x)
        return self.like(x)

    def _root(self, x: Shape) -> Shape:
        out = self.like(x)
        if out.grad:
            self.save(out)
        return out

    def attention(self, query: Shape, key: Shape, value: Shape) -> Shape:
        """Returns the output of a fused kernel, which keeps what it is given, its output and a number per query."""
        out = self.new(query.rows, query.last, query.width, query, key, value)
        weights = self.new(query.rows, 1, FP32)  # of all heads: `query.rows` counts them
        if out.grad:
            for x in (query, key, value, out, weights):
                self.save(x)
        return out

    def layer_norm(self, x: Shape, weight: Weight) -> Shape:
        """Returns LayerNorm's output, by one kernel, which keeps what it is given, its mean and its deviation."""
        width = max(FP32, x.width)
        out = self.new(x.rows, x.last, x.width, x, trained=weight.trained)
        mean, deviation = self.new(x.rows, 1, width), self.new(x.rows, 1, width)
        if out.grad:
            for y in (x, mean, deviation):
                self.save(y)
        return out

    # Sums -------------------------------------------------------------------------------------------------------------

    def total(self, out: Shape) -> Kept:
        """Returns the bytes that autograd keeps of a forward whose output is `out`."""
        outside = self.kept.pop(-1) + (0 if out.storage in self.saved else out.storage.size)
        inputs = sum(storage.size for storage in self.inputs if storage in self.saved)
        whole = outside + inputs + sum(self.kept.values())
        every = sum(storage.size for storage in self.inputs)
        return Kept(whole, outside + every + max(self.kept.values(), default=0))
