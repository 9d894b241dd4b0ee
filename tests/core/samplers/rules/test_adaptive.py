"""Rules that follow how sure the model is, on tables whose probabilities and entropies are chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from logit_tables import MASK, SLOT, VOCAB, Table, V, by_query
from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.adaptive import BestOfRuns, EntropyBound, EntropyThreshold, MeanThreshold
from mmdiff.samplers.rules.score import Credit


def table(p_BL: list[list[float]]) -> Table:
    """At a position the token 1 has probability p, 2 the rest: the entropy is that of a coin."""
    p_BLV = torch.zeros(len(p_BL), len(p_BL[0]), V)
    p_BLV[..., 1] = torch.tensor(p_BL)
    p_BLV[..., 2] = 1 - p_BLV[..., 1]
    return Table(p_BLV.log())


def fill(p_BL: list[list[float]], given: list[int] | None = None, **named: Any) -> Generation:
    """given: positions that hold a token from the start."""
    ids = [0 if n in (given or []) else MASK for n in range(len(p_BL[0]))]
    batch = collate([[Target(ids)]] * len(p_BL), VOCAB)
    return sample(table(p_BL), batch, VOCAB, generation_config(early_stop=False, **named))


def steps(out: Generation, row: int = 0) -> list[int]:
    return out.step_BL[row].tolist()


def coin(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


SURE = [0.99, 0.9, 0.95, 0.6, 0.8]  # entropies 0.056, 0.325, 0.199, 0.673, 0.500


def test_entropy_threshold_takes_what_is_below_it_and_always_the_lowest() -> None:
    assert [round(coin(p), 3) for p in SURE] == [0.056, 0.325, 0.199, 0.673, 0.5]
    assert steps(fill([SURE], remasking="entropy", select=EntropyThreshold(0.33))) == [1, 1, 1, 3, 2]
    assert steps(fill([SURE], remasking="entropy", select=EntropyThreshold(0.0))) == [1, 3, 2, 5, 4]
    assert steps(fill([SURE], remasking="entropy", select=EntropyThreshold(0.7))) == [1] * 5


def test_entropy_bound_is_the_sum_less_the_largest() -> None:
    """In order of entropy the sums of those before are 0, 0.056, 0.255, 0.580, 1.080."""
    for bound, want in {
        0.0: [1, 3, 2, 5, 4],
        0.05: [1, 3, 2, 5, 4],
        0.06: [1, 2, 1, 4, 3],
        0.26: [1, 1, 1, 3, 2],  # 0.5 and 0.673 are left: 0.5 is above the bound
        0.6: [1, 1, 1, 2, 1],
        1.1: [1, 1, 1, 1, 1],
    }.items():
        assert steps(fill([SURE], remasking="entropy", select=EntropyBound(bound))) == want, bound
    certain = [1.0, 1.0, 0.7, 1.0, 0.8]  # certain positions cost nothing, and the best of the others comes with them
    assert steps(fill([certain], remasking="entropy", select=EntropyBound(0.0))) == [1, 1, 2, 1, 1]


def test_end_ids_that_wait_for_the_others_cost_no_bound() -> None:
    logits_BLV = torch.full((1, 3, V), -torch.inf)
    logits_BLV[0, :, 1:3] = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]).log()
    logits_BLV[0, 2, VOCAB.eos_id] = 5.0
    batch = collate([[Target(length=3)]], VOCAB)
    config = generation_config(early_stop=False, eos_policy="last", remasking="entropy", select=EntropyBound(0.4))
    assert sample(Table(logits_BLV), batch, VOCAB, config).step_BL[0].tolist() == [1, 1, 2]


@pytest.mark.parametrize("select", [EntropyBound(0.1), EntropyThreshold(0.1)])
def test_rules_of_entropies_refuse_another_score(select: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        fill([SURE], select=select)
    assert str(raised.value).startswith("sampler.remasking: LowConfidence is not what Entropy")
    assert str(raised.value).endswith("set sampler.remasking=entropy")


def test_mean_threshold_follows_what_was_committed() -> None:
    # nothing is committed: two best. Mean 0.97: 0.9 and 0.8 are not above it, so two best. Mean .91: the last
    assert steps(fill([SURE], select=MeanThreshold())) == [1, 2, 1, 3, 2]
    assert steps(fill([SURE], select=MeanThreshold(1))) == [1, 3, 2, 5, 4]
    # of the positions above the mean all are taken: the given ones are not in it
    p = [[0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 0.1]]
    rising = Rising(p[0])
    batch = collate([[Target([0] + [MASK] * 6)]], VOCAB)
    out = sample(rising, batch, VOCAB, generation_config(early_stop=False, select=MeanThreshold(1)))
    assert out.step_BL[0].tolist() == rising.plain(1)


class Rising:
    """A Denoise that grows surer with every token on the canvas."""

    def __init__(self, p: list[float]) -> None:
        self.p = torch.tensor(p)

    def now(self, n_given: int) -> Tensor:
        return 1 - (1 - self.p) * 0.6**n_given

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        p_L = self.now(int((ids_RL[0] != MASK).sum()))
        return table([p_L.tolist()]).logits_BLV[predict_RL]

    def plain(self, least: int) -> list[int]:
        """Saber's rule, position 0 given, written as it is published."""
        step, confidences, when = 0, list[float](), [0] + [-1] * (len(self.p) - 1)
        while -1 in when:
            step += 1
            p = torch.maximum(self.now(len(when) - when.count(-1)), 1 - self.now(len(when) - when.count(-1))).tolist()
            left = sorted((n for n, s in enumerate(when) if s == -1), key=lambda n: (-p[n], n))
            mean = sum(confidences) / len(confidences) if confidences else 1.0
            above = [n for n in left if p[n] > mean]
            for n in above if len(above) >= least else left[:least]:
                when[n] = step
                confidences.append(p[n])
        return when


