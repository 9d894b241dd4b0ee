"""Prefix-causal attention: the context attends to itself, is run once, and nothing changes by that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from logit_tables import asked
from torch import Tensor
from toy import Corners, Patches, Project, Where, backbone

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer as esm_tokenizer
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import Full, PrefixCausal
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.data.stream import canvases, read_media
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.prefix import Positions
from mmdiff.objectives.denoise import Denoise

KEY = NoiseKey(0, 0, "x")


def model(prefix_causal: bool = True, image: bool = True) -> MMDiff:
    torch.manual_seed(0)
    media = {"image": Patches()} if image else {}
    connectors = {"image": Project(width_in=16, width_out=32)} if image else {}
    return MMDiff(backbone(), media, connectors, attention=PrefixCausal() if prefix_causal else None).eval()


def batch_of(m: MMDiff, side: str = "right") -> Batch:
    """Unequal context and target; the second row has two spans, the third has an empty target position."""
    image = Media("image", torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3)))
    samples: list[Sample] = [
        [image, Text([4, 5, 6]), Target([7, 8])],
        [Text([4]), Target([5, 6]), Text([8, 8]), Target([4])],
        [Text([4, 5]), image, Target([6, 7, 8, m.vocab.mask_id])],
    ]
    return collate([read_media(s, m.readers) for s in samples], m.vocab, m.readers, side=side)  # type: ignore[arg-type]


def hidden(m: MMDiff, batch: Batch, ids_RL: Tensor, copies: int = 1) -> Tensor:
    return m.hidden(ids_RL, batch, m.encode(batch.media), torch.arange(len(batch)).repeat(copies))


def test_positions_are_moved_to_the_left() -> None:
    mask_BL = torch.tensor([[False, True, False, True], [False, False, True, False]])
    positions = Positions.of(mask_BL)
    assert positions.at_BN.tolist() == [[1, 3], [2, 4]] and positions.real_BN.tolist() == [[True, True], [True, False]]
    assert positions.take(torch.arange(8).view(2, 4))[:, 0].tolist() == [1, 6]


@torch.no_grad()
@pytest.mark.parametrize("prefix_causal", [True, False])
def test_the_context_does_not_see_what_is_written(prefix_causal: bool) -> None:
    m = model(prefix_causal)
    batch = batch_of(m)
    other_BL = torch.where(batch.target_BL, 5, batch.ids_BL)
    before, after = hidden(m, batch, batch.ids_BL), hidden(m, batch, other_BL)
    context_BL = batch.attend_BL & ~batch.target_BL
    assert torch.equal(before[context_BL], after[context_BL]) == prefix_causal
    assert not torch.allclose(before[batch.target_BL], after[batch.target_BL], atol=1e-3)


@torch.no_grad()
def test_what_is_written_sees_the_whole_context_and_all_that_is_written() -> None:
    m = model(image=False)
    base = collate([[Text([4, 5]), Target([6, 7]), Text([8])]], m.vocab)
    before = hidden(m, base, base.ids_BL)[0, 2]
    for position in (0, 1, 3, 4):
        ids_BL = base.ids_BL.clone()
        ids_BL[0, position] = 4 + (int(ids_BL[0, position]) - 3) % 5
        assert not torch.allclose(before, hidden(m, base, ids_BL)[0, 2], atol=1e-4), position


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_kept_prefix_gives_the_logits_of_the_whole_canvas(side: str) -> None:
    m = model()
    batch = batch_of(m, side)
    predict_BL = batch.target_BL
    denoise, rows = m.denoiser(batch), torch.tensor([2, 0])
    for fill in (m.vocab.mask_id, 6, 8):
        ids_BL = torch.where(predict_BL, fill, batch.ids_BL)
        whole_PV = m.backbone.head(hidden(m, batch, ids_BL)[predict_BL])
        assert torch.allclose(asked(denoise, ids_BL, predict_BL, torch.arange(3)), whole_PV, atol=1e-5)
        some_PV = m.backbone.head(hidden(m, batch, ids_BL)[rows][predict_BL[rows]])
        assert torch.allclose(asked(denoise, ids_BL[rows], predict_BL[rows], rows), some_PV, atol=1e-5)


@torch.no_grad()
def test_the_context_runs_once_a_generation() -> None:
    m = model()
    lengths: list[int] = []
    m.backbone.model.model.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: lengths.append(args[0].shape[1]), with_kwargs=True
    )
    rows = [Corners(seed=1)[i] for i in range(3)]
    batch = canvases(rows, Where(), m.vocab, m.readers)
    m.generate(batch, steps=2)
    assert lengths == [7, 2]  # four features and a word, with the two answers; then these alone
    lengths.clear()
    m.generate(batch, steps=2, guidance_scale=1.0)  # the rows whose context is hidden are kept apart
    assert lengths == [7, 2]


def test_views_share_the_context_and_give_what_each_gives_alone() -> None:
    m = model().train()
    for module in m.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = batch_of(m)
    plan = Denoise(copies=3).plan(batch, KEY, m.vocab)
    features = m.encode(batch.media)
    together_RLD = m.hidden_copies(plan.ids_RL, batch, features, 3)
    alone_RLD = m.hidden(plan.ids_RL, batch, features, plan.row_R)
    real_RL = batch.attend_BL.repeat(3, 1)
    assert torch.allclose(together_RLD[real_RL], alone_RLD[real_RL], atol=1e-5)
    weight = m.backbone.model.model.embed_tokens.weight
    one, two = (torch.autograd.grad(h[real_RL].square().sum(), weight)[0] for h in (together_RLD, alone_RLD))
    # the context is there once a copy in both
    assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def test_a_row_without_context_among_others() -> None:
    m = model(image=False)
    batch = collate([[Text([4, 5]), Target([6, 7])], [Target([8, 7, 6])]], m.vocab)
    predict_BL = batch.target_BL
    found_PV = asked(m.denoiser(batch), batch.ids_BL, predict_BL, torch.arange(2))
    with torch.no_grad():
        assert torch.allclose(found_PV, m.backbone.head(hidden(m, batch, batch.ids_BL)[predict_BL]), atol=1e-5)
    alone = collate([[Target([8, 7, 6])]], m.vocab)  # nothing to keep
    assert asked(m.denoiser(alone), alone.ids_BL, alone.target_BL, torch.arange(1)).isfinite().all()


def test_it_is_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    m = model(image=False)
    m.save_pretrained(tmp_path / "m")
    assert MMDiff.from_pretrained(tmp_path / "m").attention == PrefixCausal()
    model(False, image=False).save_pretrained(tmp_path / "n")
    assert MMDiff.from_pretrained(tmp_path / "n").attention == Full()


def test_encoders_run_every_position() -> None:
    esm = new_backbone(family="esm", tokenizer=esm_tokenizer(), hidden_size=16, layers=1, heads=2, max_length=32)
    m = MMDiff(esm, attention=PrefixCausal()).eval()
    batch = collate([[Text([0, 5]), Target([6, 7])]], m.vocab)
    assert asked(m.denoiser(batch), batch.ids_BL, batch.target_BL, torch.arange(1)).isfinite().all()
    with pytest.raises(ConfigError, match="esm cannot be kept"):
        MMDiff(esm).generate(
            replace(batch, ids_BL=batch.ids_BL.masked_fill(batch.target_BL, m.vocab.mask_id)), prefix_cache=True
        )
