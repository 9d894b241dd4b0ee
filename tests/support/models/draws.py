"""The random numbers of our sampler, handed to transformers' generation of DiffusionGemma.

Shape letters: L positions of a canvas, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.diffusion.step_noise import uniform


class Draws:
    """Random numbers of transformers' generation that are those of ours: one row, step after step."""

    def __init__(self, sample: int, allowed: list[int], size: int) -> None:
        self.sample, self.ids, self.size, self.step, self.canvas = sample, np.array(allowed), size, 0, 0
        self.pending = "start"

    def put(self, stock: Any, patch: Any) -> None:
        """Have a DiffusionGemmaForBlockDiffusion draw these."""
        prepare = stock._prepare_denoiser_inputs

        def started(**given: Any) -> Any:
            self.pending = "start"
            return prepare(**given)

        patch.setattr(torch, "randint", self.randint)
        patch.setattr(torch, "multinomial", self.multinomial)
        patch.setattr(stock, "_prepare_denoiser_inputs", started)

    def numbers(self, stream: str, step: int, first: int = 0) -> np.ndarray:
        at = np.full(self.size, 1)
        return uniform(0, self.sample * at, step * at, first + np.arange(self.size), stream)

    def randint(self, *_: Any, **__: Any) -> Tensor:
        if self.pending == "start":
            u = self.numbers("start", 0, self.size * self.canvas)
            self.canvas, self.pending = self.canvas + 1, "step"
        else:
            u = self.numbers("renoise", self.step)
        return torch.from_numpy(self.ids[np.floor(u * len(self.ids)).astype(int)])[None]

    def multinomial(self, p_LV: Tensor, **_: Any) -> Tensor:
        self.step += 1
        mass_LV = p_LV.double().cumsum(1)
        u_L1 = torch.from_numpy(self.numbers("token", self.step))[:, None]
        return torch.searchsorted(mass_LV, u_L1 * mass_LV[:, -1:], right=True)
