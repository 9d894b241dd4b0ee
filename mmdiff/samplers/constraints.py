"""Which ids the sampler may commit at which position.

Shape letters: B samples, L canvas length, K distinct allow-sets, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.backbones.family import token_id
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest


def allowed(batch: Batch, vocab: Vocab, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Returns allow_KV, the ids allowed under each allow-set, and allow_BL, the allow-set of each position.

    Never allowed are the mask id, the slot id (unless it is an end id too, as LLaDA's is), `suppress_ids` and
    `suppress_tokens`, end ids under eos_policy=suppress, and rows of the embedding table that stand for nothing
    (published tables are padded) or for a named range, unless an allow-set claims them.
    Raises ConfigError for an id or token outside the vocabulary, and for a masked position that is left without any id.
    """
    text_V = torch.ones(vocab.size, dtype=torch.bool)
    if vocab.tokenizer is not None:
        text_V[len(vocab.tokenizer) :] = False
    ends = [vocab.eos_id, *vocab.end_ids]
    text_V[ends] = True
    slots = [] if vocab.slot_id in ends else [vocab.slot_id]
    banned = [vocab.mask_id, *slots, *config.suppress_ids, *(ends if config.eos_policy == "suppress" else [])]
    for token in config.suppress_tokens:
        i = None if vocab.tokenizer is None else token_id(vocab.tokenizer, token)
        if i is None:
            known = () if vocab.tokenizer is None else vocab.tokenizer.all_special_tokens
            raise ConfigError(f"sampler.suppress_tokens: the tokenizer has no {token!r}{nearest(token, known)}")
        banned.append(i)
    for i in config.suppress_ids:
        if not 0 <= i < vocab.size:
            raise ConfigError(f"sampler.suppress_ids: {i} does not fit a vocabulary of {vocab.size}")
    device = batch.ids_BL.device
    if batch.allow_KV is None or batch.allow_BL is None:
        allow_KV, allow_BL = text_V[None].to(device), torch.zeros_like(batch.ids_BL)
    else:
        free_K = batch.allow_KV.all(1, keepdim=True)  # no allow-set was named
        allow_KV, allow_BL = torch.where(free_K, text_V.to(device), batch.allow_KV), batch.allow_BL
    allow_KV[:, banned] = False
    masked_BL = batch.target_BL & (batch.ids_BL == vocab.mask_id)
    stuck_BL = masked_BL & ~allow_KV.any(1)[allow_BL]
    if stuck_BL.any():
        b, position = stuck_BL.nonzero()[0].tolist()
        raise ConfigError(
            f"row {b}, position {position}: suppress_ids and eos_policy leave no id of its allow-set to commit"
        )
    return allow_KV, allow_BL
