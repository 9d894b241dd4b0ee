"""A small perceptron over a vector: joint angles, a gripper's pose, any measurements of fixed number.

Shape letters: N vectors, S entries of a vector, T tokens, E width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import DataError
from mmdiff.model.published.tensors import fill_own
from mmdiff.parts.ranges import AtLeast1


@saveable
class StateMLP(nn.Module):
    """An encoder: (N, dims) -> (N, tokens, width), with one hidden layer, of normalised vectors, to [-1, 1] say.

    weights: a safetensors file of this module's own names. Raises ConfigError.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        dims: AtLeast1,
        width: AtLeast1 = 128,
        hidden: AtLeast1 = 128,
        tokens: AtLeast1 = 1,
        *,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.dims, self.width, self.tokens = dims, width, tokens
        self.layers = nn.Sequential(nn.Linear(dims, hidden), nn.GELU(), nn.Linear(hidden, tokens * width))
        self.checkpointed = self.any_length = False
        if weights is not None:
            fill_own(self, weights)
            self.node["weights"] = None

    @classmethod
    def toy(cls, dims: int, width: int = 128, hidden: int = 128, tokens: int = 1, **outside: Any) -> StateMLP:
        made = cls(dims, min(width, 32), min(hidden, 32), tokens)
        made.any_length = True  # the rows of a check are drawn without regard to this encoder
        return made

    def read(self, data: object) -> Item:
        """Returns one crop: values (1, dims) float32, of a list, an array or a tensor. Raises DataError."""
        try:
            values = data.detach().cpu().double().numpy() if isinstance(data, Tensor) else np.asarray(data, np.float64)
        except (TypeError, ValueError):
            raise DataError(f"state: {type(data).__name__} is not {self.dims} numbers") from None
        if self.any_length:
            values = np.resize(values, self.dims)
        if values.shape != (self.dims,):
            raise DataError(f"state of shape {values.shape}: expected {self.dims} numbers (dims of the encoder)")
        if not np.isfinite(values).all():
            s = int(np.argmin(np.isfinite(values)))
            raise DataError(f"state[{s}]: {values[s]} is not finite")
        return Item(torch.from_numpy(values.astype(np.float32))[None])

    def forward(self, values_NS: Tensor) -> Tensor:
        if self.checkpointed and self.training:
            h: Tensor = checkpoint(self.layers, values_NS, use_reentrant=False)
        else:
            h = self.layers(values_NS)
        return h.unflatten(-1, (self.tokens, self.width))

    def gradient_checkpointing(self, on: bool) -> None:
        self.checkpointed = on
