"""What each objective costs in noise, and what a small model has learned with it after the same number of forwards.

    python benchmarks/learning/objectives.py --json runs/objectives.json

The task: 4 tokens of a Markov chain over 8 states behind its first state, whose conditional entropy is known. A model
of 2 layers and 48 channels is trained from the same start, with the same rows, `--steps` steps of 32 noised copies.

    spread      standard deviation over 200 draws of noise of the loss of a step of 32 copies, as a share of its mean,
                of a model that has been trained with the default
    bound       nats that -log p of all orders together (`mmdiff.model.likelihood.elbo.AnyOrder`, exact) lies above the
                entropy of the chain, on 256 held-out rows, after training; for `blocks` and `esoteric` under their own
                attention: from left to right

Shape letters: B samples.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import BlockCausal, Full
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.diffusion.schedule import Cosine, CosineMDLM, CosineSquared, Discrete, Logarithmic, Polynomial
from mmdiff.diffusion.spans import Mixture, Nothing
from mmdiff.diffusion.spread import Antithetic, Clipped, Independent, SharedOffset, Stratified
from mmdiff.diffusion.token_rates import ImportantFirst, Spindle, write_counts
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import estimate
from mmdiff.model.likelihood.elbo import AnyOrder
from mmdiff.model.likelihood.orders import LeftToRight
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.composed.consistency import MaskAgnostic
from mmdiff.objectives.composed.esoteric import ORDER, Esoteric
from mmdiff.objectives.composed.score_entropy import ScoreEntropy
from mmdiff.objectives.composed.together import Together
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.extras.learned_rates import LearnedRates
from mmdiff.objectives.extras.token_rates import TokenRates
from mmdiff.objectives.noising.change import Complement, EvenWeight, FallingWeight, NearContext, Replaced
from mmdiff.objectives.noising.emphasis import HardTokens

STATES, LENGTH, COPIES, FIRST = 8, 4, 32, 4
T = 20


def chain() -> np.ndarray:
    """Returns (8, 8), the law of the next state: three states are likely, none impossible."""
    rng = np.random.default_rng(0)
    next_SS = rng.random((STATES, STATES)) ** 6 + 0.02
    return next_SS / next_SS.sum(1, keepdims=True)


def rows(model: MMDiff, first: int, count: int) -> Batch:
    """Returns rows `first`, `first` + 1, ..., each a function of its number."""
    cumulated, samples = chain().cumsum(1), []
    for number in range(first, first + count):
        u = np.random.default_rng([7, number]).random(LENGTH + 1)
        states = [int(u[0] * STATES)]
        for value in u[1:]:
            states.append(min(int((cumulated[states[-1]] < value).sum()), STATES - 1))
        samples.append([Text([FIRST + states[0]]), Target([FIRST + state for state in states[1:]])])
    return collate(samples, model.vocab, index=range(first, first + count))


def entropy(model: MMDiff, batch: Batch) -> float:
    """Returns the mean of -log p of rows under the chain itself, in nats."""
    state_BL = batch.ids_BL.numpy() - FIRST
    return float(-np.log(chain()[state_BL[:, :-1], state_BL[:, 1:]]).sum(1).mean())


def new_model(attention: Any = None, rates: bool = False) -> MMDiff:
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"s{state}" for state in range(STATES)])
    backbone = new_backbone(tokenizer=tokenizer, hidden_size=48, layers=2, heads=2)
    extras = {"rates": TokenRates(vocab_size=backbone.vocab.size)} if rates else {}
    return MMDiff(backbone, extras=extras, attention=attention or Full())


def recipes(counts: str) -> dict[str, Any]:
    """Returns objectives by name; `counts` is a table of how often each id occurs."""
    llada = Bernoulli()
    return {
        "exact count, stratified (default)": Denoise(),
        "exact count, independent": Denoise(levels=ExactCount(stratified=False)),
        "exact count, half full": Denoise(levels=ExactCount(full=0.5)),
        "LLaDA: 1/t": Denoise(levels=llada),
        "1/t, stratified": Denoise(levels=llada, spread=Stratified()),
        "1/t, shared offset": Denoise(levels=llada, spread=SharedOffset()),
        "1/t, antithetic": Denoise(levels=llada, spread=Antithetic(Independent())),
        "1/t, clipped to .3-.8": Denoise(levels=llada, spread=Clipped(0.3, 0.8)),
        "cosine (MD4)": Denoise(levels=Bernoulli(Cosine(), stratified=True)),
        "cosine (MDLM)": Denoise(levels=Bernoulli(CosineMDLM(), stratified=True)),
        "cosine squared": Denoise(levels=Bernoulli(CosineSquared(), stratified=True)),
        "polynomial, power 2": Denoise(levels=Bernoulli(Polynomial(2.0), stratified=True)),
        "logarithmic": Denoise(levels=Bernoulli(Logarithmic(), stratified=True)),
        "D3PM: 20 steps": Denoise(levels=Bernoulli(Discrete(T), stratified=True)),
        "DiffuLLaMA: per masked token": Denoise(levels=llada, denominator="masked"),
        "plain mean": Denoise(levels=llada, denominator="mean"),
        "LaViDa: complements, plain mean": Denoise(levels=llada, denominator="mean", changes=[Complement()]),
        "PGM: complements, 1/t": Denoise(levels=llada, changes=[Complement()]),
        "complements of exact counts": Denoise(levels=ExactCount(none=True), changes=[Complement()]),
        "RDM: falling weight": Denoise(levels=Bernoulli(Discrete(T)), changes=[FallingWeight()]),
        "MGDM: hard tokens, even": Denoise(levels=llada, changes=[EvenWeight()], emphasis=HardTokens()),
        "Dream: CART": Denoise(levels=llada, changes=[NearContext()]),
        "DiffusionBERT: spindle": Denoise(levels=Spindle(counts)),
        "important tokens first": Denoise(levels=ImportantFirst(counts, softness=0.3)),
        "MDiff4STR: six kinds of masks": Denoise(levels=Mixture()),
        "MDiff4STR: and replaced tokens": Together(
            {
                "masks": Denoise(levels=Mixture()),
                "tokens": Denoise(levels=Nothing(), denominator="mean", changes=[Replaced(0.5, scored=True)]),
            }
        ),
        "mask-agnostic": MaskAgnostic(most=4),
        "score entropy": ScoreEntropy(Denoise(levels=llada)),
        "GenMD4: learned rates": LearnedRates(),
        "BD3LM: blocks of 2": BlockDenoise(BlockCausal(2, "targets")),
        "left to right: blocks of 1": BlockDenoise(ORDER),
        "Eso-LM: half in order": Esoteric(0.5),
    }


def step_loss(objective: Any, model: MMDiff, batch: Batch, step: int, *without: str) -> torch.Tensor:
    """Returns the loss of a step. without: terms that are left out."""
    plan = objective.plan(batch, NoiseKey(1, step, "bench", batch=len(batch)), model.vocab)
    terms = {name: term for name, term in objective.terms(model, plan).items() if name not in without}
    return torch.stack([t.coefficient * t.value / max(plan.counts[name], 1) for name, t in terms.items()]).sum()


def fit(objective: Any, model: MMDiff, steps: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    copies = rows_per_sample(objective)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20, (steps - step) / (steps / 4))
        count = COPIES // copies
        loss = step_loss(objective, model, rows(model, step * count, count), step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def rows_per_sample(objective: Any) -> int:
    """Returns how many forwards of a row an objective makes, so that all are given as many in all."""
    if isinstance(objective, Denoise):
        return 2 if any(isinstance(change, Complement) for change in objective.changes) else 1
    return 1 if isinstance(objective, ScoreEntropy | BlockDenoise) else 2


def measured(
    name: str, objective: Any, reference: MMDiff, steps: int, draws: int = 200, held_out: int = 256
) -> dict[str, Any]:
    attention = BlockCausal(2, "targets") if name.startswith("BD3LM") else None
    attention = ORDER if isinstance(objective, Esoteric) or name.startswith("left") else attention
    model = new_model(attention, rates=isinstance(objective, LearnedRates))
    noisy = reference
    if attention is not None or isinstance(objective, LearnedRates):  # the same weights under another pattern
        noisy = new_model(attention, rates=isinstance(objective, LearnedRates))
        noisy.load_state_dict(reference.state_dict(), strict=False)
    if isinstance(objective, LearnedRates):
        noise, objective = objective.for_model(noisy), objective.for_model(model)
    else:
        noise = objective
    batch = rows(noisy, 50_000, COPIES // rows_per_sample(objective))
    with torch.no_grad():
        losses = torch.stack([step_loss(noise, noisy, batch, step, "masks") for step in range(draws)]).double()
    fit(objective, model, steps)
    truth = rows(model, 100_000, held_out)
    estimator = LeftToRight() if attention is not None else AnyOrder()
    found = estimate(model.eval(), truth, estimator)
    above = float(found.nll_B.mean()) - entropy(model, truth)
    return {"recipe": name, "spread": float(losses.std() / losses.mean().abs()), "bound": above}


def main(arguments: Sequence[str] | None = None) -> None:
    options = Options(__doc__)
    options.number("--steps", 400)
    options.add_argument("--only", help="a part of a recipe's name")
    args = options.parse_args(arguments)
    torch.set_num_threads(1)
    reference = new_model()
    fit(Denoise(), reference, args.steps)
    records = []
    with TemporaryDirectory() as folder:
        counts = str(Path(folder) / "counts.safetensors")
        some = rows(reference, 0, 2000)
        write_counts(counts, some.ids_BL[some.target_BL].tolist(), reference.vocab.size)
        for name, objective in recipes(counts).items():
            if args.only is None or args.only in name:
                records.append(measured(name, objective, reference, args.steps))
                print(f"{name:36} spread {records[-1]['spread']:.3f}  bound {records[-1]['bound']:+.3f}", flush=True)
    held_out = rows(reference, 100_000, 256)
    out = {"steps": args.steps, "entropy": entropy(reference, held_out), "recipes": records}
    print(f"entropy of the chain: {out['entropy']:.3f} nats per row of {LENGTH} tokens")
    write_figures(out, args.json)


if __name__ == "__main__":
    main()
