"""The memory that training takes per device, by how a model is divided: arithmetic over what `counting` counts.

Of a model of n parameters, of which l are in its largest layer and o outside of all layers, t are trained, and for w
devices. Weights are trained in float32 and computed with in bfloat16 (`train.precision: bf16`); under LoRA the frozen
weights are bfloat16 and the factors float32.

    state         weights, gradients and AdamW's two moments: 16 t bytes, and 2 (n - t) of what is frozen.
                  sharding none: all of it; else 1/w of it (hybrid: w are the devices of a node)
    gathered      bfloat16 weights that are whole: none, the copies that autocast keeps, 2 t; gradients, 2 n;
                  full, 2 (o + 2 l): a layer, the next one, and what lies outside of layers
    reduced       gradients that are whole, before they are added up: 2 bytes each outside of layers, and 2 + 4 (they
                  are added up in float32) of a layer, or 4 outside, whichever is more. none: part of the state
    activations   of rows x length positions, under gradient checkpointing
    logits        of at most `logit_chunk` positions

Not counted: what kernels need while they run, fragmentation, the context of a GPU, buffers of the network. Frozen
encoders are whole on every device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmdiff.backbones.family import Family

from .counting.factors import lora_factors
from .counting.memory import memory_of
from .figures import Canvases
from .thorough import on_meta


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: of all, of the largest layer, outside of layers, and those that are trained of each."""

    all: int
    layer: int
    outside: int
    trained: int
    trained_layer: int
    trained_outside: int


def counts(model: Any, rank: int = 0) -> Counts:
    """Returns the counts of a model. rank: of LoRA factors; 0: all is trained."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    total = sum(p.numel() for p in model.parameters())
    outside, most = total - sum(sizes), max(sizes)
    if not rank:
        return Counts(total, most, outside, total, most, outside)
    with lora_factors(model, rank) as factors:
        own = sum(p.numel() for p in factors)
    per_layer = -(-own // len(layers))
    return Counts(total + own, most + per_layer, outside, own, per_layer, 0)


def per_device(count: Counts, *, sharding: str, devices: int, activations: int, logits: int) -> dict[str, int]:
    """Returns bytes by name, and their total. activations, logits: bytes of one device's rows."""
    state = 16 * count.trained + 2 * (count.all - count.trained)
    gathered, reduced = 2 * count.trained, 0
    if sharding != "none":
        gathered = 2 * count.all if sharding == "gradients" else 2 * (count.outside + 2 * count.layer)
        reduced = 2 * count.trained_outside + max(6 * count.trained_layer, 4 * count.trained_outside)
        state = -(-state // devices)
    parts = {
        "state": state,
        "gathered": gathered,
        "reduced": reduced,
        "activations": activations,
        "logits": logits,
    }
    return parts | {"total": sum(parts.values())}


def table(
    family: Family, config: Any, *, rank: int, shapes: Iterable[tuple[int, int]], divisions: Iterable[tuple[str, int]]
) -> list[str]:
    """Returns lines of a table in Markdown, in GiB per device. rank: of LoRA; 0: everything is trained.

    shapes: (rows, length) of a forward on one device. divisions: (sharding, devices).
    """
    model = on_meta(family, config, "bfloat16")
    count = counts(model, rank)
    kind = "lora_training" if rank else "full_training"
    made = {}
    for rows, length in shapes:
        found = memory_of(model, family, Canvases(length, rows, 0, rank or 1))[kind]
        made[rows, length] = found["activations_checkpointed"], found["logits"]
    lines = [
        f"| sharding, devices | state | gathered | reduced | {' | '.join(f'{r} x {n}' for r, n in made)} |",
        "|---" * (4 + len(made)) + "|",
    ]
    for sharding, devices in divisions:
        first = per_device(count, sharding=sharding, devices=devices, activations=0, logits=0)
        totals = [
            per_device(count, sharding=sharding, devices=devices, activations=a, logits=g)["total"]
            for a, g in made.values()
        ]
        cells = [*(first[name] for name in ("state", "gathered", "reduced")), *totals]
        lines.append(f"| {sharding}, {devices} | {' | '.join(f'{cell / 2**30:.1f}' for cell in cells)} |")
    return lines
