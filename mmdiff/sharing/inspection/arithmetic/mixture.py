"""The experts of a layer by arithmetic: a router that chooses some per position, and one product for all of them.

The router of GLM-4 (LLaDA2.x) works in fp32, chooses groups of experts first, and stands beside experts that all
positions share; that of Qwen3 (LLaDA-MoE, SDAR) takes the softmax of all.

Letters: N positions, E experts, K of them per position, S = N K pairs, D width, F width of an expert's feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .tape import FP32, INT64, Shape, Tape

INT32, BOOL = 4, 1


@dataclass(frozen=True)
class Mixture:
    """experts: E. chosen: K. wide: F. dense: layers without experts. normalised: whether the weights of the chosen sum
    to 1. groups, chosen_groups: of experts, GLM-4's; 0: Qwen3's router. shared: width of the experts of all positions.
    """

    experts: int
    chosen: int
    wide: int
    dense: frozenset[int] = frozenset()
    normalised: bool = False
    groups: int = 0
    chosen_groups: int = 0
    shared: int = 0

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        """Parameter of a layer -> its shape."""
        out: dict[str, tuple[int, ...]] = {
            "mlp.experts.gate_up_proj": (self.experts, 2 * self.wide, d),
            "mlp.experts.down_proj": (self.experts, d, self.wide),
            "mlp.gate.weight": (self.experts, d),
        }
        for name in ("gate_proj", "up_proj", "down_proj") if self.shared else ():
            shape = (d, self.shared) if name == "down_proj" else (self.shared, d)
            out[f"mlp.shared_experts.{name}.weight"] = shape
        return out


def mix(tape: Tape, of: Mixture, x: Shape, matrix: Any) -> Shape:
    """Returns the output (N, D) of the experts of a layer. matrix: the layer's, of name, width out and width in."""
    trained = matrix("gate", of.experts, x.last).trained
    logits, weights, chosen = (_in_groups if of.groups else _of_all)(tape, of, x, trained)
    out = _experts(tape, of, x, weights, chosen, trained)
    if of.shared:
        out = tape.like(out, tape.gated(x, matrix, of.shared))
    del logits, weights, chosen
    return out


def _of_all(tape: Tape, of: Mixture, x: Shape, trained: bool) -> tuple[Shape, Shape, Shape]:
    """Returns logits, and (N, K) weights and numbers of the experts."""
    if trained:
        tape.save(x)
    logits = tape.new(x.rows, of.experts, tape.width, x, trained=trained)
    shares = _softmax(tape, logits)
    best, chosen = _topk(tape, shares, x.rows, of.chosen)
    if of.normalised:
        best = _over(tape, best, tape.new(best.rows, 1, FP32, best))
    return logits, tape.cast(best, tape.width), chosen


def _softmax(tape: Tape, logits: Shape) -> Shape:
    out = tape.like(tape.cast(logits, FP32))
    if out.grad:
        tape.save(out)
    return out


def _in_groups(tape: Tape, of: Mixture, x: Shape, trained: bool) -> tuple[Shape, Shape, Shape]:
    """Returns the same by sigmoid, of the experts of the groups whose two best have most."""
    logits = _routed(tape, of, tape.cast(x, FP32), trained)
    shares = tape.like(logits)
    if shares.grad:
        tape.save(shares)
    biased = tape.like(shares)
    groups = _sum_of_two(tape, of, biased)
    group = _topk(tape, groups, x.rows, of.chosen_groups)[1]
    there = tape.new(x.rows, of.groups, FP32)
    every = tape.new(x.rows, of.experts, FP32)
    hidden = _bool(tape, tape.new(x.rows, of.experts, BOOL))
    if biased.grad:
        tape.save(hidden)
    biased = tape.like(biased)
    del hidden
    chosen = _topk(tape, biased, x.rows, of.chosen)[1]
    if shares.grad:
        tape.save(shares)
        tape.save(chosen)
    best = tape.new(x.rows, of.chosen, FP32, shares)
    total = tape.like(tape.new(x.rows, 1, FP32, best))
    best = tape.like(_over(tape, best, total))
    del group, there, every, groups, total
    return logits, best, chosen


def _routed(tape: Tape, of: Mixture, x: Shape, trained: bool) -> Shape:
    table = tape.new(of.experts, x.last, FP32) if tape.recast else None
    if table is not None and x.grad:
        tape.save(table)
    if trained:
        tape.save(x)
    return tape.new(x.rows, of.experts, FP32, x, trained=trained)


def _sum_of_two(tape: Tape, of: Mixture, biased: Shape) -> Shape:
    best = _topk(tape, biased, biased.rows * of.groups, 2)[0]
    return tape.new(biased.rows, of.groups, FP32, best)


def _bool(tape: Tape, x: Shape) -> Shape:
    return tape.like(x)


def _topk(tape: Tape, x: Shape, rows: int, count: int) -> tuple[Shape, Shape]:
    values, at = tape.new(rows, count, FP32, x), tape.new(rows, count, INT64)
    if x.grad:
        tape.save(at)
    return values, at


def _over(tape: Tape, x: Shape, total: Shape) -> Shape:
    """Returns a quotient in place of `x`, a copy of which is kept for the gradient."""
    if x.grad:
        tape.save(total)
        tape.save(tape.like(x))
    return x


def _experts(tape: Tape, of: Mixture, x: Shape, weights: Shape, chosen: Shape, trained: bool) -> Shape:
    pairs = x.rows * of.chosen
    by_expert, order = tape.new(pairs, 1, INT64), tape.new(pairs, 1, INT64)
    y = _rows(tape, x, tape.new(pairs, 1, INT64))
    weight = _rows(tape, weights.view(pairs, 1), order)
    whole = tape.new(pairs, 1, INT32)
    counts = tape.new(of.experts, 1, INT32)
    offsets = tape.like(counts)
    out = _product(tape, y, offsets, 2 * of.wide, trained)
    out = _gate(tape, out, of.wide)
    out = _product(tape, out, offsets, x.last, trained)
    weighted = tape.mul(out, weight)
    back = tape.new(pairs, 1, INT64)
    tape.new(pairs, 1, INT64)
    weighted = _rows(tape, weighted, back)
    summed = tape.cast(tape.new(x.rows, x.last, weighted.width, weighted), x.width)
    del by_expert, order, y, weight, whole, counts, offsets, out, weighted, back, weights, chosen
    return summed


def _rows(tape: Tape, x: Shape, at: Shape) -> Shape:
    if x.grad:
        tape.save(at)
    return tape.new(at.rows, x.last, x.width, x)


def _product(tape: Tape, x: Shape, offsets: Shape, out: int, trained: bool) -> Shape:
    if x.grad or trained:
        tape.save(offsets)
    if trained:
        tape.save(x)
    return tape.new(x.rows, out, x.width, x, trained=trained)


def _gate(tape: Tape, x: Shape, wide: int) -> Shape:
    half = x.view(x.rows, wide)
    return tape.mul(tape.silu(half), half)
