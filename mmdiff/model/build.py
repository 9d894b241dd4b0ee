"""The model that a configuration describes, made from its parts or loaded from a saved folder."""

from __future__ import annotations

from torch import nn

from mmdiff.config import build
from mmdiff.config.settings import ModelConfig
from mmdiff.errors import ConfigError, nearest

from .model import MMDiff


def build_model(config: ModelConfig, *, toy: bool = False, logit_chunk: int = 4096) -> MMDiff:
    """Returns the model that a configuration describes. toy: the same parts at toy width, without outside weights.

    Raises ConfigError for parts that do not fit each other.
    """
    if config.weights and not toy:
        model = MMDiff.from_pretrained(config.weights)
        if config.prefix_causal is not None:
            model.prefix_causal = config.prefix_causal
        return model
    if config.backbone is None:
        raise ConfigError("model.backbone: no backbone is given, expected {target: dotted.path, ...}")
    backbone = build(config.backbone, toy=toy, where="model.backbone")
    encoders = {k: build(n, toy=toy, where=f"model.encoders.{k}") for k, n in config.encoders.items() if n}
    parts: dict[str, dict[str, nn.Module]] = {"connectors": {}, "heads": {}}
    for name, run_time in (("connectors", {"width_out": backbone.dim}), ("heads", {"vocab_size": backbone.vocab.size})):
        for kind, node in getattr(config, name).items():
            if kind not in encoders:
                if node and config.encoders.get(kind, "absent") == "absent":
                    raise ConfigError(f"model.{name}.{kind}: no encoder of that kind{nearest(kind, encoders)}")
                continue  # the encoder was taken out by `model.encoders.<kind>=null`
            if node:
                where = f"model.{name}.{kind}"
                parts[name][kind] = build(node, toy=toy, where=where, width_in=encoders[kind].width, **run_time)
    return MMDiff(
        backbone,
        encoders,
        parts["connectors"],
        parts["heads"],
        logit_chunk=logit_chunk,
        prefix_causal=bool(config.prefix_causal),
    )
