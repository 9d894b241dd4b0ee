"""Small checkpoints of Dream-VL, whose tower takes pictures at their own shape, and what its code computes.

Shape letters: L positions, D width, E width of the tower, H heads, P patches, V vocabulary, R rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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

DREAM_VL = "Dream-org/Dream-VL-7B"
D, WIDE, HEADS, KV, LAYERS, V = 48, 80, 4, 2, 2, 300
E, E_HEADS, E_LAYERS, OUT, RATIO = 32, 4, 2, 40, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PICTURES = {
    "auto_map": {
        "AutoImageProcessor": "image_processing_dreamvl.DreamVLImageProcessor",
        "AutoProcessor": "processing_dreamvl.DreamVLProcessor",
    },
    "image_mean": list(MEAN), "image_std": list(STD), "max_pixels": 40 * 28 * 28, "merge_size": 2,
    "min_pixels": 4 * 28 * 28, "patch_size": 14, "processor_class": "DreamVLImageProcessor", "temporal_patch_size": 2,
}  # fmt: skip
"""preprocessor_config.json, as its authors write it, for smaller pictures."""


def raw_of() -> dict[str, Any]:
    """config.json of the release at a small size."""
    tokenizer = find_family("dream-vl").toy_tokenizer()
    sizes = {"hidden_size": D, "intermediate_size": WIDE, "vocab_size": V, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "rope_theta": 50.0, "mrope_section": [1, 2, 3]}
    vision = dict(RELEASED[DREAM_VL]["vision_config"]) | {"depth": E_LAYERS, "embed_dim": E, "hidden_size": OUT}
    ids = {"mask_token_id": tokenizer.convert_tokens_to_ids("<|mask|>")}
    ids |= {f"vision_{end}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{end}|>") for end in ("start", "end")}
    ids |= dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), tokenizer.eos_token_id)
    vision |= {"num_heads": E_HEADS, "mlp_ratio": RATIO}
    return {**RELEASED[DREAM_VL], **sizes, **heads, **ids, "vision_config": vision, "architectures": ["DreamVLModel"]}


def tensors_of(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors under the published names, large enough for all to matter."""
    f = D // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.norm": (D,), "lm_head": (V, D), "model.embed_tokens": (V, D)}
    biased: dict[str, tuple[int, ...]] = {"projector.linear_1": (D, OUT), "projector.linear_2": (D, D)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        biased |= {f"{at}self_attn.q_proj": (D, D)} | {f"{at}self_attn.{n}_proj": (KV * f, D) for n in "kv"}
        shapes |= {f"{at}self_attn.o_proj": (D, D), f"{at}mlp.down_proj": (D, WIDE)}
        shapes |= {f"{at}mlp.{n}_proj": (WIDE, D) for n in ("gate", "up")}
        shapes |= {f"{at}{n}_layernorm": (D,) for n in ("input", "post_attention")}
    for i in range(E_LAYERS):
        at = f"visual.blocks.{i}."
        biased |= {f"{at}norm{n}": (E,) for n in (1, 2)}
        biased |= {f"{at}attn.qkv": (3 * E, E), f"{at}attn.proj": (E, E)}
        biased |= {f"{at}mlp.fc1": (RATIO * E, E), f"{at}mlp.fc2": (E, RATIO * E)}
    merged = {"visual.merger.ln_q": (E,), "visual.merger.mlp.0": (4 * E, 4 * E), "visual.merger.mlp.2": (OUT, 4 * E)}
    shapes |= biased | merged | {"visual.patch_embed.proj": (E, 3, 2, 14, 14)}
    torch.manual_seed(0)
    out = {f"{n}.weight": torch.randn(s) / math.sqrt(math.prod(s[1:])) for n, s in shapes.items()}
    out |= {f"{n}.bias": torch.randn(s[0]) / 4 for n, s in {**biased, **merged}.items()}
    return {n: value.to(dtype) for n, value in out.items()}


def write_folder(folder: Path, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    raw = raw_of() | {"torch_dtype": str(dtype).removeprefix("torch.")} | fields
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    save_file(tensors_of(dtype), folder / "model.safetensors", {"format": "pt"})
    find_family("dream-vl").toy_tokenizer().save_pretrained(folder)
    return folder


# What its code computes -----------------------------------------------------------------------------------------------


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the rows and columns of patches of a picture of (width, height), by `smart_resize` of its code."""
    width, height = size
    if height < 28 or width < 28:
        height, width = (28, round(width / height * 28)) if height < width else (round(height / width * 28), 28)
    h, w = round(height / 28) * 28, round(width / 28) * 28
    if h * w > PICTURES["max_pixels"]:
        beta = math.sqrt(height * width / PICTURES["max_pixels"])
        h, w = math.floor(height / beta / 28) * 28, math.floor(width / beta / 28) * 28
    elif h * w < PICTURES["min_pixels"]:
        beta = math.sqrt(PICTURES["min_pixels"] / (height * width))
        h, w = math.ceil(height * beta / 28) * 28, math.ceil(width * beta / 28) * 28
    return h // 14, w // 14


def picture_slots(w: Mapping[str, Tensor], image: Image.Image) -> Tensor:
    """Returns (M, D): patches, blocks with full attention and rotation by row and column, the merger, the projector."""
    rows, columns = grid_of(image.size)
    resized = np.asarray(image.resize((columns * 14, rows * 14), Image.Resampling.BICUBIC)) / 255
    values_HW3 = torch.tensor((resized - np.array(MEAN)) / np.array(STD), dtype=torch.float32)
    at_P2 = [
        (2 * r + dr, 2 * c + dc)
        for r in range(rows // 2) for c in range(columns // 2) for dr in range(2) for dc in range(2)
    ]  # fmt: skip

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"visual.{name}.weight"].T + w[f"visual.{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * w[f"visual.{name}.weight"] + w[f"visual.{name}.bias"]

    kernel = w["visual.patch_embed.proj.weight"].sum(2).flatten(1)  # the same picture twice
    patches = [values_HW3[14 * r : 14 * r + 14, 14 * c : 14 * c + 14].permute(2, 0, 1).flatten() for r, c in at_P2]
    h = torch.stack(patches) @ kernel.T
    f = E // E_HEADS
    rate = 10_000.0 ** -(torch.arange(0, f // 2, 2) / (f // 2))
    angle_PF = torch.tensor([[*(r * rate), *(c * rate)] for r, c in at_P2]).repeat(1, 2)
    for i in range(E_LAYERS):
        at = f"blocks.{i}."
        q, k, v = linear(norm(h, f"{at}norm1"), f"{at}attn.qkv").unflatten(1, (3, E_HEADS, f)).permute(1, 2, 0, 3)
        q, k = (turned(x, angle_PF) for x in (q, k))
        mixed = (q @ k.mT / math.sqrt(f)).softmax(-1) @ v
        h = h + linear(mixed.transpose(0, 1).flatten(1), f"{at}attn.proj")
        wide = linear(norm(h, f"{at}norm2"), f"{at}mlp.fc1")
        h = h + linear(wide * torch.sigmoid(1.702 * wide), f"{at}mlp.fc2")
    merged = linear(norm(h, "merger.ln_q").unflatten(0, (-1, 4)).flatten(1), "merger.mlp.0")
    x = linear(F.gelu(merged), "merger.mlp.2")
    one, two = ((w[f"projector.linear_{n}.weight"].T, w[f"projector.linear_{n}.bias"]) for n in (1, 2))
    out: Tensor = F.gelu(x @ one[0] + one[1]) @ two[0] + two[1]
    return out


def turned(x_HLF: Tensor, angle_LF: Tensor) -> Tensor:
    """Returns queries or keys, the halves of each head turned against each other."""
    a, b = x_HLF.chunk(2, -1)
    return x_HLF * angle_LF.cos() + torch.cat([-b, a], -1) * angle_LF.sin()


def positions_of(kinds: Sequence[int | tuple[int, int]], start: int) -> Tensor:
    """Returns (3, L), time, row and column: ids (whole numbers), and pictures by rows and columns of slots.

    A picture lies by rows and columns behind the id `start` only; what follows begins one behind its largest number.
    """
    out: list[tuple[int, int, int]] = []
    behind, before = 0, -1
    for kind in kinds:
        if isinstance(kind, int):
            out.append((behind,) * 3)
            behind, before = behind + 1, kind
            continue
        rows, columns = kind
        if before == start:
            out += [(behind, behind + r, behind + c) for r in range(rows) for c in range(columns)]
            behind += max(rows, columns)
        else:
            out += [(behind + i,) * 3 for i in range(rows * columns)]
            behind += rows * columns
        before = -1
    return torch.tensor(out).T


def logits(w: Mapping[str, Tensor], raw: Mapping[str, Any], x_LD: Tensor, position_3L: Tensor) -> Tensor:
    """Returns (L, V) of one whole row of embeddings, in which every position sees every other."""
    f, eps = D // HEADS, raw["rms_norm_eps"]
    rate_F = raw["rope_theta"] ** -(torch.arange(0, f, 2) / f)
    axis_F = torch.tensor([axis for axis, n in enumerate(raw["mrope_section"]) for _ in range(n)])
    angle_LF = (position_3L[axis_F].T * rate_F).repeat(1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"model.{name}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        bias = w.get(f"model.{name}.bias")
        return x @ w[f"model.{name}.weight"].T + (0 if bias is None else bias)

    h = x_LD
    for i in range(LAYERS):
        at = f"layers.{i}."
        x = norm(h, f"{at}input_layernorm")
        q, k, v = (linear(x, f"{at}self_attn.{n}_proj").unflatten(1, (-1, f)).transpose(0, 1) for n in "qkv")
        q, k = turned(q, angle_LF), turned(k, angle_LF)
        k, v = (y.repeat_interleave(HEADS // KV, 0) for y in (k, v))
        mixed = (q @ k.mT / math.sqrt(f)).softmax(-1) @ v
        h = h + linear(mixed.transpose(0, 1).flatten(1), f"{at}self_attn.o_proj")
        x = norm(h, f"{at}post_attention_layernorm")
        h = h + linear(F.silu(linear(x, f"{at}mlp.gate_proj")) * linear(x, f"{at}mlp.up_proj"), f"{at}mlp.down_proj")
    return norm(h, "norm") @ w["lm_head.weight"].T
