"""How many positions a step commits, at which temperature and in how free an order: numbers known in closed form."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import by_query
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.draw import draw
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.maskgit import RandomTopK
from mmdiff.samplers.rules.select import order
from mmdiff.samplers.rules.state import Proposal, State
from mmdiff.samplers.unmask_schedule import cosine, linear

WORDS, MASK, EOS = 6, 6, 7
VOCAB = Vocab(tokenizer=None, size=8, mask_id=MASK, eos_id=EOS, pad_id=EOS, slot_id=MASK)
RAGGED: list[Sample] = [
    [Text([1, 2, 3]), Target(length=13)],
    [Text([1]), Target(length=4), Text([2]), Target(length=2)],
    [Target([MASK, 3, MASK, MASK, 2, MASK, MASK])],
]


def denoiser(batch: Batch, seed: int = 0) -> Any:
    """Logits of a row's target positions from the ids on them, wherever they lie on the canvas."""
    generator = torch.Generator().manual_seed(seed)
    own_NV = 2 * torch.randn(64, VOCAB.size, generator=generator)
    seen_NVV = torch.randn(64, VOCAB.size, VOCAB.size, generator=generator)

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits = []
        for ids_L, predict_L, target_L in zip(ids_RL, predict_RL, batch.target_BL[row_R], strict=True):
            ids = ids_L[target_L].tolist()
            mood_V = sum(seen_NVV[n, i] for n, i in enumerate(ids))
            logits.append((own_NV[: len(ids)] + mood_V)[predict_L[target_L]])
        return torch.cat(logits)

    return denoise


def flat(p_V: Tensor) -> Any:
    """The same distribution at every position and step."""
    logits_V = torch.full((VOCAB.size,), -torch.inf)
    logits_V[: len(p_V)] = p_V.log()
    return by_query(lambda ids_RL, predict_RL, row_R, media_R=None: logits_V.repeat(int(predict_RL.sum()), 1))


def write(samples: list[Sample], index: list[int] | None = None, **named: Any) -> Generation:
    batch = collate(samples, VOCAB, index=index)
    return sample(denoiser(batch), batch, VOCAB, generation_config(**named, early_stop=False))


def counts(out: Generation, row: int = 0) -> list[int]:
    """Positions committed at each step of a row."""
    step_N = out.step_BL[row][out.target_BL[row]]
    return torch.bincount(step_N[step_N > 0] - 1).tolist()


def state(step: list[int], of: list[int]) -> State:
    unused: Any = dict.fromkeys(f.name for f in fields(State))
    return State(**unused | {"step_R": torch.tensor(step), "steps_R": torch.tensor(of), "extras": {}})


# Shares ---------------------------------------------------------------------------------------------------------------


def test_cosine_leaves_what_the_paper_says() -> None:
    # 16 cos(pi/8) = 14.8, 16 cos(pi/4) = 11.3, 16 cos(3 pi/8) = 6.1
    assert counts(write([[Target(length=16)]], steps=4, schedule="cosine")) == [2, 3, 5, 6]
    assert counts(write([[Target(length=16)]], steps=4)) == [4, 4, 4, 4]
    # 10 cos(pi/3) = 5, although not in binary
    assert counts(write([[Target(length=10)]], steps=3, schedule="cosine")) == [2, 3, 5]


@pytest.mark.parametrize(("positions", "steps"), [(35, 12), (56, 12), (5, 12), (20, 20), (7, 1), (30, None)])
def test_cosine_is_the_formula_and_writes_one_a_step_at_least(positions: int, steps: int | None) -> None:
    got = counts(write([[Target(length=positions)]], steps=steps, schedule="cosine"))
    of, left, want = steps or positions, positions, []
    for s in range(1, of + 1):
        if left:
            want.append(max(1, left - math.floor(positions * math.cos(math.pi / 2 * s / of) + 1e-9)))
            left -= want[-1]
    assert got == want and sum(got) == positions and len(got) <= of


def test_each_block_has_a_cosine_of_its_own_and_counts_what_it_began_with() -> None:
    given = [MASK] * 8 + [MASK, 1, MASK, 2, MASK, MASK, MASK, MASK]
    out = write([[Target(given)]], steps=8, block_length=8, schedule="cosine")
    # 8 cos(pi s/8): 7.4 5.7 3.1; six masked positions: 5.5 4.2 2.3
    assert counts(out) == [1, 2, 2, 3, 1, 1, 2, 2]


def test_positions_that_were_remasked_count_as_masked() -> None:
    """Three of the four committed are masked again at step 2: the schedule holds again at step 3."""
    at = state([3], [4])
    assert cosine(torch.tensor([11 + 3]), torch.tensor([16]), at).tolist() == [8]
    assert linear(torch.tensor([11 + 3]), torch.tensor([16]), at).tolist() == [7]
    late = state([9, 9], [4, 4])  # a select rule that takes its time
    assert cosine(torch.tensor([3, 1]), torch.tensor([16, 16]), late).tolist() == [3, 1]
    assert linear(torch.tensor([3, 1]), torch.tensor([16, 16]), late).tolist() == [3, 1]


# Temperature ----------------------------------------------------------------------------------------------------------


