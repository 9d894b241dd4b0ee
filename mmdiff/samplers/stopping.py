"""Early stop: what follows an end id need not be denoised.

Shape letters: B samples, L canvas length, X end ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.canvas.vocab import Vocab

from .result import Generation


def spans(target_BL: Tensor, allow_BL: Tensor) -> Tensor:
    """Returns int64 BL, the number of the target span of each position. A span is neighbours with one allow-set."""
    starts_BL = target_BL.clone()
    starts_BL[:, 1:] &= ~target_BL[:, :-1] | (allow_BL[:, 1:] != allow_BL[:, :-1])
    return (starts_BL.cumsum(1) - 1).clamp(min=0)


def stop(out: Generation, vocab: Vocab, end_ids_X: Tensor, span_BL: Tensor, may_ended_BL: Tensor) -> None:
    """Fill the rest of a span with EOS where an end id was committed and no position before it is masked."""
    masked_BL = out.masked(vocab.mask_id) & may_ended_BL
    ended_BL = out.target_BL & (out.step_BL > 0) & torch.isin(out.ids_BL, end_ids_X)
    rest_BL = masked_BL & (_first(ended_BL, span_BL) < _first(masked_BL, span_BL)).gather(1, span_BL)
    out.ids_BL.masked_fill_(rest_BL, vocab.eos_id)
    out.confidence_BL.masked_fill_(rest_BL, 1.0)
    out.step_BL.copy_(torch.where(rest_BL, out.forwards_B[:, None].int(), out.step_BL))


def _first(marked_BL: Tensor, span_BL: Tensor) -> Tensor:
    """Returns int64 BL: at index n the first marked position of span n, L where it has none."""
    length = marked_BL.shape[1]
    position_BL = torch.where(marked_BL, torch.arange(length, device=marked_BL.device), length)
    return torch.full_like(span_BL, length).scatter_reduce(1, span_BL, position_BL, "amin")
