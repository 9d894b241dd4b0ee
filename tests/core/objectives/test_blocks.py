"""Block diffusion: an oracle it must price exactly, what it equals at either end, and that nothing leaks.

Shape letters: B samples, L positions, R rows, P masked positions, J blocks of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import SEQUENCES, Oracle, canvas
from torch import Tensor

from mmdiff import train
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer as esm_tokenizer
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import BlockCausal, Causal, CausalContext, Full, PrefixCausal
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.config import build
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.diffusion.schedule import Array
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise

KEY = NoiseKey(7, step=2, stream="s", batch=4)


def model(pattern: Pattern, image: bool = False, shift: int = 0) -> MMDiff:
    torch.manual_seed(0)
    parts: tuple[Any, ...] = ({"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    out = MMDiff(toy.backbone(), *(parts if image else ()), attention=pattern)
    out.backbone.facts = replace(out.backbone.facts, shift=shift)
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)  # far from uniform predictions, so that a wrong position or label shows
    return out.eval()


def batch_of(m: MMDiff, side: Any = "right", image: bool = False) -> Batch:
    """Contexts and answers of unequal length; the second row has context behind its first target, too."""
    picture = [Media("image", torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3)))] if image else []
    samples: list[Sample] = [
        [Text([4, 5]), *picture, Target([6, 7, 8, 4, 5, 8, 6])],
        [Text([4, 8, 6]), Target([5]), Text([8, 7]), Target([4, 6])],
        [*picture, Target([7, 8, 6, 5])],
    ]
    samples = samples[: 2 if m.backbone.facts.shift and not image else 3]  # there, context predicts the first target
    return collate([[*s] for s in samples], m.vocab, m.readers, side=side, index=[3, 5, 8][: len(samples)])


def loss(objective: Any, m: MMDiff, batch: Batch) -> Tensor:
    return objective.terms(m, objective.plan(batch, KEY, m.vocab))["denoise"].value


# The bound


class Enumerated:
    """In the place of a key: sample s draws the s-th of all pairs of a count and an order, of every block."""

    batch = 1

    def __init__(self, sizes: Sequence[int]) -> None:
        of_block = [[(k, order) for k in range(1, n + 1) for order in permutations(range(n))] for n in sizes]
        self.draws, self.sizes = list(product(*of_block)), sizes

    def uniform(self, sample: int, n: int, copy: int = 0) -> Array:
        drawn = self.draws[sample]
        levels = [(k - 0.5) / size for (k, _), size in zip(drawn, self.sizes, strict=True)]
        order = [(i + 0.5) / size for (_, o), size in zip(drawn, self.sizes, strict=True) for i in o]
        return np.array([*levels, *[0.5] * len(levels), *order])


@pytest.mark.parametrize(("size", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (4, [4]), (9, [4])])
def test_the_loss_summed_over_all_masks_is_minus_log_p_of_every_sequence(size: int, sizes: list[int]) -> None:
    oracle, key = Oracle.random(), Enumerated(sizes)
    oracle.attention = BlockCausal(size, "targets")
    objective = BlockDenoise(oracle.attention, levels=ExactCount(stratified=False))
    for x in SEQUENCES[::4]:
        batch = replace(canvas([x] * len(key.draws)), index_B=torch.arange(len(key.draws)))
        plan = objective.plan(batch, key, oracle.vocab)  # type: ignore[arg-type]
        found = objective.terms(oracle, plan)["denoise"].value / len(key.draws)  # type: ignore[arg-type]
        assert abs(float(found) - oracle.nll(x)) < 1e-6 * oracle.nll(x)
        assert plan.counts == {"denoise": 4.0 * len(key.draws)}


# What it equals


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pattern", [Causal(), BlockCausal(1), BlockCausal(1, "targets")], ids=str)
@torch.no_grad()
def test_blocks_of_one_position_are_the_log_likelihood_from_left_to_right(
    pattern: Pattern, side: Any, shift: int
) -> None:
    m = model(pattern, shift=shift)
    batch = batch_of(m, side)
    expected = 0.0
    for b, at in batch.target_BL.nonzero().tolist():
        later_L = batch.target_BL[b] & (torch.arange(batch.ids_BL.shape[1]) >= at)
        ids_1L = batch.ids_BL[b : b + 1].masked_fill(later_L, m.vocab.mask_id)
        h_1LD = m.hidden(ids_1L, batch, {}, torch.tensor([b]))
        logits_1V = m.backbone.head(m.gather(h_1LD, torch.tensor([0]), torch.tensor([at])))
        expected -= float(logits_1V.log_softmax(-1)[0, batch.ids_BL[b, at]])
    for levels in (ExactCount(), ExactCount(stratified=False)):
        assert abs(float(loss(BlockDenoise(pattern, levels=levels), m, batch)) - expected) < 1e-4


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("levels", [ExactCount(), ExactCount(stratified=False, full=0.3), Bernoulli(eps=0.3)], ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_one_block_of_all_targets_is_prefix_causal_denoising(side: Any, levels: Any, copies: int) -> None:
    """With the same masks, and so to the same gradient."""
    m = model(PrefixCausal(), image=True)
    batch = batch_of(m, side, image=True)
    plain = loss(Denoise(levels=levels, copies=copies), m, batch)
    gradient = torch.autograd.grad(plain, m.backbone.model.model.embed_tokens.weight)[0]
    for pattern in (PrefixCausal(), BlockCausal(99, "targets")):
        m.attention = pattern
        found = loss(BlockDenoise(pattern, levels=levels, copies=copies), m, batch)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        own = torch.autograd.grad(found, m.backbone.model.model.embed_tokens.weight)[0]
        torch.testing.assert_close(own, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    "pattern",
    [Full(), CausalContext(), *(BlockCausal(n, start) for n in (1, 2, 3, 4, 8) for start in ("row", "targets"))],  # type: ignore[arg-type]
    ids=str,
)
@torch.no_grad()
def test_one_forward_is_a_loop_over_the_blocks(pattern: Pattern, copies: int, shift: int) -> None:
    """Block after block, as generation does it: clean before, noised here, and behind it what cannot be seen."""
    m = model(pattern, image=True, shift=shift)
    batch = batch_of(m, image=True)
    plan = BlockDenoise(pattern, copies=copies).plan(batch, KEY, m.vocab)
    features = m.encode(batch.media)
    found_RLD = m.hidden_copies(plan.ids_RL, batch, features, copies, blockwise=True)
    block_RL = torch.as_tensor(pattern.blocks(batch.target_BL, batch.attend_BL)).expand(batch.ids_BL.shape)
    block_RL, clean_RL = block_RL.repeat(copies, 1), batch.ids_BL.repeat(copies, 1)
    row_P, at_P = plan.masked_RL.nonzero(as_tuple=True)
    for block in block_RL[plan.masked_RL].unique():
        ids_RL = torch.where(block_RL < block, clean_RL, torch.where(block_RL == block, plan.ids_RL, 5))
        loop_RLD = m.hidden(ids_RL, batch, features, plan.row_R)
        here_P = (block_RL == block)[plan.masked_RL]
        at = row_P[here_P], at_P[here_P]
        torch.testing.assert_close(m.gather(found_RLD, *at), m.gather(loop_RLD, *at), rtol=0, atol=3e-5)


@torch.no_grad()
def test_documents_of_a_packed_row_are_rows_of_their_own() -> None:
    for pattern in (PrefixCausal(), BlockCausal(2, "targets"), BlockCausal(3)):
        m = model(pattern)
        samples = [[Text([4, 5, 6]), Target([7, 8, 4])], [Text([4, 7]), Target([5, 6, 7, 8])]]
        both, apart = collate([samples[0] + samples[1]], m.vocab), collate(samples, m.vocab)
        segment_BL, position_ids_BL = torch.tensor([[0] * 6 + [1] * 6]), torch.arange(6).repeat(2)[None]
        packed = replace(both, packed=True, segment_BL=segment_BL, position_ids_BL=position_ids_BL)
        masked_BL = torch.tensor([[0, 0, 0, 1, 0, 1], [0, 0, 1, 1, 0, 1]]) > 0
        ids_BL = apart.ids_BL.masked_fill(masked_BL, m.vocab.mask_id)
        h_1LD = m.hidden_copies(ids_BL.view(1, 12), packed, {}, 1, blockwise=True)
        h_BLD = m.hidden_copies(ids_BL, apart, {}, 1, blockwise=True)
        torch.testing.assert_close(h_1LD.view(2, 6, -1)[masked_BL], h_BLD[masked_BL], atol=2e-5, rtol=0)


# Nothing leaks


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("start", ["row", "targets"])
def test_no_block_learns_from_its_own_clean_ids_or_from_later_ones(size: int, start: Any) -> None:
    """The gradient of a block's loss by clean embeddings is exactly 0 from its own block on, and not before."""
    pattern = BlockCausal(size, start)
    m = model(pattern)
    batch = collate([[Text([4, 5, 6]), Target([6, 7, 8, 4, 5, 8, 6, 7, 4, 5])]], m.vocab)
    objective = BlockDenoise(pattern)
    plan = objective.plan(batch, KEY, m.vocab)
    block_L = torch.as_tensor(pattern.blocks(batch.target_BL, batch.attend_BL))[0]
    clean = int((block_L < block_L[batch.target_BL[0]].max()).sum())  # what nothing sees is not run
    embedded: list[Tensor] = []

    def keep(x_RLD: Tensor, *more: Any) -> Tensor:
        embedded.append(x_RLD.detach().requires_grad_())
        return hidden(embedded[-1], *more)

    hidden, m.backbone.hidden = m.backbone.hidden, keep  # type: ignore[method-assign]
    for block in block_L[batch.target_BL[0]].unique().tolist():
        own_1L = plan.masked_RL & (block_L == block)
        term = objective.terms(m, replace(plan, weight_RL=plan.weight_RL * own_1L))["denoise"]
        gradient_N = torch.autograd.grad(term.value, embedded[-1])[0][0].abs().amax(-1)
        clean_C, noised_N = gradient_N[:clean], gradient_N[clean:]
        assert torch.equal(clean_C > 0, block_L[:clean] < block), block
        noised_L = block_L[[i for i in range(len(block_L)) if (batch.target_BL[0] & (block_L == block_L[i])).any()]]
        assert torch.equal(noised_N > 0, noised_L == block), block


