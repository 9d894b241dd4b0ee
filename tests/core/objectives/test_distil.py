"""Certainty by hand and in training (dParallel), a teacher's steps in one of a student's (SDTT). C15.

Shape letters: R rows, L positions, P masked positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import ExactCount
from mmdiff.model import MMDiff
from mmdiff.objectives.composed.certain import Certain
from mmdiff.objectives.composed.distil import Distil
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.policy.reference import Copied
from tests.core.objectives.extras.pairs import FIRST, KEY, fit, model_with, pairs

ALL = Denoise(levels=ExactCount(full=1.0))


def logits_of(m: MMDiff, plan: Any) -> Tensor:
    h_RLD = m.hidden(plan.ids_RL, plan.batch, {}, plan.row_R)
    return m.backbone.head(h_RLD).float().detach()


def test_certainty_by_hand() -> None:
    m = model_with()
    batch = pairs(m.vocab, 8)
    objective = Certain(Denoise(), beta=0.7, temperature=0.5)
    plan = objective.plan(batch, KEY, m.vocab)
    terms, logits_RLV = objective.terms(m, plan), logits_of(m, plan)
    expected, right = 0.0, 0
    for r, position in plan.masked_RL.nonzero().tolist():
        row_V, label = logits_RLV[r, position], int(batch.ids_BL[plan.row_R[r], position])
        if int(row_V.argmax()) == label:
            p_V = (row_V / 0.5).softmax(0)
            expected, right = expected - float((p_V * p_V.log()).sum()), right + 1
    assert right > 0 and float(terms["entropy"].value.detach()) == pytest.approx(expected, rel=1e-4)
    assert terms["entropy"].coefficient == 0.7 and plan.counts["entropy"] == float(plan.masked_RL.sum())
    plain = Denoise().terms(m, Denoise().plan(batch, KEY, m.vocab))["denoise"].value
    torch.testing.assert_close(terms["denoise"].value, plain)


def test_certainty_grows_and_the_loss_stays() -> None:
    """A first token that is one of two, 9 times in 10: right predictions become surer than they are likely."""
    found = {}
    for beta in (0.0, 2.0):
        m = model_with(layers=1)
        words = [1] * 9 + [2]
        batch = collate([[Text([FIRST]), Target([FIRST + word])] for word in words * 4], m.vocab)
        objective = Certain(Denoise(denominator="mean"), beta=beta)
        fit(m, [(Denoise(denominator="mean"), 1e-2, 60), (objective, 3e-3, 40)], batch)
        plan = objective.plan(batch, KEY, m.vocab)
        terms = objective.terms(m, plan)
        top, bottom = terms["entropy"].sums["entropy"]
        found[beta] = float(top / bottom), float(terms["denoise"].value.detach() / plan.counts["denoise"])
    (loose, loss), (sure, own) = found[0.0], found[2.0]
    print(f"entropy {loose:.3f} -> {sure:.3f}, loss {loss:.3f} -> {own:.3f}")
    assert sure < loose / 2 and own < loss + 0.3


@dataclass(frozen=True)
class Fixed:
    """A teacher that is another model."""

    model: Any

    def of(self, model: Any) -> Any:
        return lambda function, model: function(self.model)


def test_two_steps_of_a_teacher_by_enumeration() -> None:
    """Both tokens are masked; the mean over draws of the aim at each position, against all that the teacher may do.

    In half of the draws both are revealed at once, or the other one later: the aim is the marginal then. In a quarter
    the other comes first, and the aim is the conditional of what was drawn for it.
    """
    teacher, student = model_with(), model_with()
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(1.7)
    rows, n = 4000, 2
    batch = collate([[Text([FIRST]), Target([FIRST, FIRST + 1])]] * rows, teacher.vocab)
    objective = Distil(Fixed(teacher), steps=2, divergence="forward", denoise=ALL).for_model(student)
    plan = objective.plan(batch, NoiseKey(0, 0, "x", batch=rows), teacher.vocab)
    ids_V = [i for i in range(teacher.vocab.size) if i not in (teacher.vocab.mask_id, teacher.vocab.slot_id)]

    def log_p(ids: list[int], m: MMDiff = teacher) -> Tensor:
        one = collate([[Text([FIRST]), Target(ids)]], m.vocab)
        h_RLD = m.hidden(one.ids_BL, one, {}, torch.arange(1))
        out: Tensor = m.backbone.head(h_RLD)[0, -n:, ids_V].float().log_softmax(-1).detach()
        return out

    mask = teacher.vocab.mask_id
    whole, own = log_p([mask, mask]), log_p([mask, mask], student)
    kl = {n: float((whole[n].exp() * (whole[n] - own[n])).sum()) for n in (0, 1)}
    expected = 0.75 * (kl[0] + kl[1])
    for first, (at, word) in product((0, 1), enumerate(ids_V)):
        later = 1 - first
        aim = log_p([word if position == first else mask for position in (0, 1)])[later]
        share = 0.25 * float(whole[first, at].exp())
        expected += share * float((aim.exp() * (aim - own[later])).sum())
    with torch.no_grad():
        found = objective.terms(student, plan)["distil"].value / rows
    assert float(found) == pytest.approx(expected, rel=0.05)
    single = Distil(Fixed(teacher), steps=1, divergence="forward", denoise=ALL).for_model(student)
    with torch.no_grad():
        one = single.terms(student, single.plan(batch, KEY, teacher.vocab))["distil"].value / rows
    assert float(one) == pytest.approx(kl[0] + kl[1], rel=1e-3) and abs(float(one) - expected) > 0.02 * expected


def test_what_the_steps_leave_takes_the_predictions_of_the_last() -> None:
    m = model_with()
    batch = pairs(m.vocab, 2000)
    for share in (1.0, 0.3):
        plan = Distil(Copied(), steps=3, share=share, denoise=ALL).plan(batch, KEY, m.vocab)
        count = torch.bincount(plan.drawn["step"][plan.masked_RL], minlength=3) / 4000
        expected = torch.tensor([share / 3, share / 3, 1 - 2 * share / 3])
        torch.testing.assert_close(count, expected, rtol=0, atol=4 * 0.5 / 4000**0.5)


def test_of_itself_in_one_step_nothing_is_learnt_and_of_two_something() -> None:
    """A teacher of pairs: one step of it is the student already; two know the second half where the first is seen."""
    m = model_with()
    fit(m, [(Denoise(), 3e-3, 120)])
    batch = pairs(m.vocab, 40)
    values = {}
    for steps in (1, 2):
        objective = Distil(Copied(), steps=steps, denoise=ALL).for_model(m)
        plan = objective.plan(batch, KEY, m.vocab)
        values[steps] = float(objective.terms(m, plan)["distil"].value.detach()) / plan.counts["distil"]
    print(values)
    assert values[1] == pytest.approx(0, abs=1e-5) and values[2] > 0.3


def test_a_student_of_independent_tokens_becomes_its_teacher() -> None:
    """Where the teacher's tokens do not depend on each other, its two steps are one, and the divergence goes to 0."""
    rng = np.random.default_rng(0)
    rows = [[Text([FIRST]), Target((FIRST + rng.choice([1, 2, 3], 2, p=[0.7, 0.2, 0.1])).tolist())] for _ in range(40)]
    teacher, student = model_with(layers=1), model_with(layers=1)
    batch = collate(rows, teacher.vocab)
    fit(teacher, [(Denoise(), 3e-3, 60)], batch)
    objective = Distil(Fixed(teacher), steps=2, denoise=ALL).for_model(student)

    def apart() -> float:
        plan = objective.plan(batch, KEY, student.vocab)
        return float(objective.terms(student, plan)["distil"].value.detach()) / plan.counts["distil"]

    before = apart()
    fit(student, [(objective, 3e-3, 100)], batch)
    print(f"divergence {before:.3f} -> {apart():.3f}")
    assert apart() < 0.05 < before / 10
