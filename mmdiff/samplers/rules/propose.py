"""Propose: a token for each predicted position, and the model's confidence in it.

Shape letters: P predicted positions of a step, N those of one row, R rows, V vocabulary.
"""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor

from mmdiff.errors import DataError
from mmdiff.samplers.noise import StepNoise


def propose(logits_PV: Tensor, temperature: float | Tensor, noise: StepNoise) -> Tensor:
    """Returns ids (P,): the likeliest ones, or draws from softmax(logits / temperature); the temperature may be (R,).

    The draw is `argmax exp(l) / (-log u)^T` (LLaDA), here in logarithms, `argmax l - T log(-log u)`. It is done in
    float64: the cap of low-precision Gumbel noise acts as a lower temperature (arXiv 2409.02908).
    """
    each = temperature.tolist() if isinstance(temperature, Tensor) else [temperature]
    if not any(each):
        return logits_PV.argmax(-1)
    ids = []
    start = 0
    for u_NV, t in zip(noise.rows("token", logits_PV.shape[-1]), cycle(each), strict=False):
        l_NV = logits_PV[start : start + len(u_NV)]
        ids.append((u_NV.log_().neg_().log_().mul_(-t).add_(l_NV) if t else l_NV).argmax(-1))
        start += len(u_NV)
    return torch.cat(ids)


def confidence(logits_PV: Tensor, ids_P: Tensor) -> Tensor:
    """Returns the probability (P,) of the ids, softmax(logits), as exp(l - logsumexp): no (P, V) softmax is made."""
    return (logits_PV.gather(-1, ids_P[:, None]).squeeze(-1) - logits_PV.logsumexp(-1)).exp()


def check_numbers(confidence_P: Tensor, row_P: Tensor, position_P: Tensor) -> None:
    """Raise DataError where a confidence is NaN: logits that are no numbers would still have a largest one."""
    wrong_P = confidence_P.isnan()
    if bool(wrong_P.any()):
        row, position = int(row_P[wrong_P][0]), int(position_P[wrong_P][0])
        raise DataError(
            f"the model's logits are not numbers (NaN) in row {row}, position {position}: its weights have diverged, "
            "or the row's media hold numbers that are not finite"
        )
