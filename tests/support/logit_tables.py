"""A Denoise of hand-made logits, for tests of the sampler.

Shape letters: B samples, L canvas length, R rows of a call, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.vocab import Vocab

V, MASK, EOS, EOT, SLOT = 61, 60, 59, 58, 57
VOCAB = Vocab(tokenizer=None, size=V, mask_id=MASK, eos_id=EOS, pad_id=EOS, slot_id=SLOT, end_ids=(EOS, EOT))


def by_query(logits: Callable[..., Tensor]) -> Any:
    """Returns a Denoise (function or method) of a function of `(ids_RL, predict_RL, row_R, media_R=None)`."""

    @wraps(logits)
    def denoise(*args: Any) -> Prediction:
        *own, query = args
        return Prediction(logits(*own, query.ids_RL, query.predict_RL, query.row_R, query.media_R))

    return denoise


def asked(denoise: Callable[[Query], Prediction], *args: Any, **named: Any) -> Tensor:
    """Returns the logits of a Denoise for the arguments of a query."""
    return denoise(Query(*args, **named)).logits_PV


class Table:
    """A Denoise of a fixed table of logits, which records its calls."""

    def __init__(self, logits_BLV: Tensor) -> None:
        self.logits_BLV = logits_BLV
        self.rows: list[list[int]] = []
        self.predicted: list[int] = []
        self.media: list[Tensor | None] = []
        self.ids: list[Tensor] = []

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        self.rows.append(row_R.tolist())
        self.predicted.append(int(predict_RL.sum()))
        self.media.append(media_R)
        self.ids.append(ids_RL.clone())
        return self.logits_BLV[row_R][predict_RL]


def likely(*rows: list[int], sure: list[list[float]] | None = None) -> Table:
    """Returns logits under which rows[b][l] is likeliest at position l of row b, at logit 9 or the one given."""
    table = torch.zeros(len(rows), len(rows[0]), V)
    for b, row in enumerate(rows):
        for position, token in enumerate(row):
            table[b, position, token] = 9.0 if sure is None else sure[b][position]
    return Table(table)


class ByContext:
    """A Denoise whose logits depend on everything attended: a hash of the ids that a row sees, and of the position."""

    def __init__(self, seed: int = 0, sharp: float = 3.0, bonus: dict[int, float] | None = None) -> None:
        self.seed, self.sharp, self.bonus = seed, sharp, bonus or {}
        self.calls = 0

    def row(self, ids: tuple[int, ...]) -> Tensor:
        g = torch.Generator().manual_seed(hash((self.seed, ids)) % (2**62))
        out_LV = self.sharp * torch.randn(len(ids), V, generator=g)
        for token, extra in self.bonus.items():
            out_LV[:, token] += extra
        return out_LV

    def __call__(self, query: Query) -> Prediction:
        self.calls += 1
        batch = query.batch
        assert batch is not None
        out = []
        for r, b in enumerate(query.row_R.tolist()):
            attend_L = batch.attend_BL[b]
            table_LV = torch.zeros(len(attend_L), V)
            table_LV[attend_L] = self.row(tuple(query.ids_RL[r][attend_L].tolist()))
            out.append(table_LV[query.predict_RL[r]])
        return Prediction(torch.cat(out))
