"""Levels clipped to the interval in which the loss varies least, found anew while a stage is trained.

As BD3LM is trained (arXiv 2503.09573, section 5): each time that the bound on held-out rows is due, the variance of the
loss is measured there for intervals of several widths, and training takes the one with the least until the next time.
The larger a block, the lower the interval; what is best changes with the model.

An objective with `search(model, batches, seed) -> figures` and `found(figures) -> Objective` is asked so by a stage
behind each bound, on the first `batches` of its held-out rows; figures are logged, and kept in checkpoints.

    objective:
      target: mmdiff.objectives.composed.least_variance.LeastVariance
      of: {target: mmdiff.objectives.blocks.BlockDenoise}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, PositiveShare
from mmdiff.protocols import Model

from .clip_search import WIDTHS, clip_variances, clipped, intervals_of


@part
@dataclass(frozen=True)
class LeastVariance:
    """The loss of another objective, whose levels lie in the interval of least variance.

    of: the objective; until the first search its levels are as its `spread` has them. widths, step: the intervals of
    each width whose lower end is a multiple of `step`, and all levels. batches: held-out ones that are looked at.
    The loss is no bound, as for `mmdiff.diffusion.spread.Clipped`; that on held-out rows is one.
    """

    of: Denoise | BlockDenoise = field(default_factory=Denoise)
    widths: Sequence[PositiveShare] = WIDTHS
    step: PositiveShare = 0.05
    batches: AtLeast1 = 100

    @property
    def copies(self) -> int:
        """Noised copies of each sample."""
        return self.of.copies

    @property
    def blockwise(self) -> bool:
        """Whether copies share clean blocks."""
        return bool(getattr(self.of, "blockwise", False))

    def for_model(self, model: Model) -> LeastVariance:
        """Returns the same objective with the model's pattern, where none is given."""
        return replace(self, of=self.of.for_model(model)) if isinstance(self.of, BlockDenoise) else self

    def search(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, float]:
        """Returns the interval of least variance and this, `clip_low`, `clip_high` and `clip_variance`.

        batches: of held-out rows, on the CPU; the first of them are enough. The same ones give the same figures.
        """
        of: Any = self.of
        found = clip_variances(model, batches[: self.batches], of, intervals_of(self.widths, self.step), seed)
        (low, high), variance = next(iter(found.items()))
        return {"clip_low": low, "clip_high": high, "clip_variance": variance}

    def found(self, figures: Mapping[str, float]) -> LeastVariance:
        """Returns the objective with the levels that a search has found."""
        of: Any = self.of
        return replace(self, of=clipped(of, figures["clip_low"], figures["clip_high"]))

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        return self.of.plan(batch, key, vocab)

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        return self.of.terms(model, plan)
