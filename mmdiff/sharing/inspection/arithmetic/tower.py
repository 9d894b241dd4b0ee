"""The parameters of what stands beside a language model in a multimodal checkpoint: its tower and a projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]
INNER = {"mmdiff.connectors.anyres.AnyRes": "inner.", "mmdiff.connectors.merge.Pooled": "inner."}
"""What a connector calls the one inside it."""


def tower_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Returns {parameter of transformers' SiglipVisionModel: its shape}, the last norm left out; None for no tower."""
    d, wide, patch = (config[name] for name in ("hidden_size", "intermediate_size", "patch_size"))
    if d % config["num_attention_heads"]:
        return None
    out: Shapes = {
        "embeddings.patch_embedding.weight": (d, config["num_channels"], patch, patch),
        "embeddings.patch_embedding.bias": (d,),
        "embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2, d),
    }
    linear = {f"self_attn.{name}_proj": (d, d) for name in ("k", "v", "q", "out")}
    linear |= {"mlp.fc1": (wide, d), "mlp.fc2": (d, wide)}
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{i}."
        out |= {f"{at}layer_norm{n}.{kind}": (d,) for n in (1, 2) for kind in ("weight", "bias")}
        out |= {f"{at}{name}.weight": shape for name, shape in linear.items()}
        out |= {f"{at}{name}.bias": shape[:1] for name, shape in linear.items()}
    return out


def qwen2vl_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Returns {parameter of transformers' Qwen2-VL tower: its shape}; None for one that is not plain."""
    names = "depth embed_dim hidden_size mlp_ratio num_heads patch_size spatial_merge_size temporal_patch_size".split()
    if not all(type(config.get(name)) is int and config[name] > 0 for name in names):
        return None
    depth, d, out_d, ratio, heads, patch, merge, frames = (config[name] for name in names)
    if d % (4 * heads) or config.get("in_channels", 3) != 3:
        return None
    wide, four = d * ratio, d * merge**2
    out: Shapes = {"patch_embed.proj.weight": (d, 3, frames, patch, patch)}
    linear = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (wide, d), "mlp.fc2": (d, wide)}
    blocks = {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in linear.items()}
    norms = [f"blocks.{i}.norm{n}" for i in range(depth) for n in (1, 2)]
    for name, shape in {**blocks, "merger.mlp.0": (four, four), "merger.mlp.2": (out_d, four)}.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return out | {f"{name}.{kind}": (d,) for name in (*norms, "merger.ln_q") for kind in ("weight", "bias")}


def connector_shapes(node: Mapping[str, Any]) -> Shapes:
    """Returns {parameter of a connector of `mmdiff.model.published.llava`: its shape}. node: of a saved one."""
    d_in, d = node["width_in"], node["width_out"]
    at = INNER.get(node["target"], "") + INNER.get(node.get("inner", ""), "")
    out: Shapes = {"image_newline": (d,)} if "inner" in node else {}
    return out | {
        f"{at}layers.0.weight": (d, d_in),
        f"{at}layers.0.bias": (d,),
        f"{at}layers.2.weight": (d, d),
        f"{at}layers.2.bias": (d,),
    }
