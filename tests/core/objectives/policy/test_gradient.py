"""Policy gradients: ratios and divergences of nothing, gradients by enumeration, rewards that are learnt, resumes.

C9 of the known-answer checks. Shape letters: G prompts, N generations, B = G * N, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from benchmarks.learning.objectives import new_model
from benchmarks.learning.policy import PREFERENCES, REWARDS, preference, reward
from mmdiff import train
from mmdiff.canvas.sample import Target, Text
from mmdiff.config.settings import GenerationConfig, TrainConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood.elbo import Quadrature
from mmdiff.model.likelihood.orders import AlongSteps, Coupled, MeanField, PartlyMasked
from mmdiff.objectives.policy.advantage import Advantage, Centred, LeaveOneOut, Softmaxes
from mmdiff.objectives.policy.gradient import PolicyGradient
from mmdiff.objectives.policy.reference import Copied
from mmdiff.objectives.policy.reward import Called, Scored
from mmdiff.objectives.policy.rollouts import Rollouts, scored
from mmdiff.objectives.policy.surrogate import Clipped, ClippedSequence, Plain, Surrogate
from mmdiff.protocols import Row
from mmdiff.training.loading import Collecting

KEY = NoiseKey(3, step=4, stream="s", batch=4)


@dataclass(frozen=True)
class Counted:
    """The reward of a test: how often a word stands in a prediction."""

    word: str = "north"

    def __call__(self, prediction: str, row: Row, task: Any) -> float:
        return float(prediction.split().count(self.word))


def model(scale: float = 3.0, seed: int = 0) -> MMDiff:
    torch.manual_seed(seed)
    out = MMDiff(toy.backbone())
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(scale)
    return out.eval()


def collected(objective: PolicyGradient, m: MMDiff, words: int = 2, prompts: int = 4, key: NoiseKey = KEY) -> Rollouts:
    row, task = {"question": "where", "answer": " ".join(["north"] * words)}, toy.Where(image=False)
    batch = collate([task.prompt(row, m.vocab)] * prompts, m.vocab, side="left")
    return objective.collect(m, batch, key, lambda n: (row, task, ""), GenerationConfig())


# Rollouts ------------------------------------------------------------------------------------------------------------


def test_generations_are_those_of_the_sampler_with_their_rewards() -> None:
    m = model()
    objective = PolicyGradient(Counted(), size=3, advantage=LeaveOneOut()).for_model(m)
    made = collected(objective, m)
    assert len(made) == 12 and made.batch.index_B.tolist() == [n // 3 for n in range(12)]
    assert len({tuple(ids) for ids in made.batch.ids_BL.tolist()}) > 4  # generations of one prompt differ
    words = [m.vocab.decode(ids[t].tolist()) for ids, t in zip(made.batch.ids_BL, made.batch.target_BL, strict=True)]
    assert made.reward_B.tolist() == [float(text.split().count("north")) for text in words]
    torch.testing.assert_close(made.advantage_B.view(4, 3).sum(1), torch.zeros(4))
    assert (made.batch.step_BL is not None) and bool((made.batch.step_BL[made.batch.target_BL] > 0).all())
    again = collected(objective, m)
    assert torch.equal(again.batch.ids_BL, made.batch.ids_BL)
    other = collected(objective, m, key=replace(KEY, step=5))
    assert not torch.equal(other.batch.ids_BL, made.batch.ids_BL)


def test_what_stands_behind_an_end_is_not_scored() -> None:
    m = model()
    end, x = m.vocab.eos_id, 5
    ids = torch.tensor([[x, end, end, x, x, x], [x, x, x, end, end, x]])
    generated = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1]]).bool()
    expected = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 0, 1, 0, 0]]).bool()
    assert torch.equal(scored(ids, generated, m.vocab), expected)


def test_advantages_by_hand() -> None:
    reward = torch.tensor([[1.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(LeaveOneOut()(reward), torch.tensor([[0.0, -4 / 3, -4 / 3, 8 / 3]], dtype=torch.float64))
    torch.testing.assert_close(Centred()(reward), torch.tensor([[0.0, -1.0, -1.0, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(Centred(scaled=True)(reward), Centred()(reward) / (1.5**0.5 + 1e-4))
    a = np.exp([0.0, -1, -1, 2])
    b = np.exp([0.0, 1, 1, -2])
    torch.testing.assert_close(Softmaxes()(reward)[0], torch.from_numpy(a / a.sum() - b / b.sum()))
    for one in (LeaveOneOut(), Centred(), Centred(scaled=True), Softmaxes()):
        assert float(one(torch.ones(2, 4)).abs().max()) == 0  # equals teach nothing
        assert float(one(reward).sum()) == pytest.approx(0, abs=1e-6)


def test_surrogates_by_hand() -> None:
    logp = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, -1.0, -5.0]]).log_softmax(1)
    old = logp - torch.tensor([[0.1, 0.5, 9.0], [-0.5, 0.1, 0.0]])
    on = torch.tensor([[True, True, False], [True, True, False]])
    up, down = torch.tensor([2.0, 2.0]), torch.tensor([-2.0, -2.0])
    e = np.exp
    expected = [[-2 * e(0.1), -2 * 1.2, 0], [-2 * e(-0.5), -2 * e(0.1), 0]]
    torch.testing.assert_close(Clipped()(logp, old, on, up), torch.tensor(expected, dtype=torch.float32))
    expected = [[2 * e(0.1), 2 * e(0.5), 0], [2 * 0.8, 2 * e(0.1), 0]]
    torch.testing.assert_close(Clipped()(logp, old, on, down), torch.tensor(expected, dtype=torch.float32))
    expected = [[-2 * 1.2, -2 * 1.2, 0], [-2 * e(-0.2), -2 * e(-0.2), 0]]
    torch.testing.assert_close(ClippedSequence()(logp, old, on, up), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(Plain()(logp, old, on, up), torch.where(on, -2 * logp, 0.0))


# C9: the first step --------------------------------------------------------------------------------------------------

ESTIMATORS = [MeanField(0.15), Coupled(), Quadrature(2), AlongSteps(), PartlyMasked()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("inner", [1, 2])
def test_at_the_first_step_every_ratio_is_one_and_the_divergence_nothing(estimator: Any, inner: int) -> None:
    """Under the same masks; a loss of 0 then, for advantages of a group add up to 0, with the gradient of log p."""
    m = model()
    objective = PolicyGradient(
        Counted(), size=4, inner=inner, estimator=estimator, kl=0.1, reference=Copied(), denominator="sequences"
    ).for_model(m)
    made = collected(objective, m)
    terms = objective.terms(m, objective.plan(made, KEY, m.vocab))
    top, bottom = terms["policy"].sums["ratio"]
    assert float(top) == float(bottom)
    assert float(terms["kl"].value.detach()) == 0
    assert float(terms["policy"].value.detach()) == pytest.approx(0, abs=1e-5)
    if inner > 1:  # the masks of the second step are others, and their estimates are known, too
        later = objective.plan(made, replace(KEY, step=KEY.step + 1), m.vocab)
        first = objective.plan(made, KEY, m.vocab)
        top, bottom = objective.terms(m, later)["policy"].sums["ratio"]
        assert float(top) == pytest.approx(float(bottom), rel=1e-6)
        if not isinstance(estimator, AlongSteps):
            assert not torch.equal(first.ids_RL, later.ids_RL)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    moved = objective.terms(m, objective.plan(made, KEY, m.vocab))
    assert float(moved["kl"].value.detach()) > 0
    assert inner == 1 or float(moved["policy"].sums["ratio"][0]) != float(bottom)


def bandit(objective: PolicyGradient, steps: int, surrogate: Surrogate | None = None) -> tuple[float, float]:
    """One token behind one prompt. Returns the largest of z of components of the mean gradient against the analytic
    one of the expected reward, and the ratio of the two along the analytic one."""
    m = model(scale=1.5)
    objective = objective.for_model(m)
    table = m.backbone.model.get_output_embeddings().weight
    allowed = [i for i in range(m.vocab.size) if i not in (m.vocab.mask_id, m.vocab.slot_id)]
    prompt = collate([[Text(m.vocab.encode("where")), Target(length=1)]], m.vocab)
    h = m.hidden(prompt.ids_BL, prompt, {}, torch.arange(1))
    logits = m.backbone.head(h[:, -1]).float()[0]
    sampled_p = logits[allowed].softmax(0)  # the sampler bans mask and slot; the loss is over all ids
    worth = torch.tensor([Counted()(m.vocab.decode([i]), {}, None) for i in allowed])
    centre = (sampled_p.detach() * worth).sum()
    expected = (sampled_p.detach() * (worth - centre) * logits.log_softmax(0)[allowed]).sum()
    (exact,) = torch.autograd.grad(expected, table)
    exact = exact[4:9].flatten()
    of = []
    for step in range(steps):
        key = replace(KEY, step=step)
        made = collected(objective, m, words=1, prompts=32, key=key)
        made.batch.index_B = torch.arange(len(made))
        terms = objective.terms(m, objective.plan(made, key, m.vocab))
        (grad,) = torch.autograd.grad(-terms["policy"].value / len(made), table)
        of.append(grad[4:9].flatten())
    found = torch.stack(of)
    z = (found.mean(0) - exact) / (found.std(0) / steps**0.5).clamp(min=1e-9)
    along = float(found.mean(0) @ exact / (exact @ exact))
    return float(z.abs().max()), along


@pytest.mark.parametrize("surrogate", [Clipped(), ClippedSequence(), Plain()], ids=lambda s: type(s).__name__)
def test_the_gradient_is_that_of_the_expected_reward(surrogate: Surrogate) -> None:
    """The largest of 160 components: 4.5 standard errors are exceeded about once in 1,000 such tests."""
    z, along = bandit(PolicyGradient(Counted(), size=2, advantage=LeaveOneOut(), surrogate=surrogate), 60)
    assert z < 4.5 and along == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("advantage", "size", "factor"), [(Centred(), 2, 0.5), (Centred(scaled=True), 4, None)])
def test_the_check_of_bias_sees_a_bias(advantage: Advantage, size: int, factor: float | None) -> None:
    """A group's own mean holds the reward itself: of two, half of the gradient is left."""
    z, along = bandit(PolicyGradient(Counted(), size=size, advantage=advantage), 60)
    assert z > 5
    assert factor is None or along == pytest.approx(factor, abs=0.1)


