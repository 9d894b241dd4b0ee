"""How a decoder of transformers is run: the functions of a family that does not define its own.

Shape letters: R rows, L canvas length, D backbone width, V rows of the embedding table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CACHES = True  # keys and values of positions that are not run again are taken
GROWS = True  # rows can be put behind the embedding table and the head
COUNT_MASKS = ("opt", "biogpt")  # whose bodies would count positions from a mask of (R, L)
SCALES: Mapping[str, Callable[[Any], float]] = {
    **dict.fromkeys(("cohere", "cohere2"), lambda config: float(config.logit_scale)),
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), lambda config: 1 / float(config.logits_scaling)),
}
"""By model_type. The head has no bias there."""
BEHIND_HEADS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping", "logits_soft_cap")
"""Fields by which classes of transformers change the logits of their heads."""


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
    if position_ids_RL is None and model.config.model_type in COUNT_MASKS:
        import torch

        position_ids_RL = torch.arange(x_RLD.shape[1], device=x_RLD.device).expand(x_RLD.shape[:2])
    out = body(
        inputs_embeds=x_RLD,
        attention_mask=mask,
        position_ids=position_ids_RL,
        use_cache=memory is not None,
        return_dict=True,
        output_hidden_states=every,
        **kept,
    )
    if (scale := logit_scale(model.config)) != 1:
        out.last_hidden_state = out.last_hidden_state * scale
    return out


def check_head(config: Any) -> None:
    """Raise ConfigError where transformers does more behind the head than `logit_scale` says."""
    for name in () if config.model_type in SCALES else BEHIND_HEADS:
        if (value := getattr(config, name, None)) not in (None, 1):
            raise ConfigError(f"config.json: {name}: {value!r}: not known of {config.model_type}, expected 1 or null")


def logit_scale(config: Any) -> float:
    """Returns what transformers multiplies logits by behind the head; the states before it are multiplied here."""
    return SCALES.get(config.model_type, lambda config: 1.0)(config)


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