@torch.no_grad()
def test_the_first_position_of_a_row_is_not_predicted_from_itself() -> None:
    """Where logits are shifted there is no state before it."""
    m = model(BlockCausal(1), shift=1)
    objective = BlockDenoise(BlockCausal(1))
    found = []
    for first in (5, 6):
        batch = collate([[Target([first, 7, 8])]], m.vocab)
        plan = objective.plan(batch, KEY, m.vocab)
        found.append(m.gather(m.hidden_copies(plan.ids_RL, batch, {}, 1, blockwise=True), *[torch.tensor([0])] * 2))
    assert torch.equal(*found)


@torch.no_grad()
def test_a_leak_is_seen_when_the_pattern_is_dropped() -> None:
    """Were noised blocks to see their own clean ids, the loss of a trained copier would show it; here states do."""
    pattern = BlockCausal(2, "targets")
    m = model(pattern)
    batch = batch_of(m)
    plan = BlockDenoise(pattern).plan(batch, KEY, m.vocab)
    before = m.hidden_copies(plan.ids_RL, batch, {}, 1, blockwise=True)
    last = batch.target_BL.long().cumsum(1).argmax(1)  # of each row, in its last block
    other = replace(batch, ids_BL=batch.ids_BL.scatter(1, last[:, None], 4))
    assert torch.equal(m.hidden_copies(plan.ids_RL, other, {}, 1, blockwise=True), before)
    first = batch.target_BL.long().argmax(1)
    other = replace(batch, ids_BL=batch.ids_BL.scatter(1, first[:, None], 4))
    moved_BL = (m.hidden_copies(plan.ids_RL, other, {}, 1, blockwise=True) != before).any(-1)
    block_BL = pattern.blocks(batch.target_BL, batch.attend_BL)
    assert torch.equal(moved_BL[batch.target_BL], (block_BL > 1)[batch.target_BL])


