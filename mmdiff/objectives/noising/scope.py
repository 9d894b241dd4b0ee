"""Scopes: which targets of a sample may be noised at all, and what of the rest is hidden, decided before any mask.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Share


@dataclass(frozen=True)
class Scoped:
    """A batch, and what may be noised of it: the same for all copies of a sample.

    scored_BL: bool, targets that may be masked and scored. hidden_BL: bool, targets that are masked and not scored.
    """

    batch: Batch
    scored_BL: Tensor
    hidden_BL: Tensor

    @classmethod
    def of(cls, batch: Batch, vocab: Vocab) -> Scoped:
        """Returns all targets of a batch, but those that hold the mask: an empty position stays empty."""
        scored_BL = batch.target_BL & (batch.ids_BL != vocab.mask_id)
        return cls(batch, scored_BL, torch.zeros_like(scored_BL))


class Scope(Protocol):
    """Which targets of a sample may be noised at a step."""

    def __call__(self, scope: Scoped, key: NoiseKey, vocab: Vocab) -> Scoped:
        """Returns a smaller scope. Random numbers are drawn under the key and each sample's own index."""
        ...


@part
@dataclass(frozen=True)
class OneBlock:
    """One block of a sample's targets is noised: those before it are clean, those behind it are masked and not scored.

    That is what decoding block by block meets; with `Complement`, the noise of dParallel (arXiv 2509.26488).
    size: targets per block. Each block is as likely.
    """

    size: AtLeast1 = 32

    def __call__(self, scope: Scoped, key: NoiseKey, vocab: Vocab) -> Scoped:
        block_BL = (scope.scored_BL.cumsum(1) - 1) // self.size
        return _behind(scope, block_BL, _picked(scope, block_BL, key.fold("block")))


@part
@dataclass(frozen=True)
class OneTurn:
    """One turn of a dialogue is noised: earlier ones are clean, later ones are cut off (LLaDA's pairs of each turn).

    A turn is a run of targets; each is as likely.
    """

    def __call__(self, scope: Scoped, key: NoiseKey, vocab: Vocab) -> Scoped:
        target_BL = scope.batch.target_BL & scope.batch.attend_BL
        begins_BL = target_BL & ~torch.nn.functional.pad(target_BL, (1, 0))[:, :-1]
        turn_BL = begins_BL.cumsum(1) - 1
        chosen_B1 = _picked(scope, turn_BL, key.fold("turn"))
        last_BL = (target_BL & (turn_BL == chosen_B1)).flip(1).cumsum(1).flip(1) > 0  # up to the end of the turn
        none_B1 = chosen_B1 < 0
        attend_BL = scope.batch.attend_BL & (last_BL | none_B1)
        batch = replace(
            scope.batch,
            attend_BL=attend_BL,
            target_BL=scope.batch.target_BL & attend_BL,
            padded=not bool(attend_BL.all()),
        )
        return Scoped(batch, scope.scored_BL & attend_BL & (turn_BL == chosen_B1), scope.hidden_BL & attend_BL)


@part
@dataclass(frozen=True)
class Trajectory:
    """What a recorded generation still had masked at one of its steps is masked (TraceRL, arXiv 2509.06949; CJ-GRPO).

    `Target.steps` says at which step each token was committed. All that was committed from the drawn step on is masked;
    what was committed at it is scored. Use it with `levels: {target: ...ExactCount, full: 1.0}`.

    merge: so many steps count as one (TraceRL: 8). later: what was committed at later steps is scored, too.
    Raises DataError for a target without steps.
    """

    merge: AtLeast1 = 1
    later: bool = False

    def __call__(self, scope: Scoped, key: NoiseKey, vocab: Vocab) -> Scoped:
        step_BL = scope.batch.step_BL
        if step_BL is None or bool((step_BL[scope.scored_BL] < 0).any()):
            raise DataError("a target of the batch has no `steps`, which say when each of its tokens was committed")
        # steps without gaps, so that each that there is is as likely
        step_BL = torch.where(scope.scored_BL, step_BL // self.merge, -1)
        number_BL = torch.zeros_like(step_BL)
        for b in range(len(step_BL)):
            number_BL[b] = step_BL[b].unique(return_inverse=True)[1] - int((step_BL[b] < 0).any())
        chosen_B1 = _picked(scope, number_BL, key.fold("step"))
        found = _behind(scope, number_BL, chosen_B1)
        if not self.later:
            return found
        return replace(found, scored_BL=scope.scored_BL & (number_BL >= chosen_B1), hidden_BL=scope.hidden_BL)


@part
@dataclass(frozen=True)
class DropContext:
    """A share of the samples loses its context, so that guidance has a model without it (SMDM, arXiv 2410.18514).

    As for `mmdiff.samplers.links.guidance.Guidance`, the context, every attended position that is not a target, is
    masked, and its media are left out. media: the share that loses its media alone, the text staying.
    """

    share: Share = 0.1
    media: Share = 0.0

    def __call__(self, scope: Scoped, key: NoiseKey, vocab: Vocab) -> Scoped:
        batch, fold = scope.batch, key.fold("context")
        u_B2 = torch.from_numpy(fold.uniforms(batch.index_B.tolist(), 2))
        bare_B1, blind_B1 = u_B2[:, :1] < self.share, u_B2[:, 1:] < self.media
        context_BL = batch.attend_BL & ~batch.target_BL
        ids_BL = batch.ids_BL.masked_fill(context_BL & bare_B1, vocab.mask_id)
        slots = {kind: slot_BL.masked_fill(bare_B1 | blind_B1, -1) for kind, slot_BL in batch.slots.items()}
        return replace(scope, batch=replace(batch, ids_BL=ids_BL, slots=slots))


def _picked(scope: Scoped, number_BL: Tensor, key: NoiseKey) -> Tensor:
    """Returns int64 (B, 1), one of the numbers that a row's scored targets have, each as likely; -1: it has none."""
    out = []
    for b, sample in enumerate(scope.batch.index_B.tolist()):
        there = number_BL[b, scope.scored_BL[b]].unique().tolist()
        out.append(there[int(key.uniform(sample, 1)[0] * len(there))] if there else -1)
    return torch.tensor(out, dtype=torch.int64)[:, None]


def _behind(scope: Scoped, number_BL: Tensor, chosen_B1: Tensor) -> Scoped:
    """Returns the targets of the chosen number, with those of higher numbers hidden."""
    here_BL, later_BL = number_BL == chosen_B1, number_BL > chosen_B1
    hidden_BL = scope.hidden_BL | (scope.scored_BL & later_BL)
    return replace(scope, scored_BL=scope.scored_BL & here_BL, hidden_BL=hidden_BL)