def test_between_is_a_straight_line_over_the_steps_of_a_block() -> None:
    at = state([1, 2, 3, 4, 5, 6], [5] * 6)
    assert at.between(1.0, 0.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert at.progress_R.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert state([1], [1]).between(0.7, 0.0).tolist() == [0.7]


def test_each_step_draws_at_its_own_temperature() -> None:
    """Three positions from left to right at 2, 1 and 0: p^(1/2), p, and the likeliest."""

    class Leftmost:
        def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
            return order(-proposal.position_P.double(), proposal.row_P) == 0

    rows = 4_000
    p_V = torch.tensor([0.64, 0.32, 0.04])
    batch = collate([[Target(length=3)]] * rows, VOCAB)
    config = generation_config(steps=3, temperature=2.0, temperature_end=0.0, select=Leftmost(), early_stop=False)
    ids_BL = sample(flat(p_V), batch, VOCAB, config).ids_BL
    for position, power in ((0, 0.5), (1, 1.0)):
        predict_V = p_V**power / (p_V**power).sum()
        share_V = torch.bincount(ids_BL[:, position], minlength=3) / rows
        assert share_V.tolist() == pytest.approx(predict_V.tolist(), abs=5 * 0.5 / rows**0.5)
    assert (ids_BL[:, 2] == 0).all()


def test_rows_of_one_step_may_have_unequal_temperatures() -> None:
    logits_PV, u_P = torch.tensor([[1.0, 0.0]] * 3), torch.full((3,), 0.9, dtype=torch.float64)
    assert draw(logits_PV, torch.tensor([0.0, 1.0, 0.1]), u_P).tolist() == [0, 1, 0]
    assert draw(logits_PV, torch.zeros(3), u_P).tolist() == [0, 0, 0]


def test_a_temperature_that_ends_where_it_began_is_constant() -> None:
    named: dict[str, Any] = dict(steps=4, temperature=2.0, seed=2)
    a, b = write(RAGGED, **named), write(RAGGED, **named, temperature_end=2.0)
    assert a.ids_BL.tolist() == b.ids_BL.tolist() and a.step_BL.tolist() == b.step_BL.tolist()
    assert write(RAGGED, **named, temperature_end=0.0).ids_BL.tolist() != a.ids_BL.tolist()
    cold = write(RAGGED, steps=4, seed=2)
    assert write(RAGGED, steps=4, seed=9, temperature_end=0.0).ids_BL.tolist() == cold.ids_BL.tolist()


# The order ------------------------------------------------------------------------------------------------------------


def test_noise_on_the_order_draws_positions_by_their_confidence() -> None:
    """log p + c Gumbel has its maximum at a position with probability p^(1/c) / sum; c falls to 0 at the last step."""
    rows = 4_000
    p_N = torch.tensor([0.5, *[0.05] * 10])
    for step, c in ((1, 1.0), (2, 0.5)):  # 1.5 (1 - s/3)
        proposal = _proposal(p_N, rows, step, of=3)
        keep_RN = RandomTopK(1.5)(proposal.confidence_P, proposal).view(rows, -1)
        assert keep_RN.sum(1).tolist() == [1] * rows
        predict_N = p_N ** (1 / c) / (p_N ** (1 / c)).sum()
        assert keep_RN.float().mean(0).tolist() == pytest.approx(predict_N.tolist(), abs=5 * 0.5 / rows**0.5)
    proposal = _proposal(p_N, rows, step=3, of=3)
    assert RandomTopK(1.5)(proposal.confidence_P, proposal).view(rows, -1)[:, 0].all()


def _proposal(p_N: Tensor, rows: int, step: int, of: int) -> Proposal:
    n = len(p_N)
    row_P = torch.arange(rows).repeat_interleave(n)
    ones_R = torch.ones(rows, dtype=torch.int64)
    noise = StepNoise(0, np.arange(rows), np.full(rows, step), np.full(rows, n), torch.device("cpu"))
    position_P = torch.arange(n).repeat(rows)
    return Proposal(
        row_P, position_P, torch.zeros_like(row_P), p_N.repeat(rows), ones_R, noise, state([step] * rows, [of] * rows)
    )


def test_without_noise_the_order_is_low_confidence() -> None:
    plain = write(RAGGED, steps=5, temperature=0.5, seed=1)
    cold = write(RAGGED, steps=5, temperature=0.5, seed=1, select=RandomTopK(0.0))
    hot = write(RAGGED, steps=5, temperature=0.5, seed=1, select=RandomTopK(9.0))
    assert cold.step_BL.tolist() == plain.step_BL.tolist() != hot.step_BL.tolist()
    assert counts(hot) == counts(plain)


# Rows, options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        {"schedule": "cosine", "steps": 6, "temperature": 1.0, "temperature_end": 0.0},
        {"schedule": "cosine", "steps": 9, "block_length": 3, "temperature": 0.2, "temperature_end": 1.0},
        {"schedule": "cosine", "steps": 5, "temperature": 1.0, "select": RandomTopK()},
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(named: dict[str, Any]) -> None:
    together = write(RAGGED, [8, 3, 5], seed=1, **named)
    for b, (row, name) in enumerate(zip(RAGGED, [8, 3, 5], strict=True)):
        alone = write([row], [name], seed=1, **named)
        assert alone.targets()[0] == together.targets()[b] and counts(alone) == counts(together, b)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"schedule": "cosin"}, 'did you mean "cosine"'),
        ({"schedule": None}, "sampler.schedule: None is not one of linear, cosine"),
        ({"temperature_end": -1.0}, "sampler.temperature_end=-1.0"),
        ({"temperature_end": "cold"}, "sampler.temperature_end: 'cold' is not a number"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        generation_config(**named)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="select.temperature"):
        batch = collate([[Target(length=2)]], VOCAB)
        node = {"target": "mmdiff.samplers.rules.maskgit.RandomTopK", "temperature": -1.0}
        sample(denoiser(batch), batch, VOCAB, GenerationConfig(select=node))
