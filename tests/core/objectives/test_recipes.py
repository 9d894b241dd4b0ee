"""Recipes of papers: each makes a step, training never goes below the entropy, packing and splitting change nothing.

Shape letters: B samples, L positions, R rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from benchmarks.learning.objectives import entropy, fit, measured, new_model, recipes, rows, step_loss
from mmdiff.canvas.sample import Break, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.token_rates import write_counts
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import estimate
from mmdiff.model.likelihood.elbo import AnyOrder
from mmdiff.objectives.denoise import DENOMINATORS, Denoise


def test_every_recipe_makes_steps(tmp_path: Path) -> None:
    """One draw of its loss and three steps of training: finite, and the weights move."""
    counts = str(tmp_path / "counts.safetensors")
    reference = new_model()
    write_counts(counts, [4, 4, 5, 6], reference.vocab.size)
    made = recipes(counts)
    assert len(made) > 30
    for name in ("GenMD4: learned rates", "Eso-LM: half in order"):
        record = measured(name, made.pop(name), reference, steps=3, draws=3, held_out=16)
        assert 0 < record["bound"] < 20 and 0 <= record["spread"] < 5, name
    for name, objective in made.items():
        if not name.startswith(("BD3LM", "left")):
            loss = step_loss(objective, reference, rows(reference, 0, 8), 1)
            assert bool(loss.isfinite()) and loss.requires_grad, name


def curve(model: MMDiff, steps: int = 50) -> tuple[list[float], list[float]]:
    """Returns the exact bound of all orders on held-out rows, at three points of training, and what each lies above the
    entropy of the chain, in standard errors."""
    held_out, found, above = rows(model, 100_000, 100), [], []
    for _ in range(3):
        nll_B = estimate(model.eval(), held_out, AnyOrder()).nll_B
        found.append(float(nll_B.mean()))
        above.append((found[-1] - entropy(model, held_out)) / (float(nll_B.std()) / 100**0.5))
        if steps:
            fit(Denoise(), model.train(), steps)
    return found, above


def falls(found: list[float]) -> bool:
    return found[0] > found[1] + 0.3 and found[1] > found[2] + 0.05


def test_training_falls_towards_the_entropy_and_never_below() -> None:
    """C11."""
    found, above = curve(new_model())
    assert falls(found) and min(above) > -3


class Leaking(MMDiff):
    """A model that is given the labels in place of the masks."""

    def hidden(self, ids_RL: Tensor, batch: Any, features: Any, row_R: Tensor, **named: Any) -> Tensor:
        return super().hidden(batch.ids_BL[row_R], batch, features, row_R, **named)


def test_a_model_that_sees_its_labels_falls_below_and_a_frozen_one_does_not_fall() -> None:
    """The deliberately wrong parts of C11."""
    whole = new_model()
    found, above = curve(Leaking(whole.backbone, attention=whole.attention))
    assert falls(found) and above[-1] < -10
    found, above = curve(new_model(), steps=0)
    assert not falls(found) and min(above) > -3


def model() -> MMDiff:
    torch.manual_seed(0)
    out = MMDiff(toy.backbone()).double()
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)
    return out.eval()


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_packed_documents_have_the_loss_and_the_gradient_of_single_ones(denominator: str) -> None:
    """Three documents in two rows, against each in a row of its own with the same masks."""
    m = model()
    documents: list[Any] = [[Text([4, 5]), Target([6, 7, 8])], [Text([7]), Target([5, 5])], [Target([8, 4, 6, 5])]]
    packed: list[Sample] = [[*documents[0], Break(), *documents[1]], documents[2]]
    objective = Denoise(denominator=denominator)
    plan = objective.plan(collate(packed, m.vocab), NoiseKey(3, batch=2), m.vocab)

    def run(plan: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = objective.terms(m, plan)["denoise"].value / plan.counts["denoise"]
        return value.detach(), torch.autograd.grad(value, list(m.parameters()))

    single = collate(documents, m.vocab)
    own = objective.plan(single, NoiseKey(3, batch=3), m.vocab)
    for row, (r, begin, end) in enumerate(((0, 0, 5), (0, 5, 8), (1, 0, 4))):
        own.masked_RL[row, : end - begin] = plan.masked_RL[r, begin:end]
        own.weight_RL[row] = float(own.scored_RL[row].sum()) / float(own.masked_RL[row].sum())
    own.ids_RL = single.ids_BL.masked_fill(own.masked_RL, m.vocab.mask_id)
    own.weight_RL, own.counts["denoise"] = DENOMINATORS[denominator](own)
    (found, found_gradient), (expected, gradient) = run(plan), run(own)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for one, other in zip(found_gradient, gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_step_in_several_forwards_is_one_step() -> None:
    """Sums of parts over the sum of their counts, whatever is drawn around the targets."""
    m = model()
    samples: list[Sample] = [[Text([4]), Target([5, 6, 7][: 1 + n % 3])] for n in range(6)]
    for objective in (Denoise(), Denoise(denominator="sequences"), Denoise(denominator="each", copies=2)):
        key, totals = NoiseKey(1, batch=6), []
        for size in (6, 3, 2):
            value, count = 0.0, 0.0
            for first in range(0, 6, size):
                batch = collate(samples[first : first + size], m.vocab, index=range(first, first + size))
                plan = objective.plan(batch, key, m.vocab)
                value += float(objective.terms(m, plan)["denoise"].value.detach())
                count += plan.counts["denoise"]
            totals.append(value / count)
        assert totals == pytest.approx([totals[0]] * 3, rel=1e-6)


def test_a_mean_of_means_is_another_number() -> None:
    """The deliberately wrong part of C18: each forward divides by its own count. Of parts alike it is no other."""
    m, key = model(), NoiseKey(1, batch=6)

    def local(lengths: list[int], denominator: str, size: int) -> float:
        samples: list[Sample] = [[Text([4]), Target([5, 6, 7][:n])] for n in lengths]
        objective, means = Denoise(denominator=denominator), []
        for first in range(0, 6, size):
            batch = collate(samples[first : first + size], m.vocab, index=range(first, first + size))
            plan = objective.plan(batch, key, m.vocab)
            means.append(float(objective.terms(m, plan)["denoise"].value.detach()) / plan.counts["denoise"])
        return float(np.mean(means))

    ragged = [1, 1, 2, 3, 3, 3]
    for denominator in ("tokens", "masked", "mean"):
        assert abs(local(ragged, denominator, 3) / local(ragged, denominator, 6) - 1) > 1e-3, denominator
    for lengths, denominator in ((ragged, "sequences"), ([2] * 6, "tokens")):
        assert local(lengths, denominator, 3) == pytest.approx(local(lengths, denominator, 6), rel=1e-6)
