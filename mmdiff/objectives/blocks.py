"""Block diffusion: each block of the targets is denoised behind clean earlier blocks (BD3LM, arXiv 2503.09573).

All blocks of a sample are trained in one forward, whose rows hold the clean ids and, behind them, the noised ones
(`mmdiff.model.prefix.hidden_copies`). The sum over blocks of the bound of `mmdiff.objectives.denoise` is a bound on
-log p of the targets: for blocks of one position it is the log-likelihood from left to right, for one block of all
positions that of masked diffusion.

Shape letters: B samples, L canvas length, R rows = B * copies, P masked positions of all rows, J blocks of a sample, n
target positions of a sample, M positions of its longest block.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import units
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.ranges import AtLeast1, Share
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bools, ExactCount, Levels
from mmdiff.diffusion.schedule import Array
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.protocols import Model

from .denoise import by_level, cut
from .terms import Term


@dataclass
class NoisedBlocks:
    """Noised copies of a batch, in which every block has a level of its own."""

    batch: Batch
    ids_RL: Tensor
    masked_RL: Tensor  # bool
    weight_RL: Tensor  # fp32, of each masked position
    rate_RL: Tensor  # fp32, the mask rate of its block
    row_R: Tensor  # the sample a row is a copy of
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class BlockDenoise:
    """The weighted cross-entropy of masked positions, given clean earlier blocks; the mean per target token.

    attention: the model's pattern, which numbers the blocks (`mmdiff.canvas.patterns.BlockCausal`). None: a stage of
        training takes it from the model, see `for_model`.
    levels: how many positions of a block are masked, drawn for each block. Stratified ones are spread evenly over the
        blocks of a sample, and over samples and copies.
    copies: noised copies of each sample; its clean ids are run once for all of them.
    random_length: the share of samples that are cut to a length uniform in 1..L.
    restrict: the softmax runs over the ids that a target position may hold (`Target.allow`) only.
    Raises ConfigError, at the first step, for a model of another pattern, and where no pattern is known.
    """

    attention: Pattern | None = None
    levels: Levels = field(default_factory=ExactCount)
    copies: AtLeast1 = 1
    random_length: Share = 0.0
    restrict: bool = True

    def for_model(self, model: Model) -> BlockDenoise:
        """Returns the same objective with the model's pattern, where none is given."""
        return self if self.attention is not None else replace(self, attention=model.attention)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBlocks:
        if self.attention is None:
            raise ConfigError("objective.attention: none is given, expected the model's pattern, or `for_model` before")
        if self.random_length:
            batch = cut(batch, key.fold("length"), self.random_length)
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)  # an empty position stays empty
        unit_BL, target_BL = units(self.attention, batch).numpy(), scored_BL.numpy()
        masked_RL = np.zeros((self.copies * len(batch), target_BL.shape[1]), dtype=np.bool_)
        weight_RL, rate_RL = np.zeros(masked_RL.shape), np.zeros(masked_RL.shape)
        for copy in range(self.copies):
            for b, sample in enumerate(batch.index_B.tolist()):
                at = copy * len(batch) + b, target_BL[b]
                block_n = np.unique(unit_BL[b, target_BL[b]], return_inverse=True)[1].astype(np.int64)
                masked_RL[at], weight_RL[at], rate_RL[at] = self._mask(sample, block_n, key, copy)
        masked = torch.from_numpy(masked_RL)
        return NoisedBlocks(
            batch=batch,
            ids_RL=batch.ids_BL.repeat(self.copies, 1).masked_fill(masked, vocab.mask_id),
            masked_RL=masked,
            weight_RL=torch.from_numpy(weight_RL).float(),
            rate_RL=torch.from_numpy(rate_RL).float(),
            row_R=torch.arange(len(batch)).repeat(self.copies),
            counts={"denoise": float(scored_BL.sum()) * self.copies},
        )

    def _mask(self, sample: int, block_n: NDArray[np.int64], key: NoiseKey, copy: int) -> tuple[Bools, Array, Array]:
        """Returns one masking of a sample's targets (n,), their weights and mask rates. block_n: from 0, without gaps.

        Two uniforms per block decide its level, then one per position its order.
        """
        size_J = np.bincount(block_n)
        j, n = len(size_J), len(block_n)
        draws = key.uniform(sample, 2 * j + n, copy)
        level_J, coin_J = draws[:j], draws[j : 2 * j]
        if self.levels.stratified and j:
            rank = copy * key.batch + sample % key.batch
            level_J = ((rank + level_J[0]) / (key.batch * self.copies) + np.arange(j) / j) % 1
        order_n = block_n.argsort(kind="stable")  # block after block
        at_n = block_n[order_n], np.arange(n) - (size_J.cumsum() - size_J)[block_n[order_n]]
        inside_JM, position_JM = (
            np.zeros((j, size_J.max(initial=0)), dtype=np.bool_),
            np.zeros((j, size_J.max(initial=0))),
        )
        inside_JM[at_n], position_JM[at_n] = True, draws[2 * j :][order_n]
        found = self.levels.mask(inside_JM, level_J, coin_J, position_JM)
        masked_n = np.empty(n, dtype=np.bool_)
        masked_n[order_n] = found.masked_BL[at_n]
        return masked_n, found.weight_B[block_n], found.rate_B[block_n]

    def terms(self, model: Model, plan: NoisedBlocks) -> dict[str, Term]:
        if model.attention != self.attention:
            raise ConfigError(f"objective.attention: {self.attention}, expected model.attention, {model.attention}")
        features = model.encode(plan.batch.media)
        h_RLD = model.hidden_copies(plan.ids_RL, plan.batch, features, self.copies, blockwise=True)
        nll_P, correct_P = model.score(h_RLD, plan.batch, plan.masked_RL, plan.row_R, restrict=self.restrict)
        by_rate = by_level(nll_P.detach(), correct_P, plan.rate_RL[plan.masked_RL])
        return {"denoise": Term((nll_P * plan.weight_RL[plan.masked_RL]).sum(), sums=by_rate)}
