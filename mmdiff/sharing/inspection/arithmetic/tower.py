"""The parameters of what stands beside a language model in a multimodal checkpoint: a SigLIP tower and a projector."""

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
