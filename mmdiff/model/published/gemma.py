"""DiffusionGemma with its vision tower, as it is published: Gemma 4's (`model.encoder.vision_tower`), and one matrix
behind a norm (`model.encoder.embed_vision`).

The fields are those of config.json and processor_config.json in public copies, the arithmetic is transformers'. A
folder without the tower's tensors is its language model alone (`bare.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmdiff.backbones.families.decoder import NO_EFFECT
from mmdiff.backbones.shares import Published, Share
from mmdiff.config.presets import preset
from mmdiff.errors import ConfigError, nearest

from .layout import BESIDE
from .llava import BACKBONE, TEMPLATES, Shapes, checked_tower

FAMILY = "diffusion_gemma"
TOWER, EMBEDDER = "model.encoder.vision_tower.", "model.encoder.embed_vision."
PROJECTION = "embedding_projection.weight"
SOFT_TOKENS = (70, 140, 280, 560, 1120)
TOWERS: Mapping[str, int] = {  # fields of the tower, and the largest that is taken for one
    "head_dim": 4096,
    "hidden_size": 65536,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 30,
    "num_attention_heads": 1024,
    "num_hidden_layers": 1024,
    "num_key_value_heads": 1024,
    "patch_size": 1024,
    "pooling_kernel_size": 64,
    "position_embedding_size": 1 << 20,
}
OTHERS: Mapping[str, Any] = {
    "attention_bias": (False, True),
    "attention_dropout": None,
    "hidden_activation": ("gelu_pytorch_tanh", "gelu", "silu"),
    "rms_norm_eps": None,
    "rope_parameters": None,
    "standardize": (False, True),
    "use_clipped_linears": (False, True),
}
VISION = NO_EFFECT | {"initializer_range", "default_output_length", "num_soft_tokens"}
"""Fields of `vision_config` that transformers' tower does not look at."""
PICTURES: Mapping[str, Any] = {  # of the image processor: the only values that our encoder computes
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
NAMED = ("image_processor_type", "image_seq_length", "processor_class", "size", "max_soft_tokens")
IDS = {"boi_token_id": 255999, "eoi_token_id": 258882}


def parts(raw: Mapping[str, Any], shapes: Shapes | None) -> dict[str, Any]:
    """Returns the parts of a published folder as `described.read_config` returns those of a saved one.

    Raises ConfigError for a field that is missing or not known, and for a value whose effect is not computed here.
    """
    vision, text = raw.get("vision_config"), raw.get("text_config")
    for name, value in {"vision_config": vision, "text_config": text}.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.json: {name}: {str(value)[:80]!r}, expected an object")
    assert isinstance(vision, Mapping) and isinstance(text, Mapping)
    config = checked_tower({name: value for name, value in vision.items() if name not in VISION}, TOWERS, OTHERS)
    width, wide = vision.get("hidden_size", 1152), text.get("hidden_size")
    ids = {name: raw.get(name, usual) for name, usual in IDS.items()}
    canvas = raw.get("canvas_length") or 256
    sizes = {"text_config.hidden_size": wide, "vision_config.hidden_size": width, "canvas_length": canvas, **ids}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"config.json: {name}: {str(value)[:80]!r}, expected a whole number above 0")
    rows = text.get("vocab_size")
    beyond = {name: value for name, value in ids.items() if type(rows) is int and value >= rows}
    for name, value in beyond.items():
        if value != IDS[name]:  # which transformers' class writes for a small vocabulary, too
            raise ConfigError(f"config.json: {name}: {str(value)[:80]}, expected an id below {rows}")
    whole = text.get("use_bidirectional_attention") == "vision"
    return {
        "backbone": {},
        "encoders": {
            "image": {
                "target": "mmdiff.encoders.native.gemma4.Gemma4Vision",
                "config": config,
                "soft_tokens": _soft_tokens(raw, vision),
            }
        },
        "connectors": {
            "image": {
                "target": "mmdiff.connectors.normed.Normed",
                "width_in": width,
                "width_out": wide,
                "eps": vision.get("rms_norm_eps", 1e-6),
            }
        },
        "heads": {},
        "extras": {},
        "adapters": [],
        "attention": {"target": "mmdiff.canvas.patterns.CausalContext", "size": canvas, "media": whole},
        "task": {
            "target": "mmdiff.tasks.vqa.VQA",
            "template": {"target": f"{TEMPLATES}.GemmaChat", "around": [] if beyond else list(ids.values())},
        },
        "sampler": preset("diffusion-gemma"),
        "published": dict(raw),
    }


def _soft_tokens(raw: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    """Returns the most features that a picture has, by what its processor says; else by config.json."""
    files = raw.get(BESIDE) or {}
    given = (files.get("processor_config.json") or {}).get("image_processor")
    where = "preprocessor_config.json" if given is None else "processor_config.json: image_processor"
    given = files.get("preprocessor_config.json") or {} if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"processor_config.json: image_processor: {str(given)[:80]!r}, expected an object")
    sides = {"patch_size": vision.get("patch_size", 16), "pooling_kernel_size": vision.get("pooling_kernel_size", 3)}
    for name, value in given.items():
        known = {**PICTURES, **sides}
        if name not in known and name not in NAMED:
            hint = nearest(name, [*known, *NAMED])
            raise ConfigError(f"{where}: {name[:80]}: no such field of pictures{hint}")
        if name in known and value != known[name]:
            raise ConfigError(f"{where}: {name}: {str(value)[:80]!r}, expected {known[name]!r}")
    rope = vision.get("rope_parameters") or {"rope_type": "axial"}
    if not isinstance(rope, Mapping) or rope.get("rope_type") != "axial" or set(rope) - {"rope_type", "rope_theta"}:
        raise ConfigError(
            "config.json: vision_config.rope_parameters: expected null, or rope_type axial and a rope_theta alone"
        )
    found = given.get("max_soft_tokens", raw.get("vision_soft_tokens_per_image") or 280)
    if found not in SOFT_TOKENS:
        raise ConfigError(f"{where}: max_soft_tokens: {str(found)[:80]!r}, expected one of {SOFT_TOKENS}")
    if (table := vision.get("position_embedding_size", 10240)) < (side := int(found) * sides["pooling_kernel_size"]):
        raise ConfigError(f"config.json: vision_config.position_embedding_size: {table}, expected {side} at least")
    return int(found)


def names_of_parts(
    raw: Mapping[str, Any], theirs: Published, tiled: bool, tower: Iterable[str], connector: Iterable[str]
) -> Published:
    """Returns {published tensor: what of an MMDiff it holds}, of all tensors of a folder."""
    out = {name: tuple(s._replace(ours=BACKBONE + s.ours) for s in shares) for name, shares in theirs.items()}
    out |= {f"{TOWER}{name}": (Share(f"encoders.image.tower.{name}"),) for name in tower}
    return out | {f"{EMBEDDER}{PROJECTION}": (Share(f"connectors.image.{name}"),) for name in connector}


def part_of(name: str) -> str:
    """Returns what of a model a published tensor is of: vision_tower, embed_vision or backbone."""
    return next((part.split(".")[2] for part in (TOWER, EMBEDDER) if name.startswith(part)), "backbone")
