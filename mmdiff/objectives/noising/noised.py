"""Noised copies of a batch: what an objective plans, and how the masks of one are drawn.

Shape letters: B samples, L canvas length, R rows = B * copies, G groups of targets of all rows, M targets of the
longest group, n targets of a sample, N targets of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bools, Ints, Levels
from mmdiff.diffusion.spread import Draws, Independent, Spread, Stratified


@dataclass
class NoisedBatch:
    """Noised copies of a batch, copy after copy. counts: the local denominator of each term, known before any forward.

    masked_RL: bool, the masked positions that are scored: `ids_RL` may hold masks that are not. group_RL: int64, from
        0 over all copies, the document (or block) that a target position was masked with; -1 elsewhere.
    drawn: what further random numbers an objective uses, by name.
    layout: what the copies share, where the loop has found it (`mmdiff.model.prefix.Layout`).
    """

    MASKS: ClassVar = ("masked_RL",)

    batch: Batch
    ids_RL: Tensor
    masked_RL: Tensor
    weight_RL: Tensor  # fp32, of each target position, if it is masked
    rate_RL: Tensor  # fp32, the mask rate that it was masked at
    row_R: Tensor  # the row of the batch that a row is a copy of
    copy_R: Tensor  # int64, which copy it is
    group_RL: Tensor
    counts: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)
    layout: Any = None

    @property
    def scored_RL(self) -> Tensor:
        """Bool, the target positions that might have been masked and scored."""
        return self.group_RL >= 0

    @property
    def weight_R(self) -> Tensor:
        """The weight of a row whose masked positions weigh the same, else the largest of them."""
        return self.weight_RL.masked_fill(~self.scored_RL, 0.0).amax(1)

    @property
    def rate_R(self) -> Tensor:
        """The mask rate of a row of one group, else the largest of them."""
        return self.rate_RL.amax(1)


class Masks(NamedTuple):
    """Masks of R rows, numpy arrays (R, L), as `NoisedBatch` has them."""

    masked_RL: Bools
    weight_RL: NDArray[np.float64]
    rate_RL: NDArray[np.float64]
    group_RL: Ints


def draw_masks(
    levels: Levels,
    spread: Spread | None,
    scored_BL: Bools,
    group_BL: NDArray[Any],
    index: Sequence[int],
    key: NoiseKey,
    copies: int,
    ids_BL: Ints | None = None,
) -> Masks:
    """Returns masks of `copies` copies of B samples, every group of which has a level of its own.

    group_BL: which group of its row a target is of, any numbers in the order of the groups. ids_BL: the clean ids.
    Of each sample and copy, one uniform per group decides its level, one more is its coin, then one per target decides
    its order: under the sample's own key, so that neither batch mates nor padding change what is drawn.
    """
    spread = spread or (Stratified() if levels.stratified else Independent())
    rows, total = len(index) * copies, key.batch * copies
    shape = rows, scored_BL.shape[1]
    group_RL, order_RL = np.full(shape, -1), np.zeros(shape)
    at_B = [np.flatnonzero(scored_L) for scored_L in scored_BL]
    groups_B = [_numbered(group_BL[b, at_n]) for b, at_n in enumerate(at_B)]
    level, coin, rank, number, first = list[Any](), list[Any](), list[int](), list[int](), 0
    for row in range(rows):
        copy, b = divmod(row, len(index))
        group_n, groups = groups_B[b]
        draws = key.uniform(index[b], 2 * groups + len(group_n), copy)
        level.append(draws[:groups])
        coin.append(draws[groups : 2 * groups])
        order_RL[row, at_B[b]], group_RL[row, at_B[b]] = draws[2 * groups :], first + group_n
        rank += [copy * key.batch + index[b] % key.batch] * groups
        number += range(groups)
        first += groups
    out = Masks(np.zeros(shape, dtype=np.bool_), np.zeros(shape), np.zeros(shape), group_RL)
    if not first:
        return out
    u_G, number_G = np.concatenate(level), np.array(number)
    begin_G = np.arange(first) - number_G  # the first group of the same sample
    count_G = np.bincount(begin_G, minlength=first)[begin_G]
    drawn = spread.levels(Draws(np.array(rank), total, number_G / count_G, u_G, u_G[begin_G], key))
    at = np.nonzero(group_RL >= 0)
    by_group_N = np.argsort(group_RL[at], kind="stable")  # group after group, each in the order of the canvas
    at = at[0][by_group_N], at[1][by_group_N]
    group_N = group_RL[at]
    size_G = np.bincount(group_N, minlength=first)
    cell = group_N, np.arange(len(group_N)) - (size_G.cumsum() - size_G)[group_N]
    inside_GM = np.zeros((first, size_G.max()), dtype=np.bool_)
    order_GM, ids_GM = np.zeros(inside_GM.shape), np.zeros(inside_GM.shape, dtype=np.int64)
    inside_GM[cell], order_GM[cell] = True, order_RL[at]
    if ids_BL is not None:
        ids_GM[cell] = ids_BL[at[0] % len(index), at[1]]
    found = levels.mask(inside_GM, drawn.level_G, np.concatenate(coin), order_GM, None if ids_BL is None else ids_GM)
    out.masked_RL[at] = found.masked_BL[cell]
    out.weight_RL[at] = np.broadcast_to(found.weight_BL * drawn.weight_G[:, None], inside_GM.shape)[cell]
    out.rate_RL[at] = found.rate_B[group_N]
    return out


def _numbered(group_n: NDArray[Any]) -> tuple[Ints, int]:
    """Returns the groups of targets, numbered from 0 without gaps in their order, and how many there are."""
    if not len(group_n) or (group_n == group_n[0]).all():
        return np.zeros(len(group_n), dtype=np.int64), min(len(group_n), 1)
    number_n = np.unique(group_n, return_inverse=True)[1].reshape(-1)
    return number_n, int(number_n.max()) + 1


def noised_batch(batch: Batch, masks: Masks, mask_id: int) -> NoisedBatch:
    """Returns noised copies of the batch under masks (R, L), with R a multiple of its size."""
    copies = len(masks.masked_RL) // len(batch)
    masked_RL = torch.from_numpy(masks.masked_RL)
    return NoisedBatch(
        batch=batch,
        ids_RL=batch.ids_BL.repeat(copies, 1).masked_fill(masked_RL, mask_id),
        masked_RL=masked_RL,
        weight_RL=torch.from_numpy(masks.weight_RL).float(),
        rate_RL=torch.from_numpy(masks.rate_RL).float(),
        row_R=torch.arange(len(batch)).repeat(copies),
        copy_R=torch.arange(copies).repeat_interleave(len(batch)),
        group_RL=torch.from_numpy(masks.group_RL),
    )
