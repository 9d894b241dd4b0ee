"""Models of proteins: a saved one at toy size, a law of sequences in the place of a model, and pairs of known law.

`Complements`: a residue of a binder is the partner of the target's at the same position, mostly.

A target is uniform over the 20 residues. Partners are the residues from both ends of `CANONICAL` (A and Y, C and W,
...), so the relation is the same in both directions. With chance 1 - noise a binder has the partner, else a residue
drawn from all 20. A binder without its target is uniform: whatever a model says above chance came from the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from logit_tables import by_query
from numpy.typing import NDArray
from oracle import head
from torch import Tensor

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.patterns import Full
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model.saving import save_model
from mmdiff.model.scorer import Scores, score
from mmdiff.protocols import Row
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.session import Session
from mmdiff.tasks.protein.residues import CANONICAL
from mmdiff.tasks.protein.task import Protein

PROTEIN = {"target": "mmdiff.tasks.protein.Protein"}
VOCAB = Vocab(tokenizer=tokenizer(), size=33, mask_id=32, eos_id=2, pad_id=1, slot_id=1, bos_id=0)


def saved(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    esm = new_backbone(
        family="esm", tokenizer=tokenizer(), hidden_size=16, layers=1, heads=2, max_length=64, init_std=0.3
    )
    save_model(MMDiff(esm), folder, extra={"task": PROTEIN, "sampler": {"temperature": 1.0, "remasking": "random"}})
    return folder


class Exact:
    """Logits (R, L, V) of ids (R, L) by a function, as hidden states whose head is the identity."""

    vocab, device, readers, training = VOCAB, torch.device("cpu"), {}, False  # type: ignore[var-annotated]
    attention = Full()

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self.logits = logits

    def eval(self) -> Exact:
        return self

    def modules(self) -> list[Any]:
        return [self]

    def encode(self, media: Any) -> dict[str, Tensor]:
        return {}

    def hidden(self, ids_RL: Tensor, batch: Batch, features: Any, row_R: Tensor) -> Tensor:
        return self.logits(ids_RL)

    def score(self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, **how: Any) -> Scores:
        backbone: Any = SimpleNamespace(head=head, linear_head=None)
        return score(backbone, h_RLD[masked_RL], batch, masked_RL, row_R, chunk=4096, **how)

    def generate(self, batch: Batch, **named: Any) -> Generation:
        @by_query
        def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Any = None) -> Tensor:
            return self.logits(ids_RL)[predict_RL].float()

        return sample(denoise, batch, self.vocab, generation_config(named.pop("generation_config"), **named))


def exact_session(logits: Callable[[Tensor], Tensor]) -> Session:
    sampler = GenerationConfig(temperature=1.0, remasking="random")
    return Session(Exact(logits), Protein(), sampler, Path("nowhere"))  # type: ignore[arg-type]


UNIFORM = math.log(len(CANONICAL))
"""Entropy of a binder without its target, in nats a residue: the bound of the best model that does not look."""

_PARTNERS = str.maketrans(CANONICAL, CANONICAL[::-1])


class Complements:
    """n rows {"id", "target", "sequence"}: each a function of (seed, index, length), drawn when it is asked for.

    length: residues of each chain. noise: the chance that a residue of the binder is drawn without looking at the
        target; 0 gives an entropy of 0. with_target=False leaves the targets out of the same rows.
    """

    def __init__(self, n: int, seed: int, length: int = 12, noise: float = 0.1, with_target: bool = True) -> None:
        if n < 1:
            raise ConfigError(f"n: {n} rows, expected at least 1")
        if seed < 0:
            raise ConfigError(f"seed: {seed} is below 0")
        if length < 1:
            raise ConfigError(f"length: {length} residues, expected at least 1")
        if not 0 <= noise <= 1:
            raise ConfigError(f"noise: {noise} is not a chance between 0 and 1")
        self.n, self.seed, self.residues, self.noise, self.with_target = n, seed, length, noise, with_target

    @classmethod
    def toy(cls, n: int, seed: int, length: int = 12, noise: float = 0.1, with_target: bool = True) -> Complements:
        """The same with few and short rows."""
        return cls(min(n, 64), seed, min(length, 16), noise, with_target)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Row:
        i = range(self.n)[index]
        target, other, coin = NoiseKey(self.seed, stream="complements").uniform(i, 3 * self.residues).reshape(3, -1)
        chain = _letters(target)
        drawn = zip(partners(chain), _letters(other), (coin < self.noise).tolist(), strict=True)
        sequence = "".join(residue if noisy else partner for partner, residue, noisy in drawn)
        row = {"id": f"complement-{self.seed}-{i}", "target": chain, "sequence": sequence}
        return row if self.with_target else {"id": row["id"], "sequence": sequence}

    def length(self, index: int) -> float:
        """Letters of both chains."""
        return self.residues * (1 + self.with_target)


def partners(sequence: str) -> str:
    """The partner of every residue; `partners(partners(s)) == s`."""
    return sequence.translate(_PARTNERS)


def agreement(noise: float) -> float:
    """How often a residue is the partner of the target's: the recovery of a design under the true law."""
    return 1 - noise + noise / len(CANONICAL)


def entropy(noise: float) -> float:
    """Of a binder given its target, in nats a residue: the bound of the exact model."""
    k, right = len(CANONICAL), agreement(noise)
    return _surprise(right, right) + _surprise(1 - right, noise / k)


def shuffled(noise: float, length: int) -> float:
    """The mean bound of the exact model, in nats a residue, under targets whose residues are shuffled (noise above 0).

    A place keeps its residue with chance 1 / length; another place's agrees with the binder as often as any residue.
    It is above `UNIFORM`: a model that trusts its target is worse off with a wrong one than without.
    """
    k = len(CANONICAL)
    right = agreement(noise) / length + (1 - 1 / length) / k
    return _surprise(right, agreement(noise)) + _surprise(1 - right, noise / k)


def _surprise(share: float, p: float) -> float:
    """What a share of residues costs at probability p."""
    return -share * math.log(p) if share else 0.0


def _letters(u_N: NDArray[np.float64]) -> str:
    return "".join(CANONICAL[int(x * len(CANONICAL))] for x in u_N.tolist())
