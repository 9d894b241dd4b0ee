"""Vectors of texts from a backbone's last hidden states.

Shape letters: N texts, L canvas length, D backbone width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.sample import Text
from mmdiff.canvas.vocab import literal, start_of
from mmdiff.config.typed import typed
from mmdiff.data.collate import collate
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.errors import DataError, located
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.parts.ranges import AtLeast1

Pooling = Literal["mean", "last", "first"]


@typed
@torch.no_grad()
def embed_texts(
    model: MMDiff, texts: Sequence[str], *, pooling: Pooling = "mean", length: AtLeast1 = 512
) -> NDArray[np.float32]:
    """Returns float32 (N, D), a vector per text: nothing is masked, and what a batch holds besides changes none.

    pooling: the mean of the states of a text's tokens; the state of its last token, which suits causal attention; or
        the state of the start token before it, which in some encoders stands for the whole.
    length: tokens of a text that are read. Raises DataError for a text without tokens, unless `first` is asked for.
    """
    vocab, start = model.vocab, [start_of(model.vocab)]
    samples = []
    for n, text in enumerate(texts):
        with located(f"text {n}"):
            ids = literal(text, vocab)[:length]
            if not ids and pooling != "first":
                raise DataError(f"{text!r:.40} has no tokens, whose states are pooled")
        samples.append([Text([*start, *ids])])
    out_ND = np.zeros((len(texts), model.backbone.dim), dtype=np.float32)
    with evaluating(model):
        for index in batch_by_tokens([len(s[0].ids) for s in samples], token_budget(model.device)):
            batch = to_device(collate([samples[i] for i in index], vocab), model.device)
            rows = torch.arange(len(batch), device=model.device)
            h_BLD = model.hidden(batch.ids_BL, batch, {}, rows).float()
            if pooling == "mean":
                token_BL = batch.attend_BL & (batch.position_ids_BL > 0)
                vector_BD = (h_BLD * token_BL[..., None]).sum(1) / token_BL.sum(1, keepdim=True)
            else:
                at_B = batch.attend_BL.sum(1) - 1 if pooling == "last" else torch.zeros_like(rows)
                vector_BD = h_BLD[rows, at_B]
            out_ND[index] = vector_BD.cpu().numpy()
    return out_ND
