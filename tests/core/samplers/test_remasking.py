"""Secondary re-masking: which tokens are masked again, when, and that every block ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from logit_tables import by_query
from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.hierarchical import Hierarchical
from mmdiff.samplers.rules.maskgit import Remask
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.rules import rules_of
from mmdiff.samplers.rules.select import Everything, Threshold
from mmdiff.samplers.rules.state import Proposal

WORDS, MASK, EOS = 8, 8, 9
VOCAB = Vocab(tokenizer=None, size=10, mask_id=MASK, eos_id=EOS, pad_id=EOS, slot_id=MASK)
Predict = Callable[[list[int], int], tuple[int, float]]


class Model:
    """A Denoise of `predict(ids, position)` -> (token, its probability); the other words share the rest.

    predicted: the positions of each call.
    """

    def __init__(self, predict: Predict) -> None:
        self.predict, self.predicted = predict, list[list[int]]()

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        self.predicted.append(predict_RL[0].nonzero().squeeze(1).tolist())
        logits = []
        for row, position in predict_RL.nonzero().tolist():
            token, p = self.predict(ids_RL[row].tolist(), position)
            p_V = torch.full((VOCAB.size,), (1 - p) / (WORDS - 1), dtype=torch.float64)
            p_V[WORDS:], p_V[token] = 0.0, p
            logits.append(p_V.log())
        return torch.stack(logits)


def generate(predict: Predict, length: int | list[int], **named: Any) -> tuple[Generation, Model]:
    model = Model(predict)
    target = Target(length=length) if isinstance(length, int) else Target(length)
    config = generation_config(**{"early_stop": False, **named})
    return sample(model, collate([[target]], VOCAB), VOCAB, config), model


def falls(first: float, later: float) -> Predict:
    """Position n is a token's with probability first - n/100, and with `later` once it is in sight."""
    return lambda ids, position: (position % WORDS, later if ids[position] != MASK else first - 0.01 * position)


def first_is_corrected(ids: list[int], position: int) -> tuple[int, float]:
    """Position 0 is surely 1, until position 1 is committed: then it is surely 2."""
    if position == 0:
        return (2, 0.95) if ids[1] != MASK else (1, 0.9)
    return position + 3, [0, 0.8, 0.7, 0.6][position]


def test_a_token_that_later_ones_contradict_is_replaced() -> None:
    plain, _ = generate(first_is_corrected, 4, steps=4)
    assert plain.targets() == [[1, 4, 5, 6]] and plain.step_BL.tolist() == [[1, 2, 3, 4]]
    out, model = generate(first_is_corrected, 4, steps=4, revise=Remask(0.3))
    # 0; 1; now position 1 is on the canvas, 0 is doubted as 2 is committed; two positions are left for one step
    assert model.predicted == [[0, 1, 2, 3]] * 4
    assert out.targets() == [[2, 4, 5, 6]] and out.step_BL.tolist() == [[4, 2, 3, 4]] and out.calls == 4
    assert out.confidence_BL[0].tolist() == pytest.approx([0.95, 0.8, 0.7, 0.6], abs=1e-6)


def test_only_a_rule_with_rescore_has_committed_positions_scored() -> None:
    _, model = generate(first_is_corrected, 4, steps=4, select=Everything(), revise=RunningConfidence())
    assert [len(positions) for positions in model.predicted] == [4, 3, 2, 1]
    _, model = generate(first_is_corrected, 4, steps=4)
    assert [len(positions) for positions in model.predicted] == [4, 3, 2, 1]
    _, model = generate(first_is_corrected, [5, MASK, 6, MASK], steps=2, revise=Remask(0.3))
    assert model.predicted == [[1, 3], [1, 3]]  # what was given is not scored again
    out, model = generate(lambda ids, position: (1, 0.5), 4, steps=4, block_length=2, revise=Remask(0.9))
    assert model.predicted == [[0, 1], [0, 1], [2, 3], [2, 3]]  # nor what earlier blocks hold
    assert out.calls == 4


