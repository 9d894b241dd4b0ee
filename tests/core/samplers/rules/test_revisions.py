"""Rules that mask again: what they take back, how often, and that every block ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from logit_tables import MASK, VOCAB, V, by_query
from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Target
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.adaptive import MeanThreshold
from mmdiff.samplers.rules.revise import Backtrack, Reroute, Restart, RunningConfidence
from mmdiff.samplers.rules.select import Everything, Quota

Sure = Callable[[list[int], int], float]


class Words:
    """A Denoise whose token at position n is n + 1, with probability `sure(ids, n)`; the canvases of all calls."""

    def __init__(self, sure: Sure) -> None:
        self.sure, self.masked = sure, list[list[int]]()

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        ids = ids_RL[0].tolist()
        self.masked.append([n for n, i in enumerate(ids) if i == MASK])
        p_LV = torch.zeros(len(ids), V)
        for n in range(len(ids)):
            p = self.sure(ids, n)
            p_LV[n, n + 1], p_LV[n, 0] = p, 1 - p
        return p_LV.log()[predict_RL[0]]


def fill(length: int, sure: Sure, **named: Any) -> tuple[Generation, Words]:
    words = Words(sure)
    batch = collate([[Target(length=length)]], VOCAB)
    return sample(words, batch, VOCAB, generation_config(**{"early_stop": False, **named})), words


def fixed(p: list[float]) -> Sure:
    return lambda ids, n: p[n]


SPREAD = [0.51 + 0.04 * ((5 * n) % 12) for n in range(12)]


# RCR and RDM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [RunningConfidence(), Reroute(), Reroute(only_worse=True)])
@pytest.mark.parametrize("named", [{"steps": 5}, {"steps": 4, "schedule": "cosine"}, {"schedule": "ascending"}])
def test_where_confidences_stay_the_rules_are_low_confidence(rule: Any, named: dict[str, Any]) -> None:
    plain, _ = fill(12, fixed(SPREAD), **named)
    out, words = fill(12, fixed(SPREAD), **named, revise=rule)
    assert out.step_BL.tolist() == plain.step_BL.tolist() and out.ids_BL.tolist() == plain.ids_BL.tolist()
    left = [int((plain.step_BL > step).sum()) for step in range(out.calls)]
    assert [len(masked) for masked in words.masked] == left  # as many masks after every step


def doubted(ids: list[int], n: int) -> float:
    """Position 0 is sure until position 2 stands, position 1 is not; the others lie between."""
    if n == 0:
        return 0.95 if ids[2] == MASK else 0.55
    return [0, 0.6, 0.9, 0.8, 0.7, 0.65][n]


def test_rerouting_takes_back_what_the_model_no_longer_believes() -> None:
    named: dict[str, Any] = dict(steps=3)
    kept, words = fill(6, doubted, **named, revise=RunningConfidence())
    assert words.masked == [[0, 1, 2, 3, 4, 5], [1, 3, 4, 5], [1, 5]]
    out, words = fill(6, doubted, **named, revise=Reroute())
    assert words.masked == [[0, 1, 2, 3, 4, 5], [1, 3, 4, 5], [0, 1]]  # 0 is now the least likely of all
    assert out.step_BL[0].tolist() == [3, 3, 1, 2, 2, 2] and out.confidence_BL[0, 0] == pytest.approx(0.55)
    assert fill(6, doubted, **named, revise=Reroute(only_worse=True))[1].masked[2] == [0, 1]


def test_only_worse_keeps_what_fell_in_rank_alone() -> None:
    """0 has 0.7 at every step; the others have more once it stands, and rank before it."""

    def sure(ids: list[int], n: int) -> float:
        return 0.7 if n == 0 else (0.6, 0.65, 0.62)[n - 1] + 0.3 * (ids[0] != MASK)

    free, cond = (fill(4, sure, steps=4, revise=Reroute(only_worse=worse))[1].masked for worse in (False, True))
    assert free == [[0, 1, 2, 3], [1, 2, 3], [0, 1], [1]]
    assert cond == [[0, 1, 2, 3], [1, 2, 3], [1]]


def test_revise_rules_bring_their_select_rule_and_a_named_one_goes_before() -> None:
    for rule, kind in ((RunningConfidence(), Everything), (Reroute(), Everything), (Backtrack(3), MeanThreshold)):
        assert isinstance(rule.select, kind)
    assert Backtrack(3).select == MeanThreshold(3)
    once, _ = fill(6, fixed(SPREAD), steps=2, revise=RunningConfidence(), select=Quota())
    assert once.calls == 2


# Saber ----------------------------------------------------------------------------------------------------------------


def test_of_equal_confidences_one_is_taken_back_for_two() -> None:
    """n = 2: two are committed, r = max(1, ceil(2/8)) = 1 is masked again from the second step on: n - r = 1 net."""
    out, words = fill(8, fixed([0.75] * 8), revise=Backtrack())
    assert [len(masked) for masked in words.masked] == [8, 6, 5, 4, 3, 2, 1] and out.calls <= 8
    # 8 at least: 4 of 8 are taken back, and 3 of the last 4: a step nets one at least
    _, words = fill(24, fixed([0.75] * 24), revise=Backtrack(8))
    assert [len(masked) for masked in words.masked] == [24, 16, 12, 8, 4, 3, 2, 1]


@pytest.mark.parametrize("least", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_nets_one_and_no_row_takes_more_forwards_than_positions(least: int, seed: int) -> None:
    """Whatever the model says of a token, differently at every step."""

    def moody(ids: list[int], n: int) -> float:
        mix = hash((seed, n, tuple(i == MASK for i in ids)))
        return 0.51 + 0.48 * (mix % 997) / 997

    out, words = fill(20, moody, revise=Backtrack(least))
    left = [len(masked) for masked in words.masked]
    assert all(b < a for a, b in zip(left, left[1:], strict=False)) and out.calls <= 20
    assert (out.ids_BL != MASK).all()


def test_an_early_error_whose_probability_collapses_is_taken_back() -> None:
    """Position 0 is surest at first, less so once 3 and 4 stand; the others are less sure, and do not change."""

    def sure(ids: list[int], n: int) -> float:
        if n == 0:
            return 0.99 if MASK in (ids[3], ids[4]) else 0.93
        return [0, 0.6, 0.62, 0.9, 0.88, 0.64, 0.66, 0.68][n]

    out, words = fill(8, sure, revise=Backtrack())
    assert words.masked[1] == [1, 2, 4, 5, 6, 7]  # 0 and 3
    fell = next(k for k, masked in enumerate(words.masked) if not {0, 3, 4} & {*masked})
    assert 0 in words.masked[fell + 1]
    assert out.confidence_BL[0, 0] == pytest.approx(0.93)  # it was committed again, seeing what followed


def test_the_last_step_takes_nothing_back() -> None:
    out, words = fill(6, fixed([0.75] * 6), revise=Backtrack(), steps=2)
    assert [len(masked) for masked in words.masked] == [6, 4, 2] and out.calls == 3


# Back&Refine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "steps"), [(12, 6), (12, 12), (9, 3), (20, 7), (5, 1)])
def test_one_restart_of_a_third_of_what_is_committed(length: int, steps: int) -> None:
    p = [0.51 + 0.4 * ((7 * n) % length) / length for n in range(length)]
    out, words = fill(length, fixed(p), steps=steps, revise=Restart())
    n_masked, want = length, list[int]()
    for step in range(1, steps + 1):
        want.append(n_masked)
        n_masked -= -(-n_masked // (steps - step + 1))
        if step == -(-steps // 2) < steps:
            n_masked += -(-(length - n_masked) // 3)
            assert words.masked[step] == sorted(sorted(range(length), key=lambda n: p[n])[:n_masked])
    assert [len(masked) for masked in words.masked] == want and out.calls == steps


def test_a_restart_may_be_early_and_blocks_restart_by_themselves() -> None:
    _, words = fill(8, fixed(SPREAD), steps=8, revise=Restart(at=0.1, share=0.9))
    assert [len(masked) for masked in words.masked] == [8, 8, 6, 5, 4, 3, 2, 1]
    _, words = fill(8, fixed(SPREAD), steps=4, block_length=4, revise=Restart(at=0.5, share=0.5))
    assert [len(masked) for masked in words.masked] == [8, 7, 4, 3]


# Options --------------------------------------------------------------------------------------------------------------


def test_options_that_cannot_be_are_refused_in_one_line() -> None:
    here = "mmdiff.samplers.rules"
    for node, message in (
        ({"target": f"{here}.timed.ReMDM", "kind": "hat", "eta": 0.1}, "sampler.revise.kind: 'hat' is not one of cap"),
        ({"target": f"{here}.timed.ReMDM", "kind": "cap", "eta": 2}, "sampler.revise.eta=2: expected a number from 0"),
        (
            {"target": f"{here}.revise.Restart", "at": 1.0},
            "sampler.revise.at=1.0: expected a number above 0",
        ),
        ({"target": f"{here}.revise.Backtrack", "least": 0}, "sampler.revise.least=0: expected a whole number of at"),
    ):
        with pytest.raises(ConfigError) as raised:
            fill(4, fixed(SPREAD), revise=node)
        assert message in str(raised.value) and "\n" not in str(raised.value)
