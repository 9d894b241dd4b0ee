"""Insertion: tokens are taken off the canvas, and the model says which, and behind which of those that are left.

Shape letters: B samples, L canvas length, G positions behind which a token may be inserted (gaps), N tokens that were
taken off, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch, allow_sets, where
from mmdiff.canvas.relayout import relayout
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.objectives.terms import Term, chunked
from mmdiff.parts import part
from mmdiff.protocols import Model


@dataclass
class Shortened:
    """A batch without some of its target tokens.

    gap_BL: bool, the positions behind which tokens may be inserted. set_BL: the allow-set of what is inserted there.
    row_N, gap_N, id_N: row and position behind which a token belongs, and the token. count_B: how many a row lost.
    """

    MASKS: ClassVar = ("gap_BL",)

    batch: Batch
    gap_BL: Tensor
    set_BL: Tensor
    row_N: Tensor
    gap_N: Tensor
    id_N: Tensor
    count_B: Tensor
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class InsertionLoss:
    """The loss of insertion language models (ILM, arXiv 2505.05755), for `mmdiff.samplers.processes.insertion`.

    Of the n target tokens of a row, k are taken off the canvas, k uniform in 0..n. `insert` is the mean over the k of
    -log p(position, token), one softmax over all pairs; tokens between the same two neighbours share their position.
    `stop` is the binary cross-entropy of "nothing is missing", whose logit is that of EOS at the row's first position.
    Raises DataError for a target that no position stands before.
    """

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Shortened:
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)
        if bool((batch.target_BL & batch.attend_BL & (batch.position_ids_BL == 0)).any()):
            raise DataError("insertion: a row begins with a target; a token is inserted behind another, give it a BOS")
        lost = np.zeros(scored_BL.shape, dtype=np.bool_)
        for b, sample in enumerate(batch.index_B.tolist()):
            at_S = scored_BL[b].nonzero().squeeze(1).numpy()
            u, *order_S = key.uniform(sample, 1 + len(at_S))
            lost[b, at_S[np.argsort(order_S)[: int(u * (len(at_S) + 1))]]] = True
        lost_BL = torch.from_numpy(lost)
        follows_BL = scored_BL.roll(-1, 1)
        follows_BL[:, -1] = False
        sets_BL = allow_sets(batch, vocab)[1]
        set_BL = torch.where(follows_BL, sets_BL.roll(-1, 1), sets_BL)
        none_BL = torch.zeros_like(batch.ids_BL)
        laid, moved = relayout(batch, ~lost_BL, none_BL, mask_id=vocab.mask_id, pad_id=vocab.pad_id)
        row_N, position_N = lost_BL.nonzero(as_tuple=True)
        kept_BL = (batch.attend_BL & ~lost_BL).cumsum(1) - 1
        count_B = lost_BL.sum(1)
        return Shortened(
            batch=laid,
            gap_BL=moved.carried((scored_BL | follows_BL) & batch.attend_BL, False),
            set_BL=moved.carried(set_BL, 0),
            row_N=row_N,
            gap_N=kept_BL[row_N, position_N],
            id_N=batch.ids_BL[row_N, position_N],
            count_B=count_B,
            counts={"insert": float((count_B > 0).sum()), "stop": float(len(batch))},
        )

    def terms(self, model: Model, plan: Shortened) -> dict[str, Term]:
        batch, head, vocab = plan.batch, model.backbone.head, model.vocab
        rows_B = torch.arange(len(batch), device=batch.ids_BL.device)
        h_BLD = model.hidden(batch.ids_BL, batch, model.encode(batch.media), rows_B)
        h_BD = model.gather(h_BLD, rows_B, torch.zeros_like(rows_B))
        stop_B = head(h_BD, torch.tensor([vocab.eos_id], device=rows_B.device)).float().squeeze(1)
        allow_KV = allow_sets(batch, vocab)[0].index_fill(
            1, torch.tensor([vocab.eos_id, *vocab.end_ids], device=rows_B.device), False
        )

        def mass(h: Tensor, allow: Tensor) -> Tensor:
            return head(h).float().masked_fill(~allow_KV[allow], -torch.inf).logsumexp(1)

        def of_id(h: Tensor, token: Tensor) -> Tensor:
            return head(h).float().gather(1, token[:, None]).squeeze(1)

        at_G = where(plan.gap_BL)
        mass_G = chunked(mass, model.logit_chunk, model.gather(h_BLD, *at_G), plan.set_BL[at_G])
        mass_BL = torch.full(batch.ids_BL.shape, -torch.inf, device=mass_G.device).index_put(at_G, mass_G)
        total_B = torch.where(plan.gap_BL.any(1), mass_BL.logsumexp(1), 0.0)
        logit_N = chunked(of_id, model.logit_chunk, model.gather(h_BLD, plan.row_N, plan.gap_N), plan.id_N)
        nll_N = (total_B[plan.row_N] - logit_N) / plan.count_B[plan.row_N]
        ended_B = (plan.count_B == 0).float()
        stop = F.binary_cross_entropy_with_logits(stop_B, ended_B, reduction="sum")
        return {"insert": Term(nll_N.sum()), "stop": Term(stop)}
