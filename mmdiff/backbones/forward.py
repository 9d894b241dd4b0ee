"""How a decoder of transformers is run: the functions of a family that does not define its own.

Shape letters: R rows, L canvas length, D backbone width, V rows of the embedding table.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CACHES = True  # keys and values of positions that are not run again are taken
GROWS = True  # rows can be put behind the embedding table and the head


def embed(model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor:
    """Returns (R, L, D), the rows of the embedding table."""
    embedded: Tensor = model.get_input_embeddings()(ids_RL)
    return embedded


def run(
    model: Any,
    x_RLD: Tensor,
    mask: Any,
    attend_RL: Tensor | None,
    position_ids_RL: Tensor | None,
    every: bool,
    memory: Any = None,
) -> Any:
    """Returns transformers' output of the body, without the head. every: with the states of all layers.

    memory: a `Memory`, which takes in keys and values or gives those of other positions.
    """
    body = model.base_model
    kept = {} if memory is None else {memory_argument(body.__class__): memory}
    return body(
        inputs_embeds=x_RLD,
        attention_mask=mask,
        position_ids=position_ids_RL,
        use_cache=memory is not None,
        return_dict=True,
        output_hidden_states=every,
        **kept,
    )


@cache
def memory_argument(body: type) -> str:
    """Returns the argument that takes keys and values; it was called `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"  # type: ignore[attr-defined]


def head(model: Any, h: Tensor, ids_K: Tensor | None = None) -> Tensor:
    """Returns logits (..., V) of hidden states (..., D), or those of the ids `ids_K` alone, (..., K)."""
    import torch.nn.functional as F
    from torch import nn

    layer = model.get_output_embeddings()
    if ids_K is not None and type(layer) is nn.Linear:  # an adapted layer is more than its weight
        return F.linear(h, layer.weight[ids_K], None if layer.bias is None else layer.bias[ids_K])
    logits: Tensor = layer(h)
    return logits if ids_K is None else logits[..., ids_K]
