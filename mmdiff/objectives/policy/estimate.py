"""An estimate of log p that has a gradient: the forwards of `mmdiff.model.likelihood`, planned before any of them.

Shape letters: B samples, L canvas length, F forwards, R rows = F * B, P scored positions of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import block_numbers
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model.likelihood.passes import Estimator, Targets
from mmdiff.protocols import Model


@dataclass
class Forwards:
    """The forwards of an estimator, forward after forward. counts: the local denominator of each term.

    scored_RL: bool, the positions whose cross-entropy counts. weight_RL: fp32, what it counts. blockwise: whether
    earlier blocks are seen clean. drawn: what an objective knows of the samples besides, by name.
    """

    batch: Batch
    ids_RL: Tensor
    scored_RL: Tensor
    weight_RL: Tensor
    row_R: Tensor
    blockwise: bool = False
    counts: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)

    @property
    def copies(self) -> int:
        """F, the rows of each sample."""
        return len(self.row_R) // len(self.batch)


def planned(
    batch: Batch, estimator: Estimator, key: NoiseKey, vocab: Vocab, attention: Pattern | None = None
) -> Forwards:
    """Returns the forwards of an estimator. The same key gives the same masks: to a model and to its reference.

    attention: of the model. Raises ConfigError for an estimator that is no sum of cross-entropies.
    """
    if getattr(estimator, "power", 0):
        raise ConfigError(f"objective.estimator: {type(estimator).__name__} is no sum of log p; expected one that is")
    several = attention is not None and attention.exact_prefix and not attention.one_target_block
    blockwise = several and bool(getattr(estimator, "blockwise", False))
    block_BL = block_numbers(attention, batch).numpy() if blockwise and attention is not None else None
    passes = list(estimator.passes(Targets.of(batch, vocab, block_BL), key))
    hidden_RL = torch.cat([torch.from_numpy(one.hidden_BL) for one in passes])
    weight_RL = torch.cat([torch.from_numpy(one.weight_BL) for one in passes]).float()
    return Forwards(
        batch=batch,
        ids_RL=batch.ids_BL.repeat(len(passes), 1).masked_fill(hidden_RL, vocab.noise_id),
        scored_RL=weight_RL != 0,
        weight_RL=weight_RL,
        row_R=torch.arange(len(batch)).repeat(len(passes)),
        blockwise=blockwise,
    )


def nll_of(model: Model, forwards: Forwards, *, restrict: bool = True) -> Tensor:
    """Returns fp32 (B, L), what each position adds to the estimate of -log p, in nats; it has a gradient."""
    batch, features = forwards.batch, model.encode(forwards.batch.media)
    if forwards.blockwise:
        h_RLD = model.hidden_copies(forwards.ids_RL, batch, features, forwards.copies, blockwise=True)
    else:
        h_RLD = model.hidden(forwards.ids_RL, batch, features, forwards.row_R)
    nll_P = model.score(h_RLD, batch, forwards.scored_RL, forwards.row_R, restrict=restrict).nll_P
    row_P, position_P = forwards.scored_RL.nonzero(as_tuple=True)
    at_P = forwards.row_R[row_P] * batch.ids_BL.shape[1] + position_P
    zeros_N = torch.zeros(batch.ids_BL.numel(), device=nll_P.device)
    return zeros_N.index_add(0, at_P, nll_P.float() * forwards.weight_RL[forwards.scored_RL]).view(batch.ids_BL.shape)
