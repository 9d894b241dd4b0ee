"""A generation: the canvas between two steps (`GenerationState`), and what it leaves behind (`Generation`).

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.relayout import Relayout, relayout
from mmdiff.canvas.vocab import Vocab


@dataclass
class Generation:
    """A canvas and its step map, `step_BL`: at which step of its row a position was committed; 0 if it was given.

    A row's steps are the forwards it took part in, counted from 1; finished rows take part in none.
    """

    ids_BL: Tensor  # int64, the canvas
    target_BL: Tensor  # bool, the target positions, those that were given included
    step_BL: Tensor  # int32
    confidence_BL: Tensor  # fp32, probability when committed; 1 where given, or filled up after an end id
    forwards_B: Tensor  # int64
    calls: int = 0  # of denoise, for the whole batch; a draft rule's probes are not among them
    checks: int = 0  # calls of a verifier or an energy besides, for the whole batch

    def targets(self) -> list[list[int]]:
        """Returns the ids of each row's target positions, in order."""
        return [ids_L[target_L].tolist() for ids_L, target_L in zip(self.ids_BL, self.target_BL, strict=True)]


@dataclass
class GenerationState:
    """All that a generation is between two steps. A step replaces tensors and changes none, so a view of one holds.

    batch: where everything lies: targets, attended positions, position ids, media slots, allow-sets. A process that
        inserts or deletes positions replaces it, and every tensor below; nothing else does.
    pending_BL: the positions that are still to be filled. They are carried, not found again by comparing ids: a pending
        position may hold the mask id, noise, or a token that is going to be judged once more.
    wrong: bool, a single one: whether logits of a verifier or an energy were no numbers; None: nothing was checked.
    extras: further tensors (B, L, ...) that a process or a rule keeps between steps, by name.
    """

    batch: Batch
    ids_BL: Tensor  # int64
    pending_BL: Tensor  # bool
    step_BL: Tensor  # int32, see Generation
    confidence_BL: Tensor  # fp32; 0 at pending positions
    forwards_B: Tensor  # int64
    block_BL: Tensor  # int64, the block of a target position
    calls: int = 0
    checks: int = 0
    wrong: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    moved: Relayout | None = None  # what the last step did to the layout; the loop takes it from here

    @classmethod
    def of(cls, batch: Batch, vocab: Vocab) -> GenerationState:
        """Returns the state before the first step: pending are the target positions that hold the mask id."""
        pending_BL = batch.target_BL & (batch.ids_BL == vocab.mask_id)
        return cls(
            batch=batch,
            ids_BL=batch.ids_BL,
            pending_BL=pending_BL,
            step_BL=torch.zeros_like(batch.ids_BL, dtype=torch.int32),
            confidence_BL=(~pending_BL).float(),
            forwards_B=torch.zeros(len(batch), dtype=torch.int64, device=batch.ids_BL.device),
            block_BL=torch.zeros_like(batch.ids_BL),
        )

    def commit(self, at_P: tuple[Tensor, Tensor], here_P: Tensor, ids_P: Tensor, confidence_P: Tensor) -> None:
        """Commit ids: at the positions `at_P` (rows and positions, each once) where `here_P` is True."""
        step_P = self.forwards_B[at_P[0]].int()
        self.ids_BL = self.ids_BL.index_put(at_P, torch.where(here_P, ids_P, self.ids_BL[at_P]))
        self.step_BL = self.step_BL.index_put(at_P, torch.where(here_P, step_P, self.step_BL[at_P]))
        kept_P = torch.where(here_P, confidence_P.float(), self.confidence_BL[at_P])
        self.confidence_BL = self.confidence_BL.index_put(at_P, kept_P)
        self.pending_BL = self.pending_BL.index_put(at_P, self.pending_BL[at_P] & ~here_P)

    def count_call(self, logits_PV: Tensor) -> None:
        """Count a call of a verifier or an energy, and note whether its logits are numbers; -inf is one."""
        wrong = ~(logits_PV < torch.inf).all()
        self.checks, self.wrong = self.checks + 1, wrong if self.wrong is None else self.wrong | wrong

    def remask(self, again_BL: Tensor, fill: int) -> None:
        """Make positions pending again where `again_BL` is True; they then hold the id `fill`."""
        self.ids_BL = self.ids_BL.masked_fill(again_BL, fill)
        self.step_BL = self.step_BL.masked_fill(again_BL, 0)
        self.confidence_BL = self.confidence_BL.masked_fill(again_BL, 0.0)
        self.pending_BL = self.pending_BL | again_BL

    def relayout(self, keep_BL: Tensor, after_BL: Tensor, vocab: Vocab, allow_BL: Tensor | None = None) -> Relayout:
        """Delete and insert positions, see `mmdiff.canvas.relayout`. Inserted ones are pending, their extras 0.

        Returns where the new positions come from. The device is waited for once.
        """
        ids = {"mask_id": vocab.mask_id, "pad_id": vocab.pad_id}
        self.batch, moved = relayout(
            replace(self.batch, ids_BL=self.ids_BL), keep_BL, after_BL, allow_BL=allow_BL, **ids
        )
        self.ids_BL = self.batch.ids_BL
        self.pending_BL = moved.carried(self.pending_BL, False) | moved.new_BK
        self.step_BL = moved.carried(self.step_BL, 0)
        self.confidence_BL = moved.carried(self.confidence_BL, 0.0)
        self.block_BL = self.block_BL.gather(1, moved.source_BK)
        self.extras = {name: moved.carried(values, 0) for name, values in self.extras.items()}
        self.moved = moved
        return moved

    def result(self) -> Generation:
        return Generation(
            ids_BL=self.ids_BL.clone(),
            target_BL=self.batch.target_BL,
            step_BL=self.step_BL,
            confidence_BL=self.confidence_BL,
            forwards_B=self.forwards_B,
            calls=self.calls,
            checks=self.checks,
        )
