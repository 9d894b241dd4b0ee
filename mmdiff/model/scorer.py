"""Cross-entropy of masked positions, in chunks: the logits of at most `chunk` positions exist at one time.

The gradient of each needs the logits of a chunk again in the backward pass; that of a weighted sum of them is taken at
once, behind a linear head: the weights are known beforehand, so a chunk's gradient is computed while its logits exist.
Memory is O(chunk * V) for both, instead of O(P * V).

Shape letters: B samples, R rows, L canvas length, P masked positions, C those of a chunk, D backbone width,
V vocabulary, K allow-sets, N ids of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmdiff.backbones import Backbone
from mmdiff.canvas.batch import Batch, where

CHUNK_ELEMENTS = (1 << 28, 1 << 24)
"""The most logits of a chunk, on an accelerator and on the CPU: 1 GB and 64 MB of float32."""


class Scores(NamedTuple):
    """Scores of P masked positions, in row-major order."""

    nll_P: Tensor  # fp32, nats
    correct_P: Tensor  # bool, whether the likeliest id is the right one
    total: Tensor | None = None  # fp32, their weighted sum where weights were given, which alone has a gradient then


def score(
    backbone: Backbone,
    h_PD: Tensor,
    batch: Batch,
    masked_RL: Tensor,
    row_R: Tensor | None = None,
    weight_P: Tensor | None = None,
    *,
    chunk: int,
    restrict: bool = True,
) -> Scores:
    """Returns the cross-entropy of the ids of `batch` at the P masked positions, in row-major order.

    h_PD: the hidden state that predicts each of them. row_R: the row of `batch` that each row of `masked_RL` is a copy
    of; None: its rows are those of the batch. weight_P: fp32, without a gradient; None: there is no `total`.
    restrict: the softmax runs over the ids that a position may hold.
    """
    label_P, allow_P, allowed_ids_N = _right(batch, masked_RL, row_R, restrict)
    linear = None if weight_P is None else backbone.linear_head
    if weight_P is None or linear is None:
        allow = {"allow_P": allow_P, "allow_KV": batch.allow_KV, "allowed_ids_N": allowed_ids_N}
        found = cross_entropy(backbone.head, h_PD, label_P, chunk=chunk, **allow)
        if weight_P is None:
            return found
        return Scores(found.nll_P.detach(), found.correct_P, (found.nll_P * weight_P).sum())
    (table_VD, bias_V), banned = linear, None
    if allowed_ids_N is not None:
        label_P = torch.searchsorted(allowed_ids_N, label_P)
        table_VD, bias_V = table_VD[allowed_ids_N], None if bias_V is None else bias_V[allowed_ids_N]
    elif allow_P is not None and batch.allow_KV is not None:
        banned = partial(_banned, batch.allow_KV, allow_P)
    chunk = max(1, min(chunk, CHUNK_ELEMENTS[h_PD.device.type == "cpu"] // len(table_VD)))
    total, nll_P, correct_P = LinearCrossEntropy.apply(h_PD, table_VD, bias_V, label_P, weight_P, banned, chunk)
    return Scores(nll_P, correct_P, total)


def _banned(allow_KV: Tensor, allow_P: Tensor, start: int, stop: int) -> Tensor:
    return ~allow_KV[allow_P[start:stop]]


def _right(
    batch: Batch, masked_RL: Tensor, row_R: Tensor | None, restrict: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the ids (P,) of `batch` at the masked positions, their allow-sets (P,) and `Batch.allowed_ids_N`; None
    for what does not restrict them."""
    row_P, position_P = where(masked_RL)
    at_P = (row_P if row_R is None else row_R[row_P]), position_P
    allowed_ids_N = batch.allowed_ids_N if restrict else None
    allow_P = batch.allow_BL[at_P] if restrict and allowed_ids_N is None and batch.allow_BL is not None else None
    return batch.ids_BL[at_P], allow_P, allowed_ids_N


