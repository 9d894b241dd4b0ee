"""The attention of a model: chosen by a configuration, kept in its folder, and the same with a kept context.

Shape letters: B samples, L positions, R rows, P predicted positions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import backbone

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern, Visibility
from mmdiff.canvas.patterns import BlockCausal, Causal, CausalContext, Documents, Full, PrefixCausal
from mmdiff.canvas.sample import Target, Text
from mmdiff.config.settings import ModelConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.files import SUMS
from mmdiff.model import MMDiff, build_model

PATTERNS = "mmdiff.canvas.patterns"
PRODUCT = [{"target": f"{PATTERNS}.Causal"}, {"target": f"{PATTERNS}.Documents"}]


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({}, Full()),
        ({"prefix_causal": True}, PrefixCausal()),
        ({"prefix_causal": False}, Full()),
        ({"attention": {"target": f"{PATTERNS}.PrefixCausal"}}, PrefixCausal()),
        (
            {"attention": {"target": f"{PATTERNS}.BlockCausal", "size": 4, "start": "targets"}},
            BlockCausal(4, "targets"),
        ),
        ({"attention": {"target": "mmdiff.canvas.pattern.All", "patterns": PRODUCT}}, Causal() & Documents()),
    ],
)
def test_the_attention_of_a_configuration_is_kept(given: dict[str, Any], pattern: Pattern, tmp_path: Path) -> None:
    m = build_model(ModelConfig(backbone={"target": "toy.backbone"}, **given))
    assert m.attention == pattern
    m.save_pretrained(tmp_path / "m")
    assert MMDiff.from_pretrained(tmp_path / "m").attention == pattern
    assert build_model(ModelConfig(weights=str(tmp_path / "m"))).attention == pattern
    assert build_model(ModelConfig(weights=str(tmp_path / "m")), toy=True).attention == pattern
    other = ModelConfig(weights=str(tmp_path / "m"), attention={"target": f"{PATTERNS}.Causal"})
    assert build_model(other).attention == build_model(other, toy=True).attention == Causal()


@pytest.mark.parametrize(("old", "pattern"), [(True, PrefixCausal()), (False, Full()), (None, Full())])
def test_folders_that_know_prefix_causal_only_are_read(old: bool | None, pattern: Pattern, tmp_path: Path) -> None:
    MMDiff(backbone()).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    saved = json.loads(file.read_text())
    del saved["attention"]
    file.write_text(json.dumps(saved if old is None else {**saved, "prefix_causal": old}))
    (tmp_path / "m" / SUMS).unlink()
    assert MMDiff.from_pretrained(tmp_path / "m").attention == pattern


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"attention": {"target": f"{PATTERNS}.Causal"}, "prefix_causal": True},
            "model.prefix_causal: model.attention",
        ),
        ({"attention": {"target": "mmdiff.diffusion.schedule.Linear"}}, "Linear is no attention pattern"),
        ({"attention": {"target": f"{PATTERNS}.BlockCausal"}}, 'needs "size"'),
        (
            {"attention": {"target": f"{PATTERNS}.BlockCausal", "size": 0}},
            "size=0: expected a whole number of at least 1",
        ),
        (
            {"attention": {"target": f"{PATTERNS}.BlockCausal", "size": 2, "start": "rows"}},
            "'rows' is not one of row, ",
        ),
    ],
)
def test_attention_that_cannot_be_is_one_line(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_model(ModelConfig(backbone={"target": "toy.backbone"}, **given))


def test_the_family_says_what_a_published_model_attends_to() -> None:
    made = backbone()
    made.facts = replace(made.facts, attention=BlockCausal(32))
    assert MMDiff(made).attention == BlockCausal(32)
    assert MMDiff(made, attention=Full()).attention == Full()


KINDS = [Full(), Causal(), PrefixCausal(), CausalContext(), CausalContext(2), BlockCausal(2), BlockCausal(2, "targets")]


def model(pattern: Pattern) -> MMDiff:
    torch.manual_seed(0)
    out = MMDiff(backbone(), attention=pattern)
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)  # far from uniform, so that a wrong position shows
    return out.eval()


def batch_of(m: MMDiff, side: str) -> Batch:
    """Contexts and targets of unequal length; the second row has context on both sides."""
    samples = [
        [Text([4, 5, 6, 7]), Target([7, 8, 4])],
        [Text([4]), Target([5, 6]), Text([8, 8])],
        [Target([6, 7, 8, 4])],
    ]
    return collate(samples, m.vocab, side=side)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pattern", KINDS, ids=str)
@torch.no_grad()
def test_a_padded_row_is_what_it_is_alone(pattern: Pattern, side: str) -> None:
    """Blocks are counted over what is not padding, wherever the padding is."""
    m = model(pattern)
    batch = batch_of(m, side)
    h_BLD = m.hidden(batch.ids_BL, batch, {}, torch.arange(3))
    for b in range(3):
        keep_L = batch.attend_BL[b]
        alone = replace(
            batch,
            padded=False,
            **{
                name: getattr(batch, name)[b : b + 1, keep_L]
                for name in ("ids_BL", "target_BL", "attend_BL", "position_ids_BL", "segment_BL")
            },
        )
        h_1LD = m.hidden(alone.ids_BL, alone, {}, torch.zeros(1, dtype=torch.int64))
        torch.testing.assert_close(h_BLD[b, keep_L], h_1LD[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("pattern", KINDS, ids=str)
@torch.no_grad()
def test_documents_of_a_packed_row_are_rows_of_their_own(pattern: Pattern) -> None:
    m = model(pattern)
    samples = [[Text([4, 5, 6]), Target([7, 8, 4])], [Text([4, 7]), Target([5, 6, 7, 8])]]
    both = collate([samples[0] + samples[1]], m.vocab)
    segment_BL = torch.tensor([[0] * 6 + [1] * 6])
    packed = replace(both, packed=True, segment_BL=segment_BL, position_ids_BL=torch.arange(6).repeat(2)[None])
    h_1LD = m.hidden(packed.ids_BL, packed, {}, torch.zeros(1, dtype=torch.int64))
    apart = collate(samples, m.vocab)
    torch.testing.assert_close(
        h_1LD.view(2, 6, -1), m.hidden(apart.ids_BL, apart, {}, torch.arange(2)), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("pattern", KINDS, ids=str)
@torch.no_grad()
def test_copies_of_a_sample_are_what_each_is_alone(pattern: Pattern) -> None:
    m = model(pattern)
    batch = batch_of(m, "right")
    ids_RL = torch.cat([torch.where(batch.target_BL, fill, batch.ids_BL) for fill in (m.vocab.mask_id, 5, 8)])
    together_RLD = m.hidden_copies(ids_RL, batch, {}, 3)
    alone_RLD = m.hidden(ids_RL, batch, {}, torch.arange(3).repeat(3))
    real_RL = batch.attend_BL.repeat(3, 1)
    torch.testing.assert_close(together_RLD[real_RL], alone_RLD[real_RL], atol=2e-5, rtol=0)


@pytest.mark.parametrize("named", [{}, {"prefix_cache": True}], ids=str)
def test_full_attention_makes_no_mask_of_pairs_whatever_is_kept(
    named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    m, masks, mask = model(Full()), [], Visibility.mask

    def looked_at(self: Visibility, *given: Any) -> Any:
        masks.append(mask(self, *given))
        return masks[-1]

    monkeypatch.setattr(Visibility, "mask", looked_at)
    empty = [Text([4, 5]), Target([m.vocab.mask_id] * 4)]
    for samples in ([empty, empty], [empty, empty[1:]]):
        m.generate(collate(samples, m.vocab, side="left"), block_length=2, **named)
    assert len(masks) == 8 and all(made is None or made.ndim == 2 for made in masks)