def test_what_this_step_wrote_is_not_judged_by_it() -> None:
    """A threshold of 1 opens everything that was there before the step, and nothing that the step wrote."""
    seen: list[list[int]] = []

    def predict(ids: list[int], position: int) -> tuple[int, float]:
        if position == 0 and (not seen or seen[-1] != ids):
            seen.append(ids)
        return position + 1, 0.9 - 0.1 * position

    out, _ = generate(predict, 4, steps=4, revise=Remask(1.0))
    # 4 / 4 = 1: {0}; 3 / 3 = 1: {1}, 0 goes; 3 / 2 -> 2: {0, 2}, 1 goes; the last step commits what is masked
    assert seen == [[MASK] * 4, [1, MASK, MASK, MASK], [MASK, 2, MASK, MASK], [1, MASK, 3, MASK]]
    assert out.targets() == [[1, 2, 3, 4]] and out.step_BL.tolist() == [[3, 4, 3, 4]]


@pytest.mark.parametrize(("drop", "remasked"), [(0.35, True), (0.45, False)])
def test_a_fall_since_the_commit_counts(drop: float, remasked: bool) -> None:
    out, _ = generate(falls(0.9, 0.5), 3, steps=3, revise=Remask(0.0, drop=drop))
    assert out.step_BL.tolist() == [[3 if remasked else 1, 2, 3]]  # 0 was remasked at step 2


def test_the_threshold_rises_in_a_straight_line() -> None:
    """Once in sight a token has 0.5; thresholds 0, .2, .4, .6, .8: none is remasked before step 4."""
    out, _ = generate(falls(0.9, 0.5), 5, steps=5, revise=Remask(0.0, threshold_end=0.8))
    assert out.step_BL.tolist() == [[5, 5, 5, 4, 5]]  # step 4 commits position 3 and masks 0, 1, 2 again
    out, _ = generate(falls(0.9, 0.5), 5, steps=5, revise=Remask(0.0, threshold_end=0.6))  # .45 at step 4
    assert out.step_BL.tolist() == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("block_length", [None, 4, 10])
