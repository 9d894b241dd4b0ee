"""Supervised pre-training of an encoder: from feature i of an item its own words of the target are read out.

The stand-in, at the size of a CPU, for the image-text pre-training that SigLIP or Whisper bring along. The canvas and
the backbone are not used; the loop, data, parameter rules and checkpoints are.

Shape letters: N crops of media, T features per crop, E encoder width, W words per feature, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.ranges import AtLeast1
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.protocols import Model

from .terms import Term


@dataclass
class Words:
    """What `Readout` reads out."""

    batch: Batch
    label_NTW: torch.Tensor
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class Readout:
    """The cross-entropy of words, in nats per word.

    kind: the media whose encoder and head are trained; the head maps E to words * V (`WordHead`).
    words: per feature. A sample has one crop of `kind` and T * words target ids, feature by feature, else DataError is
        raised.
    """

    kind: str = "image"
    words: AtLeast1 = 1

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Words:
        n_B = batch.target_BL.sum(1)
        if bool((n_B != n_B[0]).any()) or int(n_B[0]) % self.words:
            raise DataError(
                f"readout: samples have {sorted(set(n_B.tolist()))} target words, not {self.words} per feature"
            )
        label_NTW = batch.ids_BL[batch.target_BL].view(len(batch), -1, self.words)
        return Words(batch, label_NTW, {"readout": float(label_NTW.numel())})

    def terms(self, model: Model, plan: Words) -> dict[str, Term]:
        features_NTE = model.features(self.kind, plan.batch.media[self.kind])
        logits_NTWV = model.heads[self.kind](features_NTE).unflatten(-1, (self.words, -1)).float()
        if logits_NTWV.shape[:3] != plan.label_NTW.shape:
            raise DataError(f"readout: features {tuple(logits_NTWV.shape[:3])}, words {tuple(plan.label_NTW.shape)}")
        nll = F.cross_entropy(logits_NTWV.flatten(0, 2), plan.label_NTW.flatten(), reduction="sum")
        right = (logits_NTWV.detach().argmax(-1) == plan.label_NTW).float().sum()
        count = torch.tensor(float(plan.label_NTW.numel()), device=nll.device)
        return {"readout": Term(nll, sums={"nll": (nll.detach(), count), "accuracy": (right, count)})}
