"""Connectionist temporal classification: an encoder of sound learns to read its input out, without a backbone.

A. Graves et al., ICML 2006. The stand-in, at the size of a CPU, for the pre-training that Whisper brings along; what it
reads out is a first pass for deliberation.

Shape letters: B samples, N crops, T features per crop or item, E encoder width, V vocabulary, M features or slots and S
labels of all samples, D backbone width, K ids, O further ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmdiff.canvas.batch import Batch, MediaBatch, packed
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0
from mmdiff.protocols import Model

from .terms import Term


@dataclass
class Labels:
    """What `CTC` reads out."""

    batch: Batch
    labels_S: Tensor  # int64, of all samples, one after the other
    size_B: Tensor
    other_O: Tensor  # int64, ids that the labels are to be told apart from besides each other
    counts: dict[str, float]


@part
@dataclass(frozen=True)
class CTC:
    """The CTC loss of a sample's labels, in nats per label.

    kind: the media whose encoder and head are trained; the head maps E to the vocabulary (`WordHead`).
    read: what is read out: an encoder's `features`, by that head; or the `slots` that the connector makes of them, each
        normalised, by the backbone's own head, as probabilities among the labels of the batch and the blank. So a
        connector learns embeddings of words in their order before the backbone is run at all (LegoSLM, arXiv
        2505.11352, joins the two by the embedding table, too).
    others: of slots, so many ids of text, drawn anew for every batch, from which the labels are told apart as well, so
        that a slot does not come to resemble words which no transcript has.

    The labels are a sample's target ids without end ids; the mask id, which no label has, is the blank. A sample has
    one item of `kind`, else DataError is raised. A label sequence that does not fit into its features adds no loss; the
    share of such samples is logged as `infeasible`.
    """

    kind: str = "audio"
    read: Literal["features", "slots"] = "features"
    others: AtLeast0 = 0

    def __post_init__(self) -> None:
        if self.others and self.read != "slots":
            raise ConfigError(f"others: {self.others}, expected 0 where features are read: their head has every id")

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Labels:
        if self.kind not in batch.media or len(batch.media[self.kind].crops) != len(batch):
            raise DataError(f"ctc: a sample has one {self.kind}; this batch has {len(batch)} samples and other numbers")
        ends = torch.tensor([vocab.eos_id, *vocab.end_ids])
        label_BL = batch.target_BL & ~torch.isin(batch.ids_BL, ends)
        size_B = label_BL.sum(1)
        other_O = torch.zeros(0, dtype=torch.int64)
        if self.others:
            draws_O = key.fold("others").uniform(0, self.others) * len(vocab.text_ids)
            other_O = torch.from_numpy(vocab.text_ids[draws_O.astype(np.int64)]).to(batch.ids_BL.device)
        return Labels(batch, batch.ids_BL[label_BL], size_B, other_O, {"ctc": float(size_B.sum())})

    def terms(self, model: Model, plan: Labels) -> dict[str, Term]:
        labels_S, blank = plan.labels_S, model.vocab.mask_id
        if self.read == "slots":
            every_K, at = torch.cat([labels_S, plan.other_O]).unique(return_inverse=True)
            labels_S = at[: len(labels_S)]
            id_K, blank = torch.cat([every_K, every_K.new_tensor([blank])]), len(every_K)
            log_p_BTV, length_B = spelled(model, self.kind, plan.batch, id_K)
        else:
            log_p_BTV, length_B = emissions(model, self.kind, plan.batch.media[self.kind])
        given = (labels_S, length_B, plan.size_B, blank, "none")
        with torch.no_grad():
            fits_B = F.ctc_loss(log_p_BTV.transpose(0, 1), *given).isfinite()
        nll_B = F.ctc_loss(log_p_BTV.transpose(0, 1), *given, zero_infinity=True)  # else its gradient is no number
        nll = nll_B.sum()
        count, size = torch.ones_like(nll_B).sum(), plan.size_B.sum().float()
        return {"ctc": Term(nll, sums={"nll": (nll.detach(), size), "infeasible": ((~fits_B).float().sum(), count)})}


def emissions(model: Model, kind: str, media: MediaBatch) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities (B, T, V) fp32 of all features of an item, crop after crop, and their numbers (B,).

    Raises ConfigError where the model has no head of that kind.
    """
    if kind not in model.heads:
        raise ConfigError(f"model.heads.{kind}: there is no head that reads the {kind} encoder out")
    features_NTE = model.features(kind, media)
    tokens = media.tokens or [features_NTE.shape[1]] * len(features_NTE)
    crops = iter(tokens)
    counts = [sum(next(crops) for _ in range(n)) for n in media.crops]
    logits_MV = model.heads[kind](packed(features_NTE, media.tokens)).float()
    log_p_BTV = pad_sequence(list(logits_MV.log_softmax(-1).split(counts)), batch_first=True)
    return log_p_BTV, torch.tensor(counts).to(log_p_BTV.device, non_blocking=True)


def spelled(model: Model, kind: str, batch: Batch, id_K: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities (B, T, K) fp32 of the slots of each sample's item, by the rows `id_K` of the backbone's
    head, and the numbers of slots (B,)."""
    slots_MD = model.encode({kind: batch.media[kind]})[kind]
    count_B = (batch.slots[kind] >= 0).sum(1)
    logits_MK = model.backbone.head(F.layer_norm(slots_MD, slots_MD.shape[1:]), id_K).float()
    rows = logits_MK.log_softmax(-1).split(count_B.tolist())
    return pad_sequence(list(rows), batch_first=True), count_B.to(logits_MK.device)


def collapse(path: Tensor, blank: int) -> list[int]:
    """Returns the labels of a path (T,): repeats count once, blanks not at all."""
    ids = torch.unique_consecutive(path).tolist()
    return [i for i in ids if i != blank]
