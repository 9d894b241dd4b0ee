"""A joint distribution small enough to enumerate, and its exact conditionals in place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import Full
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.model.scorer import Scores, score

WORDS, LENGTH, MASK = 3, 4, 3
VOCAB = Vocab(tokenizer=None, size=4, mask_id=MASK, eos_id=0, pad_id=0, slot_id=MASK)
SEQUENCES = list(product(range(WORDS), repeat=LENGTH))


def head(h: Tensor, ids_N: Tensor | None = None) -> Tensor:
    """Of a model whose hidden states are logits."""
    return h if ids_N is None else h[..., ids_N]


class Oracle:
    """p(x_i | the positions of x that are not masked) of `joint`, (3, 3, 3, 3). What objectives call on a model."""

    vocab = VOCAB
    device = torch.device("cpu")
    attention: Pattern = Full()

    def __init__(self, joint: Tensor) -> None:
        self.joint = joint.double() / joint.sum()
        self.encoded = 0

    @classmethod
    def random(cls, seed: int = 0) -> Oracle:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.rand([WORDS] * LENGTH, generator=generator).pow(3))

    def nll(self, x: tuple[int, ...]) -> float:
        return -float(self.joint[x].log())

    def entropy(self) -> float:
        return -float((self.joint * self.joint.clamp(min=1e-300).log()).sum())

    def encode(self, media: Mapping[str, Any]) -> dict[str, Tensor]:
        self.encoded += 1
        return {}

    def hidden(self, ids_RL: Tensor, batch: Batch, features: Any, row_R: Tensor) -> Tensor:
        """Log-conditionals in the place of hidden states."""
        out_RLV = torch.full((*ids_RL.shape, VOCAB.size), float("-inf"), dtype=torch.float64)
        rows, back_R = ids_RL.unique(dim=0, return_inverse=True)
        log = torch.stack([self._conditionals(row.tolist()) for row in rows])
        out_RLV[..., :WORDS] = log[back_R]
        return out_RLV

    def hidden_copies(
        self, ids_RL: Tensor, batch: Batch, features: Any, copies: int, *, blockwise: bool = False
    ) -> Tensor:
        """blockwise: log-conditionals of each block of `attention`, given all earlier blocks and no later one."""
        row_R = torch.arange(len(batch)).repeat(copies)
        block_RL = torch.as_tensor(self.attention.blocks(batch.target_BL, batch.attend_BL) if blockwise else 0)
        block_RL = block_RL.expand(batch.ids_BL.shape)[row_R]
        out_RLV = torch.zeros(*ids_RL.shape, VOCAB.size, dtype=torch.float64)
        for block in block_RL.unique():
            here_RL = block_RL == block
            seen_RL = torch.where(block_RL < block, batch.ids_BL[row_R], torch.where(here_RL, ids_RL, MASK))
            out_RLV[here_RL] = self.hidden(seen_RL, batch, features, row_R)[here_RL]
        return out_RLV

    def _conditionals(self, ids: list[int]) -> Tensor:
        joint = self.joint
        for position, token in enumerate(ids):
            if token != MASK:
                joint = joint.index_select(position, torch.tensor([token]))
        marginals = [joint.sum([d for d in range(LENGTH) if d != position]) for position in range(LENGTH)]
        return torch.stack([m.log() - m.sum().log() if len(m) == WORDS else torch.zeros(WORDS) for m in marginals])

    def score(
        self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, *, restrict: bool = True
    ) -> Scores:
        return score(head, h_RLD[masked_RL], batch, masked_RL, row_R, chunk=4096, restrict=restrict)


def canvas(rows: list[tuple[int, ...]]) -> Batch:
    return collate([[Target(row)] for row in rows], VOCAB)