# What is drawn


def test_levels_are_drawn_for_each_block_and_spread_over_them() -> None:
    m = model(Full())
    batch = collate([[Text([4]), Target([5] * 64)]] * 4, m.vocab, index=[0, 1, 2, 3])
    for stratified in (True, False):
        objective = BlockDenoise(BlockCausal(4, "targets"), levels=ExactCount(stratified=stratified))
        plan = objective.plan(batch, KEY, m.vocab)
        count_BJ = plan.masked_RL[:, 1:].view(4, 16, 4).sum(2)
        assert (count_BJ >= 1).all() and torch.equal(plan.rate_RL[:, 1:].view(4, 16, 4)[..., 0], count_BJ / 4)
        assert torch.equal(plan.weight_RL[:, 1:], 1 / plan.rate_RL[:, 1:]) and not plan.weight_RL[:, 0].any()
        even = all(torch.bincount(row_J, minlength=5).tolist() == [0, 4, 4, 4, 4] for row_J in count_BJ)
        assert even == stratified


def test_noise_does_not_depend_on_mates_order_or_padding() -> None:
    m = model(Full())
    objective = BlockDenoise(BlockCausal(2, "targets"), copies=2)
    batch = batch_of(m)
    plan = objective.plan(batch, KEY, m.vocab)
    alone = collate([[Text([4, 8, 6]), Target([5]), Text([8, 7]), Target([4, 6])]], m.vocab, index=[5], side="left")
    own = objective.plan(alone, KEY, m.vocab)
    for copy, row in ((0, 1), (1, 4)):
        assert torch.equal(plan.masked_RL[row, :8], own.masked_RL[copy])
        assert torch.equal(plan.weight_RL[row, :8], own.weight_RL[copy])


