"""Companions of masked positions: their noise and posterior, nothing changed where zero, answers where clean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor

from mmdiff import check
from mmdiff.canvas.patterns import BlockCausal, Full, PrefixCausal
from mmdiff.canvas.query import Query
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.extras.augmented import AugmentedDenoise
from mmdiff.objectives.extras.companion import Companion
from mmdiff.samplers.links.caches import Prefix
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.processes.companion import Augmented, posterior, signal
from mmdiff.samplers.rules.maskgit import Remask
from tests.core.objectives.extras.pairs import FIRST, KEY, WIDTH, fit, longer, model_with, pairs, sampled

SIZE = 6


def model(attention: Any = None, size: int = SIZE) -> MMDiff:
    def made(vocab_size: int) -> dict[str, Companion]:
        return {"companion": Companion(width=WIDTH, vocab_size=vocab_size, size=size)}

    return model_with(made, attention=attention)


def companion(one: MMDiff) -> Any:
    return one.extras["companion"]


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("times", [(1.0, 0.75), (0.75, 0.5), (0.3, 0.1), (0.5, 0.0)])
def test_the_posterior_is_bayes_rule(times: tuple[float, float]) -> None:
    """The product of the prior at the later time and the likelihood of what was before, by their precisions."""
    before, after = (1 - torch.tensor(t, dtype=torch.float64) for t in times)
    e, z = normal(50), normal(50, 1)
    mean, std = posterior(e, z, signal(torch.tensor(times[0], dtype=torch.float64)), after)
    r = before / after
    if after == 1:
        assert torch.allclose(mean, e) and std == 0
        return
    precision = 1 / (1 - after) + r / (1 - r)
    exact = (after.sqrt() * e / (1 - after) + r.sqrt() * z / (1 - r)) / precision
    assert torch.allclose(mean, exact, atol=1e-12) and torch.allclose(std**2, 1 / precision)


def test_steps_that_know_the_token_keep_to_the_noise_of_their_time() -> None:
    e, z = normal(1).expand(40_000, -1), normal(40_000, 1)
    for step in range(5):
        before, after = torch.tensor(step / 5), torch.tensor((step + 1) / 5)
        mean, std = posterior(e, z, before, after)
        z = mean + std * normal(40_000, 2 + step)
        assert (z.mean(0) - after.sqrt() * e[0]).abs().max() < 5 / 200 and (z.var(0) - (1 - after)).abs().max() < 0.04
    assert torch.allclose(z, e)


def test_companions_of_a_batch_are_noised_by_their_rate() -> None:
    one = model()
    objective = AugmentedDenoise(Augmented(size=SIZE), Denoise(copies=2))
    plan = objective.plan(pairs(one.vocab, 30), KEY, one.vocab)
    z_RLZ, noised, at = objective.companions(one, plan), plan, 0
    for row, position in noised.masked_RL.nonzero().tolist():
        g = 1 - float(noised.rate_R[row])
        e = companion(one).table[plan.batch.ids_BL[row % 30, position]]
        assert torch.allclose(z_RLZ[row, position], g**0.5 * e + (1 - g) ** 0.5 * plan.drawn["companion"][at])
        at += 1
    assert at == len(plan.drawn["companion"]) and not z_RLZ[~noised.masked_RL].any()
    again = objective.plan(pairs(one.vocab, 5, 10), KEY, one.vocab)
    first = plan.drawn["companion"][: int(noised.masked_RL[:10].sum())]
    assert torch.equal(again.drawn["companion"][:1], plan.drawn["companion"][len(first) : len(first) + 1])
    assert len(plan.drawn["companion"].unique(dim=0)) == at


@pytest.mark.parametrize("attention", [Full(), PrefixCausal()])
@pytest.mark.parametrize("copies", [1, 2])
def test_companions_of_zero_are_masked_diffusion(attention: Any, copies: int) -> None:
    one = model(attention).eval()
    torch.nn.init.zeros_(companion(one).up.weight)
    objective = AugmentedDenoise(Augmented(size=SIZE), Denoise(copies=copies))
    term = objective.terms(one, objective.plan(pairs(one.vocab, 8), KEY, one.vocab))["denoise"]
    plain = Denoise(copies=copies)
    assert torch.equal(term.value, plain.terms(one, plain.plan(pairs(one.vocab, 8), KEY, one.vocab))["denoise"].value)
    for options in ({}, {"block_length": 2}, {"steps": 3}):
        ids_BL, spy = sampled(one, longer(one), process=Augmented(size=SIZE), **options)
        plain_BL, other = sampled(one, longer(one), **options)
        assert torch.equal(ids_BL, plain_BL)
        assert all(torch.equal(a, b) for a, b in zip(spy.seen, other.seen, strict=True))


def test_a_clean_companion_is_copied_in_one_call() -> None:
    """A token of which the rest says little: a model that is given its embedding reads it off."""
    one = model(size=24)
    free = pairs(one.vocab, 40)
    free.ids_BL[:, 2] = free.ids_BL[:, 2].sort().values
    fit(one, [(AugmentedDenoise(Augmented(size=24)), 5e-3, 200)], free)
    batch = pairs(one.vocab, 40)
    truth_B, batch.ids_BL = free.ids_BL[:, 2], free.ids_BL.clone()
    batch.ids_BL[:, 2] = one.vocab.mask_id
    z_BLZ = torch.zeros(40, 3, 24)
    z_BLZ[:, 2] = companion(one).table[truth_B]
    query = Query(batch.ids_BL, batch.ids_BL == one.vocab.mask_id, torch.arange(40))
    denoise = one.eval().denoiser(batch)
    right = [
        float((denoise(replace(query, extras=extras)).logits_PV.argmax(1) == truth_B).float().mean())
        for extras in ({"companion": z_BLZ}, {"companion": 0 * z_BLZ}, {})
    ]
    assert right[0] > 0.9 and right[1] == right[2] < 0.5


def test_a_step_draws_the_posterior_of_what_is_still_masked() -> None:
    """The companions that the model is given are those of an independent computation from its own logits."""
    one = model().eval()
    batch = longer(one)
    for estimate in ("hard", "soft"):
        process = Augmented(size=SIZE, estimate=estimate, noise=0.0)  # type: ignore[arg-type]
        _, spy = sampled(one, batch, process=process, steps=3)
        for step, (first, second) in enumerate(zip(spy.queries, spy.queries[1:], strict=False)):
            before, after = torch.tensor(step / 3), torch.tensor((step + 1) / 3)
            r = before / after
            row_P, position_P = first.at()
            logits_PV = spy.seen[step].clone()
            logits_PV[:, [one.vocab.mask_id, one.vocab.slot_id]] = -torch.inf
            table_VZ = companion(one).table
            p_PV = torch.nn.functional.one_hot(logits_PV.argmax(1), len(table_VZ)).float()
            p_PV = p_PV if estimate == "hard" else logits_PV.softmax(1)
            precision = 1 / (1 - after) + r / (1 - r)
            z_PZ = first.extras["companion"][row_P, position_P]
            mean_PZ = (after.sqrt() * p_PV @ table_VZ / (1 - after) + r.sqrt() * z_PZ / (1 - r)) / precision
            found_PZ = second.extras["companion"][row_P, position_P]
            still_P = second.ids_RL[row_P, position_P] == one.vocab.mask_id
            assert torch.allclose(found_PZ[still_P], mean_PZ[still_P], atol=1e-4) and still_P.any()
            assert not found_PZ[~still_P].any() and not second.extras["companion"][~second.predict_RL].any()


@pytest.mark.parametrize("denoise", [[], [Prefix()], [Guidance(0.5)]])
def test_a_row_is_what_it_is_alone(denoise: Any) -> None:
    one = model().eval()
    batch = longer(one)
    options: dict[str, Any] = {"process": Augmented(size=SIZE), "block_length": 3, "denoise": denoise}
    ids_BL, _ = sampled(one, batch, **options)
    assert not torch.equal(ids_BL, sampled(one, batch, block_length=3, denoise=denoise)[0])
    for row in range(3):
        alone_BL, _ = sampled(one, longer(one, row), **options)
        assert torch.equal(alone_BL[0, -6:], ids_BL[row, batch.target_BL[row]])


@pytest.mark.parametrize("attention", [PrefixCausal(), BlockCausal(2)])
def test_kept_keys_and_values_are_exact_beside_companions(attention: Any) -> None:
    one = model(attention).eval()
    options: dict[str, Any] = {"process": Augmented(size=SIZE), "block_length": 2}
    ids_BL, kept = sampled(one, longer(one), **options)
    other_BL, whole = sampled(one, longer(one), step=False, **options)
    assert torch.equal(ids_BL, other_BL)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept.seen, whole.seen, strict=True))


def test_the_table_grows_with_the_vocabulary() -> None:
    one = model()
    before = companion(one).table.clone()
    one.grow([], {"bins": 40})
    assert torch.equal(companion(one).table[: FIRST + 10], before[: FIRST + 10])
    assert companion(one).table.shape == (one.vocab.size, SIZE) and companion(one).table.abs().sum(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": Augmented("other", SIZE)}, "model.extras.other: the model has no such extra"),
        ({"process": Augmented(size=9)}, "process.size: 9, expected 6"),
        ({"process": Augmented(size=SIZE), "revise": Remask(0.5)}, "sampler.revise: Augmented has a way of its own"),
    ],
)
def test_what_does_not_fit_is_one_line(options: Any, message: str) -> None:
    one = model()
    with pytest.raises(ConfigError, match=message):
        one.generate(longer(one), **options)
    if "revise" not in options:
        objective = AugmentedDenoise(options["process"])
        with pytest.raises(ConfigError, match=message):
            objective.terms(one, objective.plan(pairs(one.vocab, 4), KEY, one.vocab))


def test_a_configuration_trains_and_samples_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = {"target": "mmdiff.samplers.processes.companion.Augmented", "size": 3, "estimate": "soft"}
    objective = {"target": "mmdiff.objectives.extras.augmented.AugmentedDenoise", "process": process}
    config = toy.config(image=False, stage={"objective": objective})
    config.model.extras["companion"] = {"target": "mmdiff.objectives.extras.companion.Companion", "size": 3}
    config.sampler.process = process
    config.eval.data["all"] = {"target": "toy.Corners", "n": 4}
    result = check(config)
    assert result["loss"]["only"] > 0 and result["forwards"]
