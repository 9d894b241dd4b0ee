"""A canvas from prompt ids, for `generate(ids, attention_mask)` in the manner of transformers.

Shape letters: B samples, P prompt length, L canvas length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError


def prompt_canvas(ids_BP: Tensor | Batch, attention_mask: Tensor | None, new: int, vocab: Vocab) -> Batch:
    """Returns a canvas of prompt ids (B, P) followed by `new` masked positions, and a Batch as it is.

    Raises ConfigError for wrong shapes, and for a mask beside a Batch.
    """
    if isinstance(ids_BP, Batch):
        if attention_mask is not None:
            raise ConfigError("attention_mask: a Batch brings its own (attend_BL)")
        return ids_BP
    if ids_BP.ndim != 2 or not ids_BP.numel():
        raise ConfigError(f"generate: prompt ids have shape {tuple(ids_BP.shape)}, expected (batch, length)")
    if ids_BP.is_floating_point() or ids_BP.is_complex() or ids_BP.dtype == torch.bool:
        raise ConfigError(f"generate: prompt ids are {ids_BP.dtype}, expected whole numbers")
    ids_BP = ids_BP.long()
    low, high = int(ids_BP.min()), int(ids_BP.max())
    if low < 0 or high >= vocab.size:
        raise ConfigError(f"generate: prompt ids {low}..{high} do not fit a vocabulary of {vocab.size}")
    b, p = ids_BP.shape
    attend_BP = torch.ones_like(ids_BP, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if attend_BP.shape != ids_BP.shape:
        raise ConfigError(f"attention_mask has shape {tuple(attend_BP.shape)}, the ids {tuple(ids_BP.shape)}")
    ids_BL = torch.cat([ids_BP, ids_BP.new_full((b, new), vocab.mask_id)], 1)
    attend_BL = torch.cat([attend_BP, attend_BP.new_ones(b, new)], 1)
    target_BL = torch.zeros_like(attend_BL)
    target_BL[:, p:] = True
    return Batch(
        ids_BL=ids_BL,
        target_BL=target_BL,
        attend_BL=attend_BL,
        position_ids_BL=(attend_BL.cumsum(1) - 1).clamp(min=0),
        segment_BL=torch.zeros_like(ids_BL),
        index_B=torch.arange(b),
        padded=not bool(attend_BL.all()),
    )
