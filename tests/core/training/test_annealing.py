"""Attention that goes from causal to full (DiffuLLaMA, arXiv 2410.17891): its law, its draws, and runs that use it.

Shape letters: R rows, L positions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures.runs import apart, weights
from torch import Tensor

from mmdiff import train
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import Causal, Full, PartlyCausal, visibility
from mmdiff.canvas.sample import Break, Sample, Target, Text
from mmdiff.config.settings import ModelConfig
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey, mixed
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff, build_model
from mmdiff.runs.folder import Run
from mmdiff.training.annealing import annealed
from mmdiff.training.stage import Stage

KEY = NoiseKey(3, 5, "fit")
SAMPLES: list[Sample] = [[Text([4, 5, 6]), Target([7, 8, 4])], [Text([4]), Target([5, 6, 7, 8, 4, 5, 6, 7])]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model() -> MMDiff:
    torch.manual_seed(0)
    out = MMDiff(toy.backbone())
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)  # far from uniform, so that a wrong position shows
    return out.eval()


VOCAB = toy.backbone().vocab


def rows(samples: list[Sample], first: int = 0, side: str = "right") -> Batch:
    return collate(samples, VOCAB, index=range(first, first + len(samples)), side=side)  # type: ignore[arg-type]


def seen(batch: Batch, attention: str = "sdpa") -> Tensor:
    """Returns bool (R, L, L), who sees whom."""
    row_R = torch.arange(len(batch))
    x_RLD, attend_RL = torch.zeros(*batch.ids_BL.shape, 1), batch.attend_BL if batch.padded else None
    mask = visibility(Full(), batch, row_R).mask(x_RLD, attend_RL, attention)
    return mask[:, 0] if attention == "sdpa" else mask[:, 0] == 0


@pytest.mark.parametrize(("value", "bits"), [(0, 0), (1, 0x514E28B7), (2, 0x30F4C306), (0xFFFFFFFF, 0x81F16F39)])
def test_mixed_is_the_finaliser_of_murmur_hash(value: int, bits: int) -> None:
    """Known values of `fmix32`; int64 tensors and whole numbers give the same, and high bits do not count."""
    assert mixed(value) == bits and int(mixed(torch.tensor(value + (7 << 40)))) == bits


def test_so_many_later_positions_are_seen() -> None:
    """Within five standard deviations of the binomial law; all before and itself, always."""
    wide: list[Sample] = [[Text([4]), Target([5] * 47)] for _ in range(16)]
    later_LL = torch.ones(48, 48).triu(1).bool()
    for step, share in ((0, 0.1), (4, 0.5), (8, 0.9)):
        seen_RLL = seen(annealed(rows(wide), KEY, step, 10))
        assert bool(seen_RLL[:, ~later_LL].all())
        found, n = int(seen_RLL[:, later_LL].sum()), 16 * int(later_LL.sum())
        assert abs(found - share * n) < 5 * math.sqrt(n * share * (1 - share))
        of_rows, of_queries = seen_RLL[:, later_LL].float(), (seen_RLL & later_LL).float()
        assert of_rows.mean(1).std() < 0.05 and len({tuple(row.tolist()) for row in of_rows}) == 16
        assert float(torch.corrcoef(of_rows).fill_diagonal_(0).abs().max()) < 5 / math.sqrt(1128)
        assert of_queries.sum((0, 2))[:24].min() > 0.6 * share * 16 * 23


def test_pairs_are_added_and_none_is_taken_away() -> None:
    at = [seen(replace(rows(SAMPLES), attention=PartlyCausal(share, 77))) for share in (0.0, 0.2, 0.7, 0.99)]
    assert all(
        bool((less <= more).all()) and bool((less != more).any()) for less, more in zip(at, at[1:], strict=False)
    )


def test_steps_and_seeds_draw_anew_and_the_rest_changes_nothing() -> None:
    batch = rows(SAMPLES)
    one = seen(annealed(batch, KEY, 4, 10))
    assert torch.equal(one, seen(annealed(rows(SAMPLES), KEY, 4, 10)))
    for other in (replace(KEY, seed=4), replace(KEY, step=6), replace(KEY, stream="tune")):
        assert not torch.equal(one, seen(annealed(batch, other, 4, 10)))
    short, long = seen(annealed(rows(SAMPLES[:1]), KEY, 4, 10)), seen(annealed(rows(SAMPLES[1:], 1), KEY, 4, 10))
    assert torch.equal(one[0, :6, :6], short[0]) and torch.equal(one[1], long[0])  # whatever stands beside a sample
    left = seen(annealed(rows(SAMPLES, side="left"), KEY, 4, 10))
    assert torch.equal(left[0, -6:, -6:], short[0])
    assert not torch.equal(one[1], seen(annealed(rows(SAMPLES[1:], 2), KEY, 4, 10))[0])
    assert torch.equal(one, seen(annealed(batch, KEY, 4, 10), "eager"))
    copies = annealed(batch, KEY, 4, 10)
    twice = visibility(Full(), copies, torch.tensor([0, 1, 0, 1])).mask(
        torch.zeros(4, 9, 1), copies.attend_BL.repeat(2, 1), "sdpa"
    )
    assert torch.equal(twice[:2], twice[2:])  # of a sample's copies


def test_documents_stay_apart_and_draw_for_themselves() -> None:
    packed = rows([[Text([4]), Target([5] * 19), Break(), Text([4]), Target([5] * 19), Break()]])
    assert packed.packed
    seen_LL = seen(annealed(packed, KEY, 4, 10))[0]
    assert not seen_LL[:20, 20:].any() and not seen_LL[20:, :20].any()
    assert not torch.equal(seen_LL[:20, :20], seen_LL[20:, 20:])


@torch.no_grad()
def test_it_begins_as_the_causal_model_and_ends_as_the_full_one() -> None:
    m, batch, row_R = model(), rows(SAMPLES), torch.arange(2)
    full, real_BL = m.hidden(batch.ids_BL, batch, {}, row_R), batch.attend_BL
    half = m.hidden(batch.ids_BL, annealed(batch, KEY, 4, 10), {}, row_R)
    begin = m.hidden(batch.ids_BL, replace(batch, attention=PartlyCausal(0.0)), {}, row_R)
    end = m.hidden(batch.ids_BL, replace(batch, attention=PartlyCausal(1.0)), {}, row_R)
    m.attention = Causal()
    causal = m.hidden(batch.ids_BL, batch, {}, row_R)
    assert torch.equal(begin[real_BL], causal[real_BL]) and torch.equal(end[real_BL], full[real_BL])
    assert min(float((half - one)[real_BL].abs().max()) for one in (causal, full)) > 0.01


def test_the_last_step_has_full_attention_and_no_mask() -> None:
    batch = rows(SAMPLES)
    shares = [annealed(batch, KEY, step, 4).attention for step in range(6)]
    assert [one and one.share for one in shares] == [0.25, 0.5, 0.75, None, None, None]  # type: ignore[attr-defined]
    assert annealed(batch, KEY, 0, 0) is batch and annealed(batch, KEY, 0, 1) is batch


# Runs


def trained(name: str, **stage: Any) -> dict[str, Tensor]:
    ragged = {"target": "toy.Corners", "lengths": [1, 2, 5]}
    train(toy.config(name, image=False, stage={"steps": 4, "lr": 1e-3, "data": ragged, **stage}))
    return weights(name)


def test_a_run_anneals_and_its_model_attends_to_all() -> None:
    plain, annealing = trained("plain"), trained("annealing", anneal=4)
    assert apart(plain, annealing) > 1e-4
    assert MMDiff.from_pretrained(Run(Path("runs/annealing")).folder / "model").attention == Full()
    assert apart(plain, trained("at-once", anneal=1)) == 0


def test_the_split_of_a_batch_changes_rounding_only() -> None:
    whole = trained("whole", anneal=4)
    assert apart(whole, trained("halves", anneal=4, batch_size=2, accumulate=2)) < 1e-6


def test_a_run_that_was_cut_goes_on_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, step, left = trained("whole", anneal=4), Stage._step, [3]

    def cut(self: Stage, *args: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            trained("cut", anneal=4)
    assert apart(whole, trained("cut", anneal=4)) == 0


def test_what_cannot_be_annealed_is_one_line() -> None:
    config = toy.config(image=False, stage={"anneal": 4})
    config.model.attention = {"target": "mmdiff.canvas.patterns.Causal"}
    with pytest.raises(ConfigError, match="train.stages.only.anneal: 4: it ends in Full attention, but the model has"):
        train(config)
    node = {"target": "mmdiff.canvas.patterns.PartlyCausal", "share": 0.5}
    with pytest.raises(ConfigError, match="model.attention: .*PartlyCausal is drawn anew at every step"):
        build_model(ModelConfig(backbone={"target": "toy.backbone"}, attention=node))
