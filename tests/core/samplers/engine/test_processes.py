"""Noise processes against what is known exactly: shares, posteriors, bounds, the law of what is sampled, edits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from logit_tables import MASK as BAN
from logit_tables import VOCAB as WORDS_VOCAB
from logit_tables import V, by_query
from oracle import LENGTH, MASK, SEQUENCES, WORDS, Chain, distance
from torch import Tensor

from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mixing import rates, shares
from mmdiff.objectives.replacing.hybrid import HybridBound
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.editing import Editing
from mmdiff.samplers.processes.hybrid import Hybrid

UNIFORM = [0.0, 0.2, 0.7, 1.0]
ROWS = 4_000
SEQUENCES_SL = torch.tensor(SEQUENCES)


@pytest.mark.parametrize("uniform", UNIFORM)
def test_shares_sum_to_one_and_rates_are_their_slopes(uniform: float) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    at = shares(t, uniform)
    assert torch.allclose(sum(at), torch.ones_like(t))  # type: ignore[arg-type]
    h = 1e-6
    slope = [(b - a) / (2 * h) for a, b in zip(shares(t - h, uniform), shares(t + h, uniform), strict=True)]
    decay = slope[0] / at.kept
    into_mask, into_any = rates(t, uniform)
    assert torch.allclose(into_mask, slope[1] - decay * at.masked, atol=1e-6)
    assert torch.allclose(into_any, slope[2] - decay * at.replaced, atol=1e-6)
    half = shares(torch.tensor(0.5), uniform)
    assert float(half.replaced) == pytest.approx(uniform if uniform < 1 else 0.5)


def kernel(t: float, s: float, uniform: float) -> Tensor:
    """q(z_t | z_s), (s, t), the mask last, from the shares alone: a matrix whose product with Q_s is Q_t."""
    (a, m, u), (b, n, v) = (shares(torch.tensor(x), uniform) for x in (t, s))
    k = a / b
    out = torch.zeros(WORDS + 1, WORDS + 1, dtype=torch.float64)
    out[:, :WORDS] += (u - k * v) / WORDS
    out[:, WORDS] += m - k * n
    return out + k * torch.eye(WORDS + 1, dtype=torch.float64)


def marginal(t: float, uniform: float) -> Tensor:
    """q_t(z | x), (x, z), the mask last."""
    a, m, u = shares(torch.tensor(t), uniform)
    out = torch.full((WORDS, WORDS + 1), float(u) / WORDS, dtype=torch.float64)
    out[:, WORDS] = m
    out[:, :WORDS] += a * torch.eye(WORDS, dtype=torch.float64)
    return out


@pytest.mark.parametrize("given", ["others", "all"])
@pytest.mark.parametrize("uniform", UNIFORM)
def test_the_posterior_is_bayes_rule(uniform: float, given: Any) -> None:
    t, s = 0.7, 0.45
    assert torch.allclose(marginal(s, uniform) @ kernel(t, s, uniform), marginal(t, uniform))
    prior_X = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for now in range(WORDS + 1):
        likelihood_X = marginal(t, uniform)[:, now]
        if likelihood_X.sum() == 0:
            continue  # pure uniform noise never masks
        joint_S = (prior_X[:, None] * marginal(s, uniform) * kernel(t, s, uniform)[:, now]).sum(0)
        exact_S = joint_S / joint_S.sum()
        p_X = prior_X if given == "others" else prior_X * likelihood_X / (prior_X * likelihood_X).sum()
        p_PV = torch.cat([p_X, torch.zeros(2, dtype=torch.float64)])[None]
        allow_PV = torch.tensor([[True] * WORDS + [False] * 2])
        masked_P = torch.tensor([now == WORDS])
        times = (torch.tensor([x], dtype=torch.float64) for x in (t, s))
        ids, mask = Hybrid(uniform, given)._posterior(p_PV, allow_PV, masked_P, torch.tensor([now]), *times)
        found = torch.cat([ids[0, :WORDS], mask])
        assert torch.allclose(found / found.sum(), exact_S, atol=1e-12), now


def exact_noised(p_S: Tensor, uniform: float, steps: int, given: str) -> Any:
    """The exact conditionals of a clean word given noised ones, with or without its own noised id."""

    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        t = 1 - calls[0] / steps
        calls[0] += 1
        canvases, back_R = ids_RL.unique(dim=0, return_inverse=True)
        q_XZ = marginal(t, uniform).clamp(min=0)
        z_RL = canvases.clamp(max=WORDS)
        likelihood_RSL = q_XZ[SEQUENCES_SL[None], z_RL[:, None]]
        out_RLV = torch.zeros(len(canvases), LENGTH, 5, dtype=torch.float64)
        for position in range(LENGTH):
            kept_L = [i for i in range(LENGTH) if i != position or given == "all"]
            weight_RS = likelihood_RSL[:, :, kept_L].prod(-1) * p_S
            word_SX = torch.nn.functional.one_hot(SEQUENCES_SL[:, position], WORDS).double()
            out_RLV[:, position, :WORDS] = weight_RS @ word_SX / weight_RS.sum(1, keepdim=True)
        return out_RLV.log()[back_R][predict_RL].float()

    calls = [0]
    return by_query(denoise)


@pytest.mark.parametrize("given", ["others", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("uniform", [0.0, 0.3, 1.0])
def test_with_the_exact_posterior_the_samples_approach_the_data(uniform: float, given: Any) -> None:
    bed, far = Chain(LENGTH, 0.8), {}
    p_S = bed.joint.flatten()
    noisy = collate([[Target(length=LENGTH, allow=((0, WORDS),))]] * ROWS, bed.vocab)
    for steps in (2, 32):
        config = generation_config(
            temperature=1.0, steps=steps, early_stop=False, process=Hybrid(uniform, given), seed=3
        )
        out = sample(exact_noised(p_S, uniform, steps, given), noisy, bed.vocab, config)
        assert out.calls == steps and (out.step_BL == steps).all()
        far[steps] = distance(p_S, bed.law(out.ids_BL).flatten())
    assert far[32] < bed.floor(bed.joint, ROWS) + 0.03 < far[2]


@pytest.mark.parametrize("uniform", [0.0, 0.2, 0.7])
def test_the_bound_of_one_word_is_its_entropy(uniform: float) -> None:
    """With the exact model the integral over time of the expected loss is H(p), for every mixture of noise."""
    p_X = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    bound = HybridBound(Hybrid(uniform), most=1e12)
    angle = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000 * math.pi / 2
    t, weight = angle.sin() ** 2, (2 * angle).sin() * math.pi / 2  # the integrand grows beyond all bounds at both ends
    logits = torch.cat([p_X.log(), torch.full((2,), -torch.inf, dtype=torch.float64)]).float()
    allow = torch.tensor([True] * WORDS + [False] * 2)
    n, total = len(t), 0.0
    at = shares(t, uniform)
    for x, z in itertools.product(range(WORDS), range(WORDS + 1)):
        share = at.masked if z == WORDS else at.replaced / WORDS + at.kept * (x == z)
        loss = bound.loss(
            logits.expand(n, -1), allow.expand(n, -1), torch.full((n,), x), torch.full((n,), min(z, MASK)),
            torch.full((n,), z == WORDS), t,
        )  # fmt: skip
        total += float(p_X[x] * (weight * share * loss.double()).mean())
    assert total == pytest.approx(float(-(p_X * p_X.log()).sum()), abs=2e-3)


def test_noised_ids_have_the_shares_of_their_time() -> None:
    batch = collate([[Text([1]), Target([2] * 400)]] * 50, WORDS_VOCAB)
    bound = HybridBound(Hybrid(0.4))
    plan = bound.plan(batch, NoiseKey(0, 0, "x", batch=50), WORDS_VOCAB)
    again = bound.plan(batch, NoiseKey(0, 0, "x", batch=50), WORDS_VOCAB)
    assert torch.equal(plan.ids_BL, again.ids_BL) and (plan.ids_BL[:, 0] == 1).all()
    at = shares(plan.t_B, 0.4)
    ids_BT = plan.ids_BL[:, 1:]
    masked_B, other_B = (ids_BT == BAN).double().mean(1), ((ids_BT != BAN) & (ids_BT != 2)).double().mean(1)
    assert (masked_B - at.masked).abs().max() < 0.1
    n = int(bound.plan(batch, NoiseKey(0, 0, "x"), WORDS_VOCAB).counts["hybrid"])
    assert n == 50 * 400
    assert (other_B - at.replaced).abs().mean() < 0.04 and plan.t_B.sort().values.diff().max() < 0.05


# Editing --------------------------------------------------------------------------------------------------------------


def editor(late: float) -> Any:
    """1 is likeliest at position 0 until position 1 holds 5, then 2 with the logit `late`."""

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits_RLV = torch.zeros(len(ids_RL), ids_RL.shape[1], V)
        logits_RLV[:, 0, 1], logits_RLV[:, 1, 5], logits_RLV[:, 2, 6] = 7.0, 6.0, 5.5
        logits_RLV[ids_RL[:, 1] == 5, 0, 2] = late
        return logits_RLV[predict_RL]

    return denoise


def test_a_committed_token_is_replaced_where_the_model_is_surer_of_another() -> None:
    batch = collate([[Target(length=3)]], WORDS_VOCAB)
    named: dict[str, Any] = dict(early_stop=False)
    plain = sample(editor(30.0), batch, WORDS_VOCAB, generation_config(**named))
    assert plain.ids_BL.tolist() == [[1, 5, 6]] and plain.calls == 3
    out = sample(editor(30.0), batch, WORDS_VOCAB, generation_config(process=Editing(0.9), **named))
    # position 0 is edited at step 3, when 5 stands at position 1; one more step finds nothing to change
    assert out.ids_BL.tolist() == [[2, 5, 6]] and out.step_BL.tolist() == [[3, 2, 3]] and out.calls == 4
    unsure = sample(editor(7.1), batch, WORDS_VOCAB, generation_config(process=Editing(0.9), **named))
    assert unsure.ids_BL.tolist() == [[1, 5, 6]]
    given = collate([[Target([1, BAN, BAN])]], WORDS_VOCAB)
    kept = sample(editor(30.0), given, WORDS_VOCAB, generation_config(process=Editing(0.9), **named))
    assert kept.ids_BL.tolist() == [[1, 5, 6]], "given tokens are never edited"


def test_edits_end() -> None:
    """A model that always wants another token: `most` steps after the last pending position."""
    turn = [0]

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits_RLV = torch.zeros(len(ids_RL), ids_RL.shape[1], V)
        turn[0] += 1
        logits_RLV[..., turn[0] % 7] = 30.0
        return logits_RLV[predict_RL]

    batch = collate([[Target(length=2)]], WORDS_VOCAB)
    out = sample(
        denoise, batch, WORDS_VOCAB, generation_config(process=Editing(0.5, most=4), steps=1, early_stop=False)
    )
    assert out.calls == 5


RAGGED: list[Sample] = [
    [Text([3]), Target(length=5)],
    [Target(length=2), Text([4]), Target(length=3)],
    [Target([0, BAN])],
]


@pytest.mark.parametrize(
    "named",
    [
        {"process": Hybrid(0.3), "steps": 4, "temperature": 1.0},
        {"process": Hybrid(1.0, "all"), "steps": 6, "temperature": 0.7, "block_length": 2},
        {"process": Editing(0.1), "threshold": 0.2, "block_length": 3},
        {"process": Editing(0.1), "temperature": 1.0, "steps": 3},
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(named: dict[str, Any]) -> None:
    table_VV = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(0))

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        target_RL = batch.target_BL[row_R]
        first_R = target_RL.long().argmax(1)
        seen_RLV = table_VV[ids_RL] + 0.5 * table_VV.T[ids_RL.gather(1, first_R[:, None])]
        return seen_RLV[predict_RL]

    batch = collate(RAGGED, WORDS_VOCAB, index=[8, 3, 5])
    together = sample(denoise, batch, WORDS_VOCAB, generation_config(seed=1, early_stop=False, **named))
    whole = batch
    for b, (row, name) in enumerate(zip(RAGGED, [8, 3, 5], strict=True)):
        batch = collate([row], WORDS_VOCAB, index=[name])
        alone = sample(denoise, batch, WORDS_VOCAB, generation_config(seed=1, early_stop=False, **named))
        assert alone.targets()[0] == together.targets()[b]
        assert int(alone.forwards_B[0]) == int(together.forwards_B[b])
    assert not torch.isin(together.ids_BL[whole.target_BL], torch.tensor([BAN])).any()


def test_without_uniform_noise_a_token_that_is_seen_stays() -> None:
    """Whatever the model makes of it later: at temperature 0 its p is 0 wherever it has changed its mind."""
    table_VV = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    table_VV[:, WORDS_VOCAB.slot_id] = -9.0

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Any = None) -> Tensor:
        row_P, position_P = predict_RL.nonzero(as_tuple=True)
        n_masked_P = (ids_RL == BAN).sum(1)[row_P]
        return 9.0 * table_VV[(n_masked_P + position_P) % V]  # another likeliest id for every count of masks

    class Drafts:
        seen: list[Tensor] = []

        def put_draft(self, value: Tensor, **named: Any) -> None:
            self.seen.append(value.clone())

        def put(self, value: Tensor) -> None: ...
        def end(self) -> None: ...

    batch = collate([[Target(length=12)], [Text([3]), Target(length=9)]], WORDS_VOCAB)
    config = generation_config(process=Hybrid(0.0), steps=6, early_stop=False)
    out = sample(denoise, batch, WORDS_VOCAB, config, streamer=Drafts())
    assert len(Drafts.seen) == 6 and not (out.ids_BL[out.target_BL] == BAN).any()
    for before_BL, after_BL in itertools.pairwise(Drafts.seen):
        assert (after_BL == before_BL)[before_BL != BAN].all()
        assert (before_BL == BAN).any()
