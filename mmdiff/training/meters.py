"""Running sums between two lines of the log. Nothing is read from the device before a line is due."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmdiff.objectives.terms import Term


class Meters:
    """Sums of terms, of what they log and of tokens, since the last line."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._loss: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # name -> stacked (numerator, count)
        self._norm: Tensor | None = None
        self._wrong = torch.tensor(0.0)  # above 0 where a loss or gradient of the present step is not finite
        self._first = torch.tensor(-1.0)  # the first such step since the last line
        self._steps = self._tokens = 0

    def add(self, terms: Mapping[str, Term], count: Mapping[str, float], tokens: int) -> None:
        """Add the terms of one forward. count: the step's global denominators. tokens: attended, of all copies."""
        for name, term in terms.items():
            value = term.coefficient * term.value.detach() / count[name]
            self._loss[name] = self._loss.get(name, torch.zeros_like(value)) + value
            self._wrong = self._wrong.to(value.device) + (~value.isfinite()).float()
            for key, pair in term.sums.items():
                stacked = torch.stack([part.detach().float() for part in pair])
                self._sums[key] = self._sums[key] + stacked if key in self._sums else stacked
        self._tokens += tokens

    def norm(self, value: Tensor | None, *, scaled: bool = False) -> None:
        """Take the norm of a step's gradient. scaled: it may be infinite: fp16's loss scale passes such steps over."""
        self._norm = None if value is None else value.detach()
        if self._norm is not None and not scaled:
            self._wrong = self._wrong.to(self._norm.device) + (~self._norm.isfinite()).float()

    def step(self) -> None:
        """End a step."""
        first = self._first.to(self._wrong.device)
        self._first = torch.where((self._wrong > 0) & (first < 0), float(self._steps), first)
        self._wrong = torch.zeros_like(self._wrong)
        self._steps += 1

    def diverged(self, accelerator: Accelerator) -> int | None:
        """Returns how many steps ago, of any process, a loss or gradient was first not finite; None: all were."""
        first = self._first.to(accelerator.device)[None]
        found = [step for step in accelerator.gather(first).tolist() if step >= 0]
        return self._steps - int(min(found)) - 1 if found else None

    def read(self, accelerator: Accelerator, seconds: float) -> dict[str, Any]:
        """Returns the figures since the last line, over all processes, and starts the next one.

        They are the mean loss per step, the ratios of what terms log, the last gradient norm, and tokens per second.
        """
        out: dict[str, Any] = {}
        total = 0.0
        for name, value in sorted(self._loss.items()):
            loss = float(_sum(accelerator, value)) / max(self._steps, 1)
            total += loss
            if len(self._loss) > 1:
                out[f"loss_{name}"] = loss
        out["loss"] = total
        for key, pair in sorted(self._sums.items()):
            top, count = _sum(accelerator, pair)
            ratio = (top / count).tolist()  # 0 / 0 is not a number, and JSON has no such number
            out[key] = [_known(r) for r in ratio] if isinstance(ratio, list) else _known(ratio)
        if self._norm is not None:
            out["grad_norm"] = float(self._norm)
        out["tokens_per_second"] = self._tokens * accelerator.num_processes / max(seconds, 1e-9)
        out["seconds"] = seconds
        self._clear()
        return out


def _known(ratio: float) -> float | None:
    return None if math.isnan(ratio) else ratio


def _sum(accelerator: Accelerator, value: Tensor) -> Tensor:
    if accelerator.num_processes == 1:
        return value
    reduced: Tensor = accelerator.reduce(value, reduction="sum")
    return reduced
