"""Synthetic protein families whose exact answers are known: first-order Markov chains over the 20 residues.

For any pattern of masks, forward-backward gives p(residue | what is visible), and so the accuracy and cross-entropy
that no model can beat. The any-order bound of that exact denoiser is -log p itself: what a model's mean bound has above
the entropy is the model's own error, and one that lies below it is computed wrongly.

Shape letters: N sequences, L residues of each, K states of the chain.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, Share
from mmdiff.protocols import Row
from mmdiff.tasks.protein.residues import MASKED, codes

LETTERS = "LAGVSERTIDPKQNFYMHWC"
"""The residues in the order of ESM's ids."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
States = NDArray[np.int64]


class Chain:
    """A stationary first-order chain. transition_KK: p(next | this), rows that sum to 1, all of it above 0.

    Sequences are strings over `letters`, those of one call equally long; DataError otherwise.
    """

    def __init__(self, transition_KK: Floats, letters: str = LETTERS) -> None:
        self.transition_KK, self.letters = transition_KK, letters
        size = len(letters)
        # pi (T - I) = 0 has one equation too many; the last makes way for sum(pi) = 1
        equations_KK = np.vstack([(transition_KK.T - np.eye(size))[:-1], np.ones(size)])
        self.initial_K: Floats = np.linalg.solve(equations_KK, np.eye(size)[-1])
        self._first, *self._next = [np.cumsum(row)[:-1].tolist() for row in [self.initial_K, *transition_KK]]

    def draw(self, n: int, seed: int, length: int = 32) -> list[str]:
        return [self.draw_one(i, seed, length) for i in range(n)]

    def draw_one(self, index: int, seed: int, length: int = 32) -> str:
        """A sequence that depends on (seed, index, length) only; a shorter one is the beginning of a longer one."""
        edges, out = self._first, []
        for u in NoiseKey(seed, stream="markov").uniform(index, length).tolist():
            state = bisect_right(edges, u)
            out.append(self.letters[state])
            edges = self._next[state]
        return "".join(out)

    def states(self, sequences: Sequence[str]) -> States:
        """(N, L). Raises DataError that names the sequence, the position and the letter."""
        length = len(sequences[0]) if sequences else 0
        out = np.empty((len(sequences), length), dtype=np.int64)
        for n, sequence in enumerate(sequences):
            if len(sequence) != length:
                raise DataError(f"sequence {n + 1}: {len(sequence)} residues, expected {length} as in the first")
            out[n] = codes(sequence, self.letters)
            if length and out[n].min() < 0:
                at = int(out[n].argmin())
                raise DataError(f"sequence {n + 1}: residue {at + 1}: {sequence[at]!r} is none of {self.letters}")
        return out

    def log_likelihood(self, sequences: Sequence[str]) -> Floats:
        """(N,) log p of whole sequences, in nats."""
        x_NL = self.states(sequences)
        out_N: Floats = np.log(self.initial_K[x_NL[:, 0]])
        return out_N + np.log(self.transition_KK[x_NL[:, :-1], x_NL[:, 1:]]).sum(1)

    def entropy(self, length: int) -> float:
        """Of a whole sequence, in nats: the entropy of the first residue and, so many times less one, of a step."""
        first = -(self.initial_K * np.log(self.initial_K)).sum()
        step = -(self.initial_K[:, None] * self.transition_KK * np.log(self.transition_KK)).sum()
        return float(first + (length - 1) * step)

    def posterior(self, sequences: Sequence[str], masked_NL: Bools) -> Floats:
        """(N, L, K): p(state of a position | the positions that are not masked), by forward-backward."""
        x_NL = self.states(sequences)
        seen_NLK = np.where(masked_NL[..., None], 1.0, np.eye(len(self.letters))[x_NL])
        forward_NLK, backward_NLK = np.empty_like(seen_NLK), np.ones_like(seen_NLK)
        forward_NLK[:, 0] = _normal(self.initial_K * seen_NLK[:, 0])
        for i in range(1, x_NL.shape[1]):
            forward_NLK[:, i] = _normal(forward_NLK[:, i - 1] @ self.transition_KK * seen_NLK[:, i])
        for i in range(x_NL.shape[1] - 2, -1, -1):
            backward_NLK[:, i] = _normal((backward_NLK[:, i + 1] * seen_NLK[:, i + 1]) @ self.transition_KK.T)
        return _normal(forward_NLK * backward_NLK)

    def bayes(self, sequences: Sequence[str], masked_NL: Bools) -> tuple[float, float]:
        """(accuracy, cross-entropy in nats) of the exact posterior at the masked positions of these sequences."""
        p_PK = self.posterior(sequences, masked_NL)[masked_NL]
        x_P = self.states(sequences)[masked_NL]
        if not len(x_P):
            raise DataError("bayes: no position is masked")
        true_P = p_PK[np.arange(len(x_P)), x_P]
        return float((p_PK.argmax(1) == x_P).mean()), float(-np.log(true_P).mean())


