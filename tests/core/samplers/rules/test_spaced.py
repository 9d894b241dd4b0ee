"""Rounds of the dilated comb, and gaps between what one step takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from logit_tables import MASK, VOCAB, Table, V, likely

from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.adaptive import EntropyThreshold
from mmdiff.samplers.rules.select import Everything, Quota, Threshold
from mmdiff.samplers.rules.spaced import Dilated, MinimumGap
from mmdiff.samplers.rules.timed import Ancestral


def rounds(sample_: Sample, sure: list[float] | None = None, **named: Any) -> list[list[int]]:
    """The numbers, from 1, of the target positions that each step commits."""
    batch = collate([sample_], VOCAB)
    sure = sure or [1.0] * batch.ids_BL.shape[1]
    out = sample(likely([1] * len(sure), sure=[sure]), batch, VOCAB, generation_config(early_stop=False, **named))
    step_N = out.step_BL[0][out.target_BL[0]]
    return [((step_N == step).nonzero().squeeze(1) + 1).tolist() for step in range(1, int(step_N.max()) + 1)]


def published(size: int, base: int) -> list[list[int]]:
    """DUS as it is written: round after round, strides shrinking by the base, empty rounds dropped."""
    done, out = set[int](), []
    for t in range(1, max(1, math.ceil(math.log(size, base) - 1e-9)) + 1):
        stride = max(1, size // base**t)
        taken = [k for k in range(1, size + 1) if (k - 1) % stride == 0 and k not in done]
        done |= {*taken}
        out += [taken] * bool(taken)
    left = [k for k in range(1, size + 1) if k not in done]
    return [*out[:-1], sorted(out[-1] + left)]


def test_the_comb_of_eight_is_the_published_one() -> None:
    assert rounds([Target(length=8)], select=Dilated()) == [[1, 5], [3, 7], [2, 4, 6, 8]]
    sizes = {n: [len(r) for r in rounds([Target(length=n)], select=Dilated())] for n in (16, 64)}
    assert sizes == {16: [2, 2, 4, 8], 64: [2, 2, 4, 8, 16, 32]}
    assert rounds([Target(length=12)], select=Dilated()) == [[1, 7], [4, 10], [2, 3, 5, 6, 8, 9, 11, 12]]


@pytest.mark.parametrize("base", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 12, 24, 31, 32, 33])
def test_every_size_and_base_follow_the_algorithm(size: int, base: int) -> None:
    assert rounds([Target(length=size)], select=Dilated(base)) == published(size, base)


def test_blocks_have_combs_of_their_own_and_given_tokens_leave_rounds_out() -> None:
    assert rounds([Text([3]), Target(length=10)], block_length=8, select=Dilated()) == [
        [1, 5], [3, 7], [2, 4, 6, 8], [9, 10],
    ]  # fmt: skip
    five = [[1, 3, 5], [2, 4], [6, 8, 10], [7, 9]]
    assert rounds([Text([3]), Target(length=10)], block_length=5, select=Dilated()) == five
    given = [7, MASK, MASK, MASK, 7, MASK, 7, MASK]  # the first round is given, of the second 3 is left
    assert rounds([Target(given)], select=Dilated()) == [[3], [2, 4, 6, 8]]
    # context between targets does not count
    assert rounds([Target(length=3), Text([1] * 9), Target(length=5)], select=Dilated()) == published(8, 2)


def test_unsure_positions_wait_for_a_later_round_and_not_beyond_the_last() -> None:
    sure = [9.0] * 8
    sure[4] = sure[2] = 3.0  # 0.25, and a logit of 9 is 0.99
    assert rounds([Target(length=8)], sure, select=Dilated(skip=0.5)) == [[1], [7], [2, 3, 4, 5, 6, 8]]
    assert rounds([Target(length=8)], [3.0] * 8, select=Dilated(skip=0.5)) == [[1], [3], [2, 4, 5, 6, 7, 8]]
    assert rounds([Target(length=8)], sure, select=Dilated(skip=0.1)) == published(8, 2)


def greedy(scores: list[float], gap: int, most: int = 99) -> list[int]:
    taken = list[int]()
    for n in sorted(range(len(scores)), key=lambda n: (-scores[n], n)):
        if len(taken) < most and all(abs(n - other) >= gap for other in taken):
            taken.append(n)
    return sorted(n + 1 for n in taken)


@pytest.mark.parametrize("gap", [2, 3, 7])
@pytest.mark.parametrize("most", [32, 2])
def test_the_gap_is_kept_walking_from_the_best(gap: int, most: int) -> None:
    for seed in range(5):
        sure = torch.rand(24, generator=torch.Generator().manual_seed(seed)).mul(9).tolist()
        got = rounds([Target(length=24)], sure, select=MinimumGap(Everything(), gap, most=most))
        assert got[0] == greedy(sure, gap, most) and sorted(sum(got, [])) == [*range(1, 25)]


def test_a_stride_shrinks_with_what_is_masked() -> None:
    """max(2, M * stride // B) of 16: 8 while all is masked, then 13 * 8 // 16 = 6, ..."""
    sure = [9 - 0.1 * n for n in range(16)]
    got = rounds([Target(length=16)], sure, select=MinimumGap(Everything(), stride=8))
    left, want = [*range(16)], list[list[int]]()
    while left:
        gap, taken = max(2, len(left) * 8 // 16), list[int]()
        for n in left:
            if all(abs(n - other) >= gap for other in taken):
                taken.append(n)
        want.append([n + 1 for n in taken])
        left = [n for n in left if n not in taken]
    assert got == want and got[0] == [1, 9]


def test_a_gap_thins_out_another_rule_and_keeps_its_best() -> None:
    sure = [9.0, 9.0, 8.5, 1.0, 1.0, 9.0]
    inner = Threshold(0.9)
    assert rounds([Target(length=6)], sure, select=inner) == [[1, 2, 3, 6], [4], [5]]
    assert rounds([Target(length=6)], sure, select=MinimumGap(inner)) == [[1, 3, 6], [2], [4], [5]]
    node = {"target": "mmdiff.samplers.rules.spaced.MinimumGap", "gap": 2, "select": {
        "target": "mmdiff.samplers.rules.select.Threshold", "threshold": 0.9}}  # fmt: skip
    assert rounds([Target(length=6)], sure, select=node) == [[1, 3, 6], [2], [4], [5]]
    assert rounds([Target(length=6)], sure, select=MinimumGap(Quota()), steps=2) == [[1, 6], [2, 4], [3, 5]]
    # gaps are on the canvas: context between two targets keeps them apart
    apart: Sample = [Target(length=2), Text([1]), Target(length=1)]
    assert rounds(apart, [9.0, 8.0, 0.0, 7.0], select=MinimumGap(Everything())) == [[1, 3], [2]]


def test_a_gap_takes_over_what_its_rule_needs() -> None:
    assert MinimumGap(Ancestral()).may_wait and not MinimumGap(Quota()).may_wait
    out = sample(likely([1] * 30), collate([[Target(length=30)]], VOCAB), VOCAB,
                 generation_config(early_stop=False, steps=3, select=MinimumGap(Ancestral())))  # fmt: skip
    assert (out.step_BL > 0).all()
    with pytest.raises(ConfigError, match="set sampler.remasking=entropy"):
        rounds([Target(length=4)], select=MinimumGap(EntropyThreshold(0.1)))
    # a best that waits for others, as an end id does, is taken all the same
    logits_BLV = torch.zeros(1, 2, V)
    logits_BLV[..., VOCAB.eos_id] = 9.0
    config = generation_config(early_stop=False, eos_policy="last", select=MinimumGap(Everything()))
    assert sample(Table(logits_BLV), collate([[Target(length=2)]], VOCAB), VOCAB, config).step_BL[0].tolist() == [1, 2]
