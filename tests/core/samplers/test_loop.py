"""The loop on hand-made logits: steps and blocks, infilling, finished rows, and the early stop."""

from __future__ import annotations

import torch
from logit_tables import EOS, EOT, MASK, VOCAB, likely

from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.samplers.blocks import plan
from mmdiff.samplers.loop import sample


def test_quota_is_an_even_split_and_empty_steps_cost_nothing() -> None:
    table = likely(list(range(10)))
    batch = collate([[Target(length=10)]], VOCAB)
    out = sample(table, batch, VOCAB, GenerationConfig(steps=4))
    assert [int((out.step_BL == s).sum()) for s in range(1, 5)] == [3, 3, 2, 2]
    assert table.predicted == [10, 7, 4, 2]  # the masked positions
    assert sample(table, batch, VOCAB, GenerationConfig(steps=64)).calls == 10
    # blocks of 4, 4, 2 positions share 9 steps: three each, of which the last block can use two
    out = sample(table, batch, VOCAB, GenerationConfig(steps=9, block_length=4))
    assert out.step_BL[0].tolist() == [1, 1, 2, 3, 4, 4, 5, 6, 7, 8]


def test_blocks_go_by_rank_of_targets_wherever_they_lie() -> None:
    target_BL = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    masked_BL = target_BL.clone()
    masked_BL[0, 1:3] = False  # the first block is given: it takes no steps
    block_BL, steps_BK = plan(masked_BL, target_BL, 6, 2)
    assert block_BL[target_BL].tolist() == [0, 0, 1, 1, 2, 0]
    assert steps_BK.tolist() == [[0, 3, 3, 0], [6, 0, 0, 0]]
    assert plan(masked_BL, target_BL, None, 2)[1].tolist() == [[0, 2, 1, 0], [1, 0, 0, 0]]


def test_infilling_keeps_what_is_given_and_a_mask_id_in_the_prompt_is_not_filled() -> None:
    row: Sample = [Text([5, MASK, 6]), Target([MASK, 11, MASK]), Text([MASK]), Target(length=2)]
    out = sample(likely([20] * 9), collate([row], VOCAB), VOCAB, GenerationConfig(steps=2))
    assert out.ids_BL[0].tolist() == [5, MASK, 6, 20, 11, 20, MASK, 20, 20]
    assert out.step_BL[0].tolist() == [0, 0, 0, 1, 0, 1, 0, 2, 2]  # two of four a step: the prompt's masks take none
    given = out.step_BL[0] == 0
    assert (out.confidence_BL[0][given] == 1).all() and (out.confidence_BL[0][~given] < 1).all()
    full = collate([[Text([1, 2]), Target([3])]], VOCAB)
    assert sample(likely([0] * 3), full, VOCAB, GenerationConfig()).calls == 0


def test_finished_rows_take_part_in_no_further_call() -> None:
    batch = collate([[Target(length=6)], [Target(length=2)], [Target(length=4)]], VOCAB)
    table = likely([1] * 6, [2] * 6, [3] * 6)
    out = sample(table, batch, VOCAB, GenerationConfig())
    assert out.forwards_B.tolist() == [6, 2, 4] and out.calls == 6
    assert table.rows == [[0, 1, 2]] * 2 + [[0, 2]] * 2 + [[0]] * 2
    assert out.targets() == [[1] * 6, [2] * 2, [3] * 4]


def test_early_stop_fills_the_rest_with_eos() -> None:
    likeliest = [1, 2, EOT, 3, 4, 5]
    sure = [[9.0, 8.0, 10.0, 7.0, 6.0, 5.0]]
    batch = collate([[Target(length=6)]], VOCAB)
    out = sample(likely(likeliest, sure=sure), batch, VOCAB, GenerationConfig())
    # the end id is surest, but it ends the row only once both positions before it are committed
    assert out.ids_BL[0].tolist() == [1, 2, EOT, EOS, EOS, EOS]
    assert out.step_BL[0].tolist() == [2, 3, 1, 3, 3, 3] and out.calls == 3
    assert (out.confidence_BL[0, 3:] == 1).all()
    out = sample(likely(likeliest, sure=sure), batch, VOCAB, GenerationConfig(early_stop=False))
    assert out.ids_BL[0].tolist() == likeliest and out.calls == 6


def test_early_stop_ends_its_own_span_and_no_position_that_may_not_hold_eos() -> None:
    row: Sample = [Target(length=3), Text([1]), Target(length=2), Target(length=2, allow=((10, 12),))]
    out = sample(likely([EOS, 3, 3, 3, 4, 4, 10, 11]), collate([row], VOCAB), VOCAB, GenerationConfig(block_length=1))
    assert out.ids_BL[0].tolist() == [EOS, EOS, EOS, 1, 4, 4, 10, 11]


def test_a_span_that_may_not_hold_eos_is_filled_to_its_end() -> None:
    batch = collate([[Target(length=3, allow=((1, 3), (EOT, EOT + 1)))]], VOCAB)
    out = sample(likely([EOT, 1, 2]), batch, VOCAB, GenerationConfig())
    assert out.ids_BL[0].tolist() == [EOT, 1, 2]


def test_given_end_ids_end_nothing() -> None:
    out = sample(likely([1, 2, 3]), collate([[Target([EOS, MASK, MASK])]], VOCAB), VOCAB, GenerationConfig())
    assert out.ids_BL[0].tolist() == [EOS, 2, 3]


def test_the_batch_is_left_as_it_is() -> None:
    batch = collate([[Text([1]), Target(length=3)]], VOCAB)
    before_BL = batch.ids_BL.clone()
    out = sample(likely([5, 5, 5, 5]), batch, VOCAB, GenerationConfig())
    assert torch.equal(batch.ids_BL, before_BL) and out.ids_BL.tolist() == [[1, 5, 5, 5]]
