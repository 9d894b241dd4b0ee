"""What rules cost where the joint distribution is known: the exact law of their order, and samples that follow it."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from logit_tables import by_query
from oracle import MASK, Chain, distance, divergence
from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.score import Listed
from mmdiff.samplers.rules.spaced import Dilated
from mmdiff.samplers.rules.timed import Ancestral, FirstHitting, ReMDM

EIGHT, SIX = Chain(8), Chain(6)
ROWS = 4_000


def sampled(chain: Chain, rows: int, **named: Any) -> Generation:
    config = generation_config(temperature=1.0, early_stop=False, **named)
    return sample(chain, chain.canvas(rows), chain.vocab, config)


def groups(out: Generation) -> list[list[int]]:
    """The positions of each step, which must be the same in every row."""
    assert (out.step_BL == out.step_BL[0]).all()
    return [(out.step_BL[0] == step).nonzero().squeeze(1).tolist() for step in range(1, int(out.step_BL.max()) + 1)]


@pytest.mark.parametrize(
    ("named", "order", "cost"),
    [
        ({"remasking": "left_to_right"}, [[0], [1], [2], [3], [4], [5], [6], [7]], 0.0),
        ({"remasking": Listed([5, 0, 7])}, [[5], [0], [7], [1], [2], [3], [4], [6]], 0.0),
        ({"remasking": "left_to_right", "steps": 1}, [[0, 1, 2, 3, 4, 5, 6, 7]], 4.93),
        ({"remasking": "left_to_right", "steps": 4}, [[0, 1], [2, 3], [4, 5], [6, 7]], 1.34),
        ({"remasking": "left_to_right", "schedule": "ascending"}, [[0], [1, 2], [3, 4, 5, 6, 7]], 1.75),
        ({"select": Dilated()}, [[0, 4], [2, 6], [1, 3, 5, 7]], 0.25),
    ],
)
def test_an_order_that_looks_at_no_word_has_a_known_law(named: Any, order: list[list[int]], cost: float) -> None:
    out = sampled(EIGHT, ROWS, **named)
    assert groups(out) == order and out.calls == len(order)
    law = EIGHT.law_of(order)
    assert divergence(EIGHT.joint, law) == pytest.approx(cost, abs=0.005)
    assert distance(EIGHT.law(out.ids_BL), law) < EIGHT.floor(law, ROWS)


def by_margin(chain: Chain, ids: tuple[int, ...], k: int) -> list[int]:
    """The k masked positions with the largest margins, of equal ones the leftmost."""
    top_L2 = chain.conditionals(ids).topk(2).values
    margin = (top_L2[:, 0] - top_L2[:, 1]).round(decimals=6).tolist()
    return sorted((n for n, i in enumerate(ids) if i == MASK), key=lambda n: (-margin[n], n))[:k]


def law_by_margin(chain: Chain, k: int) -> Tensor:
    """All canvases that the order comes by, and their probabilities."""
    now = {(MASK,) * chain.length: 1.0}
    for _ in range(-(-chain.length // k)):
        after = Counter[tuple[int, ...]]()
        for ids, p in now.items():
            group = by_margin(chain, ids, k)
            for words in product(range(3), repeat=len(group)):
                there = dict(zip(group, words, strict=True))
                q = p * float(chain.conditionals(ids)[group, list(words)].prod())
                after[tuple(there.get(n, i) for n, i in enumerate(ids))] += q
        now = after
    law = torch.zeros_like(chain.joint)
    for ids, p in now.items():
        law[ids] = p
    return law


@pytest.mark.parametrize(("k", "cost"), [(1, 0.0), (2, 1.13), (3, 1.98)])
def test_sure_positions_lie_together_and_cost_as_much_as_neighbours(k: int, cost: float) -> None:
    law = law_by_margin(SIX, k)
    assert divergence(SIX.joint, law) == pytest.approx(cost, abs=0.005)
    if k == 2:
        assert torch.allclose(law, SIX.law_of([[0, 1], [2, 3], [4, 5]]))
    assert divergence(SIX.joint, SIX.law_of([[0, 3], [1, 4], [2, 5]])) == pytest.approx(0.35, abs=0.005)
    out = sampled(SIX, ROWS, remasking="margin", steps=6 // k)
    assert distance(SIX.law(out.ids_BL), law) < SIX.floor(law, ROWS)


@pytest.mark.parametrize(("steps", "cost"), [(2, 0.52), (4, 0.29), (8, 0.15)])
def test_ancestral_sampling_has_the_law_of_its_steps(steps: int, cost: float) -> None:
    law = SIX.ancestral_law(steps)
    assert distance(SIX.joint, law) == pytest.approx(cost, abs=0.01)
    out = sampled(SIX, ROWS, steps=steps, select=Ancestral(), seed=3)
    assert distance(SIX.law(out.ids_BL), law) < SIX.floor(law, ROWS)
    # a position falls to each of the steps alike, so many a row has a step that commits nothing
    share_T = torch.bincount(out.step_BL.flatten().long(), minlength=steps + 1)[1:] / out.step_BL.numel()
    assert share_T.tolist() == pytest.approx([1 / steps] * steps, abs=5 * 0.5 / out.step_BL.numel() ** 0.5)
    assert steps == 2 or any(len(set(row.tolist())) < min(steps, 6) for row in out.step_BL)


def test_first_hitting_samples_the_joint() -> None:
    out = sampled(SIX, ROWS, select=FirstHitting(), seed=1)
    assert distance(SIX.joint, SIX.law(out.ids_BL)) < SIX.floor(SIX.joint, ROWS)
    assert out.forwards_B.tolist() == [6] * ROWS
    assert (out.step_BL.double().mean(0) - 3.5).abs().max() < 5 * 1.71 / ROWS**0.5  # every position at any step alike
    assert sampled(SIX, 10, select=FirstHitting(4)).forwards_B.tolist() == [2] * 10


def test_origin_ends_its_time_early_and_commits_the_rest_at_the_last_step() -> None:
    """Dream's t runs from 1 to eps: with eps=1/2 and two steps a quarter of the time passes at each."""
    out = sampled(SIX, ROWS, steps=2, select=Ancestral(eps=0.5))
    assert (out.step_BL == 1).double().mean() == pytest.approx(0.25, abs=5 * 0.5 / (6 * ROWS) ** 0.5)
    assert (out.step_BL > 0).all() and out.calls == 2


