"""ESM C (ESM Cambrian; EvolutionaryScale, 2024): a masked language model of proteins, transformers' `EsmcForMaskedLM`.

Its 33 tokens are ESM-2's in another order of the rare ones; the table has 64 rows. It differs from other masked
language models in that transformers' class takes ids only, so that its layers are run here.
"""

from __future__ import annotations

from typing import Any

from mmdiff.parts import part

from .masked import MaskedLM


def run(
    model: Any, *, inputs_embeds: Any, attention_mask: Any, position_ids: Any, return_dict: bool, **named: Any
) -> Any:
    """Returns transformers' output of `EsmcModel`, of embeddings in place of ids."""
    import torch
    from transformers.masking_utils import create_bidirectional_mask
    from transformers.modeling_outputs import BaseModelOutput

    body, every = model.base_model, [inputs_embeds]
    if position_ids is None:
        position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
    mask = create_bidirectional_mask(config=model.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    rotated = body.rotary_emb(inputs_embeds, position_ids)
    for layer in body.layers:
        every.append(layer(every[-1], mask, position_embeddings=rotated))
    states = tuple(every) if named.get("output_hidden_states") else None
    return BaseModelOutput(last_hidden_state=body.norm(every[-1]), hidden_states=states)


@part
def tokenizer() -> Any:
    """Returns transformers' `EsmcTokenizer` with its 33 tokens; sequences do not go through it."""
    from transformers import EsmcTokenizer

    return EsmcTokenizer()


FAMILY = MaskedLM("esmc", body=run, tokenizer=tokenizer)
