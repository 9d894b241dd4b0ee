"""A model that reads what was proposed, from left to right: what energies and verifiers ask.

Shape letters: P predicted positions of a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmdiff.canvas.batch import Batch
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.protocols import Denoise


def left_to_right(denoise: Denoise, model: Any, batch: Batch, where: str) -> Denoise:
    """Returns a Denoise whose queries hold finished canvases: logits of a position given the ids before it.

    denoise: of the model that generates. model: None: that one itself; the folder of a saved model or a finished run;
        or, in Python, a model (`mmdiff.model.MMDiff`).
    It is asked without extras of the query: text that is read has no noise beside it.
    Raises ConfigError for anything else, and for a model that does not fit or cannot read so.
    """
    if model is not None and not isinstance(model, str):
        if not callable(getattr(model, "denoiser", None)):
            raise ConfigError(f"{where}.model: {model!r:.80} is neither a folder nor a model")
        denoise, model = model.denoiser(batch), None
    read = getattr(denoise, "left_to_right", None)
    if read is None:
        raise ConfigError(f"{where}: {type(denoise).__qualname__} cannot read a canvas from left to right")
    try:
        found: Denoise = read(model)
    except ConfigError as error:
        raise ConfigError(f"{where}.model: {error}") from None
    return lambda query: found(replace(query, extras={}))


def check_order(config: GenerationConfig, name: str) -> None:
    """Raises ConfigError for settings that want another order than left to right, or more than one token judged."""
    usual = GenerationConfig()
    for field in ("remasking", "schedule", "threshold", "select", "revise"):
        if getattr(config, field) != getattr(usual, field):
            raise ConfigError(f"sampler.{field}: {name} commits from left to right, as far as it agrees; leave it out")
    if config.eos_policy == "last":
        raise ConfigError(f"sampler.eos_policy: {name} commits from left to right; expected none or suppress")
