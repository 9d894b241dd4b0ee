"""Weights of vision towers: every layout in which they are published, what comes with them, and every damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published_towers import CLIP, SIZE, SMALL, VIT, hf_tower, open_clip_vit, pixels_for, siglip, timm_vit
from safetensors.torch import save_file
from torch import Tensor

from mmdiff.encoders.clip import OpenCLIP
from mmdiff.encoders.siglip import Siglip
from mmdiff.encoders.vit import TimmViT
from mmdiff.errors import ConfigError

pytestmark = pytest.mark.needs("timm", "open_clip", "PIL")


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
