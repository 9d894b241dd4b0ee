"""What an estimator of log p asks for: forwards, each with what it hides and what it weighs.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bools, Ints
from mmdiff.diffusion.schedule import Array


@dataclass(frozen=True)
class Targets:
    """What is known of a batch before any forward, as numpy arrays.

    target_BL: the positions whose tokens are scored. context_BL: attended ones that are no targets. block_BL: the block
    of each position, where blocks are scored behind clean ones; 0 elsewhere. step_BL: `Batch.step_BL`.
    index: global sample indices, the identity under which random numbers are drawn.
    """

    target_BL: Bools
    context_BL: Bools
    block_BL: Ints
    step_BL: Ints | None
    index: list[int]

    @classmethod
    def of(cls, batch: Batch, vocab: Vocab, block_BL: Ints | None = None) -> Targets:
        """Returns what is known of a batch. What a target holds in place of an id, the mask, is not scored."""
        target_BL = (batch.target_BL & batch.attend_BL & (batch.ids_BL != vocab.mask_id)).cpu().numpy()
        return cls(
            target_BL=target_BL,
            context_BL=(batch.attend_BL & ~batch.target_BL).cpu().numpy(),
            block_BL=np.zeros(target_BL.shape, dtype=np.int64) if block_BL is None else block_BL,
            step_BL=None if batch.step_BL is None else batch.step_BL.cpu().numpy(),
            index=batch.index_B.tolist(),
        )

    def uniforms(self, key: NoiseKey, copy: int = 0) -> Array:
        """Returns (B, L), a uniform number for each target, drawn under its sample; 0 elsewhere."""
        out_BL = np.zeros(self.target_BL.shape)
        for b, sample in enumerate(self.index):
            out_BL[b, self.target_BL[b]] = key.uniform(sample, int(self.target_BL[b].sum()), copy)
        return out_BL


class Pass(NamedTuple):
    """One forward. hidden_BL: the positions that hold the mask. weight_BL: what -log p of a hidden target counts."""

    hidden_BL: Bools
    weight_BL: Array


class Estimator(Protocol):
    """An estimate of -log p: the sum over forwards of weight * -log p(token | what is not hidden).

    Optional attribute `power`: the sum is then of weight * p ** power, position by position, and the estimate the sum
    of -log(that) / power. Optional attribute `blockwise`: it can be made block by block behind clean ids.
    """

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        """Yields the forwards. Random numbers are drawn under the key and each sample's own index."""
        ...
