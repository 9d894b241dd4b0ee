"""LoRA's factors on a model that is only counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, float32, nn

from ..figures import ADAPTED


@contextmanager
def lora_factors(model: Any, rank: int) -> Iterator[list[Tensor]]:
    """Freeze a model and give its linear layers factors, as peft does; within it they are what is trained.

    Layers are those that `Lora` names; where a model has none of these, all but the head.
    """
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    layers = [m for name, m in linear.items() if re.fullmatch(rf"(.*\.)?({ADAPTED})", name)]
    layers = layers or list(linear.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    factors: list[Tensor] = []
    hooks = []
    for layer in layers:
        pair = [layer.weight.new_empty(shape, dtype=float32).requires_grad_()
                for shape in ((rank, layer.in_features), (layer.out_features, rank))]  # fmt: skip
        factors += pair
        hooks.append(layer.register_forward_hook(_Adapted(*pair)))
    for p in trained:
        p.requires_grad_(False)
    try:
        yield factors
    finally:
        for p in trained:
            p.requires_grad_()
        for hook in hooks:
            hook.remove()


class _Adapted:
    """The arithmetic of peft's layer, behind the frozen one."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor) -> None:
        self.a_RI, self.b_OR = a_RI, b_OR

    def __call__(self, layer: nn.Module, args: Any, out: Tensor) -> Tensor:
        low = nn.functional.linear(args[0].to(self.a_RI.dtype), self.a_RI)
        return (out + nn.functional.linear(low, self.b_OR) * 2.0).to(out.dtype)
