"""Noise by a matrix of transitions (D3PM, arXiv 2107.03006): which ids a token turns into, and how that is undone.

A transition is a matrix of rates G over S states, the ids that a position may hold in ascending order and, where it
masks, the mask behind them. In continuous time, with share = 1 - t the part of a token that noise has left at time t,

    q(z_t | x) = Q(1 - t)[x, z_t]    q(z_t | z_s) = Q((1 - t) / (1 - s))[z_s, z_t]    Q(share) = exp(-G log share)

G is scaled so that what vanishes last vanishes as `share` does: nothing is left at t = 1. So every D3PM of one kind of
matrix is a choice of times; T even steps are its linear schedule.

Shape letters: P positions, N ids, S states (N, or N + 1 with the mask), D width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.errors import ConfigError
from mmdiff.files import only_tensor
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Positive

MOST = 4096
"""Ids: the matrix is dense."""


class Transition(Protocol):
    """A kind of noise: a part that can be hashed."""

    masks: bool  # whether the last state is the mask

    def rates(self, ids: tuple[int, ...]) -> Tensor:
        """Returns float64 (S, S), rates of leaving the one state for the other; the diagonal plays no part."""
        ...


@part
@dataclass(frozen=True)
class Uniform:
    """A token becomes any id, each as likely."""

    masks = False

    def rates(self, ids: tuple[int, ...]) -> Tensor:
        return torch.ones(len(ids), len(ids), dtype=torch.float64)


@part
@dataclass(frozen=True)
class Masking:
    """A token becomes the mask: absorbing noise, the mask rate of a time being the time."""

    masks = True

    def rates(self, ids: tuple[int, ...]) -> Tensor:
        out_SS = torch.zeros(len(ids) + 1, len(ids) + 1, dtype=torch.float64)
        out_SS[:-1, -1] = 1.0
        return out_SS


@part
@dataclass(frozen=True)
class Gaussian:
    """Ids are numbers in order; a token moves by a discretised Gaussian, its width in ids. Doubly stochastic."""

    width: Positive = 1.0

    masks = False

    def rates(self, ids: tuple[int, ...]) -> Tensor:
        rank_S = torch.arange(len(ids), dtype=torch.float64)
        return (-((rank_S[:, None] - rank_S) ** 2) / (2 * self.width**2)).exp()


@part
@dataclass(frozen=True)
class Neighbours:
    """A token becomes one of its nearest neighbours; doubly stochastic (D3PM, appendix A.2.4).

    count: nearest neighbours of each id; an id is also joined to those that it is a neighbour of.
    embeddings: a safetensors file with one tensor, (V, D), a row per id of the vocabulary, by whose Euclidean distances
        ids are near; None: by their numbers. Raises ConfigError for another file.
    """

    count: AtLeast1 = 2
    embeddings: str | None = None

    masks = False

    def rates(self, ids: tuple[int, ...]) -> Tensor:
        n = len(ids)
        at_ND = torch.arange(n, dtype=torch.float64)[:, None] if self.embeddings is None else self._rows(ids)
        far_NN = torch.cdist(at_ND, at_ND, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        near_NK = far_NN.argsort(dim=1, stable=True)[:, : min(self.count, n - 1)]
        joined_NN = torch.zeros(n, n, dtype=torch.float64).scatter_(1, near_NK, 1.0)
        return (joined_NN + joined_NN.T) / (2 * self.count)

    def _rows(self, ids: tuple[int, ...]) -> Tensor:
        found, where = only_tensor(str(self.embeddings), "embeddings"), f"embeddings: {self.embeddings}"
        table_VD: Tensor = torch.empty(0) if found is None else found
        if table_VD.ndim != 2 or len(table_VD) <= max(ids) or not table_VD.isfinite().all():
            raise ConfigError(f"{where}: expected one tensor of finite numbers, a row for each of {max(ids) + 1} ids")
        return table_VD[list(ids)].double()


@dataclass(frozen=True)
class Spectrum:
    """Q(share) = left diag(share ** rate) right, all float64. masks: whether the last state is the mask."""

    left_SS: Tensor
    rate_S: Tensor
    right_SS: Tensor
    masks: bool

    def forward(self, p_PS: Tensor, share_P: Tensor) -> Tensor:
        """Returns (P, S), the law of a state whose law was p once so much of it is left: p Q(share)."""
        return (((p_PS @ self.left_SS) * self._kept(share_P)) @ self.right_SS).clamp(min=0)

    def backward(self, state_P: Tensor, share_P: Tensor) -> Tensor:
        """Returns (P, S), the likelihood of each state before if so much of it is left: Q(share)[., state]."""
        return ((self.right_SS.T[state_P] * self._kept(share_P)) @ self.left_SS.T).clamp(min=0)

    def posterior(self, p_PN: Tensor, now_P: Tensor, t_P: Tensor, s_P: Tensor, *, own: bool = False) -> Tensor:
        """Returns (P, S), q(z_s | z_t) normalised, for a token whose law is p: Bayes' rule.

        p_PN: float64, given all but the position's own noised id; own: given that, too.
        now_P: the states z_t. t_P, s_P: float64 times, s < t.
        """
        ids = p_PN.shape[1]
        if own:  # p(x | all) / q_t(z_t | x) is what the other positions say of x
            seen_PN = self.backward(now_P, 1 - t_P)[:, :ids]
            others_PN = torch.where(seen_PN > 0, p_PN / seen_PN, 0.0)
            total_P1 = others_PN.sum(1, keepdim=True)
            p_PN = torch.where(total_P1 > 0, others_PN / total_P1, p_PN)
        p_PS = torch.nn.functional.pad(p_PN, (0, self.rate_S.shape[0] - ids))
        weight_PS = self.forward(p_PS, 1 - s_P) * self.backward(now_P, (1 - t_P) / (1 - s_P))
        total_P1 = weight_PS.sum(1, keepdim=True)
        stays_PS = torch.zeros_like(weight_PS).scatter(1, now_P[:, None], 1.0)
        return torch.where(total_P1 > 0, weight_PS / total_P1, stays_PS)  # a token that p rules out is sure, unmasked

    def _kept(self, share_P: Tensor) -> Tensor:
        return share_P.double().clamp(0, 1)[:, None] ** self.rate_S


@lru_cache(maxsize=4)
def spectrum(transition: Transition, ids: tuple[int, ...], device: torch.device) -> Spectrum:
    """Returns the spectrum of a transition over ids, which are in ascending order.

    Raises ConfigError for more than `MOST` ids, fewer than two, and for ids that noise never joins.
    """
    name = type(transition).__qualname__
    if not 2 <= len(ids) <= MOST:
        raise ConfigError(f"transition: {name} is a dense matrix over {len(ids)} ids, expected from 2 to {MOST}")
    rates_SS = transition.rates(ids)
    generator_SS = rates_SS - torch.diag(rates_SS.sum(1))
    if transition.masks:  # what leaves for the mask stays there: known without an eigenvalue
        leaves_S = rates_SS[:, -1]
        left_SS = torch.eye(len(rates_SS), dtype=torch.float64)
        left_SS[:, -1] = 1.0
        right_SS = torch.eye(len(rates_SS), dtype=torch.float64)
        right_SS[:-1, -1] = -1.0
        rate_S = leaves_S / leaves_S[:-1].min()
    else:
        value_S, left_SS = torch.linalg.eigh(generator_SS)
        rate_S, right_SS = (-value_S).clamp(min=0), left_SS.T
        slowest = float(rate_S[-2])  # ascending values: the last is the law that stays
        if slowest < 1e-9 * float(rate_S[0]):
            raise ConfigError(f"transition: {transition} leaves groups of ids that noise never joins, expected one")
        rate_S = rate_S / slowest
        rate_S[-1] = 0.0
    return Spectrum(left_SS.to(device), rate_S.to(device), right_SS.contiguous().to(device), transition.masks)
