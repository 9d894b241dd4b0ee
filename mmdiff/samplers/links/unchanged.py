"""Rows whose canvas no step has changed are not run again: the model would say what it said (RADD, arXiv 2406.03736).

Shape letters: R rows of a call, C rows that are run, P queried positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Ints, Prediction, Query, StepInfo
from mmdiff.canvas.vocab import Vocab
from mmdiff.parts import part
from mmdiff.protocols import Denoise


@part
@dataclass(frozen=True)
class Unchanged:
    """Answers with the logits of the last step where it changed nothing in a row: exact, for no model is told the time.

    It pays under rules that may commit nothing, as `mmdiff.samplers.rules.timed.Ancestral`: of S steps over L positions
    S (1 - (1 - 1/S)^L) are run on average. Steps are counted all the same, and logits of a step are kept in memory.
    What the process puts beside the ids (a latent) is new at every step: every row is run then.
    """

    keeps: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        last: tuple[Ints, Ints, Tensor] | None = None  # canvases, queried positions of each, logits

        def reused(query: Query) -> Prediction:
            nonlocal last
            step = query.step
            if step is None or query.extras or query.hidden:
                return denoise(query)
            slots = step.copy_R * len(batch) + step.row_R
            run_R, old_R = step.changed_R, np.zeros_like(slots)
            if last is not None:
                order = last[0].argsort()
                at_R = np.searchsorted(last[0], slots, sorter=order).clip(max=len(order) - 1)
                old_R = order[at_R]
                run_R = run_R | (last[0][old_R] != slots)
            if last is None or run_R.all():
                logits_PV = denoise(query).logits_PV
            else:
                index_C = np.flatnonzero(run_R)
                parts, begins_R = [last[2]], np.cumsum(last[1]) - last[1]
                from_R = begins_R[old_R]
                if len(index_C):
                    parts.append(denoise(_picked(query, step, index_C)).logits_PV)
                    count_C = step.queried_R[index_C]
                    from_R[index_C] = len(last[2]) + np.cumsum(count_C) - count_C
                source_P = np.repeat(from_R, step.queried_R) + _within(step.queried_R)
                logits_PV = torch.cat(parts)[torch.from_numpy(source_P).to(last[2].device, non_blocking=True)]
            last = slots, step.queried_R, logits_PV.clone()  # the sampler may overwrite what it is given
            return Prediction(logits_PV)

        return reused


def _within(count_R: Ints) -> Ints:
    """Returns 0, 1, ... for each row, as many as its count."""
    first_R = np.cumsum(count_R) - count_R
    numbers: Ints = np.arange(count_R.sum()) - np.repeat(first_R, count_R)
    return numbers


def _picked(query: Query, step: StepInfo, index_C: Ints) -> Query:
    """Returns the query of some rows of the call."""
    count_C = step.queried_R[index_C]
    first_R = np.cumsum(step.queried_R) - step.queried_R
    source_P = np.repeat(first_R[index_C], count_C) + _within(count_C)
    row_P = np.repeat(np.arange(len(index_C)), count_C)
    columns = (torch.from_numpy(x).to(query.row_R.device, non_blocking=True) for x in (index_C, row_P, source_P))
    rows_C, row_P_, source_P_ = columns
    return replace(
        query,
        ids_RL=query.ids_RL[rows_C],
        predict_RL=query.predict_RL[rows_C],
        row_R=query.row_R[rows_C],
        media_R=None if query.media_R is None else query.media_R[rows_C],
        step=step.picked(index_C, rows_C),
        at_P=(row_P_, query.at()[1][source_P_]),
    )