@pytest.mark.parametrize("select", [None, Threshold(0.5), Hierarchical(1), Hierarchical(2, 2)])
def test_every_block_ends_however_much_is_doubted(schedule: str, block_length: int | None, select: Any) -> None:
    for steps in (None, 1, 3, 12):
        named: dict[str, Any] = dict(steps=steps, block_length=block_length, schedule=schedule, select=select)
        out, _ = generate(falls(0.6, 0.01), 20, **named, revise=Remask(0.9, drop=0.1))
        assert not (out.ids_BL == MASK).any() and (out.step_BL > 0).all()
        blocks = 20 // (block_length or 20)
        of = steps or 20
        if select is None:
            assert out.calls == max(of // blocks, 1) * blocks  # no more forwards than without revision
        else:
            assert out.calls <= max(of, blocks) + 20  # once the steps are taken, each commits one at least


def test_end_ids_that_are_held_back_are_not_judged() -> None:
    """Under eos_policy=last an end id has no confidence: one that was committed all the same stays."""

    class EndFirst:
        def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
            return (proposal.position_P == 2) | ((proposal.state.step_R[0] > 1) & (score_P == score_P.max()))

    def predict(ids: list[int], position: int) -> tuple[int, float]:
        return (EOS, 0.9) if position == 2 else (position, 0.9 - 0.01 * position)

    out, model = generate(predict, 4, steps=4, eos_policy="last", select=EndFirst(), revise=Remask(0.5))
    assert out.ids_BL.tolist() == [[0, 1, EOS, 3]] and out.step_BL.tolist() == [[2, 3, 1, 4]]
    assert model.predicted[1] == [0, 1, 2, 3]


def test_what_stays_is_judged_among_the_ids_that_are_not_held_back() -> None:
    """In sight a token has 0.3, an end id 0.6, another word 0.1: 0.3 of 0.4 while end ids come last."""

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        p_PV = torch.full((int(predict_RL.sum()), VOCAB.size), 1e-9)
        seen_P = ids_RL[predict_RL] != MASK
        p_PV[~seen_P, 0] = 1.0
        p_PV[seen_P, 0], p_PV[seen_P, 1], p_PV[seen_P, EOS] = 0.3, 0.1, 0.6
        return p_PV.log()

    for policy, steps in (("last", [[1, 2, 3]]), ("none", [[3, 2, 3]])):
        config = generation_config(steps=3, eos_policy=policy, revise=Remask(0.7), early_stop=False)
        assert sample(denoise, collate([[Target(length=3)]], VOCAB), VOCAB, config).step_BL.tolist() == steps


def test_present_probability_is_that_among_the_allowed_ids() -> None:
    """0.3 of 0.4: it stays at a threshold of 0.7, and goes at 0.8."""

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits_V = torch.tensor([0.3, 0.1, 0.6, *[1e-9] * 7]).log()
        return logits_V.repeat(int(predict_RL.sum()), 1)

    for threshold, steps in ((0.7, [[1, 2, 3]]), (0.8, [[3, 2, 3]])):
        batch = collate([[Target(length=3, allow=((0, 2),))]], VOCAB)
        out = sample(denoise, batch, VOCAB, GenerationConfig(steps=3, revise=Remask(threshold)))
        assert out.step_BL.tolist() == steps


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    own_NV = 2 * torch.randn(32, VOCAB.size, generator=generator)
    seen_NVV = torch.randn(32, VOCAB.size, VOCAB.size, generator=generator)
    rows: list[Sample] = [
        [Text([1, 2]), Target(length=12)],
        [Target(length=3), Text([3]), Target(length=4)],
        [Text([1]), Target([MASK, 5, MASK, MASK, 6, MASK])],
    ]

    def run(samples: list[Sample], index: list[int]) -> Generation:
        batch = collate(samples, VOCAB, index=index)

        @by_query
        def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
            logits = []
            for ids_L, predict_L, target_L in zip(ids_RL, predict_RL, batch.target_BL[row_R], strict=True):
                mood_V = sum(seen_NVV[n, i] for n, i in enumerate(ids_L[target_L].tolist()))
                logits.append((own_NV[: int(target_L.sum())] + mood_V)[predict_L[target_L]])
            return torch.cat(logits)

        config = generation_config(
            steps=6, schedule="cosine", temperature=1.0, temperature_end=0.0, early_stop=False, seed=2,
            revise={
                "target": "mmdiff.samplers.rules.maskgit.Remask", "threshold": 0.2, "threshold_end": 0.6, "drop": 0.3,
            },
        )  # fmt: skip
        return sample(denoise, batch, VOCAB, config)

    together = run(rows, [4, 7, 1])
    for b, (row, name) in enumerate(zip(rows, [4, 7, 1], strict=True)):
        alone = run([row], [name])
        assert alone.targets()[0] == together.targets()[b]
        a, t = (out.step_BL[r][out.target_BL[r]].tolist() for out, r in ((alone, 0), (together, b)))
        assert a == t and int(alone.forwards_B[0]) == int(together.forwards_B[b])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "sampler.revise.threshold=1.5: expected a number from 0 to 1"),
        ({"threshold": None}, "sampler.revise.threshold: None is not a number"),
        ({"threshold": 0.1, "threshold_end": -1}, "sampler.revise.threshold_end=-1"),
        ({"threshold": 0.1, "drop": "much"}, "sampler.revise.drop: 'much' is not a number or null"),
        ({"threshold": 0.0}, "masks nothing"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    node = {"target": "mmdiff.samplers.rules.maskgit.Remask", **arguments}
    with pytest.raises(ConfigError) as raised:
        generate(first_is_corrected, 4, steps=4, revise=node)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_rule_with_the_old_name_of_its_flag_is_refused() -> None:
    def revise(committed: object) -> Tensor:
        raise AssertionError("not asked")

    revise.again = True  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has `again`, which is `rescore` since 0.2"):
        rules_of(GenerationConfig(revise=revise))
