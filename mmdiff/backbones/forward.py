"""How a decoder of transformers is run: what a family says of it, unless it says otherwise.

Shape letters: R rows, L canvas length, D width, V rows of the embedding table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def embed(model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor:
    """(R, L, D): the rows of the embedding table."""
    embedded: Tensor = model.get_input_embeddings()(ids_RL)
    return embedded


def run(model: Any, x_RLD: Tensor, mask: Any, attend_RL: Tensor | None, position_RL: Tensor | None, every: bool) -> Any:
    """transformers' output of the body, the head left out. every: the states of all layers too (`hidden_states`)."""
    return model.base_model(
        inputs_embeds=x_RLD,
        attention_mask=mask,
        position_ids=position_RL,
        use_cache=False,
        return_dict=True,
        output_hidden_states=every,
    )


def head(model: Any, h: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., D)."""
    logits: Tensor = model.get_output_embeddings()(h)
    return logits