@cache
def family() -> Chain:
    """The chain of `Markov`: rows ~ Dirichlet(0.1), few likely successors each, mixed with 2 % of uniform.

    Its entropy is 1.4342 nats per residue at 32 residues, that of its composition 2.635.
    """
    return _chain(0)


def _chain(seed: int) -> Chain:
    size = len(LETTERS)
    rows_KK = np.random.default_rng(seed).dirichlet(np.full(size, 0.1), size)
    return Chain(0.98 * rows_KK + 0.02 / size)


class Subfamilies:
    """Sequences of one of n chains each, every chain as likely: what tells which one lies all over the sequence.

    In place of one's own sequences, to see what a model has learnt of what can be learnt. Lengths are uniform in
    `lengths`; the chains are made as `family()` is, of the seeds 1, 2, ...
    """

    def __init__(self, n: int = 3, lengths: tuple[int, int] = (20, 60)) -> None:
        self.chains = [_chain(1 + k) for k in range(n)]
        self.lengths = lengths

    def draw(self, n: int, seed: int = 0) -> list[tuple[str, int]]:
        """n sequences and the numbers of their chains, each a function of (seed, its number)."""
        low, high = self.lengths
        u_N2 = np.random.default_rng(seed).random((n, 2))
        chain_N = (u_N2[:, 0] * len(self.chains)).astype(int).tolist()
        length_N = (low + u_N2[:, 1] * (high + 1 - low)).astype(int).tolist()
        drawn = enumerate(zip(chain_N, length_N, strict=True))
        return [(self.chains[k].draw_one(i, seed, length), k) for i, (k, length) in drawn]

    def log_likelihood(self, sequences: Sequence[str]) -> Floats:
        """(N,) log p of whole sequences of any lengths, given their lengths, in nats."""
        return np.logaddexp.reduce(self.by_chain(sequences), axis=1) - np.log(len(self.chains))

    def by_chain(self, sequences: Sequence[str]) -> Floats:
        """(N, n) log p of each sequence under each chain; the largest is the likeliest chain."""
        return np.array([[float(chain.log_likelihood([s])[0]) for chain in self.chains] for s in sequences])


@part
class Markov:
    """n rows {"id", "sequence"} of `family()`: each a function of (seed, index, length), drawn when it is asked for.

    Sets of different seeds have nothing in common but the chain.

    masked: with this share of the positions masked, `_`, in `sequence`, and the whole sequence as the row's `answer`.
    """

    def __init__(self, n: AtLeast1, seed: AtLeast0, length: AtLeast1 = 32, masked: Share = 0.0) -> None:
        self.n, self.seed, self.residues, self.masked = n, seed, length, masked

    @classmethod
    def toy(cls, n: int, seed: int, length: int = 32, masked: float = 0.0) -> Markov:
        """The same with few and short rows."""
        return cls(min(n, 64), seed, min(length, 32), masked)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Row:
        i = range(self.n)[index]
        row = {"id": f"markov-{self.seed}-{i}", "sequence": family().draw_one(i, self.seed, self.residues)}
        if not self.masked:
            return row
        positions = NoiseKey(self.seed, stream="markov/open").uniform(i, self.residues).argsort(kind="stable")
        letters = list(row["sequence"])
        for position in positions[: round(self.masked * self.residues)].tolist():
            letters[position] = MASKED
        return {**row, "sequence": "".join(letters), "answer": row["sequence"]}

    def length(self, index: int) -> float:
        return self.residues


def _normal(p: Floats) -> Floats:
    out: Floats = p / p.sum(-1, keepdims=True)
    return out
