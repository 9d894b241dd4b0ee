"""Hierarchical decoding against tables written by hand, and against a plain reading of the rule."""

from __future__ import annotations

import math
from typing import Any

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
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.hierarchical import Hierarchical

CODES, MASK, EOS = 8, 8, 9
VOCAB = Vocab(tokenizer=None, size=10, mask_id=MASK, eos_id=EOS, pad_id=EOS, slot_id=MASK)
ALLOW = ((0, CODES),)


class Script:
    """A Denoise whose surest token at target position n of a row has, at its step s, the probability sure[s][n]."""

    def __init__(self, batch: Batch, *rows: list[list[float]]) -> None:
        self.rank_BL = batch.target_BL.cumsum(1) - 1
        self.rows, self.step = rows, [0] * len(rows)

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits = []
        for predict_L, b in zip(predict_RL, row_R.tolist(), strict=True):
            sure_N = self.rows[b][self.step[b]]
            self.step[b] += 1
            for rank in self.rank_BL[b][predict_L].tolist():
                p = torch.full((VOCAB.size,), (1 - sure_N[rank]) / (CODES - 1), dtype=torch.float64)
                p[rank % CODES] = sure_N[rank]
                logits.append(p.log())
        return torch.stack(logits)


class Toy:
    """A Denoise of the ids on a row's target positions, whatever lies between them and round them."""

    def __init__(self, batch: Batch) -> None:
        generator = torch.Generator().manual_seed(0)
        self.target_BL = batch.target_BL
        self.seen_NVV = torch.randn(64, VOCAB.size, VOCAB.size, generator=generator, dtype=torch.float64)
        self.own_NV = 2 * torch.randn(64, VOCAB.size, generator=generator, dtype=torch.float64)

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits = []
        for ids_L, predict_L, b in zip(ids_RL, predict_RL, row_R.tolist(), strict=True):
            ids = ids_L[self.target_BL[b]]
            mood_V = sum(self.seen_NVV[n, i] for n, i in enumerate(ids.tolist()))
            logits_NV = self.own_NV[: len(ids)] + mood_V * torch.linspace(-1, 1, len(ids))[:, None]
            logits.append(logits_NV[predict_L[self.target_BL[b]]])
        return torch.cat(logits)


