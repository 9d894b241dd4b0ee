"""A latent beside the canvas: tokens of one call that depend on each other, the KL, and the plain loss without it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from mmdiff import check, train
from mmdiff.canvas.patterns import BlockCausal, Full, PrefixCausal
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.extras.latent import Latent
from mmdiff.objectives.extras.variational import LatentDenoise, gaussian_kl
from mmdiff.samplers.grammars.pattern import Pattern
from mmdiff.samplers.links.caches import Prefix
from mmdiff.samplers.links.energy import Resample
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.processes.latent import Variational
from mmdiff.session import load
from tests.core.objectives.extras.pairs import (
    DIGITS,
    FIRST,
    KEY,
    WIDTH,
    empty,
    fit,
    longer,
    model_with,
    pairs,
    sampled,
    valid,
)


def model(size: int = 4, layers: int = 2, attention: Any = None) -> MMDiff:
    return model_with(lambda vocab_size: {"latent": Latent(width=WIDTH, size=size)}, layers, attention)


@pytest.mark.slow
def test_tokens_of_one_call_depend_on_each_other() -> None:
    """Two tokens in one call: independent ones are a pair one time in ten, those that share a latent nearly always."""
    process, options = Variational(size=1), {"steps": 1, "early_stop": False, "seed": 3}
    one, plain = model(size=1, layers=1), model(layers=1)
    loose, tight = (LatentDenoise(process, beta=beta) for beta in (0.1, 1.0))
    fit(one, [(loose, 5e-3, 200), (tight, 5e-3, 200), (tight, 1e-3, 100)])
    batch = empty(1000, one.vocab)
    out = one.generate(batch, process=process, **options)
    share_K = torch.bincount(out.ids_BL[:, -2] - FIRST, minlength=DIGITS) / 1000
    assert out.calls == 1 and valid(out.ids_BL) > 0.85
    assert (share_K > 0.03).all()  # all pairs are there, though the likeliest token was taken: the draw is z
    fit(plain, [(Denoise(), 5e-3, 60)])
    assert valid(plain.generate(batch, temperature=1.0, **options).ids_BL) < 0.15


def small_plan(one: MMDiff, beta: float, copies: int = 2) -> tuple[LatentDenoise, Any]:
    objective = LatentDenoise(Variational(size=4), Denoise(copies=copies), beta)
    return objective, objective.plan(pairs(one.vocab, 8), replace(KEY, batch=8), one.vocab)


@pytest.mark.parametrize("attention", [Full(), PrefixCausal()])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_latent_that_is_ignored_is_the_plain_loss(attention: Any, copies: int) -> None:
    one = model(attention=attention)
    torch.nn.init.zeros_(one.extras["latent"].up[2].weight)  # type: ignore[index, union-attr, arg-type]
    objective, plan = small_plan(one, 0.0, copies)
    terms = objective.terms(one, plan)
    plain = Denoise(copies=copies).plan(pairs(one.vocab, 8), replace(KEY, batch=8), one.vocab)
    assert torch.equal(plain.masked_RL, plan.masked_RL)
    term = Denoise(copies=copies).terms(one, plain)["denoise"]
    assert torch.equal(terms["denoise"].value, term.value) and plan.counts["denoise"] == plain.counts["denoise"]
    total = terms["denoise"].value + terms["kl"].coefficient * terms["kl"].value
    assert torch.equal(total, term.value)


def test_the_kl_is_that_of_normal_distributions() -> None:
    one = model()
    objective, plan = small_plan(one, 0.7)
    term, (mean_RZ, log_var_RZ) = objective.terms(one, plan)["kl"], objective.posterior(one, plan)
    normal = torch.distributions.Normal
    q, p = normal(mean_RZ, (log_var_RZ / 2).exp()), normal(torch.zeros(4), torch.ones(4))
    exact_R = torch.distributions.kl_divergence(q, p).sum(1)
    assert torch.allclose(gaussian_kl(mean_RZ, log_var_RZ), exact_R, atol=1e-6) and (exact_R > 0).all()
    assert torch.allclose(term.value, (exact_R * plan.weight_R).sum()) and term.coefficient == 0.7
    assert torch.allclose(term.sums["kl"][0] / term.sums["kl"][1], exact_R.mean())


def test_the_loss_is_the_cross_entropy_given_the_drawn_latent() -> None:
    one = model()
    objective, plan = small_plan(one, 1.0)
    noised, (mean_RZ, log_var_RZ) = plan, objective.posterior(one, plan)
    z_RZ = mean_RZ + (log_var_RZ / 2).exp() * plan.drawn["latent"]
    x_RLD, up = one.backbone.embed(noised.ids_RL), one.extras["latent"].up
    for row, position in noised.masked_RL.nonzero().tolist():
        x_RLD = x_RLD.index_put((torch.tensor([row]), torch.tensor([position])), up(z_RZ[row])[None], accumulate=True)  # type: ignore[operator]
    log_p_RLV = one.backbone.head(one.backbone.hidden(x_RLD)).log_softmax(-1)
    nll_RL = -log_p_RLV.gather(2, noised.batch.ids_BL[noised.row_R][..., None]).squeeze(2)
    exact = (nll_RL * noised.masked_RL * noised.weight_R[:, None]).sum()
    assert torch.allclose(objective.terms(one, plan)["denoise"].value, exact, rtol=1e-5)


def test_copies_that_share_a_context_see_their_own_latent() -> None:
    one = model(attention=PrefixCausal()).eval()
    _, plan = small_plan(one, 1.0)
    noised, z_RZ = plan, plan.drawn["latent"]
    beside = {"latent": z_RZ[:, None] * noised.masked_RL[..., None]}
    shared_RLD = one.hidden_copies(noised.ids_RL, noised.batch, {}, 2, extras=beside)
    whole_RLD = one.hidden(noised.ids_RL, noised.batch, {}, noised.row_R, extras=beside)
    assert torch.allclose(shared_RLD, whole_RLD, atol=1e-5)


def test_draws_are_normal_and_each_copys_own() -> None:
    objective, vocab = LatentDenoise(Variational(size=50), Denoise(copies=2)), model().vocab
    plan = objective.plan(pairs(vocab, 200), KEY, vocab)
    assert plan.drawn["latent"].shape == (400, 50) and len(plan.drawn["latent"].unique(dim=0)) == 400
    assert plan.drawn["latent"].mean().abs() < 4 / 20_000**0.5 and (plan.drawn["latent"].std() - 1).abs() < 0.02
    again = objective.plan(pairs(vocab, 8, 16), KEY, vocab)
    assert torch.equal(again.drawn["latent"], torch.cat([plan.drawn["latent"][16:24], plan.drawn["latent"][216:224]]))


def test_padding_does_not_change_the_posterior() -> None:
    one = model()
    rows = [[Text([5]), Target([4, 6])], [Text([5, 7, 8]), Target([9, 4])]]
    objective = LatentDenoise(Variational(size=4))
    plans = [objective.plan(collate(part, one.vocab), KEY, one.vocab) for part in (rows, rows[:1])]
    plans[1].masked_RL[:] = plans[0].masked_RL[:1, :3]
    assert plans[0].batch.padded
    both, alone = (objective.posterior(one, plan) for plan in plans)
    assert all(torch.allclose(a[:1], b, atol=1e-5) for a, b in zip(both, alone, strict=True))


@pytest.mark.parametrize("attention", [PrefixCausal(), BlockCausal(2)])
def test_kept_keys_and_values_are_exact_beside_a_latent(attention: Any) -> None:
    one = model(attention=attention).eval()
    batch, options = longer(one), {"process": Variational(size=4), "block_length": 2}
    ids_BL, kept = sampled(one, batch, **options)
    other_BL, whole = sampled(one, batch, step=False, **options)
    assert torch.equal(ids_BL, other_BL)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept.seen, whole.seen, strict=True))


@pytest.mark.parametrize("denoise", [[], [Prefix()], [Guidance(0.5)]])
@pytest.mark.parametrize("per", ["step", "block"])
def test_a_row_is_what_it_is_alone(per: Any, denoise: Any) -> None:
    one = model().eval()
    batch = longer(one)
    options: dict[str, Any] = {"process": Variational(size=4, per=per), "block_length": 3, "denoise": denoise}
    ids_BL, spy = sampled(one, batch, **options)
    for row in range(3):
        alone_BL, _ = sampled(one, longer(one, row), **options)
        assert torch.equal(alone_BL[0, -6:], ids_BL[row, batch.target_BL[row]])
    z_SBZ = torch.stack([query.extras["latent"].amax(1) + query.extras["latent"].amin(1) for query in spy.queries])
    new_S = (z_SBZ[1:] != z_SBZ[:-1]).any(-1).all(-1)
    assert new_S.tolist() == [per == "step"] * 2 + [True] + [per == "step"] * 2
    for query in spy.queries:
        masked_RL = (query.ids_RL == one.vocab.mask_id) & batch.target_BL[query.row_R]
        assert torch.equal(query.extras["latent"].ne(0).all(-1), masked_RL)


def test_guidance_asks_with_the_same_latent() -> None:
    one = model().eval()
    batch = longer(one)
    _, spy = sampled(one, batch, process=Variational(size=4), denoise=[])
    query, denoise = replace(spy.queries[0], step=None), one.denoiser(batch)
    guided = Guidance(1.5).wrap(denoise, batch, one.vocab)(query).logits_PV
    bare_RL = query.ids_RL.masked_fill(batch.attend_BL & ~batch.target_BL, one.vocab.mask_id)
    c, u = denoise(query).logits_PV, denoise(replace(query, ids_RL=bare_RL)).logits_PV
    assert torch.allclose(guided, u + 2.5 * (c - u), atol=1e-5) and not torch.allclose(c, u)


@pytest.mark.needs("outlines_core")
def test_a_grammar_holds_beside_a_latent() -> None:
    one = model().eval()
    grammar = {"process": Variational(size=4), "constraint": Pattern("[0-4]( [0-4])*"), "steps": 2}
    ids_BL, spy = sampled(one, longer(one), **grammar)
    texts = [one.vocab.decode(row) for row in ids_BL[:, -6:].tolist()]
    assert all(re.fullmatch("[0-4]( [0-4])*", text) for text in texts) and spy.queries[0].extras["latent"].any()
    free_BL, _ = sampled(one, longer(one), process=Variational(size=4), steps=2)
    assert (free_BL > FIRST + 4).any()
    chosen_BL, _ = sampled(one, longer(one), process=Variational(size=4), steps=2, denoise=[Resample(candidates=4)])
    assert not torch.equal(chosen_BL, free_BL)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (Variational("other", 4), "model.extras.other: the model has no such extra .known: latent"),
        (Variational(size=5), "process.size: 5, expected 4"),
    ],
)
def test_what_does_not_fit_is_one_line(process: Variational, message: str) -> None:
    one = model()
    with pytest.raises(ConfigError, match=message):
        one.generate(longer(one), process=process)
    plan = LatentDenoise(process).plan(pairs(one.vocab, 4), KEY, one.vocab)
    with pytest.raises(ConfigError, match=message):
        LatentDenoise(process).terms(one, plan)


def test_a_configuration_trains_and_samples_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = {"target": "mmdiff.samplers.processes.latent.Variational", "size": 3}
    objective = {"target": "mmdiff.objectives.extras.variational.LatentDenoise", "process": process, "beta": 0.5}
    config = toy.config(image=False, stage={"objective": objective})
    config.model.extras["latent"] = {"target": "mmdiff.objectives.extras.latent.Latent", "size": 3}
    config.sampler.process = process
    config.eval.data["all"] = {"target": "toy.Corners", "n": 4}
    assert check(config)["loss"]["only"] > 0
    train(config)
    session = load("runs/toy")
    assert session.predict(toy.Corners()[0])["prediction"]
    assert set(session.model.extras) == {"latent"}
