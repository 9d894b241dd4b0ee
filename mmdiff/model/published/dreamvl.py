"""Dream-VL (arXiv 2512.22615), as its authors lay it out: Dream 7B, Qwen2-VL's tower (`visual`) and two layers
(`projector`).

What is said here was read from the released code, github.com/DreamLM/Dream-VLX (config.json, preprocessor_config.json,
`modeling_dreamvl.py`, and `export.py`, which names the tensors); the folder on the hub was not seen. Its positions lie
along three axes where a picture follows `<|vision_start|>`; its chat template puts none there, so that pictures then
are positions like text, as in its training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmdiff.backbones.families.decoder import NO_EFFECT
from mmdiff.backbones.family import required
from mmdiff.backbones.shares import Published, Share
from mmdiff.config.presets import preset
from mmdiff.errors import ConfigError, nearest

from .layout import BESIDE
from .llava import BACKBONE, MLP, TEMPLATES, Shapes, checked_tower

FAMILY = "dream-vl"
TOWER, PROJECTOR = "visual.", "projector."
LAYERS = {"linear_1": "layers.0", "linear_2": "layers.2"}
SYSTEM = "You are a helpful assistant."
TOWERS: Mapping[str, int] = {  # fields of the tower, and the largest that is taken for one
    "depth": 1024,
    "embed_dim": 65536,
    "hidden_size": 65536,
    "in_channels": 3,
    "mlp_ratio": 64,
    "num_heads": 1024,
    "patch_size": 1024,
    "spatial_merge_size": 64,
    "temporal_patch_size": 64,
}
ACTS = {"hidden_act": ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")}
VISION = NO_EFFECT | {"initializer_range", "in_chans", "spatial_patch_size"}
"""Fields of `vision_config` that its code does not look at."""
PICTURES: Mapping[str, Any] = {  # of preprocessor_config.json: the only values that our encoder computes
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
NAMED = ("auto_map", "image_processor_type", "processor_class", "size", "video_processor_type")  # of no effect
PIXELS = {"min_pixels": 3136, "max_pixels": 3211264}
MOST_PIXELS = 1 << 24
"""The largest min_pixels and max_pixels: a picture of one pixel is enlarged to the least of them."""


def parts(raw: Mapping[str, Any], shapes: Shapes | None) -> dict[str, Any]:
    """Returns the parts of a published folder as `described.read_config` returns those of a saved one.

    Raises ConfigError for a field that is missing or not known, and for a value whose effect is not computed here.
    """
    vision = raw.get("vision_config", {})
    if not isinstance(vision, Mapping):
        raise ConfigError(f"config.json: vision_config: {str(vision)[:80]!r}, expected an object")
    if raw.get("projector_hidden_act") != "gelu":
        raise ConfigError(
            f"config.json: projector_hidden_act: {str(raw.get('projector_hidden_act'))[:80]!r}, expected 'gelu'"
        )
    config = checked_tower({name: value for name, value in vision.items() if name not in VISION}, TOWERS, ACTS)
    width, wide = vision.get("hidden_size", 3584), required(raw, "hidden_size")
    start = raw.get("vision_start_token_id", 151652)
    for name, value in {
        "hidden_size": wide,
        "vision_config.hidden_size": width,
        "vision_start_token_id": start,
    }.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"config.json: {name}: {str(value)[:80]!r}, expected a whole number above 0")
    if "vision_start_token_id" in raw and type(rows := raw.get("vocab_size")) is int and start >= rows:
        raise ConfigError(f"config.json: vision_start_token_id: {str(start)[:80]}, expected an id below {rows}")
    encoder = {"target": "mmdiff.encoders.native.qwen2vl.Qwen2VL", "config": config, "axes_behind": start}
    return {
        "backbone": {},
        "encoders": {"image": {**encoder, **_pictures(raw, config)}},
        "connectors": {"image": {"target": MLP, "width_in": width, "width_out": wide}},
        "heads": {},
        "extras": {},
        "adapters": [],
        "attention": None,
        "task": {
            "target": "mmdiff.tasks.vqa.VQA",
            "template": {"target": f"{TEMPLATES}.ChatML", "system": SYSTEM, "behind": ""},
        },
        "sampler": preset("dream-vl-7b"),
        "published": dict(raw),
    }


def _pictures(raw: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the encoder that preprocessor_config.json holds."""
    given = (raw.get(BESIDE) or {}).get("preprocessor_config.json") or {}
    sides = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    tower = {"merge_size": config.get("spatial_merge_size", 2)}
    known = (*PICTURES, *NAMED, *sides, *PIXELS, "image_mean", "image_std")
    for name, value in given.items():
        only = PICTURES.get(name, value)
        if name in sides:
            only = tower.get(name, config.get(name, sides[name]))
        if name not in known:
            raise ConfigError(f"preprocessor_config.json: {name[:80]}: no such field of pictures{nearest(name, known)}")
        if value != only:
            raise ConfigError(f"preprocessor_config.json: {name}: {str(value)[:80]!r}, expected {only!r}")
    out = {name: given.get(name, usual) for name, usual in PIXELS.items()}
    least, most = out.values()
    side = config.get("patch_size", 14) * config.get("spatial_merge_size", 2)
    whole = type(least) is int and type(most) is int
    if not whole or not 0 < least <= most <= MOST_PIXELS or most < side**2:
        raise ConfigError(
            f"preprocessor_config.json: {str(out)[:80]}: expected whole numbers of pixels, from least to most, with "
            f"room for {side} x {side} and at most {MOST_PIXELS}"
        )
    for name in ("image_mean", "image_std"):
        value = given.get(name, [1.0, 1.0, 1.0])
        least = 1e-6 if name == "image_std" else -1e6
        whole = isinstance(value, list) and len(value) == 3 and all(type(n) in (int, float) for n in value)
        if not whole or not all(least <= n <= 1e6 for n in value):  # no NaN is within
            expected = f"three numbers from {least:g} to 1e+06"
            raise ConfigError(f"preprocessor_config.json: {name}: {str(value)[:80]}, expected {expected}")
    return {**out, **{ours: given[f"image_{ours}"] for ours in ("mean", "std") if f"image_{ours}" in given}}


def names_of_parts(
    raw: Mapping[str, Any], theirs: Published, tiled: bool, tower: Iterable[str], connector: Iterable[str]
) -> Published:
    """Returns {published tensor: what of an MMDiff it holds}, of all tensors of a folder."""
    out = {name: tuple(s._replace(ours=BACKBONE + s.ours) for s in shares) for name, shares in theirs.items()}
    out |= {f"{TOWER}{name}": (Share(f"encoders.image.tower.{name}"),) for name in tower}
    for name in connector:
        layer, _, kind = name.rpartition(".")
        published = next(p for p, ours in LAYERS.items() if ours == layer)
        out[f"{PROJECTOR}{published}.{kind}"] = (Share(f"connectors.image.{name}"),)
    return out


def part_of(name: str) -> str:
    """Returns what of a model a published tensor is of: visual, projector or backbone."""
    return next((part[:-1] for part in (TOWER, PROJECTOR) if name.startswith(part)), "backbone")
