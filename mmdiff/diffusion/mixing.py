"""Noise that masks and replaces: the shares of a token that is kept, masked and replaced at a time, and what follows.

    q_t(z | x) = a(t) [z = x] + m(t) [z = mask] + u(t) / n, n the number of ids that a position may hold

GIDD (arXiv 2503.04482) with gamma = 1; with `uniform` = 0 it is masked diffusion (arXiv 2406.07524), with 1 uniform
diffusion (D3PM's, arXiv 2107.03006, in continuous time).

Shape letters: P positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shares(NamedTuple):
    """Shares at a time, float64, any shape: kept, masked, replaced. They sum to 1."""

    kept: Tensor
    masked: Tensor
    replaced: Tensor


def shares(t: Tensor, uniform: float) -> Shares:
    """Returns the shares at time t in [0, 1]: nothing is noised at 0, everything at 1.

    uniform: the share of replaced tokens at t = 1/2 (GIDD's p_u); 0: all noise is the mask, 1: none is.
    """
    t = t.double()
    if uniform == 1:
        return Shares(1 - t, torch.zeros_like(t), t)
    c = _bump(t, uniform)
    return Shares((1 - t) / (1 + c), t / (1 + c), c / (1 + c))


def rates(t: Tensor, uniform: float) -> tuple[Tensor, Tensor]:
    """Returns the rates (float64) at which a token becomes the mask, and any of the n ids, at time t in (0, 1).

    For a share s that noise feeds, ds/dt = rate + (a'/a) s.
    """
    t = t.double()
    if uniform == 1:
        return torch.zeros_like(t), 1 / (1 - t)
    c = _bump(t, uniform)
    c_slope = c / 2 * (1 / t - 1 / (1 - t))
    decay = -1 / (1 - t) - c_slope / (1 + c)  # a' / a
    a, m, u = shares(t, uniform)
    m_slope = 1 / (1 + c) - t * c_slope / (1 + c) ** 2
    u_slope = c_slope / (1 + c) ** 2
    return m_slope - decay * m, u_slope - decay * u


def _bump(t: Tensor, uniform: float) -> Tensor:
    return 2 * uniform / (1 - uniform) * (t * (1 - t)).clamp(min=0).sqrt()