def actions(*rows: list[int | None], spans: int = 1) -> Batch:
    """Rows of codes; None is masked. Each row behind a word of its own, in `spans` targets."""
    samples: list[Sample] = []
    for row in rows:
        ids = [MASK if i is None else i for i in row]
        cut = -(-len(ids) // spans)
        parts = [Target(ids[n : n + cut], allow=ALLOW) for n in range(0, len(ids), cut)]
        samples.append([piece for part in parts for piece in (Text([1]), part)])
    return collate(samples, VOCAB, side="left")


def steps(out: Generation, size: int, row: int = 0) -> list[list[int]]:
    """The step at which each token of each group was committed."""
    return out.step_BL[row][out.target_BL[row]].view(-1, size).tolist()


def run(batch: Batch, rule: Hierarchical, *rows: list[list[float]], **named: Any) -> Generation:
    return sample(Script(batch, *rows), batch, VOCAB, generation_config(select=rule, **named))


# The published step table --------------------------------------------------------------------------------------------

SURE = [  # three actions of four tokens, six steps: two iterations an action, two tokens at each
    [0.50, 0.60, 0.70, 0.80, 0.90, 0.40, 0.85, 0.60, 0.95, 0.95, 0.20, 0.20],  # sums 2.60 2.75 2.30: tokens 0, 2 of 1
    [0.99, 0.99, 0.99, 0.99, 0.00, 0.20, 0.00, 0.30, 0.99, 0.99, 0.99, 0.99],  # action 1 goes on all the same
    [0.30, 0.90, 0.30, 0.30, 0.00, 0.00, 0.00, 0.00, 0.48, 0.52, 0.49, 0.51],  # 1.80 and 2.00: action 2, its 1, 3
    [0.99, 0.99, 0.99, 0.99, 0.00, 0.00, 0.00, 0.00, 0.20, 0.00, 0.15, 0.00],
    [0.20, 0.30, 0.40, 0.15, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],
    [0.99, 0.00, 0.00, 0.20, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],
]


@pytest.mark.parametrize("named", [{}, {"steps": 6}, {"steps": 1}])
def test_follows_the_step_table(named: dict[str, Any]) -> None:
    batch = actions([None] * 12)
    out = run(batch, Hierarchical(size=4, iterations=2), SURE, **named)
    assert steps(out, 4) == [[6, 5, 5, 6], [1, 2, 1, 2], [4, 3, 4, 3]]
    assert out.targets() == [[n % CODES for n in range(12)]] and out.calls == 6
    # the confidence is that of the step at which a position was committed
    want = [SURE[s - 1][n] for n, s in enumerate(out.step_BL[0][out.target_BL[0]].tolist())]
    assert out.confidence_BL[0][out.target_BL[0]].tolist() == pytest.approx(want, abs=1e-6)


def test_seven_tokens_in_two_iterations_are_four_and_three() -> None:
    sure = torch.rand(10, 35, generator=torch.Generator().manual_seed(1)).mul(0.8).add(0.15).tolist()
    out = run(actions([None] * 35), Hierarchical(7, 2), sure)
    table = steps(out, 7)
    assert out.calls == 10
    for action in table:
        first, second = min(action), max(action)
        assert second == first + 1 and action.count(first) == 4 and action.count(second) == 3


def test_one_iteration_writes_whole_actions_by_their_confidence() -> None:
    sure = [
        [0.2, 0.2, 0.9, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6],  # 1.3 1.5 1.8
        [0.9, 0.9, 0.2, 0.2, 0.2, 0.9, 0.0, 0.0, 0.0],  # 2.0 1.3
        [0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.0, 0.0, 0.0],
    ]
    assert steps(run(actions([None] * 9), Hierarchical(3), sure), 3) == [[2] * 3, [3] * 3, [1] * 3]


@pytest.mark.parametrize(("length", "iterations"), [(7, 2), (7, 3), (12, 4), (5, 5), (9, 1)])
def test_one_group_is_low_confidence_with_even_shares(length: int, iterations: int) -> None:
    batch = actions([None] * length)
    plain = sample(Toy(batch), batch, VOCAB, GenerationConfig(steps=iterations))
    out = sample(Toy(batch), batch, VOCAB, GenerationConfig(select=Hierarchical(length, iterations)))
    assert out.step_BL.tolist() == plain.step_BL.tolist() and out.ids_BL.tolist() == plain.ids_BL.tolist()
    assert out.calls == iterations


# Given positions, spans, blocks --------------------------------------------------------------------------------------


def test_given_actions_stay_and_leave_the_ranking() -> None:
    """In-painting: the first two of four actions were decided before."""
    sure = [[0.9] * 8 + [0.3, 0.4, 0.3, 0.4] + [0.5, 0.4, 0.6, 0.3]] * 4
    out = run(actions([1, 2, 3, 4, 5, 6, 7, 0] + [None] * 8), Hierarchical(4, 2), sure)
    assert steps(out, 4) == [[0] * 4, [0] * 4, [4, 3, 4, 3], [1, 2, 1, 2]]
    assert out.targets()[0][:8] == [1, 2, 3, 4, 5, 6, 7, 0] and out.calls == 4


def test_given_tokens_weigh_one_and_count_as_kept() -> None:
    # 1 + 1 + .3 + .3 = 2.60 beats 2.46, and half of it is there; then 2.46 against 1.93 of the last
    sure = [[0.3] * 4 + [0.63, 0.62, 0.61, 0.6] + [0.32, 0.31, 0.0, 0.3]] * 8
    out = run(actions([None, 7, 7, None] + [None] * 4 + [None, None, 7, None]), Hierarchical(4, 2), sure)
    assert steps(out, 4) == [[1, 0, 0, 1], [2, 2, 3, 3], [4, 5, 0, 5]]
    assert out.calls == 5


def test_groups_go_on_over_spans() -> None:
    """What lies between target positions is in no group."""
    whole, parts = actions([None] * 12), actions([None] * 12, spans=5)
    named: dict[str, Any] = dict(select=Hierarchical(4, 2))
    a = sample(Toy(whole), whole, VOCAB, GenerationConfig(**named))
    b = sample(Toy(parts), parts, VOCAB, GenerationConfig(**named))
    assert a.targets() == b.targets() and steps(a, 4) == steps(b, 4)


def test_blocks_come_before_confidence() -> None:
    sure = [[0.3] * 4 + [0.4] * 4 + [0.9] * 4 + [0.8] * 4] * 8
    out = run(actions([None] * 16), Hierarchical(4, 1), sure, block_length=8)
    assert steps(out, 4) == [[2] * 4, [1] * 4, [3] * 4, [4] * 4]


def test_a_group_written_in_part_goes_on_after_another_was_opened_again() -> None:
    class OpenFirst:
        """Opens the first token of action 1 again at step 3, when action 0 has begun."""

        def __call__(self, committed: Any) -> Tensor:
            out_RL = torch.zeros_like(committed.committed_RL)
            out_RL[0, 5] = bool(committed.state.step_R[0] == 3)  # position 4, behind a word
            return out_RL

    sure = [[0.34, 0.33, 0.32, 0.31, 0.94, 0.93, 0.92, 0.91]] * 6
    out = run(actions([None] * 8), Hierarchical(4, 2), sure, revise=OpenFirst())
    assert steps(out, 4) == [[3, 3, 4, 4], [5, 1, 2, 2]]


# Against a plain reading ---------------------------------------------------------------------------------------------


def plainly(sure: list[list[float]], row: list[int | None], size: int, iterations: int) -> list[int]:
    """The step at which each position is committed: loops, nothing else."""
    step_N = [0 if i is None else -1 for i in row]  # 0: masked, -1: given
    step, current = 0, None
    while 0 in step_N:
        p_N = sure[step]
        step += 1
        groups = [list(range(n, n + size)) for n in range(0, len(row), size)]
        if current is None or all(step_N[n] for n in current):
            open_groups = [g for g in groups if any(step_N[n] == 0 for n in g)]
            current = max(open_groups, key=lambda g: math.fsum(1.0 if step_N[n] else p_N[n] for n in g))
        kept = sum(step_N[n] != 0 for n in current)
        goal = next(c for k in range(1, iterations + 1) if (c := math.ceil(size * k / iterations)) > kept)
        for n in sorted((n for n in current if step_N[n] == 0), key=lambda n: -p_N[n])[: goal - kept]:
            step_N[n] = step
    return [max(s, 0) for s in step_N]


@pytest.mark.parametrize("seed", range(40))
def test_is_the_plain_reading_of_the_rule(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 8, (1,), generator=generator))
    iterations = int(torch.randint(1, size + 1, (1,), generator=generator))
    rows, scripts = [], []
    for _ in range(3):
        length = size * int(torch.randint(1, 6, (1,), generator=generator))
        given_N = torch.rand(length, generator=generator) < 0.25 * (seed % 2)
        rows.append([int(n) % CODES if g else None for n, g in enumerate(given_N)])
        scripts.append(torch.rand(length + 1, length, generator=generator).mul(0.8).add(0.15).tolist())
    batch = actions(*rows)
    out = run(batch, Hierarchical(size, iterations), *scripts)
    for b, (row, script) in enumerate(zip(rows, scripts, strict=True)):
        assert out.step_BL[b][out.target_BL[b]].tolist() == plainly(script, row, size, iterations)
        if not seed % 2:
            assert int(out.forwards_B[b]) == len(row) // size * iterations


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block_length", [None, 6])
def test_a_row_is_the_same_alone_and_in_a_batch(temperature: float, block_length: int | None) -> None:
    rows: list[list[int | None]] = [[None] * 18, [None] * 6, [1, 2, 3, 4] + [None] * 8, [None, 5, None] * 3]
    named: dict[str, Any] = dict(select=Hierarchical(3, 2), temperature=temperature, block_length=block_length, seed=5)
    batch = actions(*rows, spans=2)
    together = sample(Toy(batch), batch, VOCAB, generation_config(**named))
    for b, row in enumerate(rows):
        one = collate([[Text([1, 1, 1]), *_parts(row)]], VOCAB, index=[b])
        alone = sample(Toy(one), one, VOCAB, generation_config(**named))
        assert alone.targets()[0] == together.targets()[b]
        assert steps(alone, 3) == steps(together, 3, b)
        assert int(alone.forwards_B[0]) == int(together.forwards_B[b])


def _parts(row: list[int | None]) -> list[Any]:
    return [Target([MASK if i is None else i for i in row], allow=ALLOW)]


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "sampler.select.size=0"),
        ({"size": 2.0}, "sampler.select.size: 2.0 is not a whole number"),
        ({"size": 4, "iterations": 0}, "sampler.select.iterations=0"),
        ({"size": 4, "iterations": 5}, "no more than 4"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    node = {"target": "mmdiff.samplers.rules.hierarchical.Hierarchical", **arguments}
    batch = actions([None] * 4)
    with pytest.raises(ConfigError) as raised:
        sample(Toy(batch), batch, VOCAB, GenerationConfig(select=node))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_positions_and_blocks_that_groups_do_not_divide_are_refused() -> None:
    batch = actions([None] * 8, [None] * 7)
    with pytest.raises(ConfigError, match="groups of 4 do not divide the 7 positions"):
        sample(Toy(batch), batch, VOCAB, GenerationConfig(select=Hierarchical(4)))
    batch = actions([None] * 8)
    with pytest.raises(ConfigError, match="block_length: a block cuts a group of 4"):
        sample(Toy(batch), batch, VOCAB, GenerationConfig(select=Hierarchical(4), block_length=6))
