"""Cross-entropies of positions that are hidden, given all others: what every estimate of log p is a sum of.

Shape letters: B samples, L canvas length, P positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch, where
from mmdiff.canvas.pattern import All
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.query import Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.scorer import Scores
from mmdiff.protocols import Denoise, Model


class Diverged(ConfigError):
    """A model whose likelihoods are not numbers."""


def score_masked(
    model: MMDiff,
    batch: Batch,
    features: dict[str, Tensor],
    masked_BL: Tensor,
    *,
    hidden_BL: Tensor | None = None,
    blockwise: bool = False,
) -> tuple[Scores, Tensor]:
    """Returns the scores of the masked positions given everything else, and the row of each (P,).

    hidden_BL: bool, what holds the mask, if it is more than what is scored. blockwise: given, of earlier blocks, the
        clean ids. Raises Diverged for scores that are not numbers.
    """
    ids_BL = batch.ids_BL.masked_fill(masked_BL if hidden_BL is None else hidden_BL, model.vocab.noise_id)
    if blockwise:
        h_BLD = model.hidden_copies(ids_BL, batch, features, 1, blockwise=True)
    else:
        h_BLD = model.hidden(ids_BL, batch, features, torch.arange(len(batch), device=ids_BL.device))
    scores, row_P = model.score(h_BLD, batch, masked_BL), masked_BL.nonzero()[:, 0]
    if bool((wrong_P := scores.nll_P.isnan()).any()):
        raise Diverged(
            f"the model's likelihood of row {int(row_P[wrong_P][0])} is not a number: its weights have diverged"
        )
    return scores, row_P


def guided_scorer(model: MMDiff, batch: Batch, links: Sequence[Any]) -> Denoise:
    """Returns the Denoise of a model within links such as `mmdiff.samplers.links.guidance.Guidance`, the first inside.

    batch: on the model's device; its media are encoded once.
    """
    denoise = model.denoiser(batch)
    for link in links:
        denoise = link.wrap(denoise, batch, model.vocab)
    return denoise


def score_by(denoise: Denoise, batch: Batch, ids_BL: Tensor, scored_BL: Tensor) -> Tensor:
    """Returns -log p (P,) of the clean ids at the scored positions, by the logits of a Denoise, in nats.

    The softmax runs over the ids that a position may hold, where the batch says which (`Target.allow`).
    """
    row_P, position_P = scored_BL.nonzero(as_tuple=True)
    rows_B = torch.arange(len(batch), device=ids_BL.device)
    logits_PV = denoise(Query(ids_BL, scored_BL, rows_B)).logits_PV.float()
    if batch.allow_KV is not None and batch.allow_BL is not None:
        logits_PV = logits_PV.masked_fill(~batch.allow_KV[batch.allow_BL[row_P, position_P]], -torch.inf)
    return F.cross_entropy(logits_PV, batch.ids_BL[row_P, position_P], reduction="none")


def next_targets(batch: Batch, vocab: Vocab) -> Tensor:
    """Returns bool (B, L), the target positions that `next_token` scores. Raises DataError as it does."""
    scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)
    if bool((scored_BL & batch.attend_BL & (batch.position_ids_BL == 0)).any()):
        raise DataError("a document begins with a target, which a causal model cannot predict: put a token before it")
    return scored_BL


def next_token(model: Model, batch: Batch, scored_BL: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what a causal model makes of clean ids: nll_P in nats, correct_P, and the row of each target position.

    -log p(id | all ids before it), one forward, from the state to the left (arXiv 2410.17891 calls that shift). What a
    target holds in place of an id, the mask, is not scored. Raises ConfigError where attention is not causal, DataError
    for a target with which a document begins: nothing stands before it.

    scored_BL: `next_targets` of the batch, where they are known.
    """
    parts = model.attention.patterns if isinstance(model.attention, All) else (model.attention,)
    if not any(isinstance(one, Causal) for one in parts):
        raise ConfigError(f"model.attention: {model.attention}; the next token is predicted under Causal only")
    scored_BL = next_targets(batch, model.vocab) if scored_BL is None else scored_BL
    h_BLD = model.hidden(
        batch.ids_BL, batch, model.encode(batch.media), torch.arange(len(batch), device=batch.ids_BL.device)
    )
    if not model.backbone.facts.shift:  # of shifted logits, `score` takes the state to the left itself
        h_BLD = torch.cat([h_BLD[:, :1], h_BLD[:, :-1]], 1)
    scores = model.score(h_BLD, batch, scored_BL)
    return scores.nll_P, scores.correct_P, where(scored_BL)[0]