def test_rows_without_targets_and_empty_positions_count_for_nothing() -> None:
    pattern = BlockCausal(2, "targets")
    m = model(pattern)
    batch = collate([[Text([4, 5])], [Text([4]), Target([5, m.vocab.mask_id, 6])]], m.vocab)
    objective = BlockDenoise(pattern)
    plan = objective.plan(batch, KEY, m.vocab)
    assert plan.counts == {"denoise": 2.0} and not plan.masked_RL[0].any() and not plan.masked_RL[1, 2]
    assert objective.terms(m, plan)["denoise"].value.isfinite()


def test_what_cannot_be_is_refused() -> None:
    pattern = BlockCausal(2, "targets")
    m = model(Full())
    batch = batch_of(m)
    objective = BlockDenoise(pattern)
    with pytest.raises(
        ConfigError, match=r"objective.attention: BlockCausal\(size=2.*, expected model.attention, Full\(\)"
    ):
        loss(objective, m, batch)
    esm = new_backbone(family="esm", tokenizer=esm_tokenizer(), hidden_size=16, layers=1, heads=2, max_length=32)
    encoder = MMDiff(esm, attention=pattern)
    with pytest.raises(ConfigError, match="esm runs all positions of a canvas"):
        loss(objective, encoder, collate([[Text([0, 5]), Target([6, 7])]], encoder.vocab))


def test_the_pattern_is_the_models_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old configurations give it twice, and train the same weights."""
    monkeypatch.chdir(tmp_path)
    pattern = {"target": "mmdiff.canvas.patterns.BlockCausal", "size": 1, "start": "targets"}
    weights = []
    for name, given in (("once", {}), ("twice", {"attention": pattern})):
        objective = {"target": "mmdiff.objectives.blocks.BlockDenoise", **given}
        config = toy.config(name, image=False, stage={"steps": 2, "eval": None, "objective": objective})
        config.model.attention = pattern
        train(config)
        weights.append(MMDiff.from_pretrained(tmp_path / "runs" / name / "model").state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert BlockDenoise(BlockCausal(2)).for_model(model(Full())).attention == BlockCausal(2)
    with pytest.raises(ConfigError, match="objective.attention: none is given"):
        BlockDenoise().plan(batch_of(m := model(Full())), KEY, m.vocab)


# It learns


def test_a_toy_learns_block_after_block() -> None:
    """An answer counts on from its context, w words at a time: later blocks must be read off earlier ones."""
    pattern = BlockCausal(2, "targets")
    torch.manual_seed(0)
    m = MMDiff(toy.backbone(), attention=pattern)
    node = {"target": "mmdiff.objectives.blocks.BlockDenoise", "attention": pattern.node, "copies": 2}
    objective, optimizer = build(node), torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=0.0)
    samples = [[Text([4 + s]), Target([4 + (s + i) % 5 for i in range(1, 7)])] for s in range(5)]
    for step in range(60):
        batch = collate(samples, m.vocab, index=[5 * step + (s + step) % 5 for s in range(5)])
        plan = objective.plan(batch, NoiseKey(0, step, "s", batch=5), m.vocab)
        value = objective.terms(m, plan)["denoise"].value / plan.counts["denoise"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.1
    asked = collate([[Text([4 + s]), Target([m.vocab.mask_id] * 6)] for s in range(5)], m.vocab)
    assert torch.equal(m.generate(asked, steps=3, block_length=2).ids_BL, collate(samples, m.vocab).ids_BL)
