"""Options of a family: what a user may choose of a model that its weights do not decide, its context among them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mmdiff.errors import ConfigError, nearest

KINDS = ("longllada", "ultrallada")
OF_ALL = ("context", "ntk")
"""context: positions, more than the model was trained on. ntk: how its rotary angles are stretched for them."""


def check_options(family: str, known: Mapping[str, Any], options: Mapping[str, Any] | None) -> None:
    """Raise ConfigError for an option that the family does not have."""
    for name in options or ():
        if name not in (names := (*OF_ALL, *known)):
            raise ConfigError(f"options.{name}: no such option of {family}{nearest(name, names)}")


def with_options(config: Any, known: Mapping[str, Any], raw: Mapping[str, Any], given: Mapping[str, Any] | None) -> Any:
    """Returns the configuration; its field `mmdiff` holds the options: given ones, else those of a folder, else usual.

    `context` and `ntk` change the configuration itself. Raises ConfigError for values that cannot be.
    """
    given = dict(given or {})
    context, kind = given.pop("context", None), given.pop("ntk", KINDS[0])
    if context is not None:
        stretch(config, context, kind)
    if known:
        config.mmdiff = {**known, **{name: raw[name] for name in known if name in raw}, **given}
        if config.mmdiff.get("shift", 0) not in (0, 1) or isinstance(config.mmdiff.get("shift"), bool):
            raise ConfigError(f"options.shift: {config.mmdiff['shift']!r}, expected 0 or 1")
    return config


def stock_fields(config: Any) -> dict[str, Any]:
    """Returns config.json as transformers itself writes it for the model."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in fields.items() if name not in ("is_causal", "mmdiff")}


def ntk_factor(kind: str, *, theta: float, width: int, trained: int, wanted: int) -> float:
    """Returns what the base of the rotary angles is multiplied by.

    theta: the base. width: the rotated numbers of a head. trained, wanted: lengths in positions.
    `longllada` (arXiv 2506.14429): ceil(1/b (T'/2pi)^(d/d_c)), with the critical dimension d_c = 2 ceil(d/2
        log_b(T/2pi)).
    `ultrallada` (arXiv 2510.10481): the same of spans 2T and 2T', since a position sees offsets of both signs; not
        rounded.
    """
    span = 2 if kind == "ultrallada" else 1
    critical = 2 * math.ceil(width / 2 * math.log(span * trained / (2 * math.pi), theta))
    exact = (span * wanted / (2 * math.pi)) ** (width / critical) / theta
    return exact if kind == "ultrallada" else float(math.ceil(exact))


def stretch(config: Any, context: Any, kind: Any) -> None:
    """Make a transformers configuration one of `context` positions. Raises ConfigError for what cannot be."""
    if kind not in KINDS:
        raise ConfigError(f"options.ntk: {kind!r:.80}{nearest(str(kind), KINDS)}")
    trained, rope = config.max_position_embeddings, getattr(config, "rope_parameters", None)
    if isinstance(context, bool) or not isinstance(context, int) or not trained < context <= 2**24:
        raise ConfigError(f"options.context: {context!r:.80}, expected a whole number above {trained}, up to {2**24}")
    if not rope or rope.get("rope_type") != "default":
        raise ConfigError("options.context: the model has no rotary angles of the usual kind, so none can be stretched")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(head * rope.get("partial_rotary_factor", 1.0))
    factor = ntk_factor(kind, theta=rope["rope_theta"], width=width, trained=trained, wanted=context)
    config.rope_parameters = {**rope, "rope_theta": rope["rope_theta"] * max(factor, 1.0)}
    config.max_position_embeddings = context
