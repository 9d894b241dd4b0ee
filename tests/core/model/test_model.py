"""The model on the smallest application: features reach their slots, and rows do not reach each other.

Shape letters: B samples, L positions, R rows, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from logit_tables import asked
from torch import Tensor, nn

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.prompt import prompt_canvas
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff, build_model


def model(image: bool = True) -> MMDiff:
    torch.manual_seed(0)
    parts: tuple[Any, ...] = ({"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    out = MMDiff(toy.backbone(), *(parts if image else ()))
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)  # far from uniform, so that a wrong position shows
    return out.eval()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 8, 8)).astype(np.float32)


def rows(*pictures: int | None) -> list[Sample]:
    """A picture (or none), a word, three masked positions."""
    return [
        [*([] if seed is None else [Media("image", picture(seed))]), Text([4]), Target([5, 6, 7])] for seed in pictures
    ]


def lay(m: MMDiff, samples: list[Sample], **how: Any) -> Batch:
    return collate(samples, m.vocab, m.readers, **how)


@torch.no_grad()
def hidden(m: MMDiff, batch: Batch, media_R: Tensor | None = None) -> Tensor:
    return m.hidden(batch.ids_BL, batch, m.encode(batch.media), torch.arange(len(batch)), media_R)


@torch.no_grad()
def embedded(m: MMDiff, batch: Batch, media_R: Tensor | None = None) -> Tensor:
    """What the backbone is given."""
    seen: list[Tensor] = []
    handle = m.backbone.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    hidden(m, batch, media_R)
    handle.remove()
    return seen[0]


# Features in their slots ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_backbone_sees_features_at_slots_and_embeddings_elsewhere(side: Any) -> None:
    m = model()
    samples: list[Sample] = [
        [Media("image", picture(1)), Text([4]), Media("image", picture(2)), Target([5])],
        [Text([4]), Target([5])],
        [Text([4, 6]), Media("image", picture(3)), Target([5])],
    ]
    batch = lay(m, samples, side=side)
    x_BLD = embedded(m, batch)
    expected_BLD = m.backbone.embed(batch.ids_BL)
    start = [batch.attend_BL[b].int().argmax().item() for b in range(3)]
    for b, at, seed in ((0, 0, 1), (0, 5, 2), (2, 2, 3)):
        patches = m.encoders["image"](torch.from_numpy(picture(seed))[None])[0]
        expected_BLD[b, start[b] + at : start[b] + at + 4] = m.connectors["image"].linear(patches)
    torch.testing.assert_close(x_BLD, expected_BLD)


def test_another_picture_moves_its_own_row_only() -> None:
    m = model()
    before, after = hidden(m, lay(m, rows(1, 2, 3))), hidden(m, lay(m, rows(1, 9, 3)))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert ((before[1] - after[1]).abs().amax(-1) > 1e-3).all()  # every position of the row


def test_exchanged_pictures_exchange_rows() -> None:
    m = model()
    batch = lay(m, rows(1, 2, 3))
    media = batch.media["image"]
    turned = replace(batch, media={"image": replace(media, values_N=media.values_N[[2, 0, 1]])})
    torch.testing.assert_close(hidden(m, turned), hidden(m, batch)[[2, 0, 1]])
    assert (hidden(m, turned) - hidden(m, batch)).abs().max() > 1e-2


def test_rows_without_a_picture_in_a_batch_with_one() -> None:
    m = model()
    mixed = hidden(m, lay(m, rows(1, None), side="left"))
    alone = hidden(m, lay(m, rows(None)))
    torch.testing.assert_close(mixed[1, 4:], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[0], hidden(m, lay(m, rows(1)))[0], rtol=1e-4, atol=1e-5)


def test_hidden_media_leave_the_embedding_of_the_slot() -> None:
    m = model()
    batch = lay(m, rows(1, 2))
    blind = hidden(m, batch, torch.tensor([True, False]))
    torch.testing.assert_close(blind[0], hidden(m, batch)[0])
    plain = m.backbone.hidden(m.backbone.embed(batch.ids_BL)).detach()  # the slot id stands where the picture was
    torch.testing.assert_close(blind[1], plain[1])
    assert (blind[1] - hidden(m, batch)[1]).abs().max() > 1e-2
    assert torch.equal(embedded(m, batch, torch.tensor([True, False]))[1], m.backbone.embed(batch.ids_BL)[1])


def test_rows_find_the_sample_they_belong_to() -> None:
    m = model()
    batch = lay(m, [*rows(1, 2), [Text([4, 4]), Target([5])]])
    row_R = torch.tensor([2, 1, 1, 0])
    with torch.no_grad():
        many = m.hidden(batch.ids_BL[row_R], batch, m.encode(batch.media), row_R)
    torch.testing.assert_close(many[:, :3], hidden(m, batch)[row_R][:, :3], rtol=1e-4, atol=1e-5)


def test_cached_features_are_taken_as_they_are() -> None:
    m = model()
    batch = lay(m, rows(1, 2))
    expected = hidden(m, batch)
    features_NTE = m.features("image", batch.media["image"]).detach()
    m.encoders["image"].forward = None  # type: ignore[assignment]  # it is not called again
    media = replace(batch.media["image"], values_N=torch.empty(0), features_NTE=features_NTE)
    assert torch.equal(hidden(m, replace(batch, media={"image": media})), expected)


def test_text_alone_with_an_encoder_present() -> None:
    with_encoder, without = model(), model(image=False)
    without.load_state_dict({k: v for k, v in with_encoder.state_dict().items() if k.startswith("backbone")})
    batch = lay(with_encoder, rows(None, None))
    assert torch.equal(hidden(with_encoder, batch), hidden(without, batch))
    options: dict[str, Any] = {"generation_config": None, "seed": 3}
    assert torch.equal(with_encoder.generate(batch, **options).ids_BL, without.generate(batch, **options).ids_BL)


# Frozen towers -------------------------------------------------------------------------------------------------------


def test_a_frozen_encoder_stays_in_evaluation_mode() -> None:
    m = model()
    encoder = m.encoders["image"]
    batch = lay(m, rows(1))
    encoder.requires_grad_(False)
    m.train()
    assert m.training and m.backbone.training and m.connectors["image"].training
    assert not any(module.training for module in encoder.modules())
    first, again = (m.features("image", batch.media["image"]) for _ in range(2))
    assert torch.equal(first, again) and not first.requires_grad
    assert m.encode(batch.media)["image"].requires_grad  # the connector still learns
    m.generate(lay(m, [[Media("image", picture(1)), Target(length=1)]]))
    assert m.training and not encoder.training


def test_a_trained_encoder_is_in_training_mode_and_generation_leaves_it_so() -> None:
    m = model().train()
    batch = lay(m, [[Media("image", picture(1)), Target(length=3)]])
    assert m.encoders["image"].training and m.features("image", batch.media["image"]).requires_grad
    written = [m.generate(batch).confidence_BL for _ in range(2)]
    assert torch.equal(*written)  # the dropout of the encoder was off
    assert m.training and m.encoders["image"].training


# Positions and their hidden states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
def test_shifted_logits(shift: int) -> None:
    """With shift 1 a position is predicted by its left neighbour, and the first by itself."""
    m = model(image=False)
    m.backbone.facts = replace(m.backbone.facts, shift=shift)
    batch = lay(m, [[Target([5, 6, 7, 8])]])
    with torch.no_grad():
        logits_LV = m.backbone(batch.ids_BL)[0]
        from_position = [max(position - shift, 0) for position in range(4)]
        scores = m.score(hidden(m, batch), batch, batch.target_BL)
    expected = -logits_LV[from_position].log_softmax(-1)[torch.arange(4), batch.ids_BL[0]]
    torch.testing.assert_close(scores.nll_P, expected)
    predict_RL = torch.tensor([[True, False, True, True]])
    drawn = asked(m.denoiser(batch), batch.ids_BL, predict_RL, torch.tensor([0]))
    torch.testing.assert_close(drawn.clone(), logits_LV[from_position][[0, 2, 3]])


@torch.no_grad()
def test_the_denoiser_gives_the_logits_of_predicted_positions_row_by_row() -> None:
    m = model()
    batch = lay(m, rows(1, 2, 3))
    row_R = torch.tensor([2, 0])
    predict_RL = torch.zeros(2, batch.ids_BL.shape[1], dtype=torch.bool)
    predict_RL[0, 6], predict_RL[1, [5, 7]] = True, True
    logits_PV = asked(m.denoiser(batch), batch.ids_BL[row_R], predict_RL, row_R)
    whole_BLV = m.backbone.head(hidden(m, batch))
    expected = torch.stack([whole_BLV[2, 6], whole_BLV[0, 5], whole_BLV[0, 7]])
    torch.testing.assert_close(logits_PV.clone(), expected, rtol=1e-4, atol=1e-4)
    assert logits_PV.dtype == torch.float32


def test_media_are_encoded_once_a_generation() -> None:
    m, calls = model(), []
    m.encoders["image"].register_forward_hook(lambda *_: calls.append(1))
    out = m.generate(lay(m, [[Media("image", picture(1)), Target(length=4)]]), guidance_scale=1.0)
    assert out.calls == 4 and len(calls) == 1


# Generation from ids -------------------------------------------------------------------------------------------------


def test_left_padded_ids_write_what_single_rows_write() -> None:
    m = model(image=False)
    prompts = [[4, 5, 6, 7], [8], [6, 4]]
    pad = m.vocab.pad_id
    ids_BP = torch.tensor([[pad] * (4 - len(p)) + p for p in prompts])
    mask_BP = torch.tensor([[0] * (4 - len(p)) + [1] * len(p) for p in prompts])
    together = m.generate(ids_BP, attention_mask=mask_BP, max_new_tokens=5, early_stop=False)
    for b, prompt in enumerate(prompts):
        alone = m.generate(torch.tensor([prompt]), max_new_tokens=5, early_stop=False)
        assert together.ids_BL[b, 4:].tolist() == alone.ids_BL[0, len(prompt) :].tolist()
        torch.testing.assert_close(together.confidence_BL[b, 4:], alone.confidence_BL[0, len(prompt) :])
    assert torch.equal(together.ids_BL[:, :4], ids_BP)
    assert not (together.ids_BL[:, 4:] == m.vocab.mask_id).any()
    ignored = m.generate(ids_BP, max_new_tokens=5, early_stop=False)  # the mask matters
    assert not torch.allclose(ignored.confidence_BL, together.confidence_BL)


def test_a_canvas_of_ids_is_the_collated_one() -> None:
    m = model(image=False)
    ids_BP, mask_BP = torch.tensor([[0, 4], [5, 6]]), torch.tensor([[0, 1], [1, 1]])
    ours = prompt_canvas(ids_BP, mask_BP, 3, m.vocab)
    theirs = lay(m, [[Text([4]), Target(length=3)], [Text([5, 6]), Target(length=3)]], side="left")
    for name in ("target_BL", "attend_BL", "position_ids_BL", "segment_BL", "index_B"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.ids_BL[ours.attend_BL], theirs.ids_BL[theirs.attend_BL]) and ours.padded


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.tensor([4, 5]),), r"prompt ids have shape \(2,\), expected \(batch, length\)"),
        ((torch.tensor([[4, 5]]), torch.tensor([[1]])), r"attention_mask has shape \(1, 1\), the ids \(1, 2\)"),
        ((torch.tensor([[4, 5]]), None, None, None), None),
    ],
)
def test_generate_refuses_ids_that_do_not_fit(arguments: tuple[Any, ...], says: str | None) -> None:
    m = model(image=False)
    if says is None:
        with pytest.raises(ConfigError, match=r"sampler\.step: no such field \(did you mean \"steps\"\?\)"):
            m.generate(*arguments, step=3)
    else:
        with pytest.raises(ConfigError, match=says):
            m.generate(*arguments)


def test_a_batch_brings_its_own_mask() -> None:
    m = model(image=False)
    with pytest.raises(ConfigError, match="attention_mask: a Batch brings its own"):
        m.generate(lay(m, [[Target(length=1)]]), torch.ones(1, 1))


# Building ------------------------------------------------------------------------------------------------------------


def test_build_model_and_its_errors() -> None:
    config = toy.config().model
    m = build_model(config)
    assert list(m.encoders) == list(m.connectors) == ["image"]
    assert m.connectors["image"].linear.in_features == 16 and m.connectors["image"].linear.out_features == 32
    taken_out = build_model(replace(config, encoders={"image": None}))
    assert not taken_out.encoders and not taken_out.connectors
    with pytest.raises(
        ConfigError, match=r"model\.connectors\.imag: no encoder of that kind \(did you mean \"image\"\?\)"
    ):
        build_model(replace(config, connectors={"imag": {"target": "toy.Project"}}))
    with pytest.raises(ConfigError, match=r"encoders \['image'\] and connectors \[\] differ"):
        MMDiff(toy.backbone(), {"image": nn.Identity()})
    with pytest.raises(ConfigError, match=r"model\.backbone: no backbone is given"):
        build_model(replace(config, backbone=None))
