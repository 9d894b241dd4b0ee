"""Scores, noise on their order, and schedules: closed forms, and the counts that are published."""

from __future__ import annotations

from math import floor, log2
from typing import Any

import pytest
import torch
from logit_tables import EOS, EOT, MASK, VOCAB, Table, V, likely

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.maskgit import DrawnOrder
from mmdiff.samplers.rules.score import EarlyEnds, LeftToRight, Listed, Margin, NegativeEntropy
from mmdiff.samplers.rules.select import Threshold
from mmdiff.samplers.unmask_schedule import Shifted


def fill(sample_: Sample, sure: list[float] | None = None, rows: int = 1, **named: Any) -> Generation:
    batch = collate([sample_] * rows, VOCAB)
    length = batch.ids_BL.shape[1]
    table = likely(*[[1] * length] * rows, sure=[sure or [float(n % 3) for n in range(length)]] * rows)
    return sample(table, batch, VOCAB, generation_config(**{"early_stop": False, **named}))


def steps(out: Generation) -> list[int]:
    return out.step_BL[0][out.target_BL[0]].tolist()


def counts(out: Generation) -> list[int]:
    step_N = out.step_BL[0][out.target_BL[0]]
    return torch.bincount(step_N[step_N > 0] - 1).tolist()


# Scores ---------------------------------------------------------------------------------------------------------------


def test_left_to_right_counts_target_positions_from_the_left_of_a_row() -> None:
    assert steps(fill([Text([1, 2]), Target(length=2), Text([3]), Target(length=3)], remasking="left_to_right")) == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip
    assert steps(fill([Target(length=5)], remasking="left_to_right", steps=2)) == [1, 1, 1, 2, 2]
    assert steps(fill([Target([MASK, 5, MASK, MASK])], remasking=LeftToRight())) == [1, 0, 2, 3]


def test_a_listed_order_is_kept_and_the_others_follow_from_the_left() -> None:
    assert steps(fill([Target(length=5)], remasking=Listed([3, 0, 4]))) == [2, 4, 5, 1, 3]
    assert steps(fill([Text([1] * 3), Target(length=5)], remasking=Listed([3, 0, 99, 4, 3]))) == [2, 4, 5, 1, 3]
    node = {"target": "mmdiff.samplers.rules.score.Listed", "positions": [2, 1]}
    assert steps(fill([Target(length=3)], remasking=node)) == [3, 2, 1]
    node["positions"] = [-1]
    with pytest.raises(ConfigError, match=r"sampler.remasking.positions.0=-1: expected a whole number of at least 0"):
        fill([Target(length=3)], remasking=node)


def test_scores_have_words() -> None:
    logits_BLV = torch.full((1, 2, V), -torch.inf)
    logits_BLV[0, 0, :3] = torch.tensor([0.5, 0.48, 0.02]).log()
    logits_BLV[0, 1, :10] = torch.tensor([0.45] + [0.55 / 9] * 9).log()
    batch = collate([[Target(length=2)]], VOCAB)
    for word, rule, want in (("margin", Margin(), [2, 1]), ("entropy", NegativeEntropy(), [1, 2])):
        for remasking in (word, rule):
            out = sample(Table(logits_BLV), batch, VOCAB, generation_config(remasking=remasking))
            assert out.step_BL[0].tolist() == want
    with pytest.raises(
        ConfigError, match=r'sampler.remasking: \'entropi\' is not one of .* \(did you mean "entropy"\?\)'
    ):
        generation_config(remasking="entropi")


# End ids are damped, by ever less -------------------------------------------------------------------------------------


def ends(p_end: float, p_word: float, length: int, n_ends: int) -> Table:
    """The last n_ends positions hold an end id with p_end, the first of them EOT, the others a word with p_word."""
    p_BLV = torch.zeros(1, length, V)
    for n in range(length):
        token, p = (1, p_word) if n < length - n_ends else (EOT if n == length - n_ends else EOS, p_end)
        p_BLV[0, n, token], p_BLV[0, n, 2] = p, 1 - p
    return Table(p_BLV.log())


