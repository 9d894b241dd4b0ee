"""Models of proteins: a saved one at toy size, and a law of sequences in the place of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from oracle import head
from torch import Tensor

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.esm import tokenizer
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.model.saving import save_model
from mmdiff.model.scorer import Scores, score
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.result import Generation
from mmdiff.session import Session
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

    def score(
        self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, *, restrict: bool = True
    ) -> Scores:
        return score(head, h_RLD[masked_RL], batch, masked_RL, row_R, chunk=4096, restrict=restrict)

    def generate(self, batch: Batch, **named: Any) -> Generation:
        def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Any = None) -> Tensor:
            return self.logits(ids_RL)[predict_RL].float()

        return sample(denoise, batch, self.vocab, generation_config(named.pop("generation_config"), **named))


def exact_session(logits: Callable[[Tensor], Tensor]) -> Session:
    sampler = GenerationConfig(temperature=1.0, remasking="random")
    return Session(Exact(logits), Protein(), sampler, Path("nowhere"))  # type: ignore[arg-type]
