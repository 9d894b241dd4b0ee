"""The rules of a step: noise and proposals, scores, selection, revision, and how a configuration names them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import MASK, SLOT, VOCAB, Table, V, by_query, likely
from torch import Tensor

from mmdiff.canvas.sample import Target
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.draw import draw, kept
from mmdiff.diffusion.step_noise import philox, uniform
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.score import Margin, NegativeEntropy
from mmdiff.samplers.rules.select import Everything, Factor, order
from mmdiff.samplers.rules.state import Proposal


def test_philox_is_random123() -> None:
    """The known answers that Random123 publishes for Philox4x32-10."""
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0)
    ones = [0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF)
    for (counter, key), expected in [
        (([0] * 4, (0, 0)), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ones, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]:
        words = philox(np.array([counter], dtype=np.uint64), key)[0]
        assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_noise_depends_on_seed_sample_and_step() -> None:
    four = np.arange(4)

    def drawn(seed: int, index: int, step: int, stream: str) -> list[float]:
        return uniform(seed, np.full(4, index), np.full(4, step), four, stream).tolist()

    first = drawn(1, 2, 3, "token")
    assert first == drawn(1, 2, 3, "token") and len(set(first)) == 4
    for seed, index, step in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2**40, 2, 3)]:
        assert first != drawn(seed, index, step, "token")
    assert first != drawn(1, 2, 3, "order")
    many = uniform(0, np.zeros(100_000, np.int64), np.ones(100_000, np.int64), np.arange(100_000), "token")
    assert 0 < many.min() and many.max() < 1
    share, _ = np.histogram(many, 10, (0, 1))
    assert np.abs(share - 10_000).max() < 4 * 95  # four standard deviations


def test_confidence_does_not_know_the_temperature() -> None:
    logits_BLV = torch.randn(1, 6, V, generator=torch.Generator().manual_seed(1))
    out = sample(
        Table(logits_BLV), collate([[Target(length=6)]], VOCAB), VOCAB, GenerationConfig(temperature=2.0, seed=4)
    )
    logits_BLV[..., [MASK, SLOT]] = -torch.inf
    p = logits_BLV.double().softmax(-1).gather(-1, out.ids_BL[..., None]).squeeze(-1)
    assert torch.allclose(out.confidence_BL.double(), p, atol=1e-6)


def test_draws_are_not_rounded_to_single_precision() -> None:
    """Of 2^20 equally likely ids, numbers that are one in fp32 still draw different ones (arXiv 2409.02908)."""
    logits_PV = torch.zeros(3, 1 << 20)
    u_P = torch.tensor([1 - 2.0**-20 - 2.0**-30, 1 - 2.0**-20 + 2.0**-30, 2.0**-60], dtype=torch.float64)
    assert draw(logits_PV, torch.ones(3), u_P).tolist() == [(1 << 20) - 2, (1 << 20) - 1, 0]


def test_a_banned_id_is_never_drawn_and_temperature_zero_is_greedy() -> None:
    logits_PV = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]]).repeat(4, 1)
    u_P = torch.tensor([1e-300, 1 - 2.0**-53, 0.5, 1e-300], dtype=torch.float64)
    assert draw(logits_PV, torch.tensor([1.0, 1.0, 0.0, 0.0]), u_P).tolist() == [1, 2, 2, 2]


def test_draws_follow_the_tempered_softmax() -> None:
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.5])
    n = 40_000
    u_P = torch.from_numpy(uniform(3, np.zeros(n, np.int64), np.ones(n, np.int64), np.arange(n), "token"))
    share_V = torch.bincount(draw(logits_V.repeat(n, 1), torch.full((n,), 0.7), u_P)) / n
    assert torch.allclose(share_V, (logits_V / 0.7).softmax(0), atol=4 * 0.5 / n**0.5)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits_PV = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert kept(logits_PV, 2, None).isfinite().tolist() == [[False, True, False, True]]
    assert kept(logits_PV, None, 0.69).isfinite().tolist() == [[False, True, False, True]]
    assert kept(logits_PV, None, 0.71).isfinite().tolist() == [[False, True, True, True]]
    assert kept(logits_PV, None, 1e-9).isfinite().tolist() == [[False, True, False, False]]
    assert kept(logits_PV, 1, 0.1).argmax(-1).tolist() == [1] and kept(logits_PV, 9, 1.0) is logits_PV


def test_low_temperature_is_nearly_greedy_and_high_is_not() -> None:
    logits_BLV = torch.randn(1, 40, V, generator=torch.Generator().manual_seed(2))
    batch = collate([[Target(length=40)]], VOCAB)
    ids = {
        t: sample(Table(logits_BLV), batch, VOCAB, GenerationConfig(temperature=t, steps=1, early_stop=False)).ids_BL
        for t in (0.0, 1e-4, 3.0)
    }
    assert torch.equal(ids[0.0], ids[1e-4]) and (ids[0.0] != ids[3.0]).float().mean() > 0.5


def proposal(row: list[int], quota: list[int] | None = None) -> Proposal:
    row_P = torch.tensor(row)
    quota_R = torch.tensor(quota or [1] * (max(row) + 1))
    none: Any = None
    return Proposal(row_P, torch.arange(len(row)), torch.zeros_like(row_P), torch.ones(len(row)), quota_R, none, none)


def test_order_ranks_within_rows_and_prefers_the_left() -> None:
    score_P = torch.tensor([0.1, 0.9, 0.9, 0.5, 0.5, 0.7])
    assert order(score_P, torch.tensor([0, 0, 0, 1, 1, 1])).tolist() == [2, 0, 1, 1, 2, 0]


def test_scores_of_a_known_pair() -> None:
    """arXiv 2502.06768: the best token is likelier in the first, but only the second leaves no rival."""
    p_PV = torch.tensor([[0.5, 0.48, 0.02] + [0.0] * 7, [0.45] + [0.55 / 9] * 9])
    logits_PV = p_PV.log()
    assert Margin()(logits_PV, proposal([0, 0])).tolist() == pytest.approx([0.02, 0.45 - 0.55 / 9], abs=1e-6)
    assert NegativeEntropy()(logits_PV, proposal([0, 0])).tolist() == pytest.approx([-0.777, -1.897], abs=1e-3)


def test_factor_takes_the_largest_n_that_holds() -> None:
    # bounds for factor 1: n=1 0.5, n=2 0.667, n=3 0.75
    score_P = torch.tensor([0.7, 0.9, 0.1, 0.2, 0.8, 0.74])
    assert Factor(1.0)(score_P, proposal([0, 0, 0, 0, 1, 1])).tolist() == [True, True, False, False, True, True]
    assert Factor(0.1)(score_P, proposal([0, 0, 0, 0, 1, 1])).tolist() == [False, True, False, False, True, False]


def test_running_confidence_is_low_confidence_when_confidences_do_not_change() -> None:
    sure = torch.randperm(12, generator=torch.Generator().manual_seed(5)).add(1).div(2).tolist()
    batch = collate([[Target(length=12)]], VOCAB)
    plain = sample(likely(list(range(12)), sure=[sure]), batch, VOCAB, GenerationConfig(steps=5))
    config = GenerationConfig(steps=5, select=Everything(), revise=RunningConfidence())
    table = likely(list(range(12)), sure=[sure])
    out = sample(table, batch, VOCAB, config)
    assert out.ids_BL.tolist() == plain.ids_BL.tolist() and out.calls == 5
    assert out.step_BL.tolist() == plain.step_BL.tolist()
    assert table.predicted == [12, 9, 6, 4, 2]


def test_a_revise_rule_corrects_what_later_context_contradicts() -> None:
    """1 is likeliest at position 0 until position 1 is committed, then 2; without revision the first token stays."""

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits_RLV = torch.zeros(1, 3, V)
        logits_RLV[0, 0, 1], logits_RLV[0, 1, 5], logits_RLV[0, 2, 6] = 5.0, 6.0, 4.0
        if ids_RL[0, 1] == 5:
            logits_RLV[0, 0, 2] = 20.0
        return logits_RLV[predict_RL]

    batch = collate([[Target(length=3)]], VOCAB)
    # two of three a step: position 0 is among the first two, so only a rule that masks it again can correct it

    class RemaskFirst:
        def __call__(self, committed: Any) -> Tensor:
            out_RL = torch.zeros_like(committed.committed_RL)
            out_RL[:, 0] = True
            return out_RL

    assert sample(denoise, batch, VOCAB, GenerationConfig(steps=2)).ids_BL[0].tolist() == [1, 5, 6]
    out = sample(denoise, batch, VOCAB, GenerationConfig(steps=2, revise=RemaskFirst()))
    assert out.ids_BL[0].tolist() == [2, 5, 6] and out.step_BL[0].tolist() == [2, 1, 2]
    # a rule that always masks again still comes to an end
    assert sample(denoise, batch, VOCAB, GenerationConfig(threshold=0.5, revise=RemaskFirst())).calls <= 6


def test_rules_are_chosen_by_dotted_path() -> None:
    logits_BLV = torch.full((1, 2, V), -torch.inf)
    logits_BLV[0, 0, :3] = torch.tensor([0.5, 0.48, 0.02]).log()
    logits_BLV[0, 1, :10] = torch.tensor([0.45] + [0.55 / 9] * 9).log()
    batch = collate([[Target(length=2)]], VOCAB)
    steps = [
        sample(Table(logits_BLV), batch, VOCAB, GenerationConfig(remasking=name)).step_BL[0].tolist()
        for name in ("low_confidence", "mmdiff.samplers.rules.score.Margin")
    ]
    assert steps == [[1, 2], [2, 1]]
    node = {"target": "mmdiff.samplers.rules.select.Threshold", "threshold": 0.4}
    assert sample(Table(logits_BLV), batch, VOCAB, GenerationConfig(select=node)).calls == 1


def test_a_select_rule_that_commits_nothing_is_refused() -> None:
    class Nothing:
        def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
            return torch.zeros_like(score_P, dtype=torch.bool)

    with pytest.raises(ConfigError, match="Nothing"):
        sample(likely([1, 2]), collate([[Target(length=2)]], VOCAB), VOCAB, GenerationConfig(select=Nothing()))
