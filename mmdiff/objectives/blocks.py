"""Block diffusion: each block of the targets is denoised behind clean earlier blocks (BD3LM, arXiv 2503.09573).

All blocks of a sample are trained in one forward, whose rows hold the clean ids and, behind them, the noised ones
(`mmdiff.model.prefix.hidden_copies`). The sum over blocks of the bound of `mmdiff.objectives.denoise` is a bound on
-log p of the targets: for blocks of one position it is the log-likelihood from left to right, for one block of all
positions that of masked diffusion.

Shape letters: B samples, L canvas length, R rows = B * copies, P masked positions of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import block_numbers
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import ExactCount, Levels
from mmdiff.diffusion.spread import Spread
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Share
from mmdiff.protocols import Model

from .denoise import cut, scored
from .noising.noised import NoisedBatch, draw_masks, noised_batch
from .terms import Term


@part
@dataclass(frozen=True)
class BlockDenoise:
    """The weighted cross-entropy of masked positions, given clean earlier blocks; the mean per target token.

    attention: the model's pattern, which numbers the blocks (`mmdiff.canvas.patterns.BlockCausal`). None: a stage of
        training takes it from the model, see `for_model`.
    levels: how many positions of a block are masked, drawn for each block. Stratified ones are spread evenly over the
        blocks of a sample, and over samples and copies. spread: another way for levels to lie in a step.
    copies: noised copies of each sample; its clean ids are run once for all of them.
    random_length: the share of samples that are cut to a length uniform in 1..L.
    restrict: the softmax runs over the ids that a target position may hold (`Target.allow`) only.
    Raises ConfigError, at the first step, for a model of another pattern, and where no pattern is known.
    """

    blockwise: ClassVar[bool] = True  # copies share clean blocks, whatever their number

    attention: Pattern | None = None
    levels: Levels = field(default_factory=ExactCount)
    copies: AtLeast1 = 1
    random_length: Share = 0.0
    restrict: bool = True
    spread: Spread | None = None

    def for_model(self, model: Model) -> BlockDenoise:
        """Returns the same objective with the model's pattern, where none is given."""
        return self if self.attention is not None else replace(self, attention=model.attention)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        if self.attention is None:
            raise ConfigError("objective.attention: none is given, expected the model's pattern, or `for_model` before")
        if self.random_length:
            batch = cut(batch, key.fold("length"), self.random_length)
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)  # an empty position stays empty
        block_BL, index, ids_BL = (
            block_numbers(self.attention, batch).numpy(),
            batch.index_B.tolist(),
            batch.ids_BL.numpy(),
        )
        masks = draw_masks(self.levels, self.spread, scored_BL.numpy(), block_BL, index, key, self.copies, ids_BL)
        out = noised_batch(batch, masks, vocab.noise_id)
        out.counts["denoise"] = float(scored_BL.sum()) * self.copies
        return out

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        if model.attention != self.attention:
            raise ConfigError(f"objective.attention: {self.attention}, expected model.attention, {model.attention}")
        features = model.encode(plan.batch.media)
        h_RLD = model.hidden_copies(plan.ids_RL, plan.batch, features, self.copies, blockwise=True, layout=plan.layout)
        return {"denoise": scored(model, plan, h_RLD, restrict=self.restrict)}
