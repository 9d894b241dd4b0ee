"""Log-probabilities of residues: canvases in which some are masked, forwards of many of them, and what adds up.

The softmax is over given letters alone, so that special tokens take no part in it; other letters (X, B, ...) are
context and do not count.

Shape letters: B rows of a batch, L canvas, N residues of a sequence, K letters, P positions that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.query import Query
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import bound
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.data.records import where_of
from mmdiff.tasks.protein.residues import Ids, Residues
from mmdiff.tasks.protein.task import Protein


@dataclass(frozen=True)
class Canvas:
    """A whole sequence as the model sees it: the targets of `sample` are the residues that count."""

    sample: list[Text | Target]
    ids_L: Ids
    position_N: Ids  # of its residues
    scored_N: NDArray[np.bool_]  # which of them count


class MaskedSequence(NamedTuple):
    """A canvas in which some residues are masked, and the positions that are asked for, in rising order."""

    ids_L: Ids
    position_P: Ids


def canvas(session: Session[Protein], row: Row, letters: str, *, record: int = 0) -> Canvas:
    """Lay a sequence out. letters: those that count. Raises DataError, naming the record, as `Protein.whole` does."""
    sample = session.task.whole({**row, "where": where_of(row, record)}, session.model.vocab, letters)
    ids_L = np.array([i for part in sample for i in part.ids or ()], dtype=np.int64)
    n = len(row["sequence"])
    position_N = np.arange(n) + len(ids_L) - 1 - n  # behind it stands one end token
    return Canvas(sample, ids_L, position_N, np.array([letter in letters for letter in row["sequence"]]))


def bounds(
    model: MMDiff,
    canvases: Sequence[Canvas],
    index: Sequence[int],
    *,
    levels: int = 16,
    tokens: int | None = None,
    seed: int = 0,
) -> list[float]:
    """Upper bounds of -log p of the residues that count, in nats. index: the number under which noise is drawn."""
    out = [0.0] * len(canvases)
    with evaluating(model):
        for group in batch_by_tokens([len(one.ids_L) for one in canvases], token_budget(model.device, tokens)):
            batch = collate([canvases[k].sample for k in group], model.vocab, index=[index[k] for k in group])
            for k, nll in zip(group, bound(model, batch, levels=levels, seed=seed).nll_B.tolist(), strict=True):
                out[k] = nll
    return out


def pseudo_log_p(
    model: MMDiff, canvases: Sequence[Canvas], letters: str, *, tokens: int | None = None
) -> list[NDArray[np.float64]]:
    """(N,) of each canvas: log p of each residue given all others, NaN where it does not count."""
    mask_id = model.vocab.mask_id
    id_of = Residues(model.vocab).id_of
    column = {id_of[letter]: k for k, letter in enumerate(letters)}
    order = sorted(range(len(canvases)), key=lambda k: -len(canvases[k].ids_L))
    pairs = [(k, int(n)) for k in order for n in canvases[k].scored_N.nonzero()[0]]

    def queries() -> Iterator[MaskedSequence]:
        for k, n in pairs:
            ids_L = canvases[k].ids_L.copy()
            position_P = canvases[k].position_N[n : n + 1]
            ids_L[position_P] = mask_id
            yield MaskedSequence(ids_L, position_P)

    out = [np.full(len(one.position_N), np.nan) for one in canvases]
    for (k, n), log_p_PK in zip(pairs, log_probs(model, queries(), letters, tokens=tokens), strict=True):
        out[k][n] = log_p_PK[0, column[int(canvases[k].ids_L[canvases[k].position_N[n]])]]
    return out


def log_probs(
    model: MMDiff, queries: Iterable[MaskedSequence], letters: str, *, tokens: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """(P, K) of each query, in their order: log p of every letter at its positions, by the softmax over `letters`.

    Queries that follow each other share a forward of up to `tokens` positions.
    """
    residues = Residues(model.vocab)
    id_K = torch.tensor([residues.id_of[letter] for letter in letters], device=model.device)
    for group in _grouped(queries, token_budget(model.device, tokens)):
        batch = collate([[Text(query.ids_L.tolist())] for query in group], model.vocab)
        predict_BL = torch.zeros_like(batch.attend_BL)
        for b, query in enumerate(group):
            predict_BL[b, torch.from_numpy(query.position_P)] = True
        batch, predict_BL = to_device(batch, model.device), predict_BL.to(model.device)
        with evaluating(model):
            row_B = torch.arange(len(group), device=model.device)
            logits_PV = model.denoiser(batch)(Query(batch.ids_BL, predict_BL, row_B)).logits_PV
        log_p_PK = logits_PV[:, id_K].log_softmax(-1).double().cpu().numpy()
        yield from np.split(log_p_PK, np.cumsum([len(query.position_P) for query in group])[:-1])


def _grouped(queries: Iterable[MaskedSequence], tokens: int) -> Iterator[list[MaskedSequence]]:
    group: list[MaskedSequence] = []
    longest = 0
    for query in queries:
        longest = max(longest, len(query.ids_L))
        if group and longest * (len(group) + 1) > tokens:
            yield group
            group, longest = [], len(query.ids_L)
        group.append(query)
    if group:
        yield group
