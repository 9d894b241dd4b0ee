"""Changes: what becomes of noised copies after their masks are drawn: complements, other weights, further masks.

Shape letters: B samples, L canvas length, R rows, Q rows after the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.relayout import relayout
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, BetweenZeroAndOne, Half, Share

from .noised import NoisedBatch


class Change(Protocol):
    """A part of `mmdiff.objectives.denoise.Denoise.changes`. stream: the name of its random numbers."""

    stream: ClassVar[str]

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        """Returns noised copies that differ, with as many copies of every sample."""
        ...


@part
@dataclass(frozen=True)
class Complement:
    """Beside each noised copy, one in which exactly the other targets are masked: each token is trained once.

    With `denominator: mean` that is LaViDa's loss (arXiv 2505.16839). A masked position of the complement weighs
    weight * rate / (1 - rate), those of its copy: with `Bernoulli` the sum of both is twice the bound, as in PGM's
    partitions (arXiv 2505.18883), of which this is the form for an ordinary model; with `ExactCount`, if `none` is set.
    """

    stream: ClassVar[str] = "complement"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        clean_RL = noised.batch.ids_BL[noised.row_R]
        masked_RL = noised.scored_RL & ~noised.masked_RL
        ids_RL = torch.where(noised.masked_RL, clean_RL, noised.ids_RL).masked_fill(masked_RL, vocab.mask_id)
        seen_RL = (1 - noised.rate_RL.double()).clamp(min=1e-12)
        weight_RL = (noised.weight_RL.double() * noised.rate_RL / seen_RL).float()
        both: dict[str, Any] = {
            "ids_RL": ids_RL, "masked_RL": masked_RL, "weight_RL": weight_RL, "rate_RL": 1 - noised.rate_RL,
            "row_R": noised.row_R, "copy_R": noised.copy_R + 1 + int(noised.copy_R.max()),
            "group_RL": torch.where(noised.scored_RL, noised.group_RL + 1 + int(noised.group_RL.max()), -1),
        }  # fmt: skip
        joined: dict[str, Any] = {name: torch.cat([getattr(noised, name), x]) for name, x in both.items()}
        return replace(noised, **joined)


@part
@dataclass(frozen=True)
class Replaced:
    """Some visible target tokens are replaced by random ones; the share of a row is uniform in 0..2 * `share`.

    End ids are left alone. A replacement is uniform over plain text, or over the ids that the position may hold
    (`Target.allow`). scored: replaced tokens, and those that stayed, are to be predicted, too, each at weight 1
    (MDiff4STR's token replacement, without masks at `levels.most` near 0).
    """

    share: Half = 0.15
    scored: bool = False

    stream: ClassVar[str] = "corrupt"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        out = replace(noised, ids_RL=replaced(noised, key, self.share, vocab))
        if self.scored:
            visible_RL = noised.scored_RL & ~noised.masked_RL
            out.weight_RL = noised.weight_RL.masked_fill(visible_RL, 1.0)
            out.masked_RL = noised.scored_RL
        return out


@part
@dataclass(frozen=True)
class NearContext:
    """Dream's weight (CART, arXiv 2508.15487): masked tokens with visible ones nearby weigh more; it replaces 1/t.

    weight_i = 1/2 sum over visible n of p (1 - p) ** (distance of n and i - 1), over all attended positions of the
    canvas. p: 0.3 as published.
    """

    p: BetweenZeroAndOne = 0.3

    stream: ClassVar[str] = "cart"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        at_L = torch.arange(noised.ids_RL.shape[1], dtype=torch.float64)
        far_LL = (at_L[:, None] - at_L).abs()
        kernel_LL = (self.p / 2 * (1 - self.p) ** (far_LL - 1).clamp(min=0)).fill_diagonal_(0)
        visible_RL = noised.batch.attend_BL[noised.row_R] & (noised.ids_RL != vocab.mask_id)
        return replace(noised, weight_RL=(visible_RL.double() @ kernel_LL).float())


@part
@dataclass(frozen=True)
class FallingWeight:
    """A masked position weighs 1 - mask rate: the linear weight of RDM (arXiv 2302.05737) and MGDM. No bound."""

    stream: ClassVar[str] = "falling"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        return replace(noised, weight_RL=1 - noised.rate_RL)


@part
@dataclass(frozen=True)
class EvenWeight:
    """Every masked position weighs 1, whatever its level. No bound."""

    stream: ClassVar[str] = "even"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        return replace(noised, weight_RL=torch.ones_like(noised.weight_RL))


@part
@dataclass(frozen=True)
class EndWeight:
    """End ids behind the first one of an answer weigh `weight` times as much; 0: they are masked but not scored.

    Where rows are filled up with end ids (`padding: eos`), a short answer is otherwise mostly trained to end.
    """

    weight: Share = 0.0

    stream: ClassVar[str] = "end"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        batch = noised.batch
        end_BL = batch.target_BL & torch.isin(batch.ids_BL, torch.tensor([vocab.eos_id, *vocab.end_ids]))
        again_RL = (end_BL & torch.nn.functional.pad(end_BL, (1, 0))[:, :-1])[noised.row_R]
        if self.weight:
            return replace(noised, weight_RL=torch.where(again_RL, self.weight, 1.0) * noised.weight_RL)
        return replace(
            noised, masked_RL=noised.masked_RL & ~again_RL, group_RL=noised.group_RL.masked_fill(again_RL, -1)
        )


@part
@dataclass(frozen=True)
class ExtraMasks:
    """Up to `most` masks that are not scored stand behind the last target of a copy, their number uniform in 0..most.

    For answers whose length is not known (Masks Can Be Distracting, arXiv 2511.21338). Raises ConfigError for rows that
    are packed of several documents.
    """

    most: AtLeast1 = 64

    stream: ClassVar[str] = "masks"

    def __call__(self, noised: NoisedBatch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        index_R, copy_R = noised.batch.index_B[noised.row_R].tolist(), noised.copy_R.tolist()
        count = [int(key.uniform(i, 1, c)[0] * (self.most + 1)) for i, c in zip(index_R, copy_R, strict=True)]
        return lengthened(noised, torch.tensor(count), vocab)


def lengthened(noised: NoisedBatch, count_R: Tensor, vocab: Vocab) -> NoisedBatch:
    """Returns the copies, each a row of the batch of its own, with `count_R` masks behind the last target of each."""
    batch, rows = widened(noised.batch, noised.row_R), len(noised.row_R)
    at_L = torch.arange(noised.ids_RL.shape[1])
    last_R = torch.where(batch.target_BL & batch.attend_BL, at_L, -1).amax(1)
    after_RL = torch.where(at_L == last_R[:, None], count_R[:, None], 0)
    keep_RL = torch.ones_like(batch.attend_BL)
    laid, moved = relayout(batch, keep_RL, after_RL, mask_id=vocab.mask_id, pad_id=vocab.pad_id)
    return replace(
        noised,
        batch=laid,
        ids_RL=moved.carried(noised.ids_RL, vocab.mask_id).masked_fill(~laid.attend_BL, vocab.pad_id),
        masked_RL=moved.carried(noised.masked_RL, False),
        weight_RL=moved.carried(noised.weight_RL, 0.0),
        rate_RL=moved.carried(noised.rate_RL, 0.0),
        group_RL=moved.carried(noised.group_RL, -1),
        row_R=torch.arange(rows),
    )


def widened(batch: Batch, row_R: Tensor) -> Batch:
    """Returns a batch whose rows are those rows of another; its media are the same, and are encoded once."""
    return replace(
        batch,
        ids_BL=batch.ids_BL[row_R],
        target_BL=batch.target_BL[row_R],
        attend_BL=batch.attend_BL[row_R],
        position_ids_BL=batch.position_ids_BL[row_R],
        segment_BL=batch.segment_BL[row_R],
        slots={kind: slot_BL[row_R] for kind, slot_BL in batch.slots.items()},
        allow_BL=None if batch.allow_BL is None else batch.allow_BL[row_R],
        step_BL=None if batch.step_BL is None else batch.step_BL[row_R],
        index_B=batch.index_B[row_R],
    )


def replaced(noised: NoisedBatch, key: NoiseKey, share: float, vocab: Vocab) -> Tensor:
    """Returns the ids (R, L) with some visible target tokens replaced, see `Replaced`."""
    batch, ids_RL = noised.batch, noised.ids_RL.clone()
    ends = torch.tensor([vocab.eos_id, *vocab.end_ids])
    choices: dict[int, np.ndarray] = {0: vocab.text_ids}
    for r, (row, copy) in enumerate(zip(noised.row_R.tolist(), noised.copy_R.tolist(), strict=True)):
        free_L = batch.target_BL[row] & (ids_RL[r] != vocab.mask_id) & ~torch.isin(ids_RL[r], ends)
        positions = free_L.nonzero().squeeze(1).tolist()
        rate, *draws = key.uniform(int(batch.index_B[row]), 1 + 2 * len(positions), copy).tolist()
        for i, position in enumerate(positions):
            if draws[2 * i] < 2 * share * rate:
                k = 0 if batch.allow_BL is None else int(batch.allow_BL[row, position])
                if k not in choices and batch.allow_KV is not None:
                    choices[k] = batch.allow_KV[k].nonzero().squeeze(1).numpy()
                ids_RL[r, position] = int(choices[k][int(draws[2 * i + 1] * len(choices[k]))])
    return ids_RL
