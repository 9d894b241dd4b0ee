"""Optimizers of a stage, and its learning rates as a function of the step, so that nothing of these has to be saved.

    optimizer: {target: torch.optim.Muon, momentum: 0.9}

A stage's `lr`, `weight_decay` and `params` say what an optimizer is given besides. Muon is for matrices of hidden
layers: embeddings, head, connectors, vectors and convolutions are AdamW's then, at the same learning rate, which Muon
scales so that its steps are as long as AdamW's (arXiv 2502.16982). `Muon` here computes in the dtype of the weights:
torch's in bfloat16, for which many CPUs have no instructions, so that a step takes ten times as long there.

Shape letters: M rows and N columns of a matrix.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmdiff.config.nodes import build, locate, taken
from mmdiff.config.settings import StageConfig
from mmdiff.errors import ConfigError

DECAY: dict[str, Callable[[float], float]] = {  # share of the way after warm-up -> factor
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "constant": lambda x: 1.0,
    "wsd": lambda x: 1 - math.sqrt(x),  # of the way through the decay: "1-sqrt" of arXiv 2405.18392
}


def lr_factor(step: int, stage: StageConfig) -> float:
    """Returns the factor on every learning rate at a step, counted from 0: linear warm-up, then decay to `lr_end`.

    wsd (warm-up, stable, decay): constant until the last `decay` of the stage's steps.
    """
    warmup = round(stage.warmup * stage.steps) if stage.warmup < 1 else int(stage.warmup)
    if step < warmup:
        return (step + 1) / warmup
    first = warmup
    if stage.lr_schedule == "wsd":
        first = max(warmup, stage.steps - max(1, round(stage.decay * stage.steps)))
    along = max(step - first, 0) / max(stage.steps - first, 1)
    return stage.lr_end + (1 - stage.lr_end) * DECAY[stage.lr_schedule](along)


def make_optimizer(
    stage: StageConfig, groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], where: str
) -> Optimizer:
    """Returns the optimizer of a stage. groups: of `mmdiff.model.params.apply_rules`; each keeps its `names`.

    Raises ConfigError for what is no optimizer, for arguments that it refuses, and for one whose step needs a closure.
    """
    if stage.optimizer is None:
        return adamw(groups, stage.lr, betas)
    kind: Any = locate(stage.optimizer["target"], f"{where}.target")
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ConfigError(f"{where}: {stage.optimizer['target']} is no class of torch.optim nor like them")
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ConfigError(f"{where}: {stage.optimizer['target']} asks for the loss several times per step")
    decays = any(group["weight_decay"] for group in groups)
    if decays and not taken(kind, ["weight_decay"]):
        raise ConfigError(f"{where}: {stage.optimizer['target']} has no weight decay, expected weight_decay 0")
    hidden: list[dict[str, Any]] = list(groups)
    rest: list[dict[str, Any]] = []
    node: Mapping[str, Any] = stage.optimizer
    if issubclass(kind, torch.optim.Muon | Muon):
        hidden, rest = divided(groups)
        node = node if issubclass(kind, Muon) else {"adjust_lr_fn": "match_rms_adamw", **node}
        if not hidden:
            raise ConfigError(f"{where}: no matrix of a hidden layer is trained, which is what Muon is for")
    try:
        made: Optimizer = build(node, where=where, params=hidden, lr=stage.lr)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())[:200]}") from None
    return Chained([made, adamw(rest, stage.lr, betas)]) if rest else made


def adamw(groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> Optimizer:
    """Returns AdamW (arXiv 1711.05101) as one kernel, which reads and writes each number once."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def divided(groups: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns groups of the matrices of hidden layers, those of numbered modules, and groups of everything else."""
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        pairs = list(zip(group["names"], group["params"], strict=True))
        chosen = [p.ndim == 2 and re.search(r"\.\d+\.", name) is not None for name, p in pairs]
        for part, matrices in zip(parts, (True, False), strict=True):
            own = [pair for pair, yes in zip(pairs, chosen, strict=True) if yes is matrices]
            if own:
                part.append({**group, "names": [n for n, _ in own], "params": [p for _, p in own]})
    return parts


QUINTIC = 3.4445, -4.7750, 2.0315
"""Of the map of singular values s to a s + b s^3 + c s^5, which brings them near 1."""


class Muon(Optimizer):
    """Muon (Jordan, 2024) in the dtype of the weights: momentum, made near orthogonal by five Newton-Schulz steps.

    lr: of AdamW; the step of an M x N matrix is lr 0.2 sqrt(max(M, N)) times the orthogonal one (arXiv 2502.16982).
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, *, weight_decay: float = 0.0, momentum: float = 0.95, nesterov: bool = True
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum}, expected at least 0 and below 1")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, defaults)
        if flat := next((p for group in self.param_groups for p in group["params"] if p.ndim != 2), None):
            raise ValueError(f"a weight of shape {tuple(flat.shape)}, expected matrices")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p_MN in group["params"]:
                if p_MN.grad is None:
                    continue
                state = self.state[p_MN]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p_MN)
                moment_MN = state["momentum_buffer"].lerp_(p_MN.grad, 1 - momentum)
                way_MN = p_MN.grad.lerp(moment_MN, momentum) if group["nesterov"] else moment_MN
                p_MN.mul_(1 - lr * group["weight_decay"])
                p_MN.add_(orthogonal(way_MN), alpha=-lr * 0.2 * math.sqrt(max(p_MN.shape)))


def orthogonal(way_MN: Tensor) -> Tensor:
    """Returns a matrix of the same singular vectors; singular values that were not tiny become about 0.7 to 1.2."""
    a, b, c = QUINTIC
    x_MN = way_MN.T if way_MN.shape[0] > way_MN.shape[1] else way_MN
    x_MN = x_MN / x_MN.norm().clamp(min=1e-7)
    for _ in range(5):
        square_MM = x_MN @ x_MN.T
        x_MN = torch.addmm(x_MN, torch.addmm(square_MM, square_MM, square_MM, beta=b, alpha=c), x_MN, beta=a)
    return x_MN.T if way_MN.shape[0] > way_MN.shape[1] else x_MN


class Chained(Optimizer):
    """Several optimizers as one: their groups and states are one list and one mapping, shared with them."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
