"""Unsupervised classifier-free guidance (arXiv 2410.18514, used by LLaDA): one Denoise wrapped in another.

Shape letters: R rows, L canvas length, P predicted positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.protocols import Denoise


def guided(denoise: Denoise, batch: Batch, mask_id: int, scale: float) -> Denoise:
    """Returns a Denoise of logits `u + (scale + 1) (c - u)`: c from `denoise`, u from it without context and media.

    The context, masked for u, is every attended position that is not a target; ids given within a target stay in both.
    Both copies go through the model in one call of 2R rows.
    """
    context_BL = batch.attend_BL & ~batch.target_BL

    def guided_denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        if media_R is None:
            media_R = torch.ones_like(row_R, dtype=torch.bool)
        bare_RL = ids_RL.masked_fill(context_BL[row_R], mask_id)
        logits_2PV = denoise(
            torch.cat([ids_RL, bare_RL]),
            torch.cat([predict_RL, predict_RL]),
            torch.cat([row_R, row_R]),
            torch.cat([media_R, torch.zeros_like(media_R)]),
        )
        c_PV, u_PV = logits_2PV.chunk(2)
        return u_PV + (scale + 1) * (c_PV - u_PV)

    return guided_denoise
