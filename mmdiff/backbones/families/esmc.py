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

    body, x = model.base_model, inputs_embeds
    if position_ids is None:
        position_ids = torch.arange(x.shape[1], device=x.device)[None]
    mask = create_bidirectional_mask(config=model.config, inputs_embeds=x, attention_mask=attention_mask)
    rotated = body.rotary_emb(x, position_ids)
    states = [x] if named.get("output_hidden_states") else None  # all of them are many times the memory of a forward
    for layer in body.layers:
        x = layer(x, mask, position_embeddings=rotated)
        if states is not None:
            states.append(x)
    return BaseModelOutput(last_hidden_state=body.norm(x), hidden_states=None if states is None else tuple(states))


@part
def tokenizer() -> Any:
    """Returns transformers' `EsmcTokenizer` with its 33 tokens; sequences do not go through it."""
    from transformers import EsmcTokenizer

    return EsmcTokenizer()


FAMILY = MaskedLM("esmc", body=run, tokenizer=tokenizer)
