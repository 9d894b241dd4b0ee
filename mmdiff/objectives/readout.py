"""Supervised pre-training of an encoder: words of the target are read out from its features.

`Readout`: from feature i of an item its own words. `Naming`: from all features together, whatever they name.

The stand-in, at the size of a CPU, for the image-text pre-training that SigLIP or Whisper bring along. The canvas and
the backbone are not used; the loop, data, parameter rules and checkpoints are.

Shape letters: N crops of media, T features per crop, E encoder width, W words per feature, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mmdiff.canvas.batch import Batch, largest
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
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
        count = nll.new_full((), float(plan.label_NTW.numel()))
        return {"readout": Term(nll, sums={"nll": (nll.detach(), count), "accuracy": (right, count)})}


@dataclass
class Named:
    """What `Naming` reads out. item_P: the item of each target id that is text, id_P: that id."""

    batch: Batch
    item_P: torch.Tensor
    id_P: torch.Tensor
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class Naming:
    """The cross-entropy, in nats per word, of an answer's words given the media alone: question and order are not seen.

    Words are read from the largest value of each channel over the features of the item. For rows of one's own, where
    nothing says which feature a word belongs to (as `Readout` wants to know).

    kind: the media whose encoder and head are trained; the head maps E to V (`WordHead`). Samples without any are left
        out; one with several, or with several crops, raises DataError.
    """

    kind: str = "image"

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Named:
        crops, slots_BL = batch.media[self.kind].crops if self.kind in batch.media else [], batch.slots.get(self.kind)
        has_B = (slots_BL >= 0).any(1) if slots_BL is not None else torch.zeros(len(batch), dtype=torch.bool)
        if crops != [1] * int(has_B.sum()):
            raise DataError(f"naming: {int(has_B.sum())} samples have {sum(crops)} crops of {self.kind}, not one each")
        text_BL = batch.target_BL & torch.isin(batch.ids_BL, torch.from_numpy(vocab.text_ids)) & has_B[:, None]
        item_P = (has_B.cumsum(0) - 1)[text_BL.nonzero()[:, 0]]
        return Named(batch, item_P, batch.ids_BL[text_BL], {"naming": float(len(item_P))})

    def terms(self, model: Model, plan: Named) -> dict[str, Term]:
        head = model.heads[self.kind]
        if self.kind not in plan.batch.media:
            return {"naming": Term(sum(p.sum() for p in head.parameters()) * 0.0)}
        media = plan.batch.media[self.kind]
        largest_NE = largest(model.features(self.kind, media), media.tokens)
        logits_PV = head(F.layer_norm(largest_NE, largest_NE.shape[1:]))[plan.item_P].float()
        nll = F.cross_entropy(logits_PV, plan.id_P, reduction="sum")
        right = (logits_PV.detach().argmax(-1) == plan.id_P).float().sum()
        count = nll.new_full((), float(len(plan.id_P)))
        return {"naming": Term(nll, sums={"nll": (nll.detach(), count), "accuracy": (right, count)})}
