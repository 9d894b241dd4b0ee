"""The Denoise of a model: media are encoded once, then each call runs the backbone over the canvases of a query.

Where a query says which positions are fresh, or the attention pattern says which can no longer change, the others keep
the keys and values that they had: every cache is a choice of that set (`Query.fresh`, mmdiff.samplers.links.caches).

Shape letters: B samples, S slots of kept canvases, which are the R rows of a call, W rows that are run whole, L canvas
length, K = L or L + 1, N positions that are run, P queried positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.query import Bools, Fresh, Ints, Prediction, Query, StepInfo
from mmdiff.errors import ConfigError, nearest
from mmdiff.protocols import Denoise

from .prefix import BehindClean
from .saving import saved_folder


@dataclass
class Kept:
    """Keys and values of the canvases of one layout, and what the CPU must know of them.

    slots: copy * B + row of each canvas, in the order of the rows of a call. block_BL: the blocks of the attention
    pattern; numbered: whether it has any. final_SL: positions whose keys and values can no longer change, by it.
    """

    batch: Batch
    slots: Ints
    memory: Any
    attend_BL: Bools
    target_BL: Bools
    block_BL: Ints
    numbered: bool
    final_SL: Bools

    @classmethod
    def of(cls, model: Any, batch: Batch, slots: Ints) -> Kept:
        block = model.attention.blocks(batch.target_BL, batch.attend_BL)
        return cls(
            batch=batch,
            slots=slots,
            memory=model.backbone.memory(len(slots), batch.ids_BL.shape[1]),
            attend_BL=batch.attend_BL.cpu().numpy(),
            target_BL=batch.target_BL.cpu().numpy(),
            block_BL=torch.as_tensor(block).expand(batch.ids_BL.shape).cpu().numpy(),
            numbered=isinstance(block, Tensor),
            final_SL=np.zeros((len(slots), batch.ids_BL.shape[1]), dtype=np.bool_),
        )

    def leave(self, slots: Ints, device: torch.device) -> None:
        """Forget the canvases of rows that are finished: all but `slots`."""
        order = self.slots.argsort()
        index_S = order[np.searchsorted(self.slots, slots, sorter=order)]
        self.memory.keep(_sent(index_S, device))
        self.slots, self.final_SL = slots, self.final_SL[index_S]

    def exact(self, step: StepInfo) -> Fresh:
        """Returns the positions that must be run for an exact answer: those that may have changed since they were run
        last, and that the rows' current blocks see."""
        seen_R = np.where(self._current(step), self.block_BL[step.row_R], -1).max(1)
        run_RL = self.attend_BL[step.row_R] & ~self.final_SL & (self.block_BL[step.row_R] <= seen_R[:, None])
        return Fresh(np.zeros(len(step.row_R), dtype=np.bool_), run_RL, run_RL.sum(1))

    def settle(self, step: StepInfo, run_RL: Bools) -> None:
        """Mark positions as final that were run and that see nothing which is still to change: of earlier blocks than
        every target of the current block and of later ones."""
        later_RL = self.target_BL[step.row_R] & (step.block_BL[step.row_R] >= step.block_R[:, None])
        block_RL = self.block_BL[step.row_R]
        first_R = np.where(later_RL, block_RL, np.iinfo(np.int64).max).min(1)
        self.final_SL |= run_RL & (block_RL < first_R[:, None])

    def with_left(self, fresh: Fresh) -> Fresh:
        """Returns `fresh` with the positions to the left of those that are run: where logits are shifted, their states
        predict."""
        run_RL = fresh.run_RL.cpu().numpy() if isinstance(fresh.run_RL, Tensor) else fresh.run_RL
        left_RL = np.pad(run_RL[:, 1:], ((0, 0), (0, 1))) & self.attend_BL[self.slots % len(self.batch)]
        return Fresh(fresh.whole_R, run_RL | left_RL, (run_RL | left_RL).sum(1))

    def _current(self, step: StepInfo) -> Bools:
        here_RL: Bools = self.target_BL[step.row_R] & (step.block_BL[step.row_R] == step.block_R[:, None])
        return here_RL


