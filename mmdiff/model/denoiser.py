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
from mmdiff.canvas.kept import Kept, sent
from mmdiff.canvas.now import Now
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.query import Bools, Fresh, Prediction, Query, StepInfo
from mmdiff.errors import ConfigError, nearest
from mmdiff.protocols import Denoise

from .prefix import BehindClean, network_of
from .saving import saved_folder


@dataclass
class Denoiser:
    """The Denoise of an `MMDiff` for the canvases of `batch`, see `MMDiff.denoiser`. shift: None: the model's."""

    model: Any
    batch: Batch
    features: Mapping[str, Tensor]
    allowed_ids_N: Tensor | None
    kept: Kept | None = field(default=None, repr=False)
    now: Now | None = field(default=None, repr=False)
    shift: int | None = None
    of_network: dict[str, Any] = field(default_factory=dict, repr=False)  # what a network keeps between calls

    def __post_init__(self) -> None:
        self.shift = self.model.backbone.facts.shift if self.shift is None else self.shift

    @torch.no_grad()
    def __call__(self, query: Query) -> Prediction:
        model, batch = self.model, query.batch or self.batch
        if query.step is not None and model.attention.finished_is_context:
            self.now = Now.of(batch, query.step, self.now)
            batch = self.now.seen
        for name in query.extras:
            self.extra(name)
        # where logits are shifted, what predicts a block's first position may see context that stands behind it
        behind = model.attention.finished_is_context and bool(self.shift)
        network = network_of(model)
        keeps = model.backbone.caches and not batch.packed and not behind and network is None
        if query.fresh is not None and not keeps:
            what = "rows that are packed of several documents" if batch.packed else model.backbone.family
            what = what if network is None else type(network).__name__
            raise ConfigError(f"sampler.denoise: keys and values of {what} cannot be kept, expected no cache")
        if query.step is not None and keeps and (query.fresh is not None or model.attention.exact_prefix):
            h_PD = self._partly(query, query.step, batch)
        else:
            self.of_network["queried_RL"] = query.predict_RL
            kept = None if network is None else self.of_network
            h_RLD = model.hidden(query.ids_RL, batch, self.features, query.row_R, query.media_R, kept, query.extras)
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
        if not self.shift:
            return position_P
        left_P = (position_P - self.shift).clamp(min=0)
        return left_P.where(batch.attend_BL[query.row_R[row_P], left_P], position_P) if batch.padded else left_P

    def extra(self, name: str) -> Any:
        """Returns an extra of the model, or its backbone. Raises ConfigError where it has none of that name."""
        if name == "backbone":
            return self.model.backbone
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
        facts, batch = self.model.backbone.facts, self.batch
        shift = facts.shift if facts.causal_shift is None else facts.causal_shift
        begins_BL = batch.attend_BL & batch.target_BL & (batch.position_ids_BL < shift)
        if not shift or bool(begins_BL.any()):
            return BehindClean(self.model, self.batch, self.features)
        causal = copy(self.model)  # the same weights
        causal.attention = Causal()
        return Denoiser(causal, self.batch, self.features, None, shift=shift)

    def _partly(self, query: Query, step: StepInfo, batch: Batch) -> Tensor:
        """Returns hidden states (P, D) of what is queried, of rows that are run whole and others."""
        kept, new_R = self._kept(step, batch, query.row_R.device)
        fresh = query.fresh
        if fresh is None:
            fresh = kept.exact(step)
            kept.settle(step, fresh.run_RL)  # type: ignore[arg-type]
        else:
            fresh = replace(fresh, whole_R=fresh.whole_R | new_R)
        if self.shift:
            fresh = kept.with_left(fresh)
        row_P, position_P = query.at()[0], self._predicting(query, batch)
        if fresh.whole_R.all():
            return self._whole(query, kept, fresh.whole_R)[row_P, position_P]
        # a row that is run whole takes part here without positions, so that no slot need be copied out of the buffer
        h_RND, column_RL = self._part(query, kept, fresh)
        part_PD = h_RND[row_P, column_RL[row_P, position_P]]
        if not fresh.whole_R.any():
            return part_PD
        index_R = sent(np.maximum(np.cumsum(fresh.whole_R) - 1, 0), row_P.device)
        whole_PD = self._whole(query, kept, fresh.whole_R)[index_R[row_P], position_P]
        return torch.where(sent(fresh.whole_R, row_P.device)[row_P, None], whole_PD, part_PD)

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
        index_W = None if whole_R.all() else sent(np.flatnonzero(whole_R), query.row_R.device)
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
        block_RK = sent(kept.block_BL, query.row_R.device)[query.row_R]
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
            batch.target_BL[query.row_R],
            extras.get("backbone"),
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
            run_RL = sent(run_RL, device)
        at_RN = (~run_RL).to(torch.uint8).argsort(dim=1, stable=True)[:, :n]
        if ragged := self.model.backbone.compiled or fresh.at_most or bool((count_R < n).any()):
            beyond_RN = torch.arange(n, device=device) >= sent(count_R, device)[:, None]
            at_RN = at_RN.masked_fill(beyond_RN | ~run_RL.gather(1, at_RN), length)
        return at_RN, ragged


@lru_cache(maxsize=2)
def _loaded(read: Callable[[str], Any], folder: str, stamp: int, device: torch.device) -> Any:
    """Returns a saved model. stamp: when it was written, so that a folder that is written again is read again."""
    return read(folder).to(device)
