"""Running sums between two lines of the log. A step keeps tensors, and nothing more: they are added up, and read from
the device, when a line is due (or when there are many)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmdiff.objectives.terms import Term

MANY = 64  # steps whose tensors are kept


@dataclass
class _Step:
    losses: list[tuple[str, float, Tensor]] = field(default_factory=list)  # name, factor, the sum of a forward
    sums: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # name, numerator, count
    norm: Tensor | None = None
    tokens: int = 0


class Meters:
    """Sums of terms, of what they log and of tokens, since the last line."""

    def __init__(self) -> None:
        self.unusable: set[tuple[int, int]] = set()  # rows that this process's data left out, by component and number
        self._clear()

    def _clear(self) -> None:
        self._now, self._kept = _Step(), []  # type: _Step, list[_Step]
        self._loss: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # name -> stacked (numerator, count)
        self._norm: Tensor | None = None
        self._first = torch.tensor(-1.0)  # the first step since the last line of which something is not finite
        self._folded = self._steps = self._tokens = 0

    def add(self, terms: Mapping[str, Term], count: Mapping[str, float], tokens: int) -> None:
        """Add the terms of one forward. count: the step's global denominators. tokens: attended, of all copies."""
        for name, term in terms.items():
            self._now.losses.append((name, term.coefficient / count[name], term.value.detach()))
            self._now.sums += [(key, top.detach(), bottom.detach()) for key, (top, bottom) in term.sums.items()]
        self._now.tokens += tokens

    def norm(self, value: Tensor | None, *, scaled: bool = False) -> None:
        """Take the norm of a step's gradient. scaled: it may be infinite: fp16's loss scale passes such steps over."""
        self._norm = None if value is None else value.detach()
        self._now.norm = None if scaled else self._norm

    def step(self) -> None:
        """End a step."""
        self._steps, self._tokens = self._steps + 1, self._tokens + self._now.tokens
        self._kept.append(self._now)
        self._now = _Step()
        if len(self._kept) >= MANY:
            self._fold()

    def skip(self) -> None:
        """Leave a step out that changed nothing."""
        self._now, self._norm = _Step(), None

    def wrong(self) -> Tensor:
        """Returns (), above 0 where a loss, a sum to log or the norm of the present step is not finite."""
        return _wrong(self._now)

    def _fold(self) -> None:
        """Add up what the steps have kept."""
        if not self._kept:
            return
        wrong_S = torch.stack([_wrong(step) for step in self._kept])
        steps_S = torch.arange(len(wrong_S), device=wrong_S.device) + self._folded
        first = torch.where(wrong_S > 0, steps_S, math.inf).min()
        earlier = self._first.to(first.device)
        self._first = torch.where((earlier < 0) & first.isfinite(), first, earlier)
        for name, values in _grouped((name, factor * value) for s in self._kept for name, factor, value in s.losses):
            self._loss[name] = self._loss.get(name, torch.zeros_like(values[0])) + torch.stack(values).sum(0)
        pairs = ((key, torch.stack([a.float(), b.float()])) for s in self._kept for key, a, b in s.sums)
        for key, values in _grouped(pairs):
            self._sums[key] = self._sums.get(key, torch.zeros_like(values[0])) + torch.stack(values).sum(0)
        self._folded, self._kept = self._folded + len(self._kept), []

    def diverged(self, accelerator: Accelerator) -> int | None:
        """Returns how many steps ago, of any process, a loss, a sum to log or a gradient was first not finite; None:
        all were."""
        self._fold()
        first = self._first.to(accelerator.device)[None]
        found = [step for step in accelerator.gather(first).tolist() if step >= 0]
        return self._steps - int(min(found)) - 1 if found else None

    def read(self, accelerator: Accelerator, seconds: float) -> dict[str, Any]:
        """Returns the figures since the last line, over all processes, and starts the next one.

        They are the mean loss per step, the ratios of what terms log, the last gradient norm, and tokens per second.
        """
        self._fold()
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
        if self.unusable:
            out["rows_skipped"] = len(self.unusable)
        out["tokens_per_second"] = self._tokens * accelerator.num_processes / max(seconds, 1e-9)
        out["seconds"] = seconds
        self._clear()
        return out


def _wrong(step: _Step) -> Tensor:
    values = [value.float() for _, _, value in step.losses] + ([] if step.norm is None else [step.norm.float()])
    values += [top.float().abs().max() if top.ndim else top.float() for _, top, _ in step.sums]
    return (~torch.stack(values).isfinite()).sum().float() if values else torch.tensor(0.0)


def _grouped(pairs: Any) -> list[tuple[str, list[Tensor]]]:
    out: dict[str, list[Tensor]] = {}
    for name, value in pairs:
        out.setdefault(name, []).append(value)
    return list(out.items())


def _known(ratio: float) -> float | None:
    return None if math.isnan(ratio) else ratio


def _sum(accelerator: Accelerator, value: Tensor) -> Tensor:
    if accelerator.num_processes == 1:
        return value
    reduced: Tensor = accelerator.reduce(value, reduction="sum")
    return reduced
