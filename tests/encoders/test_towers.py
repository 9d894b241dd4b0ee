"""Vision towers of three libraries behind one interface: each against its own library's full model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_towers import (
    CLIP,
    LIBRARIES,
    SMALL,
    VIT,
    Published,
    clip,
    open_clip_vit,
    pixels_for,
    shaken,
    siglip,
    timm_vit,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdiff.config import build
from mmdiff.encoders.clip import OpenCLIP
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.media.towers import resized_positions
from mmdiff.encoders.siglip import Siglip
from mmdiff.encoders.vit import TimmViT
from mmdiff.errors import ConfigError

pytestmark = pytest.mark.needs("timm", "open_clip", "PIL")

TOYS = [ConvTower, TimmViT, OpenCLIP, Siglip]


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda make: make.__name__)
def published(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Published:
    result: Published = request.param(tmp_path_factory.mktemp("weights"))
    return result


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_layers_are_the_librarys_own(published: Published, layer: int, norm: bool) -> None:
    pixels = pixels_for(published)
    encoder = published.encoder(weights=str(published.folder), layer=layer, norm=norm).eval()
    wanted_NTE = published.reference(pixels, layer, norm)
    with torch.no_grad():
        features_NTE = encoder(pixels)
    assert features_NTE.shape == (2, encoder.tokens, encoder.width) == wanted_NTE.shape
    assert encoder.grid[0] * encoder.grid[1] == encoder.tokens
    assert torch.allclose(features_NTE, wanted_NTE, atol=1e-6), (features_NTE - wanted_NTE).abs().max()


def test_no_layer_is_left_over(published: Published) -> None:
    """Every parameter gets a gradient, so data-parallel training need not look for unused ones."""
    for norm in (False, True):
        encoder = published.encoder(weights=str(published.folder), norm=norm)
        encoder(pixels_for(published)).square().sum().backward()
        assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_rebuilt_without_the_weights(published: Published, tmp_path: Path) -> None:
    folder = shutil.copytree(published.folder, tmp_path / "weights")
    encoder = published.encoder(weights=str(folder), layer=-2).eval()
    shutil.rmtree(folder)
    node = json.loads(json.dumps(encoder.node))
    assert node["weights"] is None and str(tmp_path) not in str(node)
    again = build(node).eval()
    assert list(again.state_dict()) == list(encoder.state_dict())
    again.load_state_dict(encoder.state_dict())
    pixels = pixels_for(published)
    assert torch.equal(again(pixels), encoder(pixels))
    assert (again.spec, again.width, again.tokens, again.grid) == (
        encoder.spec,
        encoder.width,
        encoder.tokens,
        encoder.grid,
    )
    assert again.node == encoder.node


def test_gradient_checkpointing(published: Published) -> None:
    encoder = published.encoder(weights=str(published.folder)).train()
    check_checkpointing(encoder, pixels_for(published))


def test_gradient_checkpointing_of_convolutions() -> None:
    check_checkpointing(ConvTower().train(), torch.randn(2, 3, 24, 24))


def check_checkpointing(encoder: Any, pixels: Tensor) -> None:
    """The same output and gradients, with less kept for the way back."""
    runs = []
    for on in (False, True, False):
        encoder.gradient_checkpointing(on)
        encoder.zero_grad()
        kept: list[int] = []

        def note(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = encoder(pixels)
            memory = sum(kept)
        out.square().sum().backward()
        runs.append((out.detach(), [p.grad.clone() for p in encoder.parameters()], memory))
    (out, gradients, memory), (out_again, gradients_again, less), (_, _, memory_again) = runs
    assert torch.equal(out, out_again) and less < memory == memory_again
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, gradients_again, strict=True))


@pytest.mark.parametrize("kind", TOYS, ids=lambda kind: kind.__name__)
def test_toys(kind: Any) -> None:
    toy = kind.toy() if kind is ConvTower else kind.toy(weights="nowhere", layer=-3, image_size=384, mean=[0.5] * 3)
    item = toy.read(np.zeros((50, 60, 3), np.uint8))
    assert item.values.shape == (1, 3, *toy.spec.size) and item.layout == (50, 60)
    assert toy(item.values).shape == (1, 4, 32) and toy.tokens == 4 and toy.width == 32
    assert build(json.loads(json.dumps(toy.node))).state_dict().keys() == toy.state_dict().keys()
    assert sum(p.numel() for p in toy.parameters()) < 100_000


def test_toy_of_a_clip_tower_is_one() -> None:
    assert Siglip.toy({"model_type": "clip_vision_model"}).node["config"]["model_type"] == "clip_vision_model"


def test_one_picture_the_same_pixels() -> None:
    """Whatever library the tower comes from, when the towers were trained on the same colours."""
    rgb = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    towers: list[Any] = [
        TimmViT("vit_base_patch16_siglip_224", config=VIT),
        OpenCLIP(config={"embed_dim": 16, "vision_cfg": CLIP}, mean=[0.5] * 3, std=[0.5] * 3),
        Siglip({**SMALL, "image_size": 28}),
    ]
    items = [tower.read(rgb) for tower in towers]
    assert all(torch.equal(item.values, items[0].values) and item.layout == (37, 61) for item in items)


def test_one_tower_in_two_libraries(tmp_path: Path) -> None:
    """SigLIP's weights, moved from transformers to timm by name, give the same numbers, at other sizes too."""
    siglip_config = {**SMALL, "image_size": 28, "num_hidden_layers": 3}
    first = shaken(Siglip(siglip_config, layer=-1, norm=True))
    moved: dict[str, Tensor] = {}
    given = {name.removeprefix("tower."): value for name, value in first.state_dict().items()}
    moved["pos_embed"] = given["embeddings.position_embedding.weight"][None]
    for kind in ("weight", "bias"):
        moved[f"patch_embed.proj.{kind}"] = given[f"embeddings.patch_embedding.{kind}"]
        moved[f"norm.{kind}"] = given[f"norm.{kind}"]
        for i in range(3):
            theirs, ours = f"encoder.layers.{i}", f"blocks.{i}"
            qkv = [given[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            moved[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
            names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
            for name, ours_name in {**names, "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
                moved[f"{ours}.{ours_name}.{kind}"] = given[f"{theirs}.{name}.{kind}"]
    config = {**VIT, "depth": 3, "mlp_ratio": 1.5, "act_layer": "gelu_tanh"}
    given["post_layernorm.weight"], given["post_layernorm.bias"] = given.pop("norm.weight"), given.pop("norm.bias")
    save_file(given, tmp_path / "siglip.safetensors")
    save_file(moved, tmp_path / "timm.safetensors")
    for side in (28, 14, 56):
        for layer, norm in ((-1, True), (-2, False), (-3, True)):
            more: dict[str, Any] = {"layer": layer, "norm": norm, "image_size": side}
            one = Siglip(siglip_config, weights=str(tmp_path / "siglip.safetensors"), **more)
            two = TimmViT(
                "vit_base_patch16_siglip_224", config=config, weights=str(tmp_path / "timm.safetensors"), **more
            )
            pixels = torch.randn(2, 3, side, side)
            assert (one(pixels) - two(pixels)).abs().max() <= (0.0 if side == 28 else 1e-6)


def test_llada_vs_tower() -> None:
    """so400m patch 14 at 384 pixels, cut to 26 of 27 layers, no head, no last norm (arXiv 2505.16933)."""
    config = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    with torch.device("meta"):
        tower = Siglip({**config, "image_size": 384, "patch_size": 14}, layer=-2)
    block = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 1152 + 4304 + 4 * 1152
    embedding = 3 * 14 * 14 * 1152 + 1152 + 729 * 1152
    assert sum(p.numel() for p in tower.parameters()) == 26 * block + embedding == 397_745_440
    assert (tower.width, tower.tokens, tower.grid, tower.spec.size) == (1152, 729, (27, 27), (384, 384))


def test_position_tables_are_resized_as_the_libraries_do() -> None:
    from open_clip.model import resize_pos_embed
    from timm.layers import resample_abs_pos_embed

    table_PE = torch.randn(1 + 49, 6)
    for grid in ((14, 14), (4, 4), (5, 9), (7, 7)):
        ours_PE = resized_positions(table_PE, grid, 1)
        timms = resample_abs_pos_embed(table_PE[None], list(grid), num_prefix_tokens=1)[0]
        assert torch.allclose(ours_PE, timms, atol=1e-6)
        holder = nn.Module()
        holder.visual = nn.Module()
        holder.visual.grid_size = grid
        state = {"visual.positional_embedding": table_PE}
        resize_pos_embed(state, holder)
        assert torch.allclose(ours_PE, state["visual.positional_embedding"], atol=1e-6)
    with pytest.raises(ConfigError, match="50 positions is not square"):
        resized_positions(table_PE, (4, 4), 0)


@pytest.mark.parametrize("make", [timm_vit, open_clip_vit, siglip, clip])
def test_another_picture_size(make: Any, tmp_path: Path) -> None:
    made = make(tmp_path)
    encoder = made.encoder(weights=str(tmp_path), image_size=42)
    item = encoder.read(np.zeros((9, 9, 3), np.uint8))
    assert item.values.shape == (1, 3, 42, 42) and encoder.grid == (6, 6)
    assert encoder(item.values).shape == (1, 36, 32)
    again = build(json.loads(json.dumps(encoder.node)))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(item.values), encoder.eval()(item.values))


def test_pictures_that_are_not_square() -> None:
    encoder = TimmViT("vit_tiny_patch16_224", config=VIT, image_size=(14, 42))
    assert encoder.grid == (2, 6) and encoder.read(np.zeros((9, 9, 3), np.uint8)).values.shape == (1, 3, 14, 42)
    assert encoder(torch.zeros(1, 3, 14, 42)).shape == (1, 12, 32)


def test_conv_tower() -> None:
    tower = ConvTower()
    assert (tower.width, tower.tokens, tower.grid) == (96, 4, (2, 2))
    assert tower(torch.randn(3, 3, 24, 24)).shape == (3, 4, 96)
    assert [conv.stride for conv in tower.convs if isinstance(conv, nn.Conv2d)] == [(2, 2), (2, 2), (3, 3)]


def test_a_token_of_the_conv_tower_is_a_cell() -> None:
    """What changes in the middle of a cell moves that cell's token alone."""
    tower, pixels = ConvTower(36, 16), torch.zeros(1, 3, 36, 36)
    changed = pixels.clone()
    changed[..., 13:20, 25:32] = 1
    moved_T = (tower(changed) - tower(pixels)).abs().amax(-1)[0]
    assert moved_T.nonzero().flatten().tolist() == [1 * 3 + 2]


def test_conv_tower_from_a_file(tmp_path: Path) -> None:
    first = ConvTower()
    save_file(first.state_dict(), tmp_path / "tower.safetensors")
    second = ConvTower(weights=str(tmp_path / "tower.safetensors"))
    pixels = torch.randn(1, 3, 24, 24)
    assert torch.equal(first(pixels), second(pixels)) and second.node["weights"] is None
    with pytest.raises(ConfigError, match="cell"):
        ConvTower(25)


@pytest.mark.parametrize("kind", TOYS[1:], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("layer", [0, 1, True, -9])
def test_bad_layers(kind: Any, layer: Any) -> None:
    with pytest.raises(ConfigError, match=f"layer: {layer}"):
        build({**kind.toy().node, "layer": layer})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (TimmViT, {}, "name: no timm architecture"),
        (TimmViT, {"name": "vit_tiny_patch16_225"}, 'did you mean "vit_tiny_patch16_'),
        (TimmViT, {"name": "hf-hub:timm/vit_tiny_patch16_224"}, "timm has no model"),
        (TimmViT, {"name": "vit_tiny_patch16_224", "config": {"depht": 2}}, "config: .*depht"),
        (TimmViT, {"name": "hiera_tiny_224", "image_size": 448}, "image_size: .*does not fit"),
        (TimmViT, {"name": "vit_tiny_patch16_224", "image_size": [28, 28, 3]}, "size: .* is not a list of 2"),
        (OpenCLIP, {"name": "ViT-B-32", "image_size": [224, 224]}, "image_size: "),
        (Siglip, {"config": SMALL, "image_size": "large"}, "image_size: "),
        (OpenCLIP, {}, "neither a name nor a config"),
        (OpenCLIP, {"name": "ViT-B-33"}, 'did you mean "ViT-B-32"'),
        (OpenCLIP, {"name": "hf-hub:x/y"}, "open_clip has no model"),
        (OpenCLIP, {"name": "RN50"}, "TimmViT"),
        (OpenCLIP, {"config": {"vision_cfg": CLIP}}, "embed_dim is missing"),
        (OpenCLIP, {"config": {"embed_dim": 8, "vision_cfg": {"lairs": 2}}}, "config: .*lairs"),
        (Siglip, {}, "neither a config nor weights"),
        (Siglip, {"config": {"hidden_sise": 2}}, 'did you mean "hidden_size"'),
        (Siglip, {"config": {"model_type": "siglip2_vision_model"}}, "vary in size"),
        (Siglip, {"config": {**SMALL, "num_attention_heads": 5}}, "config: "),
        (Siglip, {"config": SMALL, "resize_mode": "stretch"}, "resize_mode"),
    ],
)
def test_bad_arguments(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_timm_reads_no_file_of_its_own(key: str, tmp_path: Path) -> None:
    """A saved folder may hold any `config`: one that has timm load a pickled file is refused before timm sees it."""
    torch.save({"state_dict": {}}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=f"config: {key}: weights come from `weights` alone"):
        TimmViT("vit_tiny_patch16_224", config={"depth": 1, key: str(tmp_path / "evil.pth")})
