"""A joint distribution small enough to enumerate, and its exact conditionals in place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import comb
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from logit_tables import by_query
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
        self, ids_RL: Tensor, batch: Batch, features: Any, copies: int, *, blockwise: bool = False, layout: Any = None
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

    def score(self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, **how: Any) -> Scores:
        backbone: Any = SimpleNamespace(head=head, linear_head=None)
        return score(backbone, h_RLD[masked_RL], batch, masked_RL, row_R, chunk=4096, **how)


def canvas(rows: list[tuple[int, ...]]) -> Batch:
    return collate([[Target(row)] for row in rows], VOCAB)


class Chain:
    """A Markov chain over WORDS words, its first uniform, each next one the last plus 1 with probability rho.

    A Denoise of its exact conditionals. joint: (3, ..., 3), one axis per position.
    """

    vocab = Vocab(tokenizer=None, size=5, mask_id=MASK, eos_id=4, pad_id=4, slot_id=MASK)

    def __init__(self, length: int = 8, rho: float = 0.9) -> None:
        self.length = length
        next_VV = torch.full((WORDS, WORDS), (1 - rho) / 2, dtype=torch.float64)
        next_VV[range(WORDS), [(word + 1) % WORDS for word in range(WORDS)]] = rho
        self.joint = torch.full((WORDS,), 1 / WORDS, dtype=torch.float64)
        for _ in range(length - 1):
            self.joint = self.joint[..., None] * next_VV
        self.seen = dict[tuple[int, ...], Tensor]()

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        digits_L = (WORDS + 1) ** torch.arange(self.length)  # a canvas as one number: quicker to find again than rows
        number_U, back_R = (ids_RL * digits_L).sum(1).unique(return_inverse=True)
        rows = (number_U[:, None] // digits_L % (WORDS + 1)).tolist()
        p_RLV = torch.stack([self.conditionals(tuple(row)) for row in rows])[back_R]
        return torch.nn.functional.pad(p_RLV.log(), (0, 2), value=-torch.inf)[predict_RL].float()

    def conditionals(self, ids: tuple[int, ...]) -> Tensor:
        """Returns (L, WORDS), p(word at a position | the words of ids)."""
        if ids not in self.seen:
            joint = self.joint[tuple(slice(None) if i == MASK else slice(i, i + 1) for i in ids)]
            marginals = [joint.sum([d for d in range(self.length) if d != n]) for n in range(self.length)]
            p_LV = torch.stack([p.expand(WORDS) for p in marginals])  # of a word that is seen: anything
            self.seen[ids] = p_LV / p_LV.sum(1, keepdim=True)
        return self.seen[ids]

    def law_of(self, groups: list[list[int]]) -> Tensor:
        """Returns the law of a sampler that draws the positions of a group at once, group after group."""
        law, seen = torch.ones_like(self.joint), list[int]()
        for group in groups:
            law = law * self.draw(tuple(seen), tuple(group))
            seen += group
        return law

    def draw(self, seen: tuple[int, ...], group: tuple[int, ...]) -> Tensor:
        """Returns the probability of the words of a group, drawn one by one given those that are seen."""
        out = torch.ones_like(self.joint)
        for position in group:
            out = out * self._of(*seen, position) / self._of(*seen)
        return out

    def _of(self, *positions: int) -> Tensor:
        others = [d for d in range(self.length) if d not in positions]
        return self.joint.sum(others, keepdim=True) if others else self.joint

    def ancestral_law(self, steps: int) -> Tensor:
        """Returns the exact law of ancestral sampling: each position falls to one of the steps, equally likely.

        The positions that are seen after k non-empty steps are summed over; k of T steps can be chosen in C(T, k) ways.
        """
        subsets = [frozenset(n for n in range(self.length) if bits >> n & 1) for bits in range(2**self.length)]
        laws = {frozenset[int](): torch.ones_like(self.joint)}
        out = torch.zeros_like(self.joint)
        for k in range(1, min(steps, self.length) + 1):
            after = dict[frozenset[int], Tensor]()
            for seen, law in laws.items():
                for more in subsets:
                    if more and not more & seen:
                        term = law * self.draw(tuple(seen), tuple(more))
                        after[seen | more] = after.get(seen | more, 0) + term
            laws = after
            out = out + laws[subsets[-1]] * comb(steps, k) / steps**self.length if subsets[-1] in laws else out
        return out

    def canvas(self, rows: int, ids: list[int] | None = None) -> Batch:
        return collate([[Target(ids or [MASK] * self.length)]] * rows, self.vocab)

    def law(self, ids_BL: Tensor) -> Tensor:
        """Returns how often each sequence was sampled, in the shape of the joint."""
        number_B = (ids_BL * WORDS ** torch.arange(self.length - 1, -1, -1)).sum(1)
        return (torch.bincount(number_B, minlength=self.joint.numel()).double() / len(ids_BL)).view_as(self.joint)

    def floor(self, law: Tensor, rows: int) -> float:
        """Returns the distance that 100 true samples of a law, of this many rows, stay within."""
        rng = np.random.default_rng(0)
        p = law.flatten().numpy() / law.sum().item()
        return max(distance(law.flatten(), torch.from_numpy(rng.multinomial(rows, p) / rows)) for _ in range(100))


class Both:
    """A Denoise of one chain, which is read from left to right as another."""

    def __init__(self, drafts: Chain, verifies: Chain) -> None:
        self.drafts, self.verifies = drafts, verifies

    def __call__(self, query: Any) -> Any:
        return self.drafts(query)

    def left_to_right(self, folder: str | None) -> Any:
        @by_query
        def read(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
            out_RLV = torch.full((*ids_RL.shape, WORDS + 2), -torch.inf)
            canvases, back_R = ids_RL.unique(dim=0, return_inverse=True)
            for position in range(ids_RL.shape[1]):
                rows = [(*row[:position], *[MASK] * (len(row) - position)) for row in canvases.tolist()]
                p_RV = torch.stack([self.verifies.conditionals(row)[position] for row in rows])
                out_RLV[:, position, :WORDS] = p_RV.log().float()[back_R]
            return out_RLV[predict_RL]

        return read


class Turned(Chain):
    """A chain whose every next word is the last plus 2: it never agrees with the other."""

    def __init__(self, length: int = 8, rho: float = 0.9) -> None:
        super().__init__(length, rho)
        swap = torch.tensor([0, 2, 1])
        for axis in range(length):
            self.joint = self.joint.index_select(axis, swap)


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return float((p - q).abs().sum() / 2)


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) in nats."""
    return float((p * (p / q).log()).sum())