@dataclass
class Denoiser:
    """The Denoise of an `MMDiff` for the canvases of `batch`, see `MMDiff.denoiser`."""

    model: Any
    batch: Batch
    features: Mapping[str, Tensor]
    allowed_ids_N: Tensor | None
    kept: Kept | None = field(default=None, repr=False)

    @torch.no_grad()
    def __call__(self, query: Query) -> Prediction:
        model, batch = self.model, query.batch or self.batch
        for name in query.extras:
            self.extra(name)
        keeps = model.backbone.caches and not batch.packed
        if query.fresh is not None and not keeps:
            what = "rows that are packed of several documents" if batch.packed else model.backbone.family
            raise ConfigError(f"sampler.denoise: keys and values of {what} cannot be kept, expected no cache")
        if query.step is not None and keeps and (query.fresh is not None or model.attention.exact_prefix):
            h_PD = self._partly(query, query.step, batch)
        else:
            h_RLD = model.hidden(query.ids_RL, batch, self.features, query.row_R, query.media_R, extras=query.extras)
            h_PD = h_RLD[query.at()[0], self._predicting(query, batch)]
        return Prediction(self.logits(h_PD), h_PD if query.hidden else None)

    @torch.no_grad()
    def logits(self, h_PD: Tensor) -> Tensor:
        """Returns fp32 logits (P, V) of hidden states that predict; -inf at ids that no target position may hold."""
        if self.allowed_ids_N is None:
            return self.model.backbone.head(h_PD).float()
        logits_PN = self.model.backbone.head(h_PD, self.allowed_ids_N).float()
        everywhere_PV = logits_PN.new_full((len(h_PD), self.model.vocab.size), -torch.inf)
        return everywhere_PV.index_copy_(1, self.allowed_ids_N, logits_PN)

    def _predicting(self, query: Query, batch: Batch) -> Tensor:
        """Returns int64 (P,), the positions whose states predict what is queried: one to the left in models with
        shifted logits; a row's first position has nothing there, and predicts itself, padded or not."""
        row_P, position_P = query.at()
        if not (shift := self.model.backbone.facts.shift):
            return position_P
        left_P = (position_P - shift).clamp(min=0)
        return left_P.where(batch.attend_BL[query.row_R[row_P], left_P], position_P) if batch.padded else left_P

    def extra(self, name: str) -> Any:
        """Returns an extra of the model. Raises ConfigError where it has none of that name."""
        if name not in self.model.extras:
            raise ConfigError(f"model.extras.{name}: the model has no such extra{nearest(name, self.model.extras)}")
        return self.model.extras[name]

    def embed(self, ids_P: Tensor) -> Tensor:
        """Returns (P, D), the embeddings of ids."""
        return self.model.backbone.embed(ids_P[:, None]).squeeze(1)

    def other(self, folder: str) -> Denoiser:
        """Returns the Denoise of another saved model, or finished run, for the same canvases; it is kept in memory.

        It is read as every saved folder is (docs/security.md). Raises ConfigError for a model of other ids, and for
        media that it does not read as this one does.
        """
        where = saved_folder(folder)
        if where is None:
            raise ConfigError(f"{folder}: neither a saved model nor the folder of a run")
        own, stamp = self.model, (where / "config.json").stat().st_mtime_ns
        model = _loaded(own.from_pretrained, str(where.resolve()), stamp, self.batch.ids_BL.device)
        same = (model.vocab.size, model.vocab.mask_id) == (own.vocab.size, own.vocab.mask_id)
        if not same or model.vocab.tokenizer.get_vocab() != own.vocab.tokenizer.get_vocab():
            raise ConfigError(f"{folder}: its ids stand for other tokens than this model's, expected one vocabulary")
        for kind in self.batch.media:
            if kind not in model.encoders or model.encoders[kind].node != own.encoders[kind].node:
                raise ConfigError(f"{folder}: does not read {kind} as this model does, expected the same encoder")
        with torch.no_grad():
            features = model.encode(self.batch.media)
        for kind, features_MD in features.items():
            if len(features_MD) != len(self.features[kind]):
                raise ConfigError(f"{folder}: {kind} takes other slots than in this model, expected as many")
        return Denoiser(model, self.batch, features, self.allowed_ids_N)

    def left_to_right(self, folder: str | None = None) -> Denoise:
        """Returns a Denoise that reads finished canvases: logits of the queried positions given the ids before them.

        One forward covers all positions. folder: another saved model in place of this one, see `other`. Keys and values
        of what can no longer change are kept where a model's logits are shifted.
        Raises ConfigError for a family of encoders, which cannot attend from left to right.
        """
        if folder is not None:
            return self.other(folder).left_to_right()
        if not self.model.backbone.caches:
            raise ConfigError(f"backbone: {self.model.backbone.family} cannot read a canvas from left to right")
        shift, batch = self.model.backbone.facts.shift, self.batch
        begins_BL = batch.attend_BL & batch.target_BL & (batch.position_ids_BL < shift)
        if not shift or bool(begins_BL.any()):
            return BehindClean(self.model, self.batch, self.features)
        causal = copy(self.model)  # the same weights
        causal.attention = Causal()
        return Denoiser(causal, self.batch, self.features, None)

    def _partly(self, query: Query, step: StepInfo, batch: Batch) -> Tensor:
        """Returns hidden states (P, D) of what is queried, of rows that are run whole and others."""
        kept, new_R = self._kept(step, batch, query.row_R.device)
        fresh = query.fresh
        if fresh is None:
            fresh = kept.exact(step)
            kept.settle(step, fresh.run_RL)  # type: ignore[arg-type]
        else:
            fresh = replace(fresh, whole_R=fresh.whole_R | new_R)
        if self.model.backbone.facts.shift:
            fresh = kept.with_left(fresh)
        row_P, position_P = query.at()[0], self._predicting(query, batch)
        if fresh.whole_R.all():
            return self._whole(query, kept, fresh.whole_R)[row_P, position_P]
        # a row that is run whole takes part here without positions, so that no slot need be copied out of the buffer
        h_RND, column_RL = self._part(query, kept, fresh)
        part_PD = h_RND[row_P, column_RL[row_P, position_P]]
        if not fresh.whole_R.any():
            return part_PD
        index_R = _sent(np.maximum(np.cumsum(fresh.whole_R) - 1, 0), row_P.device)
        whole_PD = self._whole(query, kept, fresh.whole_R)[index_R[row_P], position_P]
        return torch.where(_sent(fresh.whole_R, row_P.device)[row_P, None], whole_PD, part_PD)

    def _kept(self, step: StepInfo, batch: Batch, device: torch.device) -> tuple[Kept, Bools]:
        """Returns what is kept of the rows of the call, and which of them begin a generation."""
        slots, kept = step.copy_R * len(batch) + step.row_R, self.kept
        if kept is None or kept.batch is not batch or not np.isin(slots, kept.slots).all():
            self.kept = Kept.of(self.model, batch, slots)
            return self.kept, np.ones(len(slots), dtype=np.bool_)
        if not np.array_equal(slots, kept.slots):
            kept.leave(slots, device)
        new_R: Bools = step.forward_R == 1
        kept.final_SL[new_R] = False
        return kept, new_R

    def _whole(self, query: Query, kept: Kept, whole_R: Bools) -> Tensor:
        """Returns hidden states (W, L, D) of the rows that are run whole, whose keys and values are kept."""
        index_W = None if whole_R.all() else _sent(np.flatnonzero(whole_R), query.row_R.device)
        kept.memory.whole(index_W)
        ids_WL, row_W, media_W, extras = query.ids_RL, query.row_R, query.media_R, query.extras
        if index_W is not None:
            ids_WL, row_W, media_W = ids_WL[index_W], row_W[index_W], None if media_W is None else media_W[index_W]
            extras = {name: values_RL[index_W] for name, values_RL in extras.items()}
        h_WLD: Tensor = self.model.hidden(ids_WL, kept.batch, self.features, row_W, media_W, kept.memory, extras)
        return h_WLD

    def _part(self, query: Query, kept: Kept, fresh: Fresh) -> tuple[Tensor, Tensor]:
        """Runs some positions of all rows. Returns their hidden states (R, N, D), and which of the N stands at each
        position of the canvas, int64 (R, L + 1)."""
        batch, length = kept.batch, query.ids_RL.shape[1]
        at_RN, ragged = self._positions(query, fresh)
        inside_RN = at_RN.clamp(max=length - 1)
        slots = {kind: slot_BL[query.row_R].gather(1, inside_RN) for kind, slot_BL in batch.slots.items()}
        if query.media_R is not None:
            slots = {kind: slot_RN.masked_fill(~query.media_R[:, None], -1) for kind, slot_RN in slots.items()}
        row_R1 = torch.arange(len(inside_RN), device=inside_RN.device)[:, None]
        extras = {name: values_RL[row_R1, inside_RN] for name, values_RL in query.extras.items()}
        x_RND = self.model.embedded(query.ids_RL.gather(1, inside_RN), self.features, slots, None, extras)
        attend_RK = batch.attend_BL[query.row_R] if batch.padded or ragged else None
        block_RK = _sent(kept.block_BL, query.row_R.device)[query.row_R]
        if attend_RK is not None and ragged:
            attend_RK, block_RK = F.pad(attend_RK, (0, 1), value=False), F.pad(block_RK, (0, 1))
        kept.memory.part(at_RN, ragged=ragged)
        seen_RK = block_RK if self._needs_mask(kept, fresh) else 0
        h_RND = self.model.backbone.hidden(
            x_RND,
            attend_RK,
            batch.position_ids_BL[query.row_R].gather(1, inside_RN),
            Visibility(self.model.attention, Coordinates(block=seen_RK), at_RN),
            kept.memory,
        )
        column_RN = torch.arange(at_RN.shape[1], device=at_RN.device).expand(at_RN.shape)
        return h_RND, at_RN.new_zeros(len(at_RN), length + 1).scatter(1, at_RN, column_RN)

    def _needs_mask(self, kept: Kept, fresh: Fresh) -> bool:
        """False where every position that is run sees everything: under full attention, and where only targets are run
        that are one block behind all context."""
        if not self.model.attention.one_target_block or isinstance(fresh.run_RL, Tensor):
            return kept.numbered
        return bool((fresh.run_RL & ~kept.target_BL[kept.slots % len(kept.batch)]).any())

    def _positions(self, query: Query, fresh: Fresh) -> tuple[Tensor, bool]:
        """Returns int64 (R, N), the positions that are run in part, L where a row has fewer; and whether one has."""
        count_R, run_RL, length = np.where(fresh.whole_R, 0, fresh.count_R), fresh.run_RL, query.ids_RL.shape[1]
        device, n = query.row_R.device, int(count_R.max())
        if self.model.backbone.compiled:
            n = min(length, max(2, 1 << (n - 1).bit_length()))  # so that shapes repeat
        if not isinstance(run_RL, Tensor):
            run_RL = _sent(run_RL, device)
        at_RN = (~run_RL).to(torch.uint8).argsort(dim=1, stable=True)[:, :n]
        if ragged := self.model.backbone.compiled or fresh.at_most or bool((count_R < n).any()):
            beyond_RN = torch.arange(n, device=device) >= _sent(count_R, device)[:, None]
            at_RN = at_RN.masked_fill(beyond_RN | ~run_RL.gather(1, at_RN), length)
        return at_RN, ragged


def _sent(values: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)


@lru_cache(maxsize=2)
def _loaded(read: Callable[[str], Any], folder: str, stamp: int, device: torch.device) -> Any:
    """Returns a saved model. stamp: when it was written, so that a folder that is written again is read again."""
    return read(folder).to(device)
