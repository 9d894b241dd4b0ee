"""Scopes, changes and emphasis: by hand on small rows, unbiased where they claim it, and what they leave alone.

Shape letters: B samples, L positions, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import MASK, VOCAB, Oracle, canvas
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Query
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config import build
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.diffusion.schedule import Array, Cosine
from mmdiff.diffusion.spans import Mixture, Nothing
from mmdiff.diffusion.spread import SharedOffset
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.change import (
    Complement,
    EndWeight,
    EvenWeight,
    ExtraMasks,
    FallingWeight,
    NearContext,
    Replaced,
)
from mmdiff.objectives.noising.emphasis import HardTokens
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.noising.scope import DropContext, OneBlock, OneTurn, Scoped, Trajectory
from mmdiff.samplers.links.guidance import Guidance

X = (2, 0, 1, 1)
ALL = ExactCount(full=1.0)


def model(image: bool = False) -> MMDiff:
    torch.manual_seed(0)
    parts: tuple[Any, ...] = ({"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    out = MMDiff(toy.backbone(), *(parts if image else ()))
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)
    return out.eval()


def loss(objective: Denoise, m: Any, plan: NoisedBatch) -> Tensor:
    return objective.terms(m, plan)["denoise"].value


def row_losses(objective: Denoise, m: Any, plan: NoisedBatch) -> Array:
    weight_RL = plan.weight_RL.clone().requires_grad_()
    value = loss(objective, m, replace(plan, weight_RL=weight_RL))
    (nll_RL,) = torch.autograd.grad(value, weight_RL)
    return (nll_RL.double() * plan.weight_RL).sum(1).numpy()


def z_of(objective: Denoise, times: float = 1.0, rows: int = 5000) -> float:
    """How many standard errors the mean loss of a sample, over all its copies, lies above -log p. times: a factor."""
    oracle = Oracle.random()
    plan = objective.plan(canvas([X] * rows), NoiseKey(3, batch=rows), VOCAB)
    of = times * row_losses(objective, oracle, plan).reshape(-1, rows).mean(0)
    return float((of.mean() - oracle.nll(X)) / (of.std() / rows**0.5))


# Complements ---------------------------------------------------------------------------------------------------------


def test_a_token_is_masked_in_exactly_one_of_a_copy_and_its_complement() -> None:
    rows = [[Text([0]), Target([1, 2, 0, 2, 1]), Text([1]), Target([MASK, 0])]] * 9
    plan = Denoise(copies=2, changes=[Complement()]).plan(collate(rows, VOCAB), NoiseKey(0, batch=9), VOCAB)
    masked_4BL, scored_BL = plan.masked_RL.view(4, 9, -1), plan.scored_RL[:9]
    assert torch.equal(masked_4BL[:2].int() + masked_4BL[2:].int(), scored_BL.int().expand(2, -1, -1))
    seen_RL = plan.batch.ids_BL[plan.row_R].masked_fill(plan.masked_RL, MASK)
    assert torch.equal(plan.ids_RL, seen_RL) and plan.copy_R.unique().tolist() == [0, 1, 2, 3]
    assert plan.group_RL.unique().tolist() == [-1, *range(36)]


@pytest.mark.parametrize(
    "levels", [Bernoulli(), Bernoulli(Cosine()), ExactCount(none=True), ExactCount(none=True, stratified=False)]
)
def test_the_bound_of_a_copy_and_its_complement_is_unbiased(levels: Any) -> None:
    assert abs(z_of(Denoise(levels=levels, changes=[Complement()]))) < 3.5
    assert abs(z_of(Denoise(levels=levels))) < 3.5


def test_the_check_of_bias_sees_a_complement_that_never_masks_all() -> None:
    assert z_of(Denoise(levels=ExactCount(), changes=[Complement()])) < -5


def test_lavida_is_the_plain_mean_over_every_token_once() -> None:
    m = model()
    batch = collate([[Text([4]), Target([5, 6, 7, 8, 4])], [Text([6]), Target([8, 8])]], m.vocab)
    objective = Denoise(levels=Bernoulli(), denominator="mean", changes=[Complement()])
    plan = objective.plan(batch, NoiseKey(2, batch=2), m.vocab)
    assert plan.counts == {"denoise": 7.0}
    total = 0.0
    for row in range(4):
        logits_LV = m.backbone(plan.ids_RL[row, : (6, 3)[row % 2]][None])[0].log_softmax(-1)
        for at in plan.masked_RL[row].nonzero().squeeze(1).tolist():
            total -= float(logits_LV[at, batch.ids_BL[row % 2, at]].detach())
    assert float(loss(objective, m, plan).detach()) == pytest.approx(total, rel=1e-5)


# Weights -------------------------------------------------------------------------------------------------------------


def test_nearness_of_context_by_hand() -> None:
    """Five tokens, the 2nd, 3rd and 5th of them masked, p = 0.3: half of .3 for each visible neighbour, and so on."""
    batch = collate([[Target([0, 1, 2, 0, 1])], [Target([0])]], VOCAB)
    plan = Denoise().plan(batch, NoiseKey(0, batch=2), VOCAB)
    plan.masked_RL = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    plan.ids_RL = batch.ids_BL.masked_fill(plan.masked_RL, MASK)
    weight_RL = NearContext(0.3)(plan, NoiseKey(0), VOCAB).weight_RL
    one, two, _, four = (0.15 * 0.7**n for n in range(4))
    expected = [one + two, two + one, four + one]  # of the 2nd: 1st and 4th are 1 and 2 away, of the 5th 4 and 1
    assert weight_RL[0][plan.masked_RL[0]].tolist() == pytest.approx(expected, rel=1e-6)
    assert float(weight_RL[1, 0]) == 0  # padding is no context


def test_hard_tokens_by_hand_and_without_a_gradient_of_the_factor() -> None:
    m = model()
    batch = collate([[Text([4]), Target([5, 6, 7, 8, 4])]], m.vocab)
    plain, focal = Denoise(levels=ALL), Denoise(levels=ALL, emphasis=HardTokens(0.25, 2.0))
    plan = plain.plan(batch, NoiseKey(1), m.vocab)
    nll_P = m.score(m.hidden(plan.ids_RL, batch, {}, torch.arange(1)), batch, plan.masked_RL).nll_P
    factor_P = 0.25 * (1 - (-nll_P.detach()).exp()) ** 2
    torch.testing.assert_close(loss(focal, m, plan), (nll_P * factor_P).sum())
    weight = m.backbone.model.lm_head.weight
    (found,) = torch.autograd.grad(loss(focal, m, plan), weight)
    (expected,) = torch.autograd.grad((nll_P * factor_P).sum(), weight)
    torch.testing.assert_close(found, expected)
    at_zero = Denoise(levels=ALL, emphasis=HardTokens(0.25, 0.0))
    torch.testing.assert_close(loss(at_zero, m, plan), 0.25 * loss(plain, m, plan))


def test_weights_that_fall_and_weights_that_stay() -> None:
    batch = canvas([X] * 8)
    for levels in (Bernoulli(), ExactCount()):
        falling = Denoise(levels=levels, changes=[FallingWeight()]).plan(batch, NoiseKey(0, batch=8), VOCAB)
        torch.testing.assert_close(falling.weight_RL, 1 - falling.rate_RL)
        even = Denoise(levels=levels, changes=[EvenWeight()]).plan(batch, NoiseKey(0, batch=8), VOCAB)
        assert (even.weight_RL == 1).all()


def test_end_ids_behind_the_first_are_lighter_or_not_scored() -> None:
    m = model()
    eos = m.vocab.eos_id
    batch = collate([[Text([4]), Target([5, 6, eos, eos, eos])], [Text([4]), Target([eos, 5])]], m.vocab)
    plain = Denoise(levels=ALL).plan(batch, NoiseKey(0, batch=2), m.vocab)
    light = Denoise(levels=ALL, changes=[EndWeight(0.25)]).plan(batch, NoiseKey(0, batch=2), m.vocab)
    expected = torch.tensor([[1, 1, 1, 0.25, 0.25], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(light.weight_RL[:, 1:], plain.weight_RL[:, 1:] * expected)
    gone = Denoise(levels=ALL, changes=[EndWeight()], denominator="sequences").plan(
        batch, NoiseKey(0, batch=2), m.vocab
    )
    assert torch.equal(gone.ids_RL, plain.ids_RL), "they are still masked"
    assert gone.masked_RL.sum(1).tolist() == [3, 2] and gone.counts == {"denoise": 2.0}
    assert gone.weight_RL[0, 1:4].tolist() == pytest.approx([1 / 3] * 3)


# Masks and tokens that are added -------------------------------------------------------------------------------------


def test_extra_masks_stand_behind_the_answer_and_are_not_scored() -> None:
    m = model(image=True)
    rng = np.random.default_rng(0)
    rows: list[Sample] = [
        [Media("image", rng.normal(size=(1, 8, 8)).astype(np.float32)), Text([4]), Target([5, 6, 7])],
        [Media("image", rng.normal(size=(1, 8, 8)).astype(np.float32)), Target([8, 4]), Text([5])],
    ]
    batch = collate(rows, m.vocab, m.readers, index=[6, 2])
    objective = Denoise(levels=Bernoulli(eps=0.3), copies=2, changes=[ExtraMasks(5)])
    plain = Denoise(levels=Bernoulli(eps=0.3), copies=2).plan(batch, NoiseKey(0, batch=2), m.vocab)
    plan = objective.plan(batch, NoiseKey(0, batch=2), m.vocab)
    added = (plan.batch.attend_BL.sum(1) - batch.attend_BL.sum(1).repeat(2)).tolist()
    assert len(set(added)) > 1 and max(added) <= 5
    assert plan.counts == plain.counts and plan.masked_RL.sum() == plain.masked_RL.sum()
    features = m.encode(batch.media)
    total = torch.zeros(())
    for r in range(4):
        here_L = batch.attend_BL[r % 2]
        last = int((batch.target_BL & batch.attend_BL)[r % 2].nonzero().max())
        ids, label = plain.ids_RL[r, here_L].tolist(), batch.ids_BL[r % 2, here_L]
        ids[last + 1 : last + 1] = [m.vocab.mask_id] * added[r]
        slots = {"image": torch.cat([batch.slots["image"][r % 2, here_L], torch.full((added[r],), -1)])[None]}
        x = m.embedded(torch.tensor([ids]), features, slots, None)
        h = m.backbone.hidden(x, None, torch.arange(len(ids))[None])
        for at in plain.masked_RL[r].nonzero().squeeze(1).tolist():
            nll = -m.backbone.head(h[0, at]).float().log_softmax(-1)[label[at]]
            total = total + nll * plain.weight_RL[r, at]
    torch.testing.assert_close(loss(objective, m, plan), total, rtol=1e-5, atol=1e-6)
    alone = objective.plan(collate(rows[1:], m.vocab, m.readers, index=[2]), NoiseKey(0, batch=2), m.vocab)
    assert (alone.batch.attend_BL.sum(1) - batch.attend_BL[1].sum()).tolist() == [added[1], added[3]]


def test_token_replacement_scores_every_target() -> None:
    """MDiff4STR's second canvas: no masks, a share uniform in 0..1 replaced, cross-entropy of all targets."""
    m = model()
    batch = collate([[Text([4]), Target([5, 6, 7, 8, 4, 5, 6, 7])]] * 300, m.vocab)
    objective = Denoise(levels=Nothing(), denominator="mean", changes=[Replaced(0.5, scored=True)])
    plan = objective.plan(batch, NoiseKey(0, batch=300), m.vocab)
    assert torch.equal(plan.masked_RL, batch.target_BL) and not (plan.ids_RL == m.vocab.mask_id).any()
    share_R = (plan.ids_RL != batch.ids_BL)[:, 1:].float().mean(1) / (1 - 1 / len(m.vocab.text_ids))
    assert float(share_R.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(share_R.std()) == pytest.approx((1 / 12 + 1 / 6 / 8) ** 0.5, abs=0.05)  # uniform, then eight coins
    assert plan.counts == {"denoise": 2400.0} and float(plan.weight_RL[0, 1]) == 1


# Scopes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Showing:
    """A biased scope: later blocks are not hidden, so that a block is predicted from what decoding would not know."""

    size: int = 2

    def __call__(self, scope: Scoped, key: NoiseKey, vocab: Vocab) -> Scoped:
        return replace(OneBlock(self.size)(scope, key, vocab), hidden_BL=scope.hidden_BL)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bounds_of_blocks_with_later_ones_hidden_sum_to_minus_log_p(size: int) -> None:
    """A block drawn at random, times the number of blocks."""
    assert abs(z_of(Denoise(scopes=[OneBlock(size)]), times=4 / size)) < 3.5


def test_the_check_of_bias_sees_later_blocks_that_are_shown() -> None:
    assert abs(z_of(Denoise(scopes=[Showing()]), times=2)) > 5


def test_one_block_is_noised_those_before_are_clean_and_those_behind_are_masked() -> None:
    rows = [[Text([0]), Target([1, 2, 0, 2, 1])]] * 900
    plan = Denoise(levels=ALL, scopes=[OneBlock(2)]).plan(collate(rows, VOCAB), NoiseKey(0, batch=900), VOCAB)
    seen = {"".join("x" if s else "." for s in row) for row in plan.masked_RL[:, 1:]}
    assert seen == {"xx...", "..xx.", "....x"}
    for shape, ids in {"xx...": [0, 3, 3, 3, 3, 3], "..xx.": [0, 1, 2, 3, 3, 3], "....x": [0, 1, 2, 0, 2, 3]}.items():
        here_R = torch.tensor([shape == "".join("x" if s else "." for s in row) for row in plan.masked_RL[:, 1:]])
        assert (plan.ids_RL[here_R] == torch.tensor(ids)).all() and abs(int(here_R.sum()) - 300) < 60


def test_a_turn_of_a_dialogue_is_trained_as_if_the_rest_had_not_been_said() -> None:
    m = model()
    turns: list[Any] = [Text([4]), Target([5, 6]), Text([7, 8]), Target([4, 4, 6]), Text([5]), Target([8])]
    batch = collate([turns] * 60 + [[Text([4])]], m.vocab)
    objective = Denoise(levels=ALL, scopes=[OneTurn()])
    plan = objective.plan(batch, NoiseKey(0, batch=61), m.vocab)
    ends = {3: 0, 8: 0, 10: 0}
    for row in range(60):
        length = int(plan.batch.attend_BL[row].sum())
        ends[length] += 1
        cut = {3: turns[:2], 8: turns[:4], 10: turns}[length]
        size = len(cut[-1].ids)
        alone = collate([[*[Text(part.ids) for part in cut[:-1]], cut[-1]]], m.vocab)
        assert plan.masked_RL[row].nonzero().squeeze(1).tolist() == list(range(length - size, length))
        if ends[length] == 1:
            own = replace(plan, weight_RL=plan.weight_RL * (torch.arange(61) == row)[:, None])
            expected = Denoise(levels=ALL).plan(alone, NoiseKey(0), m.vocab)
            torch.testing.assert_close(loss(objective, m, own), loss(objective, m, expected), rtol=1e-5, atol=1e-6)
    assert min(ends.values()) > 10 and not plan.masked_RL[60].any() and plan.batch.attend_BL[60].sum() == 1


def recorded(rows: int, steps: list[int]) -> Batch:
    return collate([[Target(X, steps=steps)]] * rows, VOCAB)


@pytest.mark.parametrize(("merge", "later"), [(1, False), (2, False), (1, True)])
def test_a_trajectory_scores_tokens_as_they_were_committed(merge: int, later: bool) -> None:
    """Positions 1, then 0 and 3, then 2: each given those of earlier steps, one step of three as likely as another."""
    oracle, steps = Oracle.random(), [2, 0, 5, 2]
    groups = [[1], [0, 3], [2]]  # merged by two, the steps are 0, 1 and 2
    objective = Denoise(levels=ALL, scopes=[Trajectory(merge, later)])
    plan = objective.plan(recorded(300, steps), NoiseKey(0, batch=300), VOCAB)
    of = row_losses(objective, oracle, plan)
    expected, seen = [], list[int]()
    for i, group in enumerate(groups):
        ids = [X[p] if p in seen else MASK for p in range(4)]
        log_p = oracle._conditionals(ids)
        scored = [p for g in groups[i:] for p in g] if later else group
        expected.append(-sum(float(log_p[p, X[p]]) for p in scored))
        seen += group
    counts = [int(np.isclose(of, e, rtol=1e-5).sum()) for e in expected]
    assert sum(counts) == 300 and min(counts) > 60


def test_steps_that_count_as_one() -> None:
    plan = Denoise(levels=ALL, scopes=[Trajectory(3)]).plan(recorded(80, [2, 0, 5, 2]), NoiseKey(0, batch=80), VOCAB)
    assert {tuple(row.tolist()) for row in plan.masked_RL} == {(True, True, False, True), (False, False, True, False)}


def test_a_trajectory_needs_steps() -> None:
    with pytest.raises(DataError, match="has no `steps`"):
        Denoise(scopes=[Trajectory()]).plan(canvas([X]), NoiseKey(0), VOCAB)
    with pytest.raises(DataError, match="steps of an answer: 2, expected one for each"):
        Target(X, steps=[0, 1])


def test_a_dropped_context_is_what_guidance_asks_for() -> None:
    """The logits that guidance takes as those without context are the ones that such a copy is trained on."""
    m = model(image=True)
    picture = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    batch = collate([[Media("image", picture), Text([4, 7]), Target([5, 6, 7])]] * 3, m.vocab, m.readers)
    asked: list[Query] = []
    denoise = m.denoiser(batch)

    def spy(query: Query) -> Any:
        asked.append(query)
        return denoise(query)

    empty = batch.ids_BL.masked_fill(batch.target_BL, m.vocab.mask_id)
    Guidance(1.0).wrap(spy, batch, m.vocab)(Query(empty, batch.target_BL, torch.arange(3)))
    bare = denoise(asked[0]).logits_PV.chunk(2)[1]
    objective = Denoise(levels=ALL, scopes=[DropContext(1.0)])
    plan = objective.plan(batch, NoiseKey(0, batch=3), m.vocab)
    nll_P = torch.nn.functional.cross_entropy(bare.float(), batch.ids_BL[batch.target_BL], reduction="sum")
    torch.testing.assert_close(loss(objective, m, plan), nll_P, rtol=1e-5, atol=1e-6)
    whole = Denoise(levels=ALL)
    assert abs(float((nll_P - loss(whole, m, whole.plan(batch, NoiseKey(0), m.vocab))).detach())) > 1e-3


def test_how_many_lose_their_context() -> None:
    batch = collate([[Text([0, 1]), Target([2, 1])]] * 2000, VOCAB)
    plan = Denoise(scopes=[DropContext(0.1)]).plan(batch, NoiseKey(0, batch=2000), VOCAB)
    bare_R = (plan.ids_RL[:, :2] == MASK).all(1)
    assert torch.equal(bare_R, (plan.ids_RL[:, :2] == MASK).any(1))
    assert float(bare_R.float().mean()) == pytest.approx(0.1, abs=4 * (0.09 / 2000) ** 0.5)
    assert not plan.scored_RL[:, :2].any()


# Parts of a configuration ---------------------------------------------------------------------------------------------


def test_parts_are_named_by_dotted_path() -> None:
    there = "mmdiff.objectives.noising"
    node = {
        "target": "mmdiff.objectives.denoise.Denoise",
        "levels": {"target": "mmdiff.diffusion.spans.Mixture"},
        "spread": {"target": "mmdiff.diffusion.spread.SharedOffset"},
        "scopes": [{"target": f"{there}.scope.OneBlock", "size": 4}, {"target": f"{there}.scope.DropContext"}],
        "changes": [{"target": f"{there}.change.Complement"}, {"target": f"{there}.change.ExtraMasks", "most": 3}],
        "emphasis": {"target": f"{there}.emphasis.HardTokens", "power": 2},
    }
    expected = Denoise(
        levels=Mixture(),
        spread=SharedOffset(),
        scopes=[OneBlock(4), DropContext()],
        changes=[Complement(), ExtraMasks(3)],
        emphasis=HardTokens(power=2),
    )
    assert build(node) == expected
    plan = expected.plan(canvas([X, X]), NoiseKey(0, batch=2), VOCAB)
    assert len(plan.ids_RL) == 4 and plan.counts["denoise"] > 0
    with pytest.raises(ConfigError, match="HardToken"):
        build(node | {"emphasis": {"target": f"{there}.emphasis.HardToken"}})