def damped(length: int, rule: Any, n_ends: int = 4, **named: Any) -> tuple[list[int], list[float]]:
    """(steps, the factor of every step)."""
    factors = list[float]()

    class Seen(EarlyEnds):
        def factor(self, proposal: Any) -> torch.Tensor:
            out_R = super().factor(proposal)
            factors.append(float(out_R[0]))
            return out_R

    batch = collate([[Target(length=length)]], VOCAB)
    config = generation_config(early_stop=False, remasking=Seen(**rule), **named)
    out = sample(ends(0.9, 0.5, length, n_ends), batch, VOCAB, config)
    return out.step_BL[0].tolist(), factors


def test_end_ids_wait_while_they_are_damped() -> None:
    when, factors = damped(8, {})
    assert factors == pytest.approx([0.4, 0.486, 0.571, 0.657, 0.743, 0.829, 0.914, 1.0], abs=5e-4)
    # 0.9 g beats 0.5 from g = 0.571 on, the third step; two words stand by then
    assert when == [1, 2, 7, 8, 3, 4, 5, 6]
    assert damped(8, {"low": 1.0})[0] == [5, 6, 7, 8, 1, 2, 3, 4]


def test_the_factor_rises_over_all_blocks_and_reaches_its_end() -> None:
    """The published code starts again in every block, and never reaches `high`."""
    _, factors = damped(8, {}, block_length=4)
    assert factors == pytest.approx([0.4 + 0.6 * i / 7 for i in range(8)])
    _, factors = damped(8, {}, block_length=4, steps=4)
    assert factors == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert damped(1, {}, n_ends=1)[1] == [0.4]


def test_with_ascending_steps_the_factor_is_that_of_the_positions() -> None:
    """low + (high - low) (2^(i+1) - 1) / 2^S, as published for S = log2 L; 1 at the last step, which takes the rest."""
    _, factors = damped(16, {"low": 0.01, "progress": "positions"}, schedule="ascending")
    assert factors == pytest.approx([0.01 + 0.99 * x / 16 for x in (1, 3, 7, 16)])


def test_a_negative_score_is_damped_downwards() -> None:
    named: dict[str, Any] = {"score": NegativeEntropy(), "low": 0.1, "high": 0.1}
    batch = collate([[Target(length=3)]], VOCAB)
    table = ends(0.7, 0.6, 3, 1)  # entropies 0.611 and 0.673: the end id is surer, divided by 0.1 it is not
    config = generation_config(early_stop=False, remasking=EarlyEnds(**named))
    assert sample(table, batch, VOCAB, config).step_BL[0].tolist() == [1, 2, 3]
    config = generation_config(early_stop=False, remasking=NegativeEntropy())
    assert sample(table, batch, VOCAB, config).step_BL[0].tolist() == [2, 3, 1]
    node = {"target": "mmdiff.samplers.rules.score.EarlyEnds", "low": 0.1, "high": 0.1, "score": {
        "target": "mmdiff.samplers.rules.score.NegativeEntropy"}}  # fmt: skip
    config = generation_config(early_stop=False, remasking=node)
    assert sample(table, batch, VOCAB, config).step_BL[0].tolist() == [1, 2, 3]


# A temperature of positions -------------------------------------------------------------------------------------------


def test_positions_are_drawn_from_the_softmax_of_their_scores() -> None:
    """The first of three, at temperature 0.5, with margins of 0.2, 0.5 and 0.8: by exp(2 m)."""
    rows = 4_000
    logits_LV = torch.full((3, V), -torch.inf)
    for n, p in enumerate((0.6, 0.75, 0.9)):
        logits_LV[n, 1:3] = torch.tensor([p, 1 - p]).log()
    batch = collate([[Target(length=3)]] * rows, VOCAB)
    config = generation_config(remasking="margin", select=DrawnOrder(0.5), seed=6)
    out = sample(Table(logits_LV.expand(rows, 3, V)), batch, VOCAB, config)
    share = [(out.step_BL[:, n] == 1).double().mean().item() for n in range(3)]
    p = (2 * torch.tensor([0.2, 0.5, 0.8])).softmax(0)
    assert share == pytest.approx(p.tolist(), abs=5 * 0.5 / rows**0.5)
    # without replacement: the second, given the first
    second = ((out.step_BL[:, 2] == 1) & (out.step_BL[:, 0] == 2)).double().mean().item()
    assert second == pytest.approx(float(p[2] * p[0] / (p[0] + p[1])), abs=5 * 0.5 / rows**0.5)
    assert counts(fill([Target(length=9)], steps=4, select=DrawnOrder(1.0))) == [3, 2, 2, 2]


