"""Rotary embeddings in fp32 under half-precision weights, as LLaDA computes them (`rope_full_precision`).

Not more accurate at LLaDA's lengths, but logits in bfloat16 then equal the published code's to the last bit, so that
published accuracies can be compared. Done through transformers' own attention interface; no model code is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def rope_in_fp32(model: Any) -> None:
    """Make `model` rotate queries and keys in fp32 and cast them back. Nothing is done under full precision.

    With fp32 cos and sin the products of a half-precision query are promoted to fp32; the attention function then
    gets queries and keys in the dtype of the values.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.dtype not in (torch.bfloat16, torch.float16) or not hasattr(model.base_model, "rotary_emb"):
        return  # ESM rotates in fp32 by itself
    attention = model.config._attn_implementation
    eager = sys.modules[type(model).__module__].eager_attention_forward
    name = f"{attention}_fp32_rope"
    AttentionInterface.register(name, _with_cast(AttentionInterface().get_interface(attention, eager)))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[attention])
    model.config._attn_implementation = name
    model.base_model.rotary_emb.register_forward_pre_hook(_ask_for_fp32)


def _ask_for_fp32(rotary: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0][:0].float(), *args[1:])  # of the first argument only device and dtype are used


def _with_cast(attend: Callable[..., Any]) -> Callable[..., Any]:
    def attend_in_dtype_of_values(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        return attend(module, query.to(value.dtype), key.to(value.dtype), value, *args, **kwargs)

    return attend_in_dtype_of_values
