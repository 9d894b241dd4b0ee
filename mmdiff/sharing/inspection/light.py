"""What a folder is without torch and transformers, which take seconds to import: decoders and encoders, as most are.

Fields of config.json, ids of tokenizer.json and names in the heads of weight files are data, and the memory of these
models is arithmetic (`arithmetic/`). Whatever is not plain here is left to `thorough.py`, which has the same answers
for all families.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from mmdiff.backbones.bounds import SLACK_NUMBERS, SLACK_TENSORS
from mmdiff.backbones.families import esm
from mmdiff.backbones.families.decoder import Decoder
from mmdiff.backbones.family import Family
from mmdiff.backbones.shares import Outline, Published
from mmdiff.backbones.weights import Header, match
from mmdiff.model.published.layouts import is_multimodal, layout_of, with_files
from mmdiff.model.published.llava import BACKBONE

from .arithmetic import encoder
from .arithmetic.dense import memory_of
from .arithmetic.plain import CLASSES, dense_of, plain_config
from .arithmetic.plain_encoder import plain_encoder
from .arithmetic.tokenizer import read_tokenizer, read_words
from .arithmetic.tower import connector_shapes, qwen2vl_shapes, tower_shapes
from .folder import Folder, NoTokenizer, Seen, has_tokenizer
from .matching import matched


def look(folder: Folder, raw: Mapping[str, Any], own: Family, headers: list[Header], dtype: str) -> Seen | None:
    """Returns what there is to see; None where torch is needed for it, or for the error that there is."""
    try:
        seen = (_decoder if isinstance(own, Decoder) else _encoder)(folder, raw, own, headers, dtype)
    except Exception:  # whatever it is that a stranger's folder made, with torch it is an error of one line
        return None
    if seen is None or (folder.saved and seen.found.unexpected):  # or a buffer, of which nothing is known here
        return None
    return seen


def _encoder(folder: Folder, raw: Mapping[str, Any], own: Any, headers: list[Header], dtype: str) -> Seen | None:
    plain = plain_encoder(own, raw, [header.name for header in headers])
    words = own is esm
    if plain is None or _exceeds(plain.model.shapes, headers):
        return None
    has_one = words or has_tokenizer(folder.home, own)
    tokenizer = (read_words if words else read_tokenizer)(folder.home) if has_one else NoTokenizer()
    if tokenizer is None:
        return None
    outline = _Model(plain.model.shapes, plain.model.buffers)
    return Seen(
        tokenizer=tokenizer,
        facts=own.facts(raw, plain.config, tokenizer),
        rows=plain.model.rows,
        kind=plain.kind,
        parameters=sum(map(prod, outline.shapes.values())),
        found=matched(folder, outline, headers, {} if folder.saved else plain.names, own),
        memory=lambda of: encoder.memory_of(plain.model, dtype, of),
        made=folder.saved or {},
    )


def _decoder(folder: Folder, raw: Mapping[str, Any], own: Any, headers: list[Header], dtype: str) -> Seen | None:
    tokenizer = read_tokenizer(folder.home) if has_tokenizer(folder.home, own) else NoTokenizer()
    config = plain_config(own, raw)
    if tokenizer is None or config is None:
        return None
    model = dense_of(own, config)
    if _exceeds(model.shapes, headers):
        return None
    outline = _Model(model.shapes, model.buffers)
    names = {} if folder.saved else own.names_of(config, model.shapes)
    made, whole = folder.saved or {}, None
    sizes = {header.name: header.shape for header in headers}
    if folder.saved is None and is_multimodal(raw, sizes):
        made = layout_of(raw).parts(with_files(raw, folder.home), sizes)
        if (whole := _whole(made, raw, outline, names)) is None:
            return None
    shapes = outline.shapes if whole is None else whole[0].shapes
    if _exceeds(shapes, headers):
        return None
    if whole is None:
        found = matched(folder, outline, headers, names, own)
    else:
        found = match(whole[0], headers, whole[1], lambda name: False)
    return Seen(
        tokenizer=tokenizer,
        facts=own.facts(raw, config, tokenizer),
        rows=model.rows,
        kind=CLASSES[own.config_class],
        parameters=sum(map(prod, shapes.values())),
        found=found,
        memory=lambda of: memory_of(model, dtype, of),
        made=made,
        multimodal=whole is not None,
    )


def _exceeds(shapes: Mapping[str, tuple[int, ...]], headers: list[Header]) -> bool:
    """Returns whether a model is larger than the weights that there are of it."""
    numbers, there = sum(map(prod, shapes.values())), sum(prod(h.shape) for h in headers)
    return numbers > 2 * there + SLACK_NUMBERS or len(shapes) > 4 * len(headers) + SLACK_TENSORS


def _whole(
    made: Mapping[str, Any], raw: Mapping[str, Any], backbone: _Model, theirs: Published
) -> tuple[_Model, Published] | None:
    """Returns a multimodal checkpoint and the names of its tensors. made: its parts. theirs: those of the backbone."""
    encoder, connector = made["encoders"]["image"], connector_shapes(made["connectors"]["image"])
    siglip = encoder.get("encoder", encoder)
    native = encoder["target"].startswith("mmdiff.encoders.native.")
    tower, width = (qwen2vl_shapes if native else tower_shapes)(siglip["config"]), siglip["config"].get("hidden_size")
    if tower is None:
        return None
    tiled = siglip is not encoder
    at = "encoders.image." + ("encoder." if tiled else "")
    shapes = {BACKBONE + name: shape for name, shape in backbone.shapes.items()}
    shapes |= {f"{at}tower.{name}": shape for name, shape in tower.items()}
    shapes |= {f"connectors.image.{name}": shape for name, shape in connector.items()}
    buffers = {BACKBONE + name: shape for name, shape in backbone.buffers.items()}
    buffers |= {} if native else {f"{at}spare_norm_{kind}": (width,) for kind in ("weight", "bias")}
    return _Model(shapes, buffers), layout_of(raw).names_of_parts(raw, theirs, tiled, tower, connector)


class _Model:
    """What `match` asks of a model."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], buffers: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes, self.buffers = shapes, buffers

    def named_parameters(self) -> list[tuple[str, Outline]]:
        return [(name, Outline(shape)) for name, shape in self.shapes.items()]

    def named_buffers(self) -> list[tuple[str, Outline]]:
        return [(name, Outline(shape)) for name, shape in self.buffers.items()]

    def state_dict(self) -> dict[str, Outline]:
        return dict(self.named_buffers())
