"""What preferences and rewards do to a small model, by estimate of log p: how much it varies, and what is learnt.

    python benchmarks/learning/policy.py --json runs/policy.json

The task is that of `objectives.py` beside it: four tokens of a Markov chain behind its first state, a model of two
layers that knows the chain. Of two sequences, that with more tokens of state 0 is preferred; the reward is that number.

    spread      standard deviation of a pair's margin over 200 draws of masks, in nats, against a reference near by
    preferred   share of held-out pairs with a margin above 0, after `--steps` steps of 16 pairs
    reward      mean number of tokens of state 0 in generations, after `--steps` steps of 8 prompts, 8 generations each
    seconds     of a processor, for a step
    drift       nats that the bound of held-out sequences of the chain has risen by

Shape letters: B samples.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, write_figures
from benchmarks.learning.objectives import FIRST, LENGTH, STATES, fit, new_model, rows
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Break, Target, Text
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import estimate
from mmdiff.model.likelihood.drawn import Drawn
from mmdiff.model.likelihood.elbo import AnyOrder, Elbo, Quadrature
from mmdiff.model.likelihood.orders import AlongSteps, Coupled, MeanField, PartlyMasked
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.policy.advantage import Centred, LeaveOneOut, Softmaxes
from mmdiff.objectives.policy.gradient import PolicyGradient
from mmdiff.objectives.policy.preference import Preference
from mmdiff.objectives.policy.reference import Copied
from mmdiff.objectives.policy.surrogate import ClippedSequence, Plain

WORD = "s0"


class Words:
    """Predictions of the chain, in words."""

    def parse(self, ids: Sequence[int], vocab: Any) -> list[str]:
        return [vocab.piece(i) for i in ids]


def count(prediction: list[str], row: Any, task: Any) -> float:
    return float(prediction.count(WORD))


def pairs(model: MMDiff, first: int, number: int) -> Batch:
    """Two sequences behind one state, that with more of state 0 first; pairs that tie are left out."""
    some = rows(model, 10**6 + 40 * first, 40 * number).ids_BL - FIRST
    by_start: dict[int, list[list[int]]] = {state: [] for state in range(STATES)}
    made: list[Any] = []
    for start, *rest in some.tolist():
        kept = by_start[start]
        other = next((one for one in kept if one.count(0) != rest.count(0)), None)
        if other is None:
            kept.append(rest)
            continue
        kept.remove(other)
        better, worse = sorted((rest, other), key=lambda one: -one.count(0))
        texts = [[FIRST + state for state in one] for one in (better, worse)]
        context = Text([FIRST + start])
        made.append([context, Target(texts[0]), Break(), context, Target(texts[1])])
    return collate(made[:number], model.vocab, index=range(first, first + len(made[:number])))


def optimised(model: MMDiff, steps: int, lr: float, step_loss: Any) -> float:
    """Takes the steps. Returns the seconds of one."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    begin = time.process_time()
    for step in range(steps):
        loss = step_loss(step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return (time.process_time() - begin) / steps


def drift(model: MMDiff, base: MMDiff) -> float:
    held_out = rows(base, 100_000, 256)
    nll = [estimate(one.eval(), held_out, AnyOrder()).nll_B.mean() for one in (model, base)]
    return float(nll[0] - nll[1])


PREFERENCES = {
    "VRPO: eight times, one mask each": Drawn(times=8),
    "one time, eight masks": Drawn(times=1, masks=8),
    "four counts, spread evenly": Elbo(4),
    "all tokens at once": MeanField(),
}
REWARDS: dict[str, dict[str, Any]] = {
    "diffu-GRPO (d1)": {"estimator": MeanField()},
    "UniGRPO": {"estimator": PartlyMasked(), "advantage": Centred(scaled=True)},
    "coupled-GRPO": {"estimator": Coupled(), "advantage": LeaveOneOut()},
    "CJ-GRPO": {"estimator": AlongSteps(), "advantage": Centred(scaled=True)},
    "GDPO": {"estimator": Quadrature(3), "surrogate": ClippedSequence()},
    "wd1": {"surrogate": Plain(), "advantage": Softmaxes()},
    "diffu-GRPO, held by kl 0.1": {"estimator": MeanField(), "kl": 0.1, "reference": Copied()},
}


def preference(name: str, base: MMDiff, near: MMDiff, steps: int, draws: int = 200) -> dict[str, Any]:
    estimator, one = PREFERENCES[name], pairs(base, 0, 1)
    margins = []
    objective = Preference(estimator=estimator, beta=0.5, reference=Copied()).for_model(base)
    for step in range(draws):
        plan = objective.plan(one, NoiseKey(2, step, "bench"), base.vocab)
        with torch.no_grad():
            margins.append(float(objective.terms(near, plan)["preference"].sums["margin"][0]))
    model = deepcopy(base)
    objective = Preference(estimator=estimator, beta=0.5, reference=Copied()).for_model(model)

    def step_loss(step: int) -> torch.Tensor:
        batch = pairs(model, 1000 + 16 * step, 16)
        plan = objective.plan(batch, NoiseKey(1, step, "bench", batch=16), model.vocab)
        return objective.terms(model, plan)["preference"].value / 16

    seconds = optimised(model, steps, 5e-4, step_loss)
    exact = Preference(estimator=Elbo(LENGTH), reference=Copied()).for_model(base)
    plan = exact.plan(pairs(base, 50_000, 200), NoiseKey(1), base.vocab)
    with torch.no_grad():
        right, total = exact.terms(model, plan)["preference"].sums["preferred"]
    figures = {"spread": float(np.std(margins)), "preferred": float(right / total), "seconds": seconds}
    return {"recipe": name, **figures, "drift": drift(model, base)}


def reward(name: str, base: MMDiff, steps: int) -> dict[str, Any]:
    model = deepcopy(base)
    objective = PolicyGradient(count, size=8, **REWARDS[name]).for_model(model)
    task: Any = Words()

    def prompts(first: int, number: int) -> Batch:
        some = rows(model, first, number)
        made = [[Text(ids[:1]), Target(length=LENGTH)] for ids in some.ids_BL.tolist()]
        return collate(made, model.vocab, index=range(first, first + number), side="left")

    def collected(first: int, number: int, step: int, one: PolicyGradient) -> Any:
        key = NoiseKey(1, step, "bench", batch=number)
        return one.collect(model, prompts(first, number), key, lambda n: ({}, task, ""), GenerationConfig()), key

    def step_loss(step: int) -> torch.Tensor:
        made, key = collected(8 * step, 8, step, objective)
        plan = objective.plan(made, key, model.vocab)
        terms = objective.terms(model, plan)
        return torch.stack([t.coefficient * t.value / plan.counts[n] for n, t in terms.items()]).sum()

    before = float(collected(10**5, 64, 0, objective)[0].reward_B.mean())
    seconds = optimised(model, steps, 5e-4, step_loss)
    after = float(collected(10**5, 64, 0, replace(objective))[0].reward_B.mean())
    return {"recipe": name, "before": before, "reward": after, "seconds": seconds, "drift": drift(model, base)}


def main(arguments: Sequence[str] | None = None) -> None:
    options = Options(__doc__)
    options.number("--steps", 60)
    args = options.parse_args(arguments)
    torch.set_num_threads(1)
    base = new_model()
    fit(Denoise(), base, 300)
    near = deepcopy(base)
    fit(Denoise(), near, 10)
    out: dict[str, Any] = {"steps": args.steps, "preferences": [], "rewards": []}
    for name in PREFERENCES:
        out["preferences"].append(found := preference(name, base, near, args.steps))
        print(json.dumps(found), flush=True)
    for name in REWARDS:
        out["rewards"].append(found := reward(name, base, args.steps))
        print(json.dumps(found), flush=True)
    write_figures(out, args.json)


if __name__ == "__main__":
    main()
