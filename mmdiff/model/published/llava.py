"""What the config.json of a multimodal checkpoint of LLaVA's code base says of pictures, as nodes of our parts.

LLaDA-V (arXiv 2505.16933), LLaDA-MedV (arXiv 2508.01617, the same code), LaViDa (arXiv 2505.16839) and DiffusionVL of
Qwen2.5 (arXiv 2512.15713) are one folder each: the language model, a SigLIP tower without its last block and head, a
projector of two layers, and `image_newline`, which ends a row of a picture's features. config.json describes the
language model, which its family reads (`mmdiff.backbones.families`), and here the pictures: nothing of it is skipped
that has an effect.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmdiff.backbones.family import required
from mmdiff.backbones.shares import Published, Share
from mmdiff.errors import ConfigError, nearest

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
NEWLINE = "model.image_newline"
BACKBONE = "backbone.model."

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor of a folder -> its shape."""

ENCODERS, TEMPLATES = "mmdiff.encoders", "mmdiff.tasks.dialogue.templates"
LLADA_ENDS = ["<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>"]


@dataclass(frozen=True)
class Release:
    """What the code of a release does and no field says.

    inner: what makes slots of the features of one crop: LaViDa pools them whatever `mm_spatial_pool_stride` says.
    attention: who sees whom. template: of its dialogues, `system` its own text. sampler: as its authors generate.
    """

    inner: str
    template: str
    attention: str | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


MLP, POOLED = "mmdiff.connectors.mlp.MLP", "mmdiff.connectors.merge.Pooled"
PREFIX = "mmdiff.canvas.patterns.PrefixCausal"
LAVIDA = {"steps": 32, "block_length": 64, "schedule": "shifted"}
RELEASES = {
    "LlavaLLaDAModelLM": Release(
        MLP,
        f"{TEMPLATES}.LLaDAChat",
        sampler={"steps": 128, "block_length": 128, "suppress_tokens": LLADA_ENDS},
    ),
    "LlavaLladaForMaskedDiffusion": Release(POOLED, f"{TEMPLATES}.LLaDAChat", PREFIX, LAVIDA),
    "LlavaDreamForMaskedDiffusion": Release(POOLED, f"{TEMPLATES}.ChatML", PREFIX, LAVIDA),
    "DiffusionVLQwenForCausalLM": Release(
        MLP,
        f"{TEMPLATES}.ChatML",
        sampler={"block_length": 8, "block_start": "row"},
        system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
}
"""Architecture of a config.json -> what its code does."""

MUST = {  # the only values that our parts compute
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
}
READ = ("image_aspect_ratio", "image_grid_pinpoints", "mm_hidden_size", "mm_patch_merge_type", "mm_vision_tower")
FREE = (  # of videos, of training, and of code that these layouts do not reach
    "image_crop_resolution image_split_resolution image_token_index mm_newline_position mm_pooler_ratio "
    "mm_projector_lr mm_spatial_pool_stride mm_spatial_pool_out_channels mm_tunable_parts mm_vision_tower_lr "
    "vision_tower_pretrained"
).split()
HEADS = {"base": 12, "large": 16, "so400m": 16}  # of SigLIP's sizes: the one thing that no tensor's shape tells
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26}


def has_siglip(raw: Mapping[str, Any]) -> bool:
    """Returns whether a config.json is of a folder of LLaVA's code base, with a tower beside its language model."""
    return raw.get("mm_vision_tower") is not None and "mmdiff_format" not in raw


def parts(raw: Mapping[str, Any], shapes: Shapes | None) -> dict[str, Any]:
    """Returns the parts of a published folder as `described.read_config` returns those of a saved one.

    raw: its config.json. shapes: of its tensors; None: those of SigLIP so400m, for a toy twin.
    Raises ConfigError for a field that is missing or not known, and for a layout of pictures that is not one of ours.
    """
    release = _release(raw)
    _check(raw)
    tower = tower_config(str(raw["mm_vision_tower"]), shapes)
    width = tower["hidden_size"]
    if raw.get("mm_hidden_size", width) != width:
        raise ConfigError(
            f"config.json: mm_hidden_size: {str(raw['mm_hidden_size'])[:80]!r}, but the tower's width is {width}"
        )
    encoder, connector = _layout(raw, release, tower["image_size"])
    siglip = {
        "target": f"{ENCODERS}.siglip.Siglip",
        "config": tower,
        "layer": -1,
        "spare_norm": True,
        "interpolation": "bicubic",
        **({"resize_mode": "pad"} if raw["image_aspect_ratio"] == "pad" else {}),
    }
    encoder = {**encoder, "encoder": siglip} if encoder else siglip
    template = {"target": release.template, **({"system": release.system} if release.system else {})}
    wide = required(raw, "d_model" if "d_model" in raw else "hidden_size")
    if type(wide) is not int or wide < 1:
        raise ConfigError(f"config.json: hidden_size: {str(wide)[:80]!r}, expected a whole number above 0")
    return {
        "backbone": {},
        "encoders": {"image": encoder},
        "connectors": {"image": {**connector, "width_in": width, "width_out": wide}},
        "heads": {},
        "extras": {},
        "adapters": [],
        "attention": release.attention and {"target": release.attention},
        "task": {"target": "mmdiff.tasks.vqa.VQA", "template": template},
        "sampler": dict(release.sampler),
        "published": dict(raw),
    }


