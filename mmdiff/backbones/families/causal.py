"""Any causal language model of transformers, made to attend in both directions, to be trained on as a diffusion model.

As DiffuLLaMA (arXiv 2410.17891) and Dream do: a mask token is added to the tokenizer, and a row to the embedding table
where there is none to spare; the logits of a position stay those of the state one to its left (`options: {shift: 0}`
gives that up). `model.attention: mmdiff.canvas.patterns.Causal` runs the model as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from mmdiff.errors import ConfigError

from ..shares import Published, Share
from .decoder import Decoder
from .published.causal import ALIBI, ELSEWHERE, FURTHER, TAKEN, UNFIT, WINDOWED, named_in_files
from .tokenizers import byte_tokenizer

MASK = "<|mask|>"
COMMON = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
"""Which need no import of transformers to be found."""


class Causal(Decoder):
    """A causal model of transformers, whose files may name tensors as transformers itself once did."""

    def published_names(self, config: Any) -> Published:
        """Returns the names in files; buffers that they hold are among them (DeepSeek-V3's correction of its router),
        and those without the name of the body in front (GPT-2's)."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config)
        weights = {name: tuple(value.shape) for name, value in made.named_parameters()}
        names = self.names_of(config, weights)
        held = made.state_dict().keys()
        names = {**names, **{name: (Share(name),) for name, _ in made.named_buffers() if name in held}}
        body = f"{made.base_model_prefix}."
        bare = {name.removeprefix(body): shares for name, shares in names.items() if name.startswith(body)}
        return {**{name: shares for name, shares in bare.items() if name not in names}, **names}

    def names_of(self, config: Any, sizes: Mapping[str, tuple[int, ...]]) -> Published:
        return named_in_files(self.name, super().names_of(config, sizes))

    def _made(self, fields: Mapping[str, Any]) -> Any:
        if fields.get("alibi"):  # Falcon's older ones
            raise ConfigError(f"config.json: alibi: {ALIBI}; {TAKEN} are taken")
        try:
            return super()._made(fields)
        except ConfigError as error:
            if "sliding_attention" in str(error):
                raise ConfigError(f"config.json: model_type {self.name!r}: {WINDOWED}") from None
            raise


@cache
def find(model_type: str) -> Decoder | None:
    """Returns the family of a `model_type` of transformers that has a causal language model; None for any other.

    Raises ConfigError for one that cannot be made to attend in both directions.
    """
    if model_type in COMMON:
        return family(model_type, COMMON[model_type])
    if model_type in UNFIT:
        raise ConfigError(f"model_type {model_type!r}: {UNFIT[model_type]}; {TAKEN} are taken")
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
    return Causal(
        name=model_type,
        config_class=config_class,
        published={},
        mask=MASK,
        without=("_name_or_path", "is_llama_config", "rope_interleaved", "task_specific_params"),
        elsewhere=(*ELSEWHERE, *FURTHER.get(model_type, ())),
        needed=(),
        options={"shift": 1, "mask": MASK},
        tokenizer=lambda: byte_tokenizer(bos=None, eos="<|endoftext|>", special=(MASK,)),
    )
