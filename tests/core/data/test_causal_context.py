"""Models whose finished blocks are causal context: the layout of a step, caches, training, and both ways to run them.

Shape letters: R rows, L positions, K keys, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import batch_of, model, samples

from mmdiff.backbones import load_backbone
from mmdiff.canvas.patterns import Causal, CausalContext, Documents, Full
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.samplers.links.verifier import Speculate

KEY = NoiseKey(0, 0, "x")


def test_numbers_of_blocks() -> None:
    """Context by position; targets as the first of their block; both from the start of their document."""
    target_RL = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1, 1, 1]]) > 0
    attend_RL = torch.ones(2, 8, dtype=torch.bool)
    attend_RL[0, 0] = False
    assert CausalContext(2).blocks(target_RL, attend_RL).tolist() == [  # type: ignore[union-attr]
        [0, 0, 1, 1, 3, 4, 3, 6],
        [0, 1, 1, 3, 4, 4, 6, 6],
    ]
    document_RL = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]] * 2)
    assert CausalContext(2).blocks(target_RL, attend_RL, document_RL)[1].tolist() == [0, 1, 1, 3, 0, 0, 2, 2]  # type: ignore[index]
    both = CausalContext(2) & Documents()
    assert both.finished_is_context and both.exact_prefix and not both.one_target_block
    assert not (Full() & Documents()).finished_is_context and CausalContext().one_target_block


class Whole(MMDiff):
    """Runs every canvas whole at every step, with the positions of the current block as its only targets."""

    def denoiser(self, batch: Any, **named: Any) -> Any:
        def asked(query: Any) -> Any:
            step = query.step
            here_BL = torch.zeros_like(batch.target_BL)
            here_BL[step.row_R] = torch.from_numpy(step.block_BL[step.row_R] == step.block_R[:, None])
            now = replace(batch, target_BL=batch.target_BL & here_BL)
            return MMDiff.denoiser(self, now, **named)(replace(query, step=None, batch=now))

        return asked


@pytest.mark.parametrize(
    "named",
    [{"block_length": 3}, {"block_length": 4, "threshold": 0.3, "temperature": 1.0}, {"block_length": 2, "steps": 4}],
)
@pytest.mark.parametrize("shift", [0, 1])
def test_finished_blocks_are_context_whatever_is_kept(named: dict[str, Any], shift: int) -> None:
    m = model(CausalContext(4))
    m.backbone.facts = replace(m.backbone.facts, shift=shift)
    plain = Whole(m.backbone, dict(m.encoders), dict(m.connectors), attention=m.attention).eval()
    batch = batch_of(m, samples(), [8, 3, 5, 4], "left")
    one, two = (x.generate(batch, seed=1, early_stop=False, **named) for x in (m, plain))
    assert one.targets() == two.targets() and one.step_BL.tolist() == two.step_BL.tolist()
    torch.testing.assert_close(one.confidence_BL, two.confidence_BL, atol=1e-4, rtol=0)


@pytest.mark.parametrize("copies", [1, 2])
@torch.no_grad()
def test_one_forward_is_a_loop_over_the_blocks(copies: int) -> None:
    """Clean blocks before are causal context, the block itself is noised and sees itself."""
    pattern = CausalContext(3)
    m = model(pattern)
    batch = collate([[Text([4, 5]), Target([6, 7, 8, 4, 5, 6, 7])], [Target([7, 8, 6, 5])]], m.vocab)
    plan = BlockDenoise(pattern, copies=copies).plan(batch, KEY, m.vocab)
    found_RLD = m.hidden_copies(plan.ids_RL, batch, {}, copies, blockwise=True)
    number_RL = torch.as_tensor(pattern.blocks(batch.target_BL, batch.attend_BL)).masked_fill(~batch.target_BL, -1)
    assert len(number_RL.unique()) > 3
    for number in number_RL.unique()[1:]:
        now = replace(batch, target_BL=number_RL == number)
        here_RL = now.target_BL.repeat(copies, 1)
        ids_RL = torch.where(here_RL, plan.ids_RL, batch.ids_BL.repeat(copies, 1))
        loop_RLD = m.hidden(ids_RL, now, {}, torch.arange(len(batch)).repeat(copies))
        torch.testing.assert_close(found_RLD[here_RL], loop_RLD[here_RL], rtol=0, atol=3e-5)


# Nemotron-Labs-Diffusion: one set of weights, run in blocks or from left to right


def nemotron() -> MMDiff:
    torch.manual_seed(0)
    made = MMDiff(load_backbone.toy("nvidia/Nemotron-Labs-Diffusion-8B"))  # type: ignore[attr-defined]
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1 if p.ndim < 2 else 6)  # far from uniform
    return made.eval()


def stock(m: MMDiff, ids_L: list[int], sees_LL: Tensor) -> Tensor:
    """Returns logits (L, V) of transformers' own class, given who sees whom."""
    return m.backbone.model(input_ids=torch.tensor([ids_L]), attention_mask=sees_LL[None, None]).logits[0]


def text_of(m: MMDiff) -> list[int]:
    """Returns the ids that a generation may commit: all of the tokenizer's but the mask."""
    return [i for i in range(len(m.vocab.tokenizer)) if i != m.vocab.mask_id]


@torch.no_grad()
def test_run_from_left_to_right_it_is_the_causal_model() -> None:
    m = nemotron()
    rows: list[Sample] = [[Text([5, 6, 7]), Target(length=6)], [Text([9]), Target(length=6)]]
    found = m.generate(collate(rows, m.vocab), denoise=[Speculate()], block_length=4, early_stop=False).targets()
    allowed = text_of(m)
    for prompt, tokens in (([5, 6, 7], found[0]), ([9], found[1])):
        ids = list(prompt)
        for _ in range(6):
            logits_V = stock(m, ids, torch.ones(len(ids), len(ids), dtype=torch.bool).tril())[-1]
            ids.append(allowed[int(logits_V[allowed].argmax())])
        assert ids[len(prompt) :] == tokens
    plain = m.generate(collate(rows, m.vocab), block_length=4, early_stop=False).targets()
    assert plain != found and MMDiff(m.backbone).attention == CausalContext(32) != Causal()


@torch.no_grad()
def test_a_block_sees_itself_and_a_causal_context() -> None:
    """The published loop without its first token of a block: greedy, all that is surer than the threshold, else one."""
    m, length, threshold = nemotron(), 4, 0.3
    ids = [5, 6, 7]
    allowed = text_of(m)
    for _ in range(2):
        start = len(ids)
        ids += [m.vocab.mask_id] * length
        sees_LL = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        sees_LL[start:, start:] = True
        while m.vocab.mask_id in ids:
            p_LV = stock(m, ids, sees_LL)[:, allowed].softmax(-1)
            sure_L, best_L = p_LV.max(-1)
            masked = [i for i in range(start, len(ids)) if ids[i] == m.vocab.mask_id]
            first = max(masked, key=lambda i: float(sure_L[i]))
            for i in masked:
                if sure_L[i] >= threshold or i == first:
                    ids[i] = allowed[int(best_L[i])]
    found = m.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=8, block_length=length, threshold=threshold, early_stop=False
    )
    assert found.targets() == [ids[3:]] and found.calls > 2