def test_without_a_temperature_the_best_are_taken() -> None:
    assert steps(fill([Target(length=7)], select=DrawnOrder(0.0))) == steps(fill([Target(length=7)]))


# Schedules ------------------------------------------------------------------------------------------------------------


def test_ascending_doubles_and_takes_the_rest() -> None:
    want = {64: [1, 2, 4, 8, 16, 33], 128: [1, 2, 4, 8, 16, 32, 65], 256: [1, 2, 4, 8, 16, 32, 64, 129]}
    for length, published in want.items():
        assert counts(fill([Target(length=length)], schedule="ascending")) == published
    for length in range(1, 40):
        got = counts(fill([Target(length=length)], schedule="ascending"))
        assert sum(got) == length and len(got) == max(1, floor(log2(length)))
        assert got[:-1] == [2**n for n in range(len(got) - 1)]
    assert counts(fill([Target(length=64)], schedule="ascending", steps=4)) == [1, 2, 4, 57]
    assert counts(fill([Target(length=16)], schedule="ascending", block_length=8)) == [1, 2, 5, 1, 2, 5]


def lavida(n: int, steps: int, shift: float) -> list[int]:
    """LaViDa's tokens per step, as it is published."""
    times = [k / steps for k in range(steps + 1)]
    left = [int(shift * t / (1 + (shift - 1) * t) * n + 1e-9) for t in times]
    per_step = [max(1, b - a) for a, b in zip(left, left[1:], strict=False)]
    extra, j = sum(per_step) - n, 0
    while extra > 0:
        if per_step[j % steps] > 1:
            per_step[j % steps] -= 1
            extra -= 1
        j += 1
    return per_step[::-1]


@pytest.mark.parametrize("shift", [1 / 3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("n", "steps"), [(32, 8), (64, 8), (100, 10), (33, 7), (16, 16), (7, 1), (24, 16)])
def test_shifted_is_the_published_count(n: int, steps: int, shift: float) -> None:
    got = counts(fill([Target(length=n)], steps=steps, schedule=Shifted(shift)))
    want = lavida(n, steps, shift)
    assert sum(got) == n and len(got) == steps and min(got) >= 1
    plain = [int(shift * t / steps / (1 + (shift - 1) * t / steps) * n + 1e-9) for t in range(steps + 1)]
    if all(b > a for a, b in zip(plain, plain[1:], strict=False)):  # no step had to be given one
        assert got == want
    assert max(abs(a - b) for a, b in zip(got, want, strict=True)) <= 2


def test_shifted_commits_more_at_first_below_one() -> None:
    assert counts(fill([Target(length=64)], steps=4, schedule="shifted")) == lavida(64, 4, 1 / 3) == [32, 16, 10, 6]
    node = {"target": "mmdiff.samplers.unmask_schedule.Shifted", "shift": 3}
    assert counts(fill([Target(length=64)], steps=4, schedule=node)) == lavida(64, 4, 3) == [7, 9, 16, 32]
    with pytest.raises(ConfigError, match=r"sampler.schedule.shift=0: expected a number above 0"):
        fill([Target(length=4)], schedule={**node, "shift": 0})


# Thresholds -----------------------------------------------------------------------------------------------------------


def test_a_threshold_may_take_the_quota_at_least() -> None:
    sure = [9.0, 9.0, 3.0, 2.0, 1.0, 0.0]  # 0.99, 0.99, 0.25, ...
    assert steps(fill([Target(length=6)], sure, steps=2, select=Threshold(0.9))) == [1, 1, 2, 3, 4, 5]
    assert steps(fill([Target(length=6)], sure, steps=2, select=Threshold(0.9, "quota"))) == [1, 1, 1, 2, 2, 2]
    assert steps(fill([Target(length=6)], sure, steps=6, select=Threshold(0.9, "quota"))) == [1, 1, 2, 3, 4, 5]