# Learning ------------------------------------------------------------------------------------------------------------


def config(steps: int, objective: dict[str, Any], **settings: Any) -> Any:
    stage = {"steps": steps, "batch_size": 8, "lr": 3e-3, "lr_schedule": "constant", "objective": objective}
    return toy.config(image=False, stage=stage, **{"save_every": steps, "log_every": 1, **settings})


def reward_by_step(folder: Path) -> list[float]:
    import json

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line["reward"] for line in map(json.loads, lines) if "reward" in line]


RECIPES = {
    "diffu-GRPO": {"estimator": {"target": "mmdiff.model.likelihood.orders.MeanField", "context": 0.15}},
    "coupled-GRPO": {
        "estimator": {"target": "mmdiff.model.likelihood.orders.Coupled"},
        "advantage": {"target": "mmdiff.objectives.policy.advantage.LeaveOneOut"},
    },
    "UniGRPO": {
        "estimator": {"target": "mmdiff.model.likelihood.orders.PartlyMasked"},
        "advantage": {"target": "mmdiff.objectives.policy.advantage.Centred", "scaled": True},
    },
    "CJ-GRPO": {"estimator": {"target": "mmdiff.model.likelihood.orders.AlongSteps"}},
    "GDPO": {
        "estimator": {"target": "mmdiff.model.likelihood.elbo.Quadrature", "nodes": 2},
        "surrogate": {"target": "mmdiff.objectives.policy.surrogate.ClippedSequence"},
    },
    "wd1": {
        "surrogate": {"target": "mmdiff.objectives.policy.surrogate.Plain"},
        "advantage": {"target": "mmdiff.objectives.policy.advantage.Softmaxes"},
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (n > 0)) for n, one in enumerate(RECIPES)]
)
def test_a_reward_is_learnt(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two words per answer, of which each `north` is worth 1: from chance, 0.2 of 2, to more than 1.5."""
    monkeypatch.chdir(tmp_path)
    target = "mmdiff.objectives.policy.gradient.PolicyGradient"
    reward = {"target": "tests.core.objectives.policy.test_gradient.Counted"}
    train(config(25, {"target": target, "reward": reward, **RECIPES[name]}))
    rewards = reward_by_step(tmp_path / "runs/toy")
    print(f"{name}: {np.mean(rewards[:2]):.2f} -> {np.mean(rewards[-3:]):.2f}")
    assert np.mean(rewards[:2]) < 1 and np.mean(rewards[-3:]) > 1.5


def test_generations_that_are_used_twice_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps, and four, then four more, end in the same weights, to the bit."""
    monkeypatch.chdir(tmp_path)
    objective = {
        "target": "mmdiff.objectives.policy.gradient.PolicyGradient",
        "reward": {"target": "mmdiff.objectives.policy.reward.Scored", "name": "exact"},
        "inner": 2, "size": 2,
    }  # fmt: skip
    train(replace(config(8, objective, save_every=4), name="whole"))
    train(replace(config(4, objective, save_every=4), name="parts"))
    train(replace(config(8, objective, save_every=4), name="parts"))
    whole, parts = (MMDiff.from_pretrained(f"runs/{name}/model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("inner", [1, 2])
def test_two_processes_and_several_forwards_equal_one(
    inner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generations, rewards and gradients belong to samples, not to processes or forwards."""
    monkeypatch.chdir(tmp_path)
    objective = {
        "target": "mmdiff.objectives.policy.gradient.PolicyGradient",
        "reward": {"target": "tests.core.objectives.policy.test_gradient.Counted"},
        "inner": inner, "size": 4,
    }  # fmt: skip
    made = {}
    shards = {"full": "full", "gradients": "gradients"}
    for name, batch, accumulate, world in (
        ("one", 8, 1, 1), ("parts", 2, 4, 1), ("two", 2, 2, 2), ("full", 2, 2, 2), ("gradients", 4, 1, 2),
    ):  # fmt: skip
        one = config(4, objective, name=name)
        one.train.sharding = shards.get(name, "none")  # type: ignore[assignment]
        one.train.stages["only"].batch_size, one.train.stages["only"].accumulate = batch, accumulate
        if world == 1:
            train(one)
        else:
            toy.in_processes(world, one)
        made[name] = MMDiff.from_pretrained(f"runs/{name}/model").state_dict(), reward_by_step(Path(f"runs/{name}"))
    for name in ("parts", "two", *shards):
        assert made[name][1] == pytest.approx(made["one"][1])
        for key, tensor in made["one"][0].items():
            torch.testing.assert_close(made[name][0][key], tensor, rtol=0, atol=1e-4)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = {"target": "mmdiff.objectives.policy.gradient.PolicyGradient", "inner": 3,
            "reward": {"target": "mmdiff.objectives.policy.reward.Scored", "name": "exact"}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"train\.save_every: 4, expected a multiple of objective\.inner, 3"):
        train(config(4, node))
    stage = SimpleNamespace(settings=TrainConfig(deepspeed="ds.json"))
    with pytest.raises(
        ConfigError, match=r"^x\.objective: generates between steps of DeepSpeed; expected train\.sharding"
    ):
        Collecting.of(PolicyGradient(Counted()), stage, "x")
    with pytest.raises(ConfigError, match=r"objective\.kl: 0\.1 of no model"):
        PolicyGradient(Counted(), kl=0.1)
    with pytest.raises(ConfigError, match=r'objective\.sampler\.temprature.*"temperature"'):
        PolicyGradient(Counted(), sampler={"temprature": 1.0})
    m = model()
    with pytest.raises(DataError, match=r'objective\.reward\.name: \'exakt\' \(did you mean "exact"\?\)'):
        collected(PolicyGradient(Scored("exakt"), size=2).for_model(m), m)
    with pytest.raises(ConfigError, match=r'objective\.reward\.function: math has no "sqr"'):
        Called("math.sqr")
    objective = PolicyGradient(Counted(), size=2).for_model(m)
    wrong: list[Any] = [
        float("nan"),
        float("-inf"),
        np.float32("nan"),
        torch.tensor(torch.inf),
        1e300,
        10**400,
        10**5000,
    ]
    for value in [*wrong, None, "1", 1j, torch.ones(2)]:
        monkeypatch.setattr(Counted, "__call__", lambda *_, given=value: given)
        with pytest.raises(
            ConfigError, match=r"objective\.reward: Counted gave .*, expected a finite number"
        ) as raised:
            collected(objective, m)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 200
    for value in (True, 3, np.float32(0.5), np.int64(2), torch.tensor(1.5), np.True_, 1e30):
        monkeypatch.setattr(Counted, "__call__", lambda *_, given=value: given)
        made = collected(objective, m)
        assert made.reward_B.isfinite().all() and made.advantage_B.isfinite().all()


def worth(prediction: str, row: Row) -> float:
    return float(len(prediction.split()))


def test_a_function_by_its_path() -> None:
    reward: Any = Called("tests.core.objectives.policy.test_gradient.worth")
    assert reward("a b", {}, None) == 2.0


def kept(m: MMDiff) -> Tensor:
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def test_collecting_changes_no_weight_and_no_mode() -> None:
    m = model()
    m.train()
    before = kept(m)
    collected(PolicyGradient(Counted(), size=2, inner=2).for_model(m), m)
    assert m.training and torch.equal(kept(m), before) and all(p.grad is None for p in m.parameters())


@pytest.mark.slow
def test_the_benchmark_takes_steps() -> None:
    base = new_model()
    assert all(0 <= preference(name, base, new_model(), steps=1, draws=2)["preferred"] <= 1 for name in PREFERENCES)
    assert all(reward(name, base, steps=1)["drift"] < 5 for name in REWARDS)