def tower_config(name: str, shapes: Shapes | None) -> dict[str, Any]:
    """Returns the configuration of the tower that a folder holds, from its published name and its tensors.

    name: `google/siglip2-so400m-patch14-384`, of which the last three words are read.
    """
    found = re.search(r"siglip2?-(\w+)-patch([1-9]\d{0,2})-(\d{2,4})/*$", name)
    if found is None or found[1] not in HEADS:
        raise ConfigError(f"config.json: mm_vision_tower: {name[:80]!r}, expected siglip or siglip2-so400m-patch14-384")
    patch, side = int(found[2]), int(found[3])
    sizes = dict(SO400M)
    if shapes is not None:
        sizes = _tower_sizes(shapes, patch, side)
    return {
        "model_type": "siglip_vision_model",
        **sizes,
        "num_attention_heads": HEADS[found[1]],
        "num_channels": 3,
        "image_size": side,
        "patch_size": patch,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
    }


def _tower_sizes(shapes: Shapes, patch: int, side: int) -> dict[str, int]:
    """Returns the sizes that the tensors have. Raises ConfigError where they are not those of the tower's name."""
    first, table = f"{TOWER}embeddings.patch_embedding.weight", f"{TOWER}embeddings.position_embedding.weight"
    inner = f"{TOWER}encoder.layers.0.mlp.fc1.weight"
    for name, axes in ((first, 4), (table, 2), (inner, 2)):
        if len(shapes.get(name, ())) != axes:
            raise ConfigError(f"{name}: the folder has no such tensor, expected its vision tower beside the rest")
    if shapes[first][2:] != (patch, patch) or shapes[table][0] != (side // patch) ** 2:
        raise ConfigError(
            f"config.json: mm_vision_tower: patches of {patch} in pictures of {side}, but the folder's tower has "
            f"patches of {shapes[first][2]} and {shapes[table][0]} positions"
        )
    numbers = (re.match(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.", name) for name in shapes)
    layers = len({found[1] for found in numbers if found})
    return {"hidden_size": shapes[first][0], "intermediate_size": shapes[inner][0], "num_hidden_layers": layers}


def checked_tower(config: Mapping[str, Any], sizes: Mapping[str, int], others: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `vision_config`, where all are known and can be those of a tower. Raises ConfigError.

    sizes: the largest of each field that is a size. others: fields with their values; None: any.
    """
    for name, value in config.items():
        if name not in sizes and name not in others:
            hint = nearest(name, [*sizes, *others])
            raise ConfigError(f"config.json: vision_config.{name[:80]}: no such field of this tower{hint}")
        if name in sizes and (type(value) is not int or not 0 < value <= sizes[name]):
            expected = f"a whole number from 1 to {sizes[name]}"
        elif name in others and others[name] is not None and value not in others[name]:
            expected = f"one of {others[name]}"
        else:
            continue
        raise ConfigError(f"config.json: vision_config.{name}: {str(value)[:80]!r}, expected {expected}")
    return dict(config)


def _release(raw: Mapping[str, Any]) -> Release:
    names = raw.get("architectures")
    name = str(names[0] if isinstance(names, list) and names else names)[:80]
    if name not in RELEASES:
        raise ConfigError(f"config.json: architectures: {name!r} is no multimodal model{nearest(name, RELEASES)}")
    return RELEASES[name]


def _check(raw: Mapping[str, Any]) -> None:
    known = (*MUST, *READ, *FREE, "mm_spatial_pool_mode")
    for name, value in raw.items():
        if name.startswith(("mm_", "image_", "vision_")) and name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"config.json: {name[:80]}: no such field of pictures, its effect is unknown{hint}")
        if name in MUST and value != MUST[name]:
            raise ConfigError(f"config.json: {name}: {str(value)[:80]!r}, expected {MUST[name]!r}")
    if raw.get("mm_projector_type") is None:
        raise ConfigError("config.json: mm_projector_type is missing")
    if raw.get("mm_spatial_pool_mode", "bilinear") != "bilinear":
        raise ConfigError(
            f"config.json: mm_spatial_pool_mode: {str(raw['mm_spatial_pool_mode'])[:80]!r}, expected 'bilinear'"
        )


def _layout(raw: Mapping[str, Any], release: Release, tile: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the nodes of tiles, {} for a picture in one crop, and of the connector. tile: side in pixels."""
    aspect, merge = (str(raw.get(name, "flat"))[:80] for name in ("image_aspect_ratio", "mm_patch_merge_type"))
    if aspect in ("pad", "square") and merge == "flat" and release.inner == MLP:
        return {}, {"target": MLP}
    most = re.fullmatch(r"anyres(?:_max_([1-9]\d{0,3}))?", aspect)
    if most is None or merge != "spatial_unpad":
        raise ConfigError(
            f"config.json: image_aspect_ratio: {aspect!r} with mm_patch_merge_type {merge!r}, expected anyres or "
            f"anyres_max_N with spatial_unpad{', or pad or square with flat' if release.inner == MLP else ''}"
        )
    limit = None if most[1] is None else int(most[1])
    tiles = {"target": f"{ENCODERS}.tiling.Tiles", "canvases": canvases(raw.get("image_grid_pinpoints"), tile)}
    return tiles, {"target": "mmdiff.connectors.anyres.AnyRes", "inner": release.inner, "max_tiles": limit}


def canvases(pinpoints: Any, tile: int) -> list[list[int]]:
    """Returns the [rows, columns] of tiles of each canvas of a picture, in their order.

    pinpoints: a list of [width, height] in pixels, the same as text, or "(1x1),...,(6x6)", a range of tiles.
    """
    try:
        if isinstance(pinpoints, str) and "x" in pinpoints:
            (w0, h0), *_, (w1, h1) = [map(int, pair) for pair in re.findall(r"\((\d{1,2})x(\d{1,2})\)", pinpoints)]
            sizes = [(w * tile, h * tile) for w in range(w0, w1 + 1) for h in range(h0, h1 + 1)]
        else:
            sizes = [(w, h) for w, h in (ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints)]
        if sizes and all(type(n) is int and n > 0 and n % tile == 0 for size in sizes for n in size):
            return [[h // tile, w // tile] for w, h in sizes]
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    shown = str(pinpoints)[:80]
    raise ConfigError(
        f"config.json: image_grid_pinpoints: {shown!r}, expected [[width, height], ...] in tiles of {tile}"
    )


# Names of tensors -----------------------------------------------------------------------------------------------------


def names_of_parts(
    raw: Mapping[str, Any], theirs: Published, tiled: bool, tower: Iterable[str], connector: Iterable[str]
) -> Published:
    """Returns {published tensor: what of an MMDiff it holds}, of all tensors of a folder.

    theirs: of the language model's family. tiled: whether pictures are cut into tiles. tower, connector: names of the
    tensors of both.
    """
    if "d_model" not in raw:  # LLaDA-V has Llama's names, unlike LLaDA
        theirs = {share.ours: (Share(share.ours),) for shares in theirs.values() for share in shares}
    out = {name: tuple(s._replace(ours=BACKBONE + s.ours) for s in shares) for name, shares in theirs.items()}
    at = "encoders.image." + ("encoder." if tiled else "")
    out |= {f"{TOWER}{name}": (Share(f"{at}tower.{name}"),) for name in tower}
    out |= {f"{TOWER}post_layernorm.{kind}": (Share(f"{at}spare_norm_{kind}"),) for kind in ("weight", "bias")}
    for name in connector:
        if name == "image_newline":
            out[NEWLINE] = (Share(f"connectors.image.{name}"),)
        else:  # of the two layers, however deep they lie
            out[PROJECTOR + name.rpartition("layers.")[2]] = (Share(f"connectors.image.{name}"),)
    return out


def part_of(name: str) -> str:
    """Returns what of a model a published tensor is of: vision_tower, mm_projector, image_newline or backbone."""
    found = next((start for start in (TOWER, PROJECTOR, NEWLINE) if name.startswith(start)), None)
    return "backbone" if found is None else found.split(".")[1]