# Remasking that keeps the noise's law ---------------------------------------------------------------------------------

SIGMAS = [  # at t = 1, 3/4, 1/2, 1/4 of four steps: sigma_max is min(1, s / (1 - t)) = 1, 1, 1/2, 0
    (ReMDM("cap", 0.2), [0.2, 0.2, 0.2, 0.0]),
    (ReMDM("cap", 0.7), [0.7, 0.7, 0.5, 0.0]),
    (ReMDM("rescale", 0.4), [0.4, 0.4, 0.2, 0.0]),
    (ReMDM("rescale", 0.0), [0.0, 0.0, 0.0, 0.0]),
]


class Canvases:
    """A streamer that keeps the canvas of every step."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []

    def put_draft(self, value: Tensor, **named: Any) -> None:
        self.ids.append(value.clone())

    def put(self, ids_BL: Tensor) -> None: ...

    def end(self) -> None: ...


@pytest.mark.parametrize(("rule", "sigma"), SIGMAS)
def test_remasking_happens_at_its_rate_and_keeps_the_masked_share(rule: ReMDM, sigma: list[float]) -> None:
    seen = Canvases()
    config = generation_config(temperature=1.0, early_stop=False, steps=4, revise=rule)
    out = sample(SIX, SIX.canvas(ROWS), SIX.vocab, config, streamer=seen)
    masked = [ids_BL == MASK for ids_BL in seen.ids]
    share = [float(m_BL.double().mean()) for m_BL in masked]
    assert share == pytest.approx([3 / 4, 1 / 2, 1 / 4, 0], abs=5 * 0.5 / (6 * ROWS) ** 0.5)
    for step in (1, 2, 3):
        was_BL = ~masked[step - 1]
        again = float((masked[step] & was_BL).sum() / was_BL.sum())
        assert again == pytest.approx(sigma[step], abs=5 * 0.5 / float(was_BL.sum()) ** 0.5)
    assert out.calls == 4


def remdm_law(chain: Chain, rule: ReMDM, sigma: list[float]) -> Tensor:
    """The law after every step, by all canvases: 4^L numbers, of which the last are without a mask."""
    states = torch.cartesian_prod(*[torch.arange(4)] * chain.length)
    p_S = torch.zeros(len(states), dtype=torch.float64)
    p_S[(states == MASK).all(1).nonzero()] = 1.0
    steps = len(sigma)
    for step, again in enumerate(sigma):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        commit = (t - s + again * (1 - t)) / t
        after_S = torch.zeros_like(p_S)
        for p, ids in zip(p_S.tolist(), states.tolist(), strict=True):
            if p and MASK not in ids:  # a row without masks ends
                number = int((torch.tensor(ids) * 4 ** torch.arange(chain.length - 1, -1, -1)).sum())
                after_S[number] += p
            elif p:
                next_LW = torch.nn.functional.pad(chain.conditionals(tuple(ids)) * commit, (0, 1), value=1 - commit)
                for position, word in enumerate(ids):
                    if word != MASK:
                        next_LW[position] = 0.0
                        next_LW[position, word], next_LW[position, MASK] = 1 - again, again
                term = torch.ones(1, dtype=torch.float64)
                for next_W in next_LW:
                    term = (term[:, None] * next_W).flatten()
                after_S += p * term
        p_S = after_S
    done = (states != MASK).all(1)
    assert float(p_S[done].sum()) == pytest.approx(1.0)
    return p_S[done].view_as(chain.joint)


@pytest.mark.parametrize(("rule", "sigma"), SIGMAS[:3])
def test_remasking_has_the_law_of_its_transitions(rule: ReMDM, sigma: list[float]) -> None:
    chain = Chain(4)
    law = remdm_law(chain, rule, sigma)
    out = sampled(chain, ROWS, steps=4, revise=rule, seed=2)
    assert distance(chain.law(out.ids_BL), law) < chain.floor(law, ROWS)
    assert distance(law, chain.joint) < distance(chain.ancestral_law(4), chain.joint)  # what it is for


def test_by_confidence_the_unsure_are_masked_more_often() -> None:
    """At step 3 of 4, sigma = 1/2 softmax(-confidence) over the tokens of earlier steps; nothing more is committed."""
    seen = Canvases()
    sure_L = torch.tensor([0.99, 0.36, 0.5, 0.7], dtype=torch.float64)
    p_LV = torch.zeros(4, 5)
    p_LV[:, 1] = sure_L
    p_LV[:, [0, 2]] = (1 - p_LV[:, 1:2]) / 2
    config = generation_config(early_stop=False, steps=4, revise=ReMDM("conf", 1.0))
    chain = Chain(4)
    denoise = by_query(lambda ids_RL, predict_RL, *_: p_LV.log().expand(len(ids_RL), 4, 5)[predict_RL])
    out = sample(denoise, chain.canvas(ROWS), chain.vocab, config, streamer=seen)
    before_BL, after_BL = seen.ids[1] != MASK, seen.ids[2] != MASK
    going_B = ~before_BL.all(1)  # a row without masks ends
    sigma_BL = 0.5 * (-sure_L).expand(ROWS, 4).masked_fill(~before_BL, -torch.inf).softmax(1).nan_to_num()
    expected = [float(sigma_BL[going_B & before_BL[:, n], n].mean()) for n in range(4)]
    assert expected[1] > expected[2] > expected[3] > expected[0]
    for n in range(4):
        held_B = going_B & before_BL[:, n]
        again = float((held_B & ~after_BL[:, n]).sum() / held_B.sum())
        assert again == pytest.approx(expected[n], abs=5 * 0.5 / float(held_B.sum()) ** 0.5)
        waits_B = going_B & ~before_BL[:, n]
        assert float(after_BL[waits_B, n].double().mean()) == pytest.approx(
            0.5, abs=5 * 0.5 / float(waits_B.sum()) ** 0.5
        )
    assert (out.ids_BL != MASK).all() and out.calls == 4


def test_a_block_of_one_step_commits_all() -> None:
    for rule in (ReMDM("cap", 0.5), ReMDM("rescale", 0.5), ReMDM("conf", 1.0)):
        assert sampled(SIX, 10, steps=1, revise=rule).calls == 1


def test_without_remasking_it_is_ancestral_sampling() -> None:
    named: dict[str, Any] = dict(steps=5, seed=4)
    plain = sampled(SIX, 200, **named, select=Ancestral())
    for rule in (ReMDM("cap", 0.0), ReMDM("rescale", 0.0), ReMDM("conf", 0.0)):
        assert sampled(SIX, 200, **named, revise=rule).ids_BL.tolist() == plain.ids_BL.tolist()
