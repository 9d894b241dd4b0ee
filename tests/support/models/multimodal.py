"""Small multimodal checkpoints in the layout of LLaVA's code base, and what its code computes in plain torch, PIL.

Shape letters: N crops, T features of a crop, E width of the tower, D of the language model, H heads, L positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmdiff.backbones.family import find_family
from mmdiff.model.published.released import RELEASED

LLADA_V, MEDV = "GSAI-ML/LLaDA-V", "XZDong123/LLaDA-MedV"
LAVIDA, LAVIDA_DREAM = "jacklishufan/lavida-llada-v1.0-instruct", "jacklishufan/lavida-dream-v1.0-instruct"
DIFFUSION_VL = "hustvl/DiffusionVL-Qwen2.5-7B"
NAMES = [LLADA_V, MEDV, LAVIDA, LAVIDA_DREAM, DIFFUSION_VL]
PATCH, SIDE, TILE = 14, 3, 44  # 3 x 3 patches, and 2 pixels that none covers, as there are 6 of 384
E, E_WIDE, E_HEADS, E_LAYERS = 32, 48, 16, 2
D, WIDE, HEADS, LAYERS, V = 24, 40, 4, 2, 300
TOWER = "model.vision_tower.vision_tower.vision_model."
OLMO = {"q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj", "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"}  # fmt: skip


def raw_of(name: str) -> dict[str, Any]:
    """The config.json of a release at a small size."""
    raw = dict(RELEASED[name])
    sizes = {"hidden_size": D, "d_model": D, "intermediate_size": WIDE, "mlp_hidden_size": WIDE, "vocab_size": V,
             "embedding_size": V, "num_hidden_layers": LAYERS, "n_layers": LAYERS, "num_attention_heads": HEADS,
             "n_heads": HEADS, "num_key_value_heads": HEADS, "n_kv_heads": HEADS, "rope_theta": 5000.0}  # fmt: skip
    raw |= {field: value for field, value in sizes.items() if field in raw}
    tokenizer = find_family(raw["model_type"]).toy_tokenizer()
    mask = "<|mask|>" if name in (LAVIDA_DREAM, DIFFUSION_VL) else "<|mdm_mask|>"
    ids = {"mask_token_id": tokenizer.convert_tokens_to_ids(mask)}
    ids |= dict.fromkeys(("eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    raw |= {field: value for field, value in ids.items() if field in raw}
    pinpoints = [[w // 384 * TILE, h // 384 * TILE] for w, h in raw["image_grid_pinpoints"]]
    tower = raw["mm_vision_tower"].replace("384", str(TILE))
    return raw | {"mm_hidden_size": E, "image_grid_pinpoints": pinpoints, "mm_vision_tower": tower}


def tensors_of(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors under the published names, large enough for all to matter."""
    shapes: dict[str, tuple[int, ...]] = {"model.norm": (D,), "lm_head": (V, D), "model.embed_tokens": (V, D)}
    for i in range(LAYERS):
        for part, shape in {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D)}.items():
            shapes[f"model.layers.{i}.self_attn.{part}_proj"] = shape
        for part, shape in {"gate": (WIDE, D), "up": (WIDE, D), "down": (D, WIDE)}.items():
            shapes[f"model.layers.{i}.mlp.{part}_proj"] = shape
        shapes |= {f"model.layers.{i}.{norm}": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
    biased: dict[str, tuple[int, ...]] = {"model.mm_projector.0": (D, E), "model.mm_projector.2": (D, D)}
    biased |= {f"{TOWER}embeddings.patch_embedding": (E, 3, PATCH, PATCH), f"{TOWER}post_layernorm": (E,)}
    for i in range(E_LAYERS):
        at = f"{TOWER}encoder.layers.{i}."
        biased |= {f"{at}self_attn.{part}_proj": (E, E) for part in ("q", "k", "v", "out")}
        biased |= {f"{at}mlp.fc1": (E_WIDE, E), f"{at}mlp.fc2": (E, E_WIDE)}
        biased |= {f"{at}layer_norm{n}": (E,) for n in (1, 2)}
    shapes |= biased | {f"{TOWER}embeddings.position_embedding": (SIDE**2, E)}
    torch.manual_seed(0)
    out = {f"{n}.weight": torch.randn(s) / math.sqrt(math.prod(s[1:])) for n, s in shapes.items()}
    out |= {f"{n}.bias": torch.randn(s[0]) / 4 for n, s in biased.items()}
    out["model.image_newline"] = torch.randn(D)
    if name in (LAVIDA_DREAM, DIFFUSION_VL):  # Qwen2
        out |= {f"model.layers.{i}.self_attn.{p}_proj.bias": torch.randn(D) for i in range(LAYERS) for p in "qkv"}
    if name == LAVIDA:
        out = {_olmo(n): value for n, value in out.items()}
    return {n: value.to(dtype) for n, value in out.items()}


def _olmo(name: str) -> str:
    top = {"model.norm.weight": "ln_f", "lm_head.weight": "ff_out", "model.embed_tokens.weight": "wte"}
    if name in top:
        return f"model.transformer.{top[name]}.weight"
    for theirs, ours in OLMO.items():
        if name.startswith("model.layers.") and name.endswith(f".{ours}.weight"):
            return f"model.transformer.blocks.{name.split('.')[2]}.{theirs}.weight"
    return name


def llama_names(w: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a language model under Llama's names, whatever they are published as."""
    back = {_olmo(n): n for n in tensors_of(LLADA_V)}
    return {back.get(n, n): value for n, value in w.items()}


def write_folder(folder: Path, name: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    raw = raw_of(name) | {"torch_dtype": str(dtype).removeprefix("torch.")} | fields
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors_of(name, dtype), folder / "model.safetensors", {"format": "pt"})
    find_family(raw["model_type"]).toy_tokenizer().save_pretrained(folder)
    return folder


# What the code computes -----------------------------------------------------------------------------------------------


def picture_slots(w: Mapping[str, Tensor], raw: Mapping[str, Any], image: Image.Image) -> Tensor:
    """Returns (M, D), what a picture puts on the canvas: the whole, then its tiles, a newline behind each row."""
    columns, rows = best_canvas(image.size, [(w // TILE, h // TILE) for w, h in raw["image_grid_pinpoints"]])
    crops = [image.resize((TILE, TILE), Image.Resampling.BICUBIC), *tiles(image, columns, rows)]
    maps = torch.stack([project(w, tower(w, _scaled(crop))) for crop in crops]).unflatten(1, (SIDE, SIDE))
    if "Masked" in raw["architectures"][0]:  # LaViDa
        maps = torch.stack([bilinear(one, math.ceil(SIDE / 2), math.ceil(SIDE / 2)) for one in maps])
    side = maps.shape[1]
    whole = torch.cat([torch.cat(list(maps[1 + r * columns : 1 + (r + 1) * columns]), 1) for r in range(rows)], 0)
    wide, high = image.size
    if wide / high > whole.shape[1] / whole.shape[0]:
        margin = (whole.shape[0] - int(high * (whole.shape[1] / wide))) // 2
        whole = whole[margin : whole.shape[0] - margin]
    else:
        margin = (whole.shape[1] - int(wide * (whole.shape[0] / high))) // 2
        whole = whole[:, margin : whole.shape[1] - margin]
    if "max" in raw["image_aspect_ratio"]:
        ratio = math.sqrt(whole.shape[0] * whole.shape[1] / (int(raw["image_aspect_ratio"][11:]) * side**2))
        if ratio > 1.1:
            whole = bilinear(whole, int(whole.shape[0] // ratio), int(whole.shape[1] // ratio))
    out = [maps[0].flatten(0, 1)]
    for row in whole:
        out += [row, w["model.image_newline"][None]]
    return torch.cat(out)


def best_canvas(size: tuple[int, int], canvases: list[tuple[int, int]]) -> tuple[int, int]:
    """Returns (columns, rows): most pixels shown, then least waste, then the first."""

    def worth(canvas: tuple[int, int]) -> tuple[int, int]:
        wide, high = canvas[0] * TILE, canvas[1] * TILE
        scale = min(wide / size[0], high / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, shown - wide * high

    return max(canvases, key=worth)  # of equals, `max` gives the first


def tiles(image: Image.Image, columns: int, rows: int) -> list[Image.Image]:
    wide, high = columns * TILE, rows * TILE
    if wide / image.width < high / image.height:
        size = wide, min(math.ceil(image.height * (wide / image.width)), high)
    else:
        size = min(math.ceil(image.width * (high / image.height)), wide), high
    board = Image.new("RGB", (wide, high))
    board.paste(image.resize(size, Image.Resampling.BICUBIC), ((wide - size[0]) // 2, (high - size[1]) // 2))
    corners = [(c * TILE, r * TILE) for r in range(rows) for c in range(columns)]
    return [board.crop((x, y, x + TILE, y + TILE)) for x, y in corners]


def _scaled(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255 - 0.5) / 0.5


def tower(w: Mapping[str, Tensor], pixels_HW3: Tensor) -> Tensor:
    """Returns (T, E) of one crop: all blocks that the folder has, without the last norm."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{TOWER}{name}.weight"].flatten(1).T + w[f"{TOWER}{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * w[f"{TOWER}{name}.weight"] + w[f"{TOWER}{name}.bias"]

    blocks = [
        pixels_HW3[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].permute(2, 0, 1).flatten()
        for y in range(SIDE)
        for x in range(SIDE)
    ]
    h = linear(torch.stack(blocks), "embeddings.patch_embedding") + w[f"{TOWER}embeddings.position_embedding.weight"]
    for i in range(E_LAYERS):
        at = f"encoder.layers.{i}."
        x = norm(h, f"{at}layer_norm1")
        q, k, v = (linear(x, f"{at}self_attn.{p}_proj").unflatten(1, (E_HEADS, -1)).transpose(0, 1) for p in "qkv")
        mixed = (q @ k.mT / (E // E_HEADS) ** 0.5).softmax(-1) @ v
        h = h + linear(mixed.transpose(0, 1).flatten(1), f"{at}self_attn.out_proj")
        x = linear(norm(h, f"{at}layer_norm2"), f"{at}mlp.fc1")
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        h = h + linear(x, f"{at}mlp.fc2")
    return h


def project(w: Mapping[str, Tensor], x_TE: Tensor) -> Tensor:
    hidden = F.linear(x_TE, w["model.mm_projector.0.weight"], w["model.mm_projector.0.bias"])
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return F.linear(hidden, w["model.mm_projector.2.weight"], w["model.mm_projector.2.bias"])


def bilinear(map_HWD: Tensor, rows: int, columns: int) -> Tensor:
    """Returns the map at another size: an output's middle lies between four inputs, whose shares are the distances."""

    def ends(count: int, have: int) -> tuple[Tensor, Tensor, Tensor]:
        at = ((torch.arange(count) + 0.5) * have / count - 0.5).clamp(min=0)
        low = at.floor().long()
        return low, (low + 1).clamp(max=have - 1), at - low

    y0, y1, y = ends(rows, map_HWD.shape[0])
    x0, x1, x = ends(columns, map_HWD.shape[1])
    top, bottom = (map_HWD[i][:, x0] * (1 - x)[None, :, None] + map_HWD[i][:, x1] * x[None, :, None] for i in (y0, y1))
    return top * (1 - y)[:, None, None] + bottom * y[:, None, None]
