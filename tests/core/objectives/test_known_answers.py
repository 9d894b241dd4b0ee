"""Known answers that no other file holds: GIDD's bound of two words, an order-2 chain (C7, C16).

docs/verification.md lists which test holds which of the checks C1 to C18. Shape letters: B samples, L positions, P
points in time.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdiff.backbones import new_backbone
from mmdiff.canvas.patterns import BlockCausal, Full
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mixing import shares
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.replacing.hybrid import HybridBound
from mmdiff.samplers.processes.hybrid import Hybrid

WORDS, MASK = 3, 3


# C7: noise that replaces ---------------------------------------------------------------------------------------------


def integral(uniform: float, own: bool) -> tuple[Tensor, Tensor]:
    """The integral over time of GIDD's expected loss of every pair of words, and -log p of it. own: the model's
    distribution of a token is given its own noised id, too, as that of plain cross-entropy is."""
    generator = torch.Generator().manual_seed(3)
    joint = torch.rand(WORDS, WORDS, generator=generator, dtype=torch.float64).pow(2)
    joint = joint / joint.sum()
    objective = HybridBound(Hybrid(uniform), most=1e12)
    angle = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000 * math.pi / 2
    t, weight = angle.sin() ** 2, (2 * angle).sin() * math.pi / 2
    kept, masked, replaced = shares(t, uniform)
    q_PXZ = torch.zeros(len(t), WORDS, WORDS + 1, dtype=torch.float64)  # of a noised id, given the word
    q_PXZ[:, :, :WORDS] = replaced[:, None, None] / WORDS + kept[:, None, None] * torch.eye(WORDS)
    q_PXZ[:, :, MASK] = masked[:, None]
    out, allow = torch.zeros(WORDS, WORDS, dtype=torch.float64), torch.tensor([True] * WORDS + [False] * 2)
    for x, z in itertools.product(itertools.product(range(WORDS), repeat=2), itertools.product(range(4), repeat=2)):
        chance_P = q_PXZ[:, x[0], z[0]] * q_PXZ[:, x[1], z[1]]
        for here in (0, 1):
            other = 1 - here
            table = joint if here == 0 else joint.T  # (own word, other word)
            p_PX = torch.einsum("xy,py->px", table, q_PXZ[:, :, z[other]])
            if own:
                p_PX = p_PX * q_PXZ[:, :, z[here]]
            logits = torch.cat([p_PX.clamp(min=1e-300).log(), torch.full((len(t), 2), -torch.inf)], 1)
            n = len(t)
            loss_P = objective.loss(
                logits.float(), allow.expand(n, -1), torch.full((n,), x[here]), torch.full((n,), z[here]),
                torch.full((n,), z[here] == MASK), t,
            )  # fmt: skip
            out[x] += (weight * chance_P * loss_P.double()).mean()
    return out, -joint.log()


@pytest.mark.parametrize("uniform", [0.0, 0.2, 0.5])
def test_replaced_pairs_cost_minus_log_p_each(uniform: float) -> None:
    found, expected = integral(uniform, own=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_a_model_that_trusts_its_own_noised_id_is_not_the_optimum() -> None:
    """The deliberately wrong one: E[x | z] in place of E[x | z elsewhere] costs more, in the mean over the data."""
    found, expected = integral(0.3, own=True)
    p = (-expected).exp()
    assert float((p * (found - expected)).sum()) > 0.05


def test_without_replacement_it_is_masked_diffusion() -> None:
    objective, t = HybridBound(Hybrid(0.0), most=1e12), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    logits = torch.tensor([[0.3, -1.0, 0.2, -torch.inf, -torch.inf]]).expand(3, -1)
    allow = torch.tensor([True] * 3 + [False] * 2).expand(3, -1)
    one = torch.ones(3, dtype=torch.int64)
    masked = objective.loss(logits, allow, one, one * MASK, one > 0, t)
    torch.testing.assert_close(masked.double(), -logits.log_softmax(1)[:, 1].double() / t, rtol=1e-5, atol=1e-6)
    assert float(objective.loss(logits, allow, one, one, one < 0, t).abs().max()) < 1e-6


def taught(model: MMDiff, objective: Any, batch_of: Any, steps: int, lr: float = 3e-3) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    model.train()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20, (steps - step) / (steps / 4))
        batch = batch_of(step)
        plan = objective.plan(batch, NoiseKey(0, step, "x", batch=len(batch)), model.vocab)
        loss = objective.terms(model, plan)["denoise"].value / plan.counts["denoise"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


# C16: letters --------------------------------------------------------------------------------------------------------

SYMBOLS, LONG = 27, 12


def letters(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an order-2 chain of 27 symbols, (count, 14), and -log p of the last 12 of each, exactly."""
    a, b = np.mgrid[:SYMBOLS, :SYMBOLS]
    law = np.full((SYMBOLS, SYMBOLS, SYMBOLS), 0.1 / SYMBOLS)
    law[a, b, a] += 0.6  # the last but one again, or the one behind the last
    law[a, b, (b + 1) % SYMBOLS] += 0.3
    rng = np.random.default_rng([2, first])
    out, nll = rng.integers(0, SYMBOLS, (count, LONG + 2)), np.zeros(count)
    for at in range(2, LONG + 2):
        p = law[out[:, at - 2], out[:, at - 1]]
        out[:, at] = (p.cumsum(1) < rng.random(count)[:, None]).sum(1).clip(max=SYMBOLS - 1)
        nll -= np.log(p[np.arange(count), out[:, at]])
    return out, nll


class Neighbours(MMDiff):
    """The deliberately wrong part: every second mask is the label."""

    def hidden(self, ids_RL: Tensor, batch: Any, features: Any, row_R: Tensor, **named: Any) -> Tensor:
        even_L = torch.arange(ids_RL.shape[1]) % 2 == 0
        return super().hidden(torch.where(even_L, batch.ids_BL[row_R], ids_RL), batch, features, row_R, **named)


@pytest.mark.slow
def test_letters_cost_no_less_than_their_entropy_in_any_order() -> None:
    """Nats per symbol of held-out rows, of diffusion and from left to right, the same steps: above the chain's own."""
    tokenizer = word_tokenizer([f"w{n}" for n in range(SYMBOLS)])
    rows, exact = letters(10**6, 400)
    found, above = {}, {}
    for name, attention, objective, kind in (
        ("diffusion", Full(), Denoise(), MMDiff),
        ("left to right", BlockCausal(1, "targets"), BlockDenoise(BlockCausal(1, "targets")), MMDiff),
        ("a leak", Full(), Denoise(), Neighbours),
    ):
        torch.manual_seed(0)
        backbone = new_backbone(tokenizer=tokenizer, hidden_size=64, layers=2, heads=2)
        model = kind(backbone, attention=attention)
        first = int(model.vocab.encode("w0")[0])

        def laid(made: np.ndarray, vocab: Any = model.vocab, first: int = first) -> Any:
            ids = (made + first).tolist()
            return collate([[Text(row[:2]), Target(row[2:])] for row in ids], vocab)

        taught(model, objective, lambda step, laid=laid: laid(letters(step, 64)[0]), 300)
        nll = bound(model, laid(rows), levels=LONG).nll_B.numpy()
        found[name] = float(nll.mean()) / LONG
        above[name] = (nll.mean() - exact.mean()) / ((nll - exact).std() / 20)
    entropy = float(exact.mean()) / LONG
    print(f"entropy {entropy:.3f}, {found}")
    assert above.pop("a leak") < -10 and min(above.values()) > -3
    assert max(found.values()) < math.log(SYMBOLS) - 0.5
