"""Chunked scores equal whole ones, and a plain log-softmax.

Shape letters: P positions, D width, V vocabulary, K allow-sets.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff.model.scorer import Scores, cross_entropy

P, D, V = 23, 8, 11


def inputs(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = nn.Linear(D, V, bias=False)
    h_PD = torch.randn(P, D, generator=generator)
    label_P = torch.randint(0, 5, (P,), generator=generator)
    allow_P = torch.randint(0, 2, (P,), generator=generator)
    allow_KV = torch.ones(2, V, dtype=torch.bool)
    allow_KV[1, 5:] = False
    return head, h_PD, label_P, allow_P, allow_KV


def run(chunk: int, weight_P: Tensor, **allow: Any) -> tuple[Scores, list[Tensor]]:
    head, h_PD, label_P, _, _ = inputs()
    h_PD.requires_grad_()
    scores = cross_entropy(head, h_PD, label_P, chunk=chunk, **allow)
    return scores, list(torch.autograd.grad((scores.nll_P * weight_P).sum(), [h_PD, head.weight]))


@pytest.mark.parametrize("chunk", [1, 5, 22])
@pytest.mark.parametrize("restricted", [False, True])
def test_chunks_change_neither_values_nor_gradients(chunk: int, restricted: bool) -> None:
    allow: dict[str, Tensor] = dict(zip(("allow_P", "allow_KV"), inputs()[3:], strict=True)) if restricted else {}
    weight_P = torch.linspace(0.1, 3, P)
    whole, whole_gradient = run(P, weight_P, **allow)
    chunked, gradient = run(chunk, weight_P, **allow)
    torch.testing.assert_close(chunked.nll_P, whole.nll_P)
    assert torch.equal(chunked.correct_P, whole.correct_P)
    for ours, theirs in zip(gradient, whole_gradient, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("restricted", [False, True])
def test_scores_by_hand(restricted: bool) -> None:
    head, h_PD, label_P, allow_P, allow_KV = inputs()
    allow: dict[str, Tensor] = {"allow_P": allow_P, "allow_KV": allow_KV} if restricted else {}
    scores = cross_entropy(head, h_PD, label_P, chunk=4, **allow)
    for p in range(P):
        options = range(5 if restricted and allow_P[p] == 1 else V)
        logits = [float(head.weight[v].detach().double() @ h_PD[p].double()) for v in options]
        log_sum = float(torch.tensor(logits, dtype=torch.float64).logsumexp(0))
        assert float(scores.nll_P[p].detach()) == pytest.approx(log_sum - logits[int(label_P[p])], rel=1e-5)
        assert bool(scores.correct_P[p]) == (logits.index(max(logits)) == int(label_P[p]))


def test_no_more_than_a_chunk_goes_through_the_head() -> None:
    head, h_PD, label_P, _, _ = inputs()
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    cross_entropy(head, h_PD.requires_grad_(), label_P, chunk=5).nll_P.sum().backward()
    assert seen == [5, 5, 5, 5, 3] + [3, 5, 5, 5, 5]  # forward, then again for the backward pass


def test_losses_of_bfloat16_states_are_fp32() -> None:
    head, h_PD, label_P, _, _ = inputs()
    assert cross_entropy(head.bfloat16(), h_PD.bfloat16(), label_P, chunk=5).nll_P.dtype == torch.float32


def test_no_positions_at_all() -> None:
    head, h_PD, label_P, _, _ = inputs()
    scores = cross_entropy(head, h_PD[:0], label_P[:0], chunk=5)
    assert scores.nll_P.shape == scores.correct_P.shape == (0,)
