"""Masked denoising on a canvas that need not have the answer's length: runs of masks are merged, and others added.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.relayout import relayout
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.objectives.denoise import scored
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, Share
from mmdiff.protocols import Model


@part
@dataclass(frozen=True)
class ExpandingLoss:
    """DreamOn's loss (Dream-org/DreamOn-v0-7B), for `mmdiff.samplers.processes.expanding`.

    Each target token is masked with probability t, t uniform in [0, 1]. A masked token and the one behind it, if that
    is masked too, become one position with probability `merge`, or, in a share `falling` of the samples, `merge` times
    the share that is visible; the label of the merged position is `expand`. Up to `surplus` masked positions with the
    label `delete` are added behind the last target. The loss is the mean over masked positions, where all that are to
    be deleted count together as one: no bound on the likelihood.

    expand, delete: tokens by spelling or id. delete: None: EOS, as in the published model. weight: of a masked token:
        `visible`, 1 - t as published, for a model that has been trained on masks before; `even`, 1.
    """

    expand: str | AtLeast0
    delete: str | AtLeast0 | None = None
    merge: Share = 0.5
    falling: Share = 0.5
    surplus: AtLeast0 = 8
    weight: Literal["visible", "even"] = "visible"

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        expand = vocab.id_of(self.expand, "objective.expand")
        delete = vocab.eos_id if self.delete is None else vocab.id_of(self.delete, "objective.delete")
        scored_BL = (batch.target_BL & (batch.ids_BL != vocab.mask_id)).numpy()
        masked, merged = np.zeros_like(scored_BL), np.zeros_like(scored_BL)
        added, rate_B = np.zeros(scored_BL.shape, dtype=np.int64), np.zeros(len(batch))
        for b, sample in enumerate(batch.index_B.tolist()):
            at_S = np.flatnonzero(scored_BL[b])
            t, kind, extra, *draws = key.uniform(sample, 3 + 2 * len(at_S))
            mask_S, merge_S = np.array(draws).reshape(2, -1)
            rate_B[b] = t
            if not len(at_S):
                continue
            masked[b, at_S] = mask_S < t
            share = self.merge * (1 - masked[b].sum() / len(at_S) if kind < self.falling else 1.0)
            pair_S = masked[b, at_S] & (merge_S < share)
            pair_S[:-1] &= masked[b, at_S[1:]] & (np.diff(at_S) == 1)
            pair_S[-1] = False
            merged[b, at_S] = pair_S
            added[b, at_S[-1]] = int(extra * (self.surplus + 1))
        gone_BL = torch.from_numpy(np.pad(merged[:, :-1], ((0, 0), (1, 0))))  # the second of each merged pair
        labels_BL = batch.ids_BL.masked_fill(torch.from_numpy(merged), expand)
        masked_BL, added_BL = torch.from_numpy(masked), torch.from_numpy(added)
        labelled = replace(batch, ids_BL=labels_BL, allowed_ids_N=None)
        laid, moved = relayout(labelled, ~gone_BL, added_BL, mask_id=delete, pad_id=vocab.pad_id)
        masked_RL = moved.carried(masked_BL, False) | moved.new_BK
        rate_R = torch.from_numpy(rate_B).float()
        n_R, new_R = (masked_RL & ~moved.new_BK).sum(1), moved.new_BK.sum(1)
        of_token_R = 1 - rate_R if self.weight == "visible" else torch.ones_like(rate_R)
        weight_RL = torch.where(moved.new_BK, 1 / new_R.clamp(min=1)[:, None], of_token_R[:, None])
        return NoisedBatch(
            batch=laid,
            ids_RL=laid.ids_BL.masked_fill(masked_RL, vocab.noise_id),
            masked_RL=masked_RL,
            weight_RL=weight_RL,
            rate_RL=rate_R[:, None].expand(masked_RL.shape),
            row_R=torch.arange(len(batch)),
            copy_R=torch.zeros(len(batch), dtype=torch.int64),
            group_RL=torch.where(laid.target_BL, torch.arange(len(batch))[:, None], -1),
            counts={"denoise": float((n_R + (new_R > 0)).sum())},
        )

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        h_RLD = model.hidden(plan.ids_RL, plan.batch, model.encode(plan.batch.media), plan.row_R)
        return {"denoise": scored(model, plan, h_RLD, restrict=False)}
