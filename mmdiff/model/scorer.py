"""Cross-entropy of masked positions, in chunks: the logits of at most `chunk` positions exist at one time.

Logits of a chunk are computed again in the backward pass, so memory is O(chunk * V) instead of O(P * V). Plain
autograd, so it holds under data parallelism and with weighted losses (fused kernels do not).

Shape letters: B samples, R rows, L canvas length, P masked positions, D backbone width, V vocabulary, K allow-sets,
N ids of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.batch import Batch


class Scores(NamedTuple):
    """Scores of P masked positions, in row-major order."""

    nll_P: Tensor  # fp32, nats
    correct_P: Tensor  # bool, whether the likeliest id is the right one


def score(
    head: Callable[..., Tensor],
    h_PD: Tensor,
    batch: Batch,
    masked_RL: Tensor,
    row_R: Tensor | None = None,
    *,
    chunk: int,
    restrict: bool = True,
) -> Scores:
    """Returns the cross-entropy of the ids of `batch` at the P masked positions, in row-major order.

    h_PD: the hidden state that predicts each of them. row_R: the row of `batch` that each row of `masked_RL` is a copy
    of; None: its rows are those of the batch. restrict: the softmax runs over the ids that a position may hold.
    """
    row_P, position_P = masked_RL.nonzero(as_tuple=True)
    at_P = (row_P if row_R is None else row_R[row_P]), position_P
    allowed_ids_N = batch.allowed_ids_N if restrict else None
    allow_P = batch.allow_BL[at_P] if restrict and allowed_ids_N is None and batch.allow_BL is not None else None
    label_P = batch.ids_BL[at_P]
    return cross_entropy(
        head, h_PD, label_P, chunk=chunk, allow_P=allow_P, allow_KV=batch.allow_KV, allowed_ids_N=allowed_ids_N
    )


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
