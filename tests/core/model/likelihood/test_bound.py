"""The bound on -log p against distributions whose probabilities are known.

Shape letters: B samples, L positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import SEQUENCES, WORDS, Oracle, canvas

from mmdiff.canvas.patterns import BlockCausal, PrefixCausal
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound, grid


def model() -> MMDiff:
    torch.manual_seed(0)
    out = MMDiff(toy.backbone())
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)
    return out.eval()


def samples(*lengths: int) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [[Text(rng.integers(4, 9, 2).tolist()), Target(rng.integers(4, 9, n).tolist())] for n in lengths]


def copies() -> Oracle:
    """Four times the same word: one masked position costs nothing, four cost log 3."""
    joint = torch.zeros(WORDS, WORDS, WORDS, WORDS)
    for word in range(WORDS):
        joint[word, word, word, word] = 1
    return Oracle(joint)


def repeated(oracle: Any, x: tuple[int, ...], rows: int, levels: int) -> np.ndarray:
    return bound(oracle, canvas([x] * rows), levels=levels, seed=3).nll_B.numpy()


# Value ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 16])
def test_the_mean_over_masks_is_minus_log_p(levels: int) -> None:
    """With the exact conditionals the bound is tight, however few levels stand for the counts 1..4."""
    oracle, x, rows = Oracle.random(), (2, 0, 1, 1), 4000
    nll = repeated(oracle, x, rows, levels)
    assert abs(nll.mean() - oracle.nll(x)) < 3.5 * nll.std() / rows**0.5


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_cost_that_lies_in_the_last_count_alone_is_found_with_few_levels(levels: int) -> None:
    nll = repeated(copies(), (1, 1, 1, 1), 4000, levels)
    assert abs(nll.mean() - np.log(3)) < 3.5 * nll.std() / 4000**0.5 + 1e-6


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("levels", [1, 16])
def test_the_bounds_of_blocks_sum_to_minus_log_p(levels: int, size: int) -> None:
    """And blocks of one position give it without a draw, in one forward."""
    oracle, x, rows = Oracle.random(), (2, 0, 1, 1), 2000
    oracle.attention = BlockCausal(size, "targets")
    nll = repeated(oracle, x, rows, levels)
    assert abs(nll.mean() - oracle.nll(x)) < 3.5 * nll.std() / rows**0.5 + 1e-6
    assert (nll.std() < 1e-6) == (size == 1)


def test_one_block_has_the_bound_of_no_blocks() -> None:
    m = model()
    batch = collate(samples(3, 5, 1), m.vocab)
    m.attention = PrefixCausal()
    plain = bound(m, batch, levels=2, seed=1).nll_B
    m.attention = BlockCausal(9, "targets")
    torch.testing.assert_close(bound(m, batch, levels=2, seed=1).nll_B, plain, rtol=1e-5, atol=0)


def test_copies_are_exact_with_a_level_a_count() -> None:
    torch.testing.assert_close(repeated(copies(), (2, 2, 2, 2), 5, 4), np.full(5, np.log(3)), rtol=1e-6, atol=0)


def test_the_mean_over_sequences_is_not_below_the_entropy() -> None:
    """Under the true conditionals it equals the entropy; under those of another distribution it lies above."""
    oracle, other = Oracle.random(), Oracle.random(seed=1)
    share = torch.tensor([float(oracle.joint[x]) for x in SEQUENCES], dtype=torch.float64)
    seeds = range(12)
    right = [float((bound(oracle, canvas(SEQUENCES), seed=s).nll_B * share).sum()) for s in seeds]  # type: ignore[arg-type]
    wrong = [float((bound(other, canvas(SEQUENCES), seed=s).nll_B * share).sum()) for s in seeds]  # type: ignore[arg-type]
    error = np.std(right) / len(right) ** 0.5
    assert abs(np.mean(right) - oracle.entropy()) < 3.5 * error
    assert np.mean(wrong) > oracle.entropy() + 10 * error


def test_exact_for_one_token() -> None:
    m = model()
    batch = collate(samples(1, 1), m.vocab)
    ids_BL = batch.ids_BL.masked_fill(batch.target_BL, m.vocab.mask_id)
    with torch.no_grad():
        logp_BV = m.backbone(ids_BL)[:, -1].log_softmax(-1)
    expected_B = -logp_BV[torch.arange(2), batch.ids_BL[:, -1]]
    out = bound(m, batch)
    torch.testing.assert_close(out.nll_B, expected_B.double(), rtol=1e-5, atol=0)
    assert out.positions_B.tolist() == [1, 1] and out.nll_B.dtype == torch.float64


def test_only_allowed_ids_share_the_probability() -> None:
    m = model()
    batch = collate([[Text([4, 7]), Target([5], allow=((4, 6),))]], m.vocab)
    with torch.no_grad():
        logits_V = m.backbone(batch.ids_BL.masked_fill(batch.target_BL, m.vocab.mask_id))[0, -1]
    assert float(bound(m, batch).nll_B) == pytest.approx(-float(logits_V[4:6].log_softmax(0)[1]), rel=1e-5)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 16])
def test_a_level_a_count_while_there_are_enough(n: int) -> None:
    assert grid(n, np.full(16, 0.9)) == [(k, 1 / k) for k in range(1, n + 1)]


@pytest.mark.parametrize("n", [17, 20, 31, 64, 100])
def test_stretches_cover_every_count_once(n: int) -> None:
    """Lowest and highest draws are the ends of the stretches; those fit together and add up to 1..n."""
    low, high = grid(n, np.zeros(16)), grid(n, np.full(16, np.nextafter(1, 0)))
    assert low[0][0] == 1 and high[-1][0] == n
    assert [k + 1 for k, _ in high[:-1]] == [k for k, _ in low[1:]]
    for (first, weight), (last, _) in zip(low, high, strict=True):
        assert weight == pytest.approx((last - first + 1) / first)


def test_constant_cost_is_met_by_any_grid() -> None:
    part_G = np.random.default_rng(0).random(16)
    for n in (5, 16, 17, 100):
        assert sum(weight * 2.5 * k for k, weight in grid(n, part_G)) == pytest.approx(2.5 * n)


# What it does not depend on -------------------------------------------------------------------------------------------


def test_the_same_rows_give_the_same_figure() -> None:
    m = model()
    batch = collate(samples(5, 20), m.vocab)
    first = bound(m, batch)
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(first.nll_B, bound(m, batch).nll_B)
    assert not torch.equal(first.nll_B, bound(m, batch, seed=1).nll_B)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_do_not_depend_on_what_they_are_batched_with(side: Any) -> None:
    m, rows = model(), samples(5, 20, 1, 8)
    whole = bound(m, collate(rows, m.vocab, index=[3, 4, 5, 6], side=side), levels=6)
    for b, row in enumerate(rows):
        alone = bound(m, collate([row], m.vocab, index=[3 + b]), levels=6)
        torch.testing.assert_close(alone.nll_B[0], whole.nll_B[b], rtol=1e-5, atol=1e-6)
    assert whole.positions_B.tolist() == [5, 20, 1, 8]


def test_a_row_without_targets_costs_nothing() -> None:
    m = model()
    out = bound(m, collate([[Text([4, 5])], *samples(3)], m.vocab))
    assert float(out.nll_B[0]) == 0 and out.positions_B.tolist() == [0, 3] and float(out.nll_B[1]) > 0
