"""Draw: a token for each predicted position from its logits, and the probability of a token.

Shape letters: P predicted positions of a step, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.errors import DataError


def draw(logits_PV: Tensor, temperature_P: Tensor, u_P: Tensor) -> Tensor:
    """Returns ids (P,): samples of softmax(logits / temperature), the likeliest ids where the temperature is 0.

    u_P: float64 numbers strictly between 0 and 1, one per position. The draw inverts the cumulative distribution in
    float64: the cap of low-precision noise acts as a lower temperature (arXiv 2409.02908). An id whose logit is -inf
    is never drawn.
    """
    greedy_P = temperature_P == 0
    scale_P1 = temperature_P.double().masked_fill(greedy_P, 1.0)[:, None]
    best_id_P1 = logits_PV.argmax(-1, keepdim=True)
    mass_PV = ((logits_PV - logits_PV.gather(1, best_id_P1)).double() / scale_P1).exp_().cumsum(-1)
    total_P1 = mass_PV[:, -1:]
    at_P1 = torch.minimum(u_P[:, None] * total_P1, total_P1.nextafter(torch.zeros_like(total_P1)))
    drawn_P1 = torch.searchsorted(mass_PV, at_P1.contiguous(), right=True)  # the first id whose mass lies beyond
    drawn_P1 = drawn_P1.clamp(max=logits_PV.shape[-1] - 1)  # logits that are not numbers: the sampler refuses them
    return torch.where(greedy_P[:, None], best_id_P1, drawn_P1).squeeze(1)


def kept(logits_PV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Returns the logits with -inf at all but the `top_k` likeliest ids, and all but the fewest that reach `top_p`.

    Of equal logits at the edge of `top_k` all stay. The likeliest id always stays.
    """
    if top_k is not None and top_k < logits_PV.shape[-1]:
        edge_P1 = logits_PV.topk(top_k, dim=-1).values[:, -1:]
        logits_PV = logits_PV.masked_fill(logits_PV < edge_P1, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_PV, order_PV = logits_PV.sort(dim=-1, descending=True, stable=True)
        p_PV = sorted_PV.double().softmax(-1)
        beyond_PV = p_PV.cumsum(-1) - p_PV >= top_p  # what is likelier reaches it already
        beyond_PV[:, 0] = False
        logits_PV = logits_PV.masked_fill(torch.zeros_like(beyond_PV).scatter(1, order_PV, beyond_PV), -torch.inf)
    return logits_PV


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
