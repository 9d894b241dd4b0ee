"""Layers of a model that are alike: a few are run and stand for the others, where that gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

NUMBERS = ("layer_idx", "layer_id", "layer_number", "block_idx")
"""What layers of transformers' classes call their own number."""


@dataclass
class Stands:
    """Which layers are run. counts: layer -> how many it stands for. numbered: the same by number, 0 of one that is
    left out. alike: pairs that must take the same bytes, or none may be left out."""

    counts: dict[nn.Module, int]
    numbered: list[int]
    alike: list[tuple[nn.Module, nn.Module]]

    def of(self, number: int, count: int) -> int:
        """Returns the bytes of all layers that one stands for. Raises LookupError for one that should not be there."""
        if count and not self.numbered[number]:
            raise LookupError(f"layer {number} was run")
        return count * self.numbered[number]

    def check(self, found: Mapping[Any, int], entered: Sized) -> None:
        """Raise LookupError where layers that are alike differ in `found`, or not all of them were entered."""
        if self.alike and len(entered) != len(self.counts):
            raise LookupError("not every layer was run once")
        if any(found[first] != found[second] for first, second in self.alike):
            raise LookupError("layers that are alike take other bytes")


@contextmanager
def few_layers(model: Any, few: bool) -> Iterator[Stands]:
    """Within it, a model has of layers that are alike the first four, the last of which stands for all others.

    The first two may take more, or less: angles are kept where they are first used, LoRA begins within a layer.

    few: False leaves all in it, as does a model whose layers are no plain list.
    """
    layers = layers_of(model)
    homes = [m for m in model.modules() if isinstance(m, nn.ModuleList) and [*m] == layers]
    if not few or len(homes) != 1 or len({*layers}) != len(layers):
        yield Stands(dict.fromkeys(layers, 1), [1] * model.config.num_hidden_layers, [])
        return
    groups: dict[Any, list[nn.Module]] = {}
    for i, layer in enumerate(layers):
        groups.setdefault(_kind(layer, i, len(layers), model.config), []).append(layer)
    counts = {layer: 1 for group in groups.values() for layer in group[:4]}
    counts |= {group[3]: len(group) - 3 for group in groups.values() if len(group) > 3}
    alike = [(group[2], group[3]) for group in groups.values() if len(group) > 3]
    whole, home = homes[0]._modules, homes[0]
    home._modules = {str(i): layer for i, layer in enumerate(x for x in layers if x in counts)}
    try:
        yield Stands(counts, [counts.get(layer, 0) for layer in layers], alike)
    finally:
        home._modules = whole


def layers_of(model: Any) -> list[nn.Module]:
    """Returns the layers that gradient checkpointing runs again, outermost ones, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inner = {id(m) for layer in layers for m in layer.modules() if m is not layer}
    return [layer for layer in layers if id(layer) not in inner]


def _kind(layer: nn.Module, number: int, count: int, config: Any) -> Any:
    """Returns what tells a layer from others: its modules, their plain attributes, and what a configuration lists."""
    fields = [value[number] for value in vars(config).values() if isinstance(value, list) and len(value) == count]
    modules = []
    for name, module in layer.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str) and k not in NUMBERS}
        held = [(k, v.shape, v.dtype) for k, v in (*module.named_parameters(recurse=False), *module.named_buffers())]
        modules.append((name, type(module), plain, held))
    return repr((fields, modules))
