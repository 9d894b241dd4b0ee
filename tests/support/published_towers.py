"""Vision towers as three libraries publish them, each with the library's own full model beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdiff.encoders.clip import OpenCLIP
from mmdiff.encoders.siglip import Siglip
from mmdiff.encoders.vit import TimmViT

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


def pixels_for(published: Published) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, published.side, published.side)