def test_best_of_runs() -> None:
    # runs of masked positions: 0-2, 4-5, 7; 3 and 6 are given
    p = [[0.6, 0.7, 0.95, 0.5, 0.8, 0.8, 0.5, 0.55]]
    assert steps(fill(p, [3, 6], select=BestOfRuns(0.9, 0.4))) == [3, 2, 1, 0, 1, 2, 0, 1]
    # 0.55 is below `low`, and waits until it is the best
    assert steps(fill(p, [3, 6], select=BestOfRuns(0.9, 0.58))) == [3, 2, 1, 0, 1, 2, 0, 4]
    # everything above the threshold, and of equals the leftmost
    assert steps(fill(p, [3, 6], select=BestOfRuns(0.65, 0.6))) == [2, 1, 1, 0, 1, 1, 0, 3]
    # nothing reaches `low`: the best of the row alone
    assert steps(fill([[0.6, 0.55, 0.7]], select=BestOfRuns(0.9, 0.9))) == [2, 3, 1]


def test_runs_end_where_the_canvas_holds_other_things_and_where_the_block_ends() -> None:
    p = [0.5, 0.8, 0.7, 0.6, 0.75]
    batch = collate([[Target(length=2), Text([5]), Target(length=2)]], VOCAB)
    out = sample(table([p]), batch, VOCAB, generation_config(early_stop=False, select=BestOfRuns(0.9, 0.1)))
    assert out.step_BL[0].tolist() == [2, 1, 0, 2, 1]
    assert steps(fill([[0.6, 0.7, 0.8, 0.9]], block_length=2, select=BestOfRuns(0.99, 0.1))) == [2, 1, 4, 3]


# Credit ---------------------------------------------------------------------------------------------------------------


class Scripted:
    """A Denoise whose logits of step s are those of a script, (S, L, V); it keeps the steps apart by counting."""

    def __init__(self, logits_SLV: Tensor) -> None:
        self.logits_SLV, self.step = logits_SLV, 0

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        self.step += 1
        return self.logits_SLV[self.step - 1][None].expand(len(ids_RL), -1, -1)[predict_RL]


def published_credit(logits_SLV: Tensor, threshold: float) -> tuple[list[int], list[list[float]]]:
    """CreditDecoding with a credit for every token of the vocabulary, as published, but the model's own proposals."""
    credit_LV = torch.zeros(logits_SLV.shape[1:], dtype=torch.float64)
    when, scores = [0] * len(credit_LV), []
    for step, logits_LV in enumerate(logits_SLV.double(), start=1):
        if all(when):
            break
        top = logits_LV.softmax(-1).max(-1)
        credit_LV *= 0.8
        for n, (p, token) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
            if not when[n]:
                credit_LV[n, token] += p**0.2
        fused_LV = (logits_LV + 0.7 * (credit_LV + 1).log()).softmax(-1)
        score = [float(fused_LV[n, top.indices[n]]) for n in range(len(when))]
        scores.append(score)
        left = [n for n, s in enumerate(when) if not s]
        best = max(left, key=lambda n: (score[n], -n))
        for n in left:
            if n == best or score[n] >= threshold:
                when[n] = step
    return when, scores


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_credit_is_the_published_sum_over_the_vocabulary(threshold: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits_SLV = 2 * torch.randn(12, 12, V, generator=generator)
    logits_SLV[1:, ::2] = logits_SLV[0, ::2] + logits_SLV[1:, ::2] / 4  # these keep their mind
    logits_SLV[..., [MASK, SLOT]] = -torch.inf
    batch = collate([[Target(length=12)]], VOCAB)
    config = generation_config(early_stop=False, threshold=threshold, remasking=Credit(tokens=12))
    out = sample(Scripted(logits_SLV), batch, VOCAB, config)
    when, _ = published_credit(logits_SLV, threshold)
    assert out.step_BL[0].tolist() == when
    plain = sample(Scripted(logits_SLV), batch, VOCAB, generation_config(early_stop=False, threshold=threshold))
    assert out.calls <= plain.calls and out.step_BL.tolist() != plain.step_BL.tolist()


def test_the_least_credit_is_dropped_for_a_new_token() -> None:
    """One column: a token that changes its mind starts again, one that does not has 0.8 c + p^0.2."""
    logits_SLV = torch.full((4, 2, V), -torch.inf)
    for step, first in enumerate((1, 1, 2, 1)):
        logits_SLV[step, 0, [first, 3]] = torch.tensor([0.6, 0.4]).log()
    logits_SLV[:, 1, [4, 5]] = torch.tensor([0.9, 0.1]).log()
    seen = list[list[float]]()

    class Kept(Credit):
        def __call__(self, logits_PV: Tensor, proposal: Any) -> Tensor:
            score_P = super().__call__(logits_PV, proposal)
            seen.append(score_P.tolist())
            return score_P

    class Wait:
        may_wait = True

        def __call__(self, score_P: Tensor, proposal: Any) -> Tensor:
            return torch.zeros_like(score_P, dtype=torch.bool) | (len(seen) == 4)

    batch = collate([[Target(length=2)]], VOCAB)
    sample(Scripted(logits_SLV), batch, VOCAB, generation_config(remasking=Kept(tokens=1), select=Wait(), steps=9))
    credit = [0.6**0.2, 0.8 * 0.6**0.2 + 0.6**0.2, 0.6**0.2, 0.6**0.2]
    want = [0.6 * (1 + c) ** 0.7 / (0.4 + 0.6 * (1 + c) ** 0.7) for c in credit]
    assert [score[0] for score in seen] == pytest.approx(want, abs=1e-6)
