"""The layers of a backbone as compiled graphs (`torch.compile`), while a generation or a stage of training lasts.

One graph serves all layers of a class: each is run with its own weights, and with its own keys and values in place of
the memory of all layers and its number. Sizes are symbols, so other lengths and numbers of rows need no new graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from mmdiff.errors import ConfigError

from .backbone import Backbone
from .memory import Memory

GRAPHS = 32
"""Most graphs per backend; whatever needs one more is run without. A model needs at most 14, for all that generations
may ask of it: 4 without a memory and 8 that fill one (one row or more; padded or not; of all slots or of some), 2 for
some positions of canvases (one row or more)."""


@contextmanager
def compiled(backbone: Backbone, backend: str) -> Iterator[None]:
    """Run the layers of `backbone` as graphs of a backend of torch.compile; none: as they are.

    What a layer computes stays the same up to the order in which sums are taken. The forward that makes the buffers of
    a memory, the first of a generation, is not compiled. Raises ConfigError for a model without such layers.
    """
    if backend == "none":
        yield
        return
    import torch
    from torch.fx.experimental import _config as shapes
    from transformers.modeling_layers import GradientCheckpointingLayer  # every layer that transformers repeats

    layers: list[Any] = [layer for layer in backbone.model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"compile: {backbone.family} has no layers that are compiled, expected none")
    before = [layer._compiled_call_impl for layer in layers]
    for number, layer in enumerate(layers):
        layer._compiled_call_impl = _called(layer, number, backend)
    backbone.compiled = True
    try:  # sizes that happen to be equal are not taken to be always
        with (
            torch._dynamo.config.patch(recompile_limit=GRAPHS),  # type: ignore[attr-defined, unused-ignore]  # by version
            shapes.patch(use_duck_shape=False),  # type: ignore[attr-defined, unused-ignore]
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # asked by dynamo
            yield
    finally:
        backbone.compiled = False
        for layer, call in zip(layers, before, strict=True):
            layer._compiled_call_impl = call


def _called(layer: Any, number: int, backend: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in kwargs.items():
            if isinstance(value, Memory):
                if not value.buffers[number].is_initialized:
                    return layer._call_impl(*args, **kwargs)
                kwargs[name] = value.buffers[number].now()
        return _graph(backend)(layer, args, kwargs)

    return call


@cache
def _graph(backend: str) -> Callable[..., Any]:
    import torch

    graph: Callable[..., Any] = torch.compile(_run, backend=backend, dynamic=True)
    return graph


def _run(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return layer.forward(*args, **kwargs)
