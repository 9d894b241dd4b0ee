"""Rotary embeddings otherwise than transformers has them: in fp32 under half-precision weights, and along three axes.

In fp32, as LLaDA computes them (`rope_full_precision`): not more accurate at LLaDA's lengths, but logits in bfloat16
then equal the published code's to the last bit, so that published accuracies can be compared. Done through
transformers' own attention interface; no model code is replaced.

Along three axes, as Qwen2-VL turns the queries and keys of a picture's slots (arXiv 2409.12191): a part of a head's
angles is of the time of a position, one of its row, one of its column (`mmdiff.canvas.batch.along_axes`).

Shape letters: R rows, L canvas length, H half of the width of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

SECTIONS = (16, 24, 24)
"""How many of the H angles are of each axis in Qwen2-VL, whose heads have a width of 128."""


def rope_in_fp32(model: Any) -> None:
    """Make `model` rotate queries and keys in fp32 and cast them back. Nothing is done under full precision.

    With fp32 cos and sin the products of a half-precision query are promoted to fp32; the attention function then
    gets queries and keys in the dtype of the values.
    """
    import torch
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


# Along three axes -----------------------------------------------------------------------------------------------------


def checked_sections(sections: Any, half: int) -> list[int]:
    """Returns `mrope_section` of a config.json; None: in the proportions of `SECTIONS`. half: H.

    Raises ConfigError for anything but three numbers of angles that are H together.
    """
    if sections is None:
        first, second = half * SECTIONS[0] // sum(SECTIONS), half * SECTIONS[1] // sum(SECTIONS)
        return [first, second, half - first - second]
    whole = isinstance(sections, list) and all(type(n) is int and n >= 0 for n in sections)
    if not whole or len(sections) != 3 or sum(sections) != half:
        raise ConfigError(f"config.json: mrope_section: {str(sections)[:80]}, expected three numbers, {half} together")
    return list(sections)


def turn_along_axes(model: Any, sections: Sequence[int]) -> None:
    """Make a decoder of transformers turn by positions along three axes. sections: see `checked_sections`."""
    from mmdiff.canvas.batch import along_axes

    rotary, sizes = model.base_model.rotary_emb, [*sections, *sections]

    def apart(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0], along_axes(args[1]), *args[2:])

    def joined(_: Any, args: Any, both: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        import torch

        pieces = (values_3RLH.split(sizes, dim=-1) for values_3RLH in both)  # cosines, then sines
        return tuple(torch.cat([piece[i % 3] for i, piece in enumerate(of_axes)], -1) for of_axes in pieces)

    rotary.register_forward_pre_hook(apart)
    rotary.register_forward_hook(joined)


def check_axes(backbone: Any, encoders: Iterable[tuple[str, Any]]) -> None:
    """Raise ConfigError where an encoder lays pictures out along axes that the backbone does not turn by, or cannot."""
    for kind, encoder in encoders:
        if getattr(encoder, "axes_behind", None) is None:
            continue
        where = f"model.encoders.{kind}.axes_behind"
        if not hasattr(backbone.model.config, "mrope_section"):
            raise ConfigError(f"{where}: {backbone.family} has positions along one axis, expected null")
        if "flash" in backbone.model.config._attn_implementation:  # which takes positions that do not rise for a pack
            raise ConfigError(f"{where}: a flash attention takes positions along one axis, expected sdpa or eager")
