"""What keeps keys and values: exact where the pattern allows it, and else what each cache says; batch = single rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import batch_of, model, samples

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import BlockCausal, Causal, CausalContext, PrefixCausal
from mmdiff.canvas.query import Query
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.samplers.links.caches import Delayed, Dual, FreeCache, Prefix, Vicinity
from mmdiff.samplers.links.greedy import Greedy
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.editing import Editing
from mmdiff.samplers.processes.hybrid import Hybrid
from mmdiff.samplers.processes.insertion import Insertion
from mmdiff.samplers.rules.maskgit import Remask
from mmdiff.samplers.rules.revise import RunningConfidence

CACHES = [Prefix(), Prefix(2), Dual(), Dual(3), Vicinity(2, 1), FreeCache(), Delayed(2), Delayed(100)]
EXACT = [Causal(), PrefixCausal(), CausalContext(), BlockCausal(3), BlockCausal(4, "targets")]


NAMED: list[dict[str, Any]] = [
    {"block_length": 3},
    {"block_length": 4, "threshold": 0.3, "temperature": 1.0},
    {"steps": 4, "block_length": 6, "remasking": "random"},
    {"block_length": 4, "guidance_scale": 1.5},
    {"denoise": [Guidance(0.5, 1.0)], "block_length": 3, "temperature": 0.7},
    {
        "block_length": 5, "steps": 9,
        "revise": {"target": "mmdiff.samplers.rules.maskgit.Remask", "threshold": 0.4},
    },
]  # fmt: skip


def run(m: MMDiff, rows: list[Sample], index: list[int], side: str = "left", **named: Any) -> Generation:
    return m.generate(batch_of(m, rows, index, side), seed=1, early_stop=False, **named)


def with_cache(cache: Any, named: dict[str, Any]) -> dict[str, Any]:
    return named | {"denoise": [cache, *named.get("denoise", [])]}


class Uncached(MMDiff):
    """Runs every canvas whole at every step."""

    def denoiser(self, batch: Batch, **named: Any) -> Any:
        denoise = super().denoiser(batch, **named)
        return lambda query: denoise(replace(query, step=None))


@pytest.mark.parametrize(("named", "shift"), [*((named, 0) for named in NAMED), (NAMED[1], 1), (NAMED[4], 1)])
@pytest.mark.parametrize("attention", EXACT)
def test_where_the_pattern_allows_it_keeping_changes_nothing(
    attention: Pattern, named: dict[str, Any], shift: int
) -> None:
    m = model(attention)
    m.backbone.facts = replace(m.backbone.facts, shift=shift)
    plain = Uncached(m.backbone, dict(m.encoders), dict(m.connectors), attention=attention).eval()
    one, two = run(m, samples(), [8, 3, 5, 4], **named), run(plain, samples(), [8, 3, 5, 4], **named)
    assert one.ids_BL.tolist() == two.ids_BL.tolist() and one.step_BL.tolist() == two.step_BL.tolist()
    assert torch.allclose(one.confidence_BL, two.confidence_BL, atol=1e-4)
    assert one.calls == two.calls


@pytest.mark.parametrize("attention", EXACT)
def test_insertion_asks_about_given_positions_and_keeps_nothing(attention: Pattern) -> None:
    m = model(attention)
    plain = Uncached(m.backbone, dict(m.encoders), dict(m.connectors), attention=attention).eval()
    named: dict[str, Any] = {"process": Insertion(stop=1.0), "temperature": 1.0}
    one, two = (run(x, samples()[:2], [8, 3], **named) for x in (m, plain))
    assert one.targets() == two.targets() and one.calls == 9
    assert torch.allclose(one.confidence_BL, two.confidence_BL, atol=1e-4)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("named", [NAMED[1], NAMED[4], NAMED[5]])
def test_a_row_is_the_same_alone_and_in_a_batch_with_every_cache(cache: Any, named: dict[str, Any]) -> None:
    m = model()
    together = run(m, samples(), [8, 3, 5, 4], **with_cache(cache, named))
    for b in (1, 3):  # the row of two spans, and that with a picture and given words
        alone = run(m, [samples()[b]], [[8, 3, 5, 4][b]], **with_cache(cache, named))
        target_L, alone_L = together.target_BL[b], alone.target_BL[0]
        assert together.targets()[b] == alone.targets()[0]
        assert together.step_BL[b][target_L].tolist() == alone.step_BL[0][alone_L].tolist()
        assert torch.allclose(together.confidence_BL[b][target_L], alone.confidence_BL[0][alone_L], atol=1e-4)


@pytest.mark.parametrize("cache", [Prefix(1), Dual(1), Delayed(1)])
@pytest.mark.parametrize("named", [NAMED[1], NAMED[4]])
def test_a_cache_that_is_refreshed_at_every_step_changes_nothing(cache: Any, named: dict[str, Any]) -> None:
    m = model()
    one, two = run(m, samples(), [8, 3, 5, 4], **with_cache(cache, named)), run(m, samples(), [8, 3, 5, 4], **named)
    assert one.ids_BL.tolist() == two.ids_BL.tolist() and one.step_BL.tolist() == two.step_BL.tolist()


def test_caches_are_approximations_and_unlike() -> None:
    m = model()
    found = {str(run(m, samples(), [8, 3, 5, 4], **with_cache(c, NAMED[0])).confidence_BL.tolist()) for c in CACHES}
    assert len(found) >= 6


def lengths_of(m: MMDiff) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    m.backbone.model.model.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: found.append(tuple(args[0].shape[:2])), with_kwargs=True
    )
    return found


def test_which_positions_each_cache_runs() -> None:
    """One row: a prompt of 4, two blocks of 3 positions, a step per position."""
    rows: list[Sample] = [[Text([4, 5, 6, 7]), Target(length=6)]]
    for cache, expected in [
        (None, [10] * 6),
        (Prefix(), [10, 6, 6, 10, 3, 3]),
        (Prefix(2), [10, 6, 10, 10, 3, 10]),
        (Dual(), [10, 3, 3, 10, 3, 3]),
        (Vicinity(2, 1), [10, 6, 6, 10, 5, 5]),
        (FreeCache(), [10, 6, 6, 3, 3, 3]),
        (Delayed(3), [10, 6, 5, 10, 3, 2]),  # what was pending before the last step
    ]:
        m = model(image=False)
        found = lengths_of(m)
        run(m, rows, [0], block_length=3, denoise=[cache] if cache else [])
        assert [n for _, n in found] == expected, cache
    for attention, expected in [
        (PrefixCausal(), [10] + [6] * 5),
        (BlockCausal(3, "targets"), [7, 3, 3, 6, 3, 3]),  # the block before is run once more, now that it is complete
        (Causal(), [7, 3, 3, 6, 3, 3]),
    ]:
        m = model(attention, image=False)
        found = lengths_of(m)
        run(m, rows, [0], block_length=3)
        assert [n for _, n in found] == expected, attention


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "named",
    [{"revise": Remask(0.4), "steps": 9}, {"process": Editing(0.1), "threshold": 0.3}, {"revise": RunningConfidence()}],
    ids=str,
)
def test_every_position_that_is_asked_about_is_run(cache: Any, named: dict[str, Any]) -> None:
    """Those that were masked again, and committed ones that a rule or process judges again, too."""
    m = model(image=False)
    batch = batch_of(m, samples()[1:3], [3, 5])
    denoise = m.denoiser(batch)
    steps = 0

    def checked(query: Query) -> Any:
        nonlocal steps
        assert query.fresh is not None
        run_RL = torch.as_tensor(query.fresh.run_RL)
        assert run_RL.sum(1).tolist() == query.fresh.count_R.tolist()
        run_RL = run_RL | torch.as_tensor(query.fresh.whole_R)[:, None]
        assert (run_RL | ~query.predict_RL).all()
        steps += 1
        return denoise(query)

    config = generation_config(denoise=[cache], block_length=5, early_stop=False, seed=1, **named)
    out = sample(checked, batch, m.vocab, config)
    assert steps == out.calls > 4


def test_a_finished_row_leaves_the_buffer() -> None:
    m = model(image=False)
    found = lengths_of(m)
    rows: list[Sample] = [[Text([4]), Target(length=5)], [Text([4]), Target(length=2)]]
    run(m, rows, [0, 1], denoise=[Dual()])
    assert found == [(2, 6), (2, 5), (1, 4), (1, 3), (1, 2)] or [r for r, _ in found] == [2, 2, 1, 1, 1]


def test_a_new_generation_keeps_nothing_of_the_last_one() -> None:
    """Rounds of a draft share one Denoise: keys and values of the round before are not those of this one."""
    m = model(image=False)
    given = list(range(4, 9)) * 2
    batch = collate([[Text([4, 5]), Target(given[:8])], [Text([6]), Target(given[2:8])]], m.vocab)
    for cache in (Dual(), FreeCache(), Delayed(4)):
        draft = {"target": "mmdiff.samplers.deliberation.MaskChunks", "ratio": 0.5}
        named: dict[str, Any] = dict(draft=draft, block_length=4, denoise=[cache])
        together = m.generate(batch, **named)
        for b, row in enumerate([given[:8], given[2:8]]):
            alone = m.generate(collate([[Text([[4, 5], [6]][b]), Target(row)]], m.vocab), **named)
            assert alone.targets()[0] == together.targets()[b]


def test_shifted_logits_come_with_the_position_before() -> None:
    m = model(image=False)
    m.backbone.facts = replace(m.backbone.facts, shift=1)
    for cache in (Prefix(1), Dual(1)):
        one, two = run(m, samples()[1:3], [3, 5], denoise=[cache]), run(m, samples()[1:3], [3, 5])
        assert one.ids_BL.tolist() == two.ids_BL.tolist()
    found = lengths_of(m)
    run(m, [[Text([4, 5, 6]), Target(length=4)]], [0], block_length=2, denoise=[Dual()])
    assert [n for _, n in found] == [7, 3, 7, 3]


def test_guidance_may_stand_on_either_side_of_a_cache() -> None:
    m = model()
    for cache in (Dual(), Delayed(2)):
        inside = run(m, samples(), [8, 3, 5, 4], block_length=3, denoise=[cache, Guidance(1.0)])
        outside = run(m, samples(), [8, 3, 5, 4], block_length=3, denoise=[Guidance(1.0), cache])
        assert inside.ids_BL.tolist() == outside.ids_BL.tolist()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"denoise": [Dual(), Prefix()]}, "Dual and Prefix: two caches"),
        ({"denoise": [Dual()], "prefix_cache": True}, "two caches"),
        ({"denoise": [Guidance(1.0)], "guidance_scale": 1.0}, "two guidance"),
        ({"denoise": ["mmdiff.samplers.rules.score.Margin"]}, "denoise[0]: Margin has no `wrap`"),
        ({"denoise": "mmdiff.samplers.links.caches.Dual"}, "is not a list"),
        ({"denoise": [{"target": "mmdiff.samplers.links.caches.Dual", "refresh": -1}]}, "refresh"),
        ({"process": "mmdiff.samplers.rules.score.Margin"}, "Margin has no `start`"),
        ({"process": ["a"]}, "sampler.process: ['a'] is not a node"),
        ({"select": [[["a"]]]}, "sampler.select"),
        ({"select": Dual()}, "sampler.select: Dual has no `__call__`"),
        ({"revise": 3}, "sampler.revise: 3 is not a node"),
        ({"process": Hybrid(), "threshold": 0.5}, "sampler.threshold: Hybrid"),
        ({"process": Hybrid(), "revise": Remask(0.5)}, "sampler.revise: Hybrid"),
        ({"process": "mmdiff.samplers.processes.hybrid.Hybird"}, "sampler.process"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_sentence(named: dict[str, Any], message: str) -> None:
    m = model(image=False)
    with pytest.raises(ConfigError) as raised:
        run(m, [[Text([4]), Target(length=2)]], [0], **named)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("named", NAMED[:5], ids=str)
def test_greedy_is_no_cache_when_refreshed_and_delayed_when_its_window_is_all(named: dict[str, Any]) -> None:
    m = model()
    greedy = [
        run(m, samples(), [8, 3, 5, 4], **with_cache(cache, named)) for cache in (Greedy(refresh=1), Greedy(1, 3))
    ]
    plain = run(m, samples(), [8, 3, 5, 4], **named)
    assert greedy[0].ids_BL.tolist() == plain.ids_BL.tolist() and greedy[0].step_BL.tolist() == plain.step_BL.tolist()
    assert torch.allclose(greedy[0].confidence_BL, plain.confidence_BL, atol=1e-4)
    for b in range(4):
        alone = run(m, [samples()[b]], [[8, 3, 5, 4][b]], **with_cache(Greedy(1, 3), named))
        assert alone.targets()[0] == greedy[1].targets()[b]
        own = alone.confidence_BL[0][alone.target_BL[0]]
        of_batch = greedy[1].confidence_BL[b][greedy[1].target_BL[b]]
        assert torch.allclose(own, of_batch, atol=5e-3)  # by rounding, another position is at the edge of the window
    one = {**named, "block_length": None}
    wide, delayed = (run(m, samples(), [8, 3, 5, 4], **with_cache(c, one)) for c in (Greedy(99, 4), Delayed(4)))
    assert wide.ids_BL.tolist() == delayed.ids_BL.tolist()
    assert torch.allclose(wide.confidence_BL, delayed.confidence_BL, atol=1e-4)


@pytest.mark.parametrize("shift", [0, 1])
def test_greedy_runs_what_was_committed_what_is_surest_and_their_neighbours(shift: int) -> None:
    """Against lists: which positions are run; all others are judged by the logits of the step that ran them."""
    m = model(image=False)
    m.backbone.facts = replace(m.backbone.facts, shift=shift)
    batch = batch_of(m, samples()[1:3], [3, 5])
    denoise = m.denoiser(batch)
    seen: list[tuple[Query, torch.Tensor]] = []
    given: list[tuple[Query, torch.Tensor]] = []

    def inner(query: Query) -> Any:
        out = denoise(query)
        seen.append((query, out.logits_PV.clone()))
        return out

    greedy = Greedy(window=1, refresh=4, ahead=2).wrap(inner, batch, m.vocab)

    def outer(query: Query) -> Any:
        out = greedy(query)
        given.append((query, out.logits_PV.clone()))
        return out

    sample(outer, batch, m.vocab, generation_config(steps=6, early_stop=False, seed=1))
    kept: dict[tuple[int, int], torch.Tensor] = {}
    before: dict[int, list[int]] = {}
    few = 0
    for (query, fresh_PV), (_, logits_PV) in zip(seen, given, strict=True):
        assert query.fresh is not None and query.step is not None
        at = list(zip(query.row_R[query.at()[0]].tolist(), query.at()[1].tolist(), strict=True))
        for r, b in enumerate(query.row_R.tolist()):
            asked = [position for row, position in at if row == b]
            if query.step.forward_R[r] % 4 == 1:
                assert query.fresh.whole_R[r]
                run = asked
            else:
                closed = [i for i in before[b] if i not in asked]
                surest = sorted(asked, key=lambda i: -float(kept[b, i].softmax(-1).max()))[:2]
                run = [i for i in asked if any(abs(i - j) <= 1 for j in closed + surest)]
                assert query.fresh.run_RL[r].nonzero()[:, 0].tolist() == sorted(run + closed)
                few += len(run) < len(asked)
            for n, (row, position) in enumerate(at):
                if row == b:
                    if position in run:
                        kept[b, position] = fresh_PV[n]
                    assert torch.equal(logits_PV[n], kept[b, position])
            before[b] = asked
    assert few > 1


@pytest.mark.parametrize("attention", [BlockCausal(3, "targets"), PrefixCausal()], ids=str)
def test_one_denoise_for_two_generations_of_one_batch(attention: Pattern) -> None:
    """What was final in the first is not in the second, although canvas and rows are the same."""
    m = model(attention, image=False)
    batch = batch_of(m, samples()[1:2], [3])
    denoise = m.denoiser(batch)
    for seed in (1, 2):
        config = generation_config(temperature=1.0, block_length=3, early_stop=False, seed=seed)
        again = sample(denoise, batch, m.vocab, config)
        fresh = sample(m.denoiser(batch), batch, m.vocab, config)
        assert again.ids_BL.tolist() == fresh.ids_BL.tolist()
        assert torch.allclose(again.confidence_BL, fresh.confidence_BL, atol=1e-4)


def test_of_positions_that_are_equally_sure_the_first_is_run_whatever_padding_stands_beside() -> None:
    """A grammar makes several positions certain at once; `topk` of a wider row takes another of these."""
    greedy, near = Greedy(window=1, ahead=1), []
    for padding in (0, 1, 4, 60):
        asked_RL = torch.tensor([[False] * padding + [True] * 6])
        sure_RL = torch.tensor([[-1.0] * padding + [0.5, 1.0, 0.2, 1.0, 1.0, 0.3]])
        near.append(greedy._near(torch.zeros_like(asked_RL), sure_RL, asked_RL)[0, padding:].tolist())
    assert near == [[True, True, True, False, False, False]] * 4
