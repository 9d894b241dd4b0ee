"""Chunked scores equal whole ones, and a plain log-softmax; so does a loss whose gradients are taken at once.

Shape letters: P positions, D width, V vocabulary, K allow-sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.model.scorer import LinearCrossEntropy, Scores, cross_entropy
from mmdiff.objectives.denoise import Denoise, scored, states, weighted

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


# Weighted sums -----------------------------------------------------------------------------------------------


def drawn(dtype: torch.dtype = torch.float64, bias: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = nn.Linear(D, V, bias=bias, dtype=dtype)
    return {
        "h": torch.randn(P, D, dtype=dtype).requires_grad_(),
        "weight": layer.weight,
        "bias": layer.bias,
        "label": torch.randint(0, 5, (P,)),
        "scale": torch.rand(P) * 3,
    }


def fused(x: dict[str, Any], chunk: int, banned: Callable[[int, int], Tensor] | None = None) -> tuple[Tensor, ...]:
    out: tuple[Tensor, ...] = LinearCrossEntropy.apply(
        x["h"], x["weight"], x["bias"], x["label"], x["scale"], banned, chunk
    )
    return out


def plain(x: dict[str, Any], banned_PV: Tensor | None = None) -> tuple[Tensor, Tensor]:
    logits_PV = F.linear(x["h"], x["weight"], x["bias"])
    if banned_PV is not None:
        logits_PV = logits_PV.masked_fill(banned_PV, -torch.inf)
    nll_P = -logits_PV.log_softmax(1)[torch.arange(P), x["label"]]
    return (nll_P * x["scale"]).sum(), nll_P


@pytest.mark.parametrize("chunk", [1, 5, P, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("some_banned", [False, True])
def test_values_and_gradients(chunk: int, bias: bool, some_banned: bool) -> None:
    x = drawn(bias=bias)
    banned_PV = torch.zeros(P, V, dtype=torch.bool)
    banned_PV[::2, 5:] = True
    total, nll_P, correct_P = fused(x, chunk, (lambda a, b: banned_PV[a:b]) if some_banned else None)
    expected, expected_P = plain(x, banned_PV if some_banned else None)
    wanted = [x["h"], x["weight"], *([x["bias"]] if bias else [])]
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)  # summed in float32
    torch.testing.assert_close(nll_P.double(), expected_P, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(total * 0.7, wanted), torch.autograd.grad(expected * 0.7, wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert bool(correct_P.any()) and not nll_P.requires_grad


def test_the_gradient_of_a_weight_is_the_loss_of_its_position() -> None:
    x = drawn()
    x["scale"].requires_grad_()
    total, nll_P, _ = fused(x, 5)
    torch.testing.assert_close(torch.autograd.grad(total * 2, [x["scale"]])[0], 2 * nll_P)


def test_what_is_frozen_gets_no_gradient_and_costs_no_product() -> None:
    x = drawn()
    x["weight"].requires_grad_(False)
    x["bias"].requires_grad_(False)
    total, *_ = fused(x, 5)
    assert total.grad_fn.gradients[1:] == (None, None, None)  # type: ignore[attr-defined, union-attr]
    (ours,) = torch.autograd.grad(total, [x["h"]])
    (theirs,) = torch.autograd.grad(plain(x)[0], [x["h"]])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_position_is_masked() -> None:
    x = drawn(torch.float32)
    x |= {"h": x["h"][:0], "label": x["label"][:0], "scale": x["scale"][:0]}
    total, nll_P, _ = fused(x, 5)
    assert float(total.detach()) == 0 and nll_P.shape == (0,)
    assert float(torch.autograd.grad(total, [x["weight"]])[0].abs().sum()) == 0


def test_bfloat16_states_lose_in_float32() -> None:
    x = drawn(torch.bfloat16)
    total, nll_P, _ = fused(x, 5)
    assert total.dtype == nll_P.dtype == torch.float32
    assert torch.autograd.grad(total, [x["h"]])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_loss_is_the_one_by_autograd(tied: bool, restrict: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=word_tokenizer(list("abcdef")), hidden_size=16, layers=1, heads=2)
    if tied:
        backbone.model.lm_head.weight = backbone.model.model.embed_tokens.weight
    model, vocab = MMDiff(backbone, logit_chunk=3), backbone.vocab
    samples = [[Text([4, 5]), Target([6, 7, 8, 9])], [Text([9]), Target([4, 4, 1])]]
    objective = Denoise(copies=2, restrict=restrict)
    plan = objective.plan(collate(samples, vocab), NoiseKey(0, batch=2), vocab)
    found = []
    for one in ("fused", "autograd"):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            h_RLD = states(model, plan)
            if one == "fused":
                term = scored(model, plan, h_RLD, restrict=restrict)
            else:
                nll_P, correct_P, _ = model.score(h_RLD, plan.batch, plan.masked_RL, plan.row_R, restrict=restrict)
                term = weighted(plan, nll_P, correct_P)
        term.value.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((term, gradients))
    (ours, ours_by_name), (theirs, theirs_by_name) = found
    assert backbone.linear_head is not None and ours_by_name.keys() == theirs_by_name.keys()
    close = {"rtol": 3e-2, "atol": 3e-2} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours.value, theirs.value, **close)
    for name, gradient in ours_by_name.items():
        torch.testing.assert_close(gradient, theirs_by_name[name], **close, msg=name)
    for name, (total, count) in ours.sums.items():
        torch.testing.assert_close(total, theirs.sums[name][0], **close)
        assert torch.equal(count, theirs.sums[name][1])


def test_a_head_with_an_adapter_is_left_to_autograd() -> None:
    backbone = new_backbone(tokenizer=word_tokenizer(["a"]), hidden_size=16, layers=1, heads=2)
    model = MMDiff(backbone)
    add_adapters(model, {"part": "backbone", "r": 2, "alpha": 4, "modules": "lm_head", "dropout": 0.0})
    assert backbone.linear_head is None
