"""Log-probabilities of residues: canvases in which some are masked, forwards of many of them, and what adds up.

The softmax is over given letters alone, so that special tokens take no part in it; other letters (X, B, ...) are
context and do not count.

Shape letters: B rows of a batch, L canvas, N residues of a sequence, K letters, P wanted places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.residues import OPEN, Ids, Residues


@dataclass(frozen=True)
class Canvas:
    """A sequence as the model sees it. position_N: where its residues stand. scored_N: which of them count."""

    ids_L: Ids
    position_N: Ids
    scored_N: NDArray[np.bool_]


class Query(NamedTuple):
    """Wanted places, in rising order, of a canvas in which some residues are masked."""

    ids_L: Ids
    position_P: Ids


def canvas(session: Session, row: Row, letters: str, *, record: int = 0) -> Canvas:
    """letters: those that count. Raises DataError for an empty sequence or one with open places."""
    sequence, where = str(row.get("sequence") or ""), where_of(row, record)
    if not sequence:
        raise DataError(f"{where}: an empty sequence")
    if OPEN in sequence:
        raise DataError(
            f"{where}: residue {sequence.index(OPEN) + 1}: open ({OPEN}), expected a whole sequence to score"
        )
    # constraints say what may be written, not how likely it is
    sample = session.task.prompt({k: v for k, v in row.items() if k != "allow"}, session.model.vocab)
    ids_L = np.array([int(i) for part in sample for i in _ids(part)], dtype=np.int64)
    target_L = np.array([isinstance(part, Target) for part in sample for _ in _ids(part)], dtype=bool)
    position_N = target_L.nonzero()[0]
    if len(position_N) != len(sequence):
        raise DataError(
            f"{where}: {len(sequence)} residues, but {len(position_N)} places of the canvas are to be written"
        )
    return Canvas(ids_L, position_N, np.array([letter in letters for letter in sequence]))


def bounds(
    model: MMDiff,
    canvases: Sequence[Canvas],
    letters: str,
    index: Sequence[int],
    *,
    levels: int = 16,
    tokens: int | None = None,
    seed: int = 0,
) -> list[float]:
    """Upper bounds of -log p of the residues that count, in nats. index: the number under which noise is drawn."""
    allow = Residues(model.vocab).ranges(letters)
    out = [0.0] * len(canvases)
    with evaluating(model):
        for group in batch_by_tokens([len(one.ids_L) for one in canvases], token_budget(model.device, tokens)):
            samples = [_sample(canvases[k], allow) for k in group]
            batch = collate(samples, model.vocab, index=[index[k] for k in group])
            for k, nll in zip(group, bound(model, batch, levels=levels, seed=seed).nll_B.tolist(), strict=True):
                out[k] = nll
    return out


def pseudo_log_p(
    model: MMDiff, canvases: Sequence[Canvas], letters: str, *, tokens: int | None = None
) -> list[NDArray[np.float64]]:
    """(N,) of each canvas: log p of each residue given all others, NaN where it does not count."""
    mask_id = model.vocab.mask_id
    column = _columns(model.vocab, letters)
    order = sorted(range(len(canvases)), key=lambda k: -len(canvases[k].ids_L))
    pairs = [(k, int(n)) for k in order for n in canvases[k].scored_N.nonzero()[0]]

    def queries() -> Iterator[Query]:
        for k, n in pairs:
            ids_L = canvases[k].ids_L.copy()
            position_P = canvases[k].position_N[n : n + 1]
            ids_L[position_P] = mask_id
            yield Query(ids_L, position_P)

    out = [np.full(len(one.position_N), np.nan) for one in canvases]
    for (k, n), log_p_PK in zip(pairs, log_probs(model, queries(), letters, tokens=tokens), strict=True):
        out[k][n] = log_p_PK[0, column[canvases[k].ids_L[canvases[k].position_N[n]]]]
    return out


def log_probs(
    model: MMDiff, queries: Iterable[Query], letters: str, *, tokens: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """(P, K) of each query, in their order: log p of every letter at its wanted places, the softmax over `letters`.

    Queries that follow each other share a forward of up to `tokens` places.
    """
    residues = Residues(model.vocab)
    id_K = torch.tensor([residues.id_of[letter] for letter in letters], device=model.device)
    for group in _grouped(queries, token_budget(model.device, tokens)):
        batch = _batch([query.ids_L for query in group], model.vocab)
        predict_BL = torch.zeros_like(batch.attend_BL)
        for b, query in enumerate(group):
            predict_BL[b, torch.from_numpy(query.position_P)] = True
        batch, predict_BL = to_device(batch, model.device), predict_BL.to(model.device)
        with evaluating(model):
            logits_PV = model.denoiser(batch)(batch.ids_BL, predict_BL, torch.arange(len(group), device=model.device))
        log_p_PK = logits_PV[:, id_K].log_softmax(-1).double().cpu().numpy()
        yield from np.split(log_p_PK, np.cumsum([len(query.position_P) for query in group])[:-1])


@contextmanager
def evaluating(model: MMDiff) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _columns(vocab: Vocab, letters: str) -> Ids:
    """By id: the place of its letter in `letters`, -1 for all others."""
    column = np.full(vocab.size, -1, dtype=np.int64)
    id_of = Residues(vocab).id_of
    for k, letter in enumerate(letters):
        column[id_of[letter]] = k
    return column


def _grouped(queries: Iterable[Query], tokens: int) -> Iterator[list[Query]]:
    group: list[Query] = []
    longest = 0
    for query in queries:
        longest = max(longest, len(query.ids_L))
        if group and longest * (len(group) + 1) > tokens:
            yield group
            group, longest = [], len(query.ids_L)
        group.append(query)
    if group:
        yield group


def _batch(rows: Sequence[Ids], vocab: Vocab) -> Batch:
    """Canvases of text alone, padded on the right."""
    length = max(map(len, rows))
    ids_BL = np.full((len(rows), length), vocab.pad_id, dtype=np.int64)
    for b, ids_L in enumerate(rows):
        ids_BL[b, : len(ids_L)] = ids_L
    attend_BL = torch.arange(length) < torch.tensor([len(ids_L) for ids_L in rows])[:, None]
    return Batch(
        ids_BL=torch.from_numpy(ids_BL),
        target_BL=torch.zeros_like(attend_BL),
        attend_BL=attend_BL,
        position_ids_BL=(attend_BL.cumsum(1) - 1).clamp(min=0),
        segment_BL=torch.zeros(ids_BL.shape, dtype=torch.int64),
        index_B=torch.arange(len(rows)),
        source_B=[""] * len(rows),
        padded=not bool(attend_BL.all()),
    )


def _sample(one: Canvas, allow: tuple[tuple[int, int], ...]) -> Sample:
    """Runs of residues that count as targets, all else as context."""
    scored_L = np.zeros(len(one.ids_L), dtype=bool)
    scored_L[one.position_N[one.scored_N]] = True
    runs = groupby(zip(one.ids_L.tolist(), scored_L.tolist(), strict=True), key=lambda pair: pair[1])
    return [Target([i for i, _ in run], allow=allow) if counts else Text([i for i, _ in run]) for counts, run in runs]


def _ids(part: Any) -> Sequence[int]:
    if not isinstance(part, Text | Target) or (isinstance(part, Target) and part.ids is None):
        raise ConfigError(f"task: a canvas with {type(part).__name__}, expected one of residues alone")
    return part.ids or ()


def name_of(row: Row, i: int) -> str:
    return str(row.get("id", i))


def where_of(row: Row, i: int) -> str:
    return str(row.get("where") or f"record {i + 1} ({name_of(row, i)})")
