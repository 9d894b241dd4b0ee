"""The moving average of the weights that a stage trains: what is evaluated and saved; training does without it.

After step t (counted from 1) the average moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)): at first it
follows them, for the weights that a stage begins with are not worth remembering.

A checkpoint's model has the averages. Beside it, `ema.safetensors` holds what training resumes with, bitwise:

    average:NAME    the averages in float32, whatever the dtype of the model
    weight:NAME     the weights as they were trained
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiff.backbones.weights import check_finite, check_header
from mmdiff.errors import ConfigError
from mmdiff.runs.moments import files_of, put

FILE = "ema.safetensors"


class Average:
    """The averages of the parameters of an optimizer's groups. decay: 0 follows the weights; below 1."""

    def __init__(self, groups: Sequence[dict[str, Any]], decay: float) -> None:
        self.decay = decay
        pairs = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
        self.parameters: dict[str, Tensor] = dict(pairs)  # not what they hold: whoever places a model replaces that
        self.averages = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step of the stage, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].float(), share)

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """Within it the model has the averages. Yields what `ema.safetensors` holds."""
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.adopt()
        try:
            yield {f"average:{n}": t for n, t in self.averages.items()} | {f"weight:{n}": t for n, t in weights.items()}
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])

    @torch.no_grad()
    def adopt(self) -> None:
        """Give the model the averages for good."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.averages[name])

    def load(self, folder: Path) -> None:
        """Resume with the averages and weights of a checkpoint. Raises ConfigError for others, and for damaged ones."""
        file = folder / FILE
        expected = {f"average:{name}": tensor for name, tensor in self.averages.items()}
        expected |= {f"weight:{name}": tensor for name, tensor in self.parameters.items()}
        missing = set(expected)
        for path, saved in files_of(file):
            for name in saved.keys():
                if name not in expected:
                    raise ConfigError(f"{path}: {name}, which this stage does not train")
                check_header(saved.get_slice(name), expected[name], f"{path}: {name}")
                value = saved.get_tensor(name)
                check_finite(value, f"{path}: {name}")
                put(value, expected[name])
                missing.discard(name)
        if missing:
            raise ConfigError(f"{file}: {min(missing)} is missing")
