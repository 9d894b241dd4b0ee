"""dKV-Cache's greedy variant: a step runs the few positions where something happens (arXiv 2505.15781).

Shape letters: R rows, L canvas length, P queried positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Fresh, Ints, Prediction, Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1
from mmdiff.protocols import Denoise

from .caches import block_start


@dataclass(frozen=True)
class _Last:
    """The last step. queried_RL: bool. number_RL: which of the P logits are those of a position. confidence_RL: its
    highest probability, -1 where it was not queried. slots, count_R: the canvases, and how many positions of each."""

    slots: Ints
    count_R: Ints
    queried_RL: Tensor
    number_RL: Tensor
    confidence_RL: Tensor
    logits_PV: Tensor


@part
@dataclass(frozen=True)
class Greedy:
    """Runs what the last step committed, the `ahead` positions that are surest, and masked neighbours of both.

    All other queried positions are judged by the logits of the step that ran them last, so that the rule still chooses
    among all. (The published code fixes a random order beforehand and knows which position comes next; here the kept
    logits tell.) The number of positions of a step does not grow with the block.

    window: how many neighbours on each side. refresh: all positions are run at the first step of a block, and then at
        every so many steps; 1: as without. With a window as long as the canvas of one block it is `Delayed`.
    Logits of the queried positions are kept in memory. Raises ConfigError beside a `revise` rule and a process.
    """

    window: AtLeast0 = 4
    refresh: AtLeast1 = 2
    ahead: AtLeast1 = 1

    keeps: ClassVar[bool] = True
    only_commits: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        last: _Last | None = None

        def greedy(query: Query) -> Prediction:
            nonlocal last
            step = query.step
            if step is None:
                return denoise(query)
            slots, whole_R = step.copy_R * len(batch) + step.row_R, block_start(step, self.refresh)
            asked_RL, at_P, device = query.predict_RL, query.at(), query.row_R.device
            if last is None:
                out = denoise(replace(query, fresh=Fresh(np.ones_like(whole_R), asked_RL, step.queried_R)))
                logits_PV = out.logits_PV
            else:
                order = last.slots.argsort()
                index = order[np.searchsorted(last.slots, slots, sorter=order)]
                index_R, whole = (torch.from_numpy(x).to(device, non_blocking=True) for x in (index, whole_R))
                closed_RL = last.queried_RL[index_R] & ~asked_RL
                run_RL = closed_RL | (self._near(closed_RL, last.confidence_RL[index_R], asked_RL) & asked_RL)
                closed_R = (last.count_R[index] - step.queried_R).clip(min=0)
                most_R = closed_R + (closed_R + self.ahead) * (2 * self.window + 1)
                most_R = np.minimum(most_R, np.maximum(last.count_R[index], step.queried_R))
                out = denoise(replace(query, fresh=Fresh(whole_R, run_RL, most_R, at_most=True)))
                ran_P = (run_RL | whole[:, None])[at_P]
                kept_PV = last.logits_PV[last.number_RL[index_R[at_P[0]], at_P[1]]]
                logits_PV = torch.where(ran_P[:, None], out.logits_PV, kept_PV)
            number_P = torch.arange(len(at_P[0]), device=device)
            confidence_P = (logits_PV.amax(-1) - logits_PV.logsumexp(-1)).exp().nan_to_num()
            last = _Last(
                slots=slots,
                count_R=step.queried_R,
                queried_RL=asked_RL,
                number_RL=torch.zeros_like(asked_RL, dtype=torch.int64).index_put(at_P, number_P),
                confidence_RL=confidence_P.new_full(asked_RL.shape, -1.0).index_put(at_P, confidence_P),
                logits_PV=logits_PV.clone(),  # the sampler may overwrite what it is given
            )
            return replace(out, logits_PV=logits_PV)

        return greedy

    def _near(self, closed_RL: Tensor, confidence_RL: Tensor, asked_RL: Tensor) -> Tensor:
        """Returns bool RL, the positions within the window of what was committed last, or is likely to be next."""
        confidence_RL = confidence_RL.masked_fill(~asked_RL, -1.0)
        # of equals the first, so that padding beside a row changes nothing
        best_RA = confidence_RL.argsort(dim=1, descending=True, stable=True)[:, : self.ahead]
        next_RL = torch.zeros_like(asked_RL).scatter(1, best_RA, True) & asked_RL
        centre_RL = (closed_RL | next_RL).float()
        return F.max_pool1d(centre_RL[:, None], 2 * self.window + 1, 1, self.window)[:, 0] > 0
