"""Propose: a token for each masked position."""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor

from mmdiff.samplers.noise import StepNoise

# Propose -------------------------------------------------------------------------------------------------------------


def propose(logits_PV: Tensor, temperature: float | Tensor, draws: StepNoise) -> Tensor:
    """A token for each position: the likeliest, or a draw from softmax(logits / temperature), which may be (R,).

    The draw is `argmax exp(l) / (-log u)^T` (LLaDA), here in logarithms, `argmax l - T log(-log u)`. It is done in
    float64: the cap of low-precision Gumbel noise acts as a lower temperature (arXiv 2409.02908).
    """
    each = temperature.tolist() if isinstance(temperature, Tensor) else [temperature]
    if not any(each):
        return logits_PV.argmax(-1)
    ids = []
    start = 0
    for u_NV, t in zip(draws.rows("token", logits_PV.shape[-1]), cycle(each), strict=False):
        l_NV = logits_PV[start : start + len(u_NV)]
        ids.append((u_NV.log_().neg_().log_().mul_(-t).add_(l_NV) if t else l_NV).argmax(-1))
        start += len(u_NV)
    return torch.cat(ids)


def confidence(logits_PV: Tensor, ids_P: Tensor) -> Tensor:
    """Probability of each id under softmax(logits), as exp(l - logsumexp): no vocabulary-wide softmax is kept."""
    return (logits_PV.gather(-1, ids_P[:, None]).squeeze(-1) - logits_PV.logsumexp(-1)).exp()
