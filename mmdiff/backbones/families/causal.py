"""Any causal language model of transformers, made to attend in both directions, to be trained on as a diffusion model.

As DiffuLLaMA (arXiv 2410.17891) and Dream do: a mask token is added to the tokenizer, and a row to the embedding table
where there is none to spare; the logits of a position stay those of the state one to its left (`options: {shift: 0}`
gives that up). `model.attention: mmdiff.canvas.patterns.Causal` runs the model as it was trained.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..shares import Share, experts
from .decoder import Decoder
from .tokenizers import byte_tokenizer

MASK = "<|mask|>"


def shares(config: Any) -> dict[str, tuple[Share, ...]]:
    """Returns the tensors of every expert, of which transformers makes one per layer, and files hold one each."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        sizes = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    out: dict[str, tuple[Share, ...]] = {}
    for name in sizes:
        if name.endswith(".experts.gate_up_proj"):
            out |= experts(name.removesuffix("gate_up_proj"), sizes[name].shape[0], sizes[name].shape[1] // 2)
    return out


@cache
def find(model_type: str) -> Decoder | None:
    """Returns the family of a `model_type` of transformers that has a causal language model; None for any other."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return None
    return Decoder(
        name=model_type,
        config_class=CONFIG_MAPPING_NAMES[model_type],
        published={},
        mask=MASK,
        without=("_name_or_path", "is_llama_config", "rope_interleaved", "task_specific_params"),
        shares=shares,
        needed=(),
        options={"shift": 1, "mask": MASK},
        tokenizer=lambda: byte_tokenizer(bos=None, eos="<|endoftext|>", special=(MASK,)),
    )