def cross_entropy(
    head: Callable[..., Tensor],
    h_PD: Tensor,
    label_P: Tensor,
    *,
    chunk: int,
    allow_P: Tensor | None = None,
    allow_KV: Tensor | None = None,
    allowed_ids_N: Tensor | None = None,
) -> Scores:
    """Returns -log p of `label_P`, with the softmax over the ids that `allow_KV[allow_P]` allows (None: over all).

    head: hidden states (P, D), or those and ids (N,), to logits. allowed_ids_N: where all positions may hold the same
    ids, these, ascending: no other row of the head is multiplied.
    """
    if allowed_ids_N is not None:
        label_P = torch.searchsorted(allowed_ids_N, label_P)

    def one(h: Tensor, label: Tensor, allow: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = (head(h) if allowed_ids_N is None else head(h, allowed_ids_N)).float()
        if allowed_ids_N is None and allow is not None and allow_KV is not None:
            logits = logits.masked_fill(~allow_KV[allow], float("-inf"))
        return F.cross_entropy(logits, label, reduction="none"), logits.detach().argmax(-1) == label

    if len(h_PD) <= chunk:
        return Scores(*one(h_PD, label_P, allow_P))
    parts = [
        checkpoint(
            one,
            h_PD[i : i + chunk],
            label_P[i : i + chunk],
            None if allow_P is None else allow_P[i : i + chunk],
            use_reentrant=False,
        )
        for i in range(0, len(h_PD), chunk)
    ]
    return Scores(torch.cat([nll for nll, _ in parts]), torch.cat([right for _, right in parts]))


class _Logits:
    """A linear head, chunk after chunk. Of float32 numbers the logits of all chunks lie in one piece of memory: asking
    the system for a new one each time takes as long as a fifth of the product."""

    def __init__(self, h_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, chunk: int) -> None:
        self.weight_VD, self.bias_V = weight_VD, bias_V
        plain = h_PD.dtype == weight_VD.dtype == torch.float32 and not torch.is_autocast_enabled(h_PD.device.type)
        self.kept_CV = h_PD.new_empty(min(chunk, len(h_PD)), len(weight_VD)) if plain else None

    def __call__(self, h_CD: Tensor) -> Tensor:
        if self.kept_CV is None:
            return F.linear(h_CD, self.weight_VD, self.bias_V)
        out_CV = self.kept_CV[: len(h_CD)]
        if self.bias_V is None:
            return torch.mm(h_CD, self.weight_VD.T, out=out_CV)
        return torch.addmm(self.bias_V, h_CD, self.weight_VD.T, out=out_CV)


class LinearCrossEntropy(torch.autograd.Function):
    """(h_PD, weight_VD, bias_V or None, label_P, scale_P, banned, chunk) -> (sum of scale * nll, nll_P, correct_P).

    banned: a function of positions (start, stop) to bool (C, V), ids that are left out of the softmax; or None. Only
    the sum has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, h_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        label_P, scale_P, banned, chunk = rest
        for_h, for_weight, for_bias = ctx.needs_input_grad[:3]
        dh_PD = torch.empty_like(h_PD) if for_h else None
        dweight_VD = (torch.empty_like if len(h_PD) else torch.zeros_like)(weight_VD) if for_weight else None
        dbias_V = torch.zeros_like(bias_V) if bias_V is not None and for_bias else None
        nll_P = torch.empty(len(h_PD), dtype=torch.float32, device=h_PD.device)
        correct_P = torch.empty(len(h_PD), dtype=torch.bool, device=h_PD.device)
        logits = _Logits(h_PD, weight_VD, bias_V, chunk)
        for start in range(0, len(h_PD), chunk):
            at = slice(start, start + chunk)
            logits_CV = logits(h_PD[at])
            dtype, logits_CV = logits_CV.dtype, logits_CV.float()  # nobody else sees them: what follows is in place
            if banned is not None:
                logits_CV.masked_fill_(banned(start, start + chunk), -torch.inf)
            label_C1, scale_C = label_P[at, None], scale_P[at]
            best_C1 = logits_CV.argmax(1, keepdim=True)
            most_C1, label_logit_C1 = logits_CV.gather(1, best_C1), logits_CV.gather(1, label_C1)
            correct_P[at] = (best_C1 == label_C1)[:, 0]
            sum_C = logits_CV.sub_(most_C1).exp_().sum(1)  # one exponential for the loss and its gradient
            nll_P[at] = sum_C.log() + (most_C1 - label_logit_C1)[:, 0]
            if not (for_h or for_weight or for_bias):
                continue
            grad_CV = logits_CV.mul_((scale_C / sum_C)[:, None])
            grad_CV = grad_CV.scatter_add_(1, label_C1, -scale_C[:, None].to(grad_CV.dtype)).to(dtype)
            if dh_PD is not None:
                dh_PD[at] = grad_CV @ weight_VD.to(dtype)
            if dweight_VD is not None:
                of_weight = grad_CV.T.to(dweight_VD.dtype), h_PD[at].to(dweight_VD.dtype)
                dweight_VD.addmm_(*of_weight, beta=int(start > 0))  # at 0 it is not read: nothing has to be zero
            if dbias_V is not None:
                dbias_V += grad_CV.sum(0)
        ctx.gradients = (dh_PD, dweight_VD, dbias_V, nll_P if ctx.needs_input_grad[4] else None)
        ctx.mark_non_differentiable(nll_P, correct_P)
        return (nll_P * scale_P).sum(), nll_P, correct_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (*of_inputs, nll_P), ctx.gradients = ctx.gradients, (None, None, None, None)
        of_scale = None if nll_P is None else nll_P * factor
        of_inputs = [None if g is None else g.mul_(factor.to(g.dtype)) for g in of_inputs]
        return (*of_inputs, None, of_scale, None, None)
