"""Any causal language model of transformers, made to attend in both directions, to be trained on as a diffusion model.

As DiffuLLaMA (arXiv 2410.17891) and Dream do: a mask token is added to the tokenizer, and a row to the embedding table
where there is none to spare; the logits of a position stay those of the state one to its left (`options: {shift: 0}`
gives that up). `model.attention: mmdiff.canvas.patterns.Causal` runs the model as it was trained.
"""

from __future__ import annotations

from functools import cache

from .decoder import Decoder
from .tokenizers import byte_tokenizer

MASK = "<|mask|>"
COMMON = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
"""Which need no import of transformers to be found."""


@cache
def find(model_type: str) -> Decoder | None:
    """Returns the family of a `model_type` of transformers that has a causal language model; None for any other."""
    if model_type in COMMON:
        return family(model_type, COMMON[model_type])
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return None
    return family(model_type, CONFIG_MAPPING_NAMES[model_type])


def family(model_type: str, config_class: str) -> Decoder:
    """Returns the family of a `model_type` whose configuration is that class of transformers."""
    return Decoder(
        name=model_type,
        config_class=config_class,
        published={},
        mask=MASK,
        without=("_name_or_path", "is_llama_config", "rope_interleaved", "task_specific_params"),
        needed=(),
        options={"shift": 1, "mask": MASK},
        tokenizer=lambda: byte_tokenizer(bos=None, eos="<|endoftext|>", special=(MASK,)),
    )
