"""Vision towers of three libraries behind one interface: each against its own library's full model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 4}
SMALL = {**SIZE, "image_size": 30, "patch_size": 7}  # 4 x 4 patches, and 2 pixels that none covers
VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "num_heads": 2, "depth": 4}
CLIP = {"image_size": 28, "patch_size": 7, "width": 32, "head_width": 16, "layers": 4}


@dataclass
class Published:
    """A checkpoint as its library writes it, with the library's own full model beside it."""

    folder: Path
    encoder: Callable[..., Any]
    reference: Callable[[Tensor, int, bool], Tensor]  # pixels, layer, norm -> (N, T, E)
    side: int


def shaken(model: Any) -> Any:
    """Weights as training leaves them: no norm or bias is still at its first value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def hooked(model: nn.Module, block: nn.Module, pixels: Tensor) -> Tensor:
    """What `block` puts out while the full model runs."""
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _module, _given, out: seen.append(out))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    return seen[0]


def timm_vit(folder: Path, name: str = "vit_tiny_patch16_224", **more: Any) -> Published:
    import timm

    arguments = {**VIT, **more}
    model = shaken(timm.create_model(name, num_classes=5, **arguments))
    save_file(model.state_dict(), folder / "model.safetensors")
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "crop_pct": 0.9}
    config = {"architecture": name, "num_classes": 5, "model_args": arguments, "pretrained_cfg": facts}
    write_json(folder / "config.json", config)

    def reference(pixels: Tensor, layer: int, norm: bool) -> Tensor:
        h_NTE = hooked(model, model.blocks[layer], pixels)[:, model.num_prefix_tokens :]
        return model.norm(h_NTE) if norm else h_NTE

    return Published(folder, TimmViT, reference, 28)


def timm_registers(folder: Path) -> Published:
    return timm_vit(folder, "vit_small_patch14_reg4_dinov2")


def timm_siglip(folder: Path) -> Published:
    return timm_vit(folder, "vit_base_patch16_siglip_224")


def timm_cnn(folder: Path) -> Published:
    import timm

    arguments = {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}
    model = shaken(timm.create_model("convnext_atto", num_classes=5, **arguments))
    save_file(model.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", {"architecture": "convnext_atto", "num_classes": 5, "model_args": arguments})

    def reference(pixels: Tensor, layer: int, norm: bool) -> Tensor:
        return hooked(model, model.stages[layer], pixels).flatten(2).transpose(1, 2)

    return Published(folder, lambda **kw: TimmViT(image_size=64, **kw), reference, 64)


def open_clip_model(folder: Path, vision: dict[str, Any]) -> tuple[Published, Any]:
    import open_clip

    config = {"embed_dim": 16, "vision_cfg": vision}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    model = shaken(open_clip.CLIP(text_cfg=text, **config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(folder / "open_clip_config.json", {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": facts})
    return Published(folder, OpenCLIP, lambda *_: torch.empty(0), vision["image_size"]), model.visual


def open_clip_vit(folder: Path) -> Published:
    published, visual = open_clip_model(folder, CLIP)

    def reference(pixels: Tensor, layer: int, norm: bool) -> Tensor:
        h_NTE = hooked(visual, visual.transformer.resblocks[layer], pixels)[:, 1:]
        return visual.ln_post(h_NTE) if norm else h_NTE

    published.reference = reference
    return published


def open_clip_timm(folder: Path) -> Published:
    """A trunk of timm, whose own pictures are of 160 pixels, in a model for 32."""
    vision = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    published, visual = open_clip_model(folder, vision)
    visual.set_input_size(32)

    def reference(pixels: Tensor, layer: int, norm: bool) -> Tensor:
        h_NTE = hooked(visual, visual.trunk.blocks[layer], pixels)[:, 1:]
        return visual.trunk.norm(h_NTE) if norm else h_NTE

    published.reference = reference
    return published


def hf_tower(folder: Path, family: str) -> Published:
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    model: Any
    if family == "siglip":
        model = shaken(SiglipVisionModel(SiglipVisionConfig(**SMALL)))
    else:
        model = shaken(CLIPVisionModel(CLIPVisionConfig(**SMALL)))
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.4] * 3, "resample": 2})

    def reference(pixels: Tensor, layer: int, norm: bool) -> Tensor:
        with torch.no_grad():
            h_NTE = model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        return (model.post_layernorm(h_NTE) if norm else h_NTE)[:, 1 if family == "clip" else 0 :]

    return Published(folder, Siglip, reference, 30)


def siglip(folder: Path) -> Published:
    return hf_tower(folder, "siglip")


def clip(folder: Path) -> Published:
    return hf_tower(folder, "clip")


LIBRARIES = [timm_vit, timm_registers, timm_siglip, timm_cnn, open_clip_vit, open_clip_timm, siglip, clip]
TOYS = [ConvTower, TimmViT, OpenCLIP, Siglip]


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda make: make.__name__)
def published(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Published:
    result: Published = request.param(tmp_path_factory.mktemp("weights"))
    return result


def pixels_for(published: Published) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, published.side, published.side)


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


def test_colours_of_the_family() -> None:
    clip_mean = (0.48145466, 0.4578275, 0.40821073)
    assert Siglip(SMALL).spec.mean == (0.5, 0.5, 0.5)
    assert Siglip({**SMALL, "model_type": "clip_vision_model"}).spec.mean == clip_mean
    assert OpenCLIP(config={"embed_dim": 16, "vision_cfg": CLIP}).spec.mean == clip_mean
    with torch.device("meta"):
        assert OpenCLIP("ViT-B-16-SigLIP").spec.mean == (0.5, 0.5, 0.5)
        assert OpenCLIP("ViT-B-32").spec.mean == clip_mean


def test_colours_of_the_checkpoint(tmp_path: Path) -> None:
    for i, make in enumerate((timm_vit, open_clip_vit, siglip)):
        folder = tmp_path / str(i)
        folder.mkdir()
        made = make(folder)
        spec = made.encoder(weights=str(folder)).spec
        wanted = ((0.5,) * 3, (0.4,) * 3) if make is siglip else ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        assert (spec.mean, spec.std) == wanted
        assert spec.interpolation == ("bicubic" if make is open_clip_vit else "bilinear")
        assert spec.resize_mode == "squash"
        own = made.encoder(weights=str(folder), mean=[0.0] * 3, std=[1.0] * 3, interpolation="bicubic").spec
        assert (own.mean, own.std, own.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bicubic")


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


def test_layer_minus_two_is_the_tower_without_its_last_block(tmp_path: Path) -> None:
    """LLaDA-V deletes the block; its checkpoint still holds `post_layernorm`, which nothing uses."""
    whole = siglip(tmp_path)
    encoder = Siglip(weights=str(tmp_path))
    kept = {f"model.vision_tower.vision_tower.vision_model.{n}": t for n, t in published_names(tmp_path).items()}
    kept = {name: tensor for name, tensor in kept.items() if "layers.3." not in name and ".head." not in name}
    assert any("post_layernorm" in name for name in kept)
    save_file({**kept, "model.norm.weight": torch.ones(2)}, tmp_path / "vlm.safetensors")
    again = Siglip(SMALL, weights=str(tmp_path / "vlm.safetensors"))
    pixels = pixels_for(whole)
    assert torch.equal(again(pixels), encoder(pixels))


def published_names(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name.removeprefix("vision_model."): t for name, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("layout", ["tower, old names", "tower, new names", "text and vision", "shards"])
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_layouts_of_transformers(family: str, layout: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    made = hf_tower(tmp_path, family)
    names = published_names(tmp_path)
    text = {**SIZE, "vocab_size": 8, "max_position_embeddings": 4, "projection_size": 32, "eos_token_id": 2}
    whole: Any
    if layout == "tower, new names":
        save_file(names, tmp_path / "model.safetensors")
    elif layout == "tower, old names":
        names["embeddings.position_ids"] = torch.arange(16)
        save_file({f"vision_model.{name}": t for name, t in names.items()}, tmp_path / "model.safetensors")
    else:
        if family == "siglip":
            whole = SiglipModel(SiglipConfig(text_config=text, vision_config=SMALL))
        else:
            whole = CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=8))
        whole.vision_model.load_state_dict(names)
        (tmp_path / "model.safetensors").unlink()
        whole.save_pretrained(tmp_path, **({"max_shard_size": "40KB"} if layout == "shards" else {}))
        assert (tmp_path / "model.safetensors").is_file() == (layout != "shards")
    capfd.readouterr()
    encoder = Siglip(weights=str(tmp_path))
    assert capfd.readouterr() == ("", "")
    pixels = pixels_for(made)
    assert torch.allclose(encoder(pixels), made.reference(pixels, -2, False), atol=1e-6)


@pytest.mark.parametrize("layout", ["file", "tower alone", "half precision"])
def test_layouts_of_open_clip(layout: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = open_clip_vit(tmp_path)
    file = tmp_path / "open_clip_model.safetensors"
    tensors = load_file(file)
    weights, config = str(tmp_path), None
    if layout == "half precision":
        save_file({name: tensor.half() for name, tensor in tensors.items()}, file)
    else:
        if layout == "tower alone":
            mine = {n.removeprefix("visual."): t for n, t in tensors.items() if n.startswith("visual.")}
            save_file(mine, file)
        weights, config = str(file), {"embed_dim": 16, "vision_cfg": CLIP}
    encoder = OpenCLIP(config=config, weights=weights)
    pixels = pixels_for(made)
    close = 1e-2 if layout == "half precision" else 1e-6
    assert torch.allclose(encoder(pixels), made.reference(pixels, -2, False), atol=close)
    assert encoder.tower.conv1.weight.dtype == torch.float32


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


def spoil(folder: Path, what: str) -> Path:
    """Damage the weights in a folder. Returns what to load."""
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    first = ("blocks.0.norm1.weight", "visual.transformer.resblocks.0.ln_1.weight", "layers.0.layer_norm1.weight")
    name = next(name for name in tensors if name.endswith(first))
    if what == "missing":
        del tensors[name]
    elif what == "unexpected":
        tensors[f"{name}_too"] = torch.zeros(1)
    elif what == "shape":
        tensors[name] = torch.zeros(7)
    save_file(tensors, file)
    if what == "damaged":
        file.write_bytes(file.read_bytes()[:-10])
    if what == "pickled":
        torch.save(tensors, file.with_name("pytorch_model.bin"))
        file.unlink()
    if what == "pickled file":
        torch.save(tensors, folder / "tower.pt")
        return folder / "tower.pt"
    return folder / "nowhere" if what == "nowhere" else folder


BAD = {
    "missing": "1 missing tensors: ",
    "unexpected": "unexpected tensor ",
    "shape": r"has shape \(7,\), expected \(32,\)",
    "damaged": "not a safetensors file",
    "pickled": "pickled",
    "pickled file": "only .safetensors is read",
    "nowhere": "nowhere",
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("make", [timm_vit, open_clip_vit, siglip])
def test_bad_weights(make: Any, what: str, tmp_path: Path) -> None:
    made = make(tmp_path)
    config: dict[str, Any] = {
        TimmViT: {"name": "vit_tiny_patch16_224", "config": VIT},
        OpenCLIP: {"config": {"embed_dim": 16, "vision_cfg": CLIP}},
        Siglip: {"config": SMALL},
    }[made.encoder]  # type: ignore[index]
    with pytest.raises(ConfigError, match=BAD[what]) as caught:
        made.encoder(**config, weights=str(spoil(tmp_path, what)))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


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
