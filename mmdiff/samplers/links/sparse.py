"""SparseD: attention to a few blocks of positions, chosen per layer and head after some dense steps (arXiv 2509.24014).

Which blocks a head attends to hardly changes between steps, but the first steps decide much: they are dense.

Shape letters: S canvases whose choice is kept, R rows, L canvas length, H heads, D width of a head, N blocks, Q queries
of a chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import rank
from mmdiff.canvas.patterns import Full
from mmdiff.canvas.query import Bools, Ints, Prediction, Query, StepInfo
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, PositiveShare, Share
from mmdiff.protocols import Denoise


@part
@dataclass(frozen=True)
class SparseD:
    """Whole canvases are run at every step, but positions attend to some blocks only, all positions of a block alike.

    At the last dense step of a row the blocks are ranked by the attention that a block of queries pays them. Of the
    blocks of the context and of those of the targets the same share is kept, so that neither starves. Fewer products
    are computed by flex_attention alone, and only where its tiles of 128 positions are left out; eager and sdpa mask.
    It is meant for contexts of many thousand positions on a GPU.

    select: the share of blocks that is kept, of each group at least one; 1: as without. skip: the share of a row's
        steps that is dense, and one more. size: positions per block.
    Raises ConfigError for attention that is not full, rows of several documents, a flash attention, compiled layers,
    and with a cache.
    """

    select: PositiveShare = 0.3
    skip: Share = 0.2
    size: AtLeast1 = 128

    keeps: ClassVar[bool] = True  # no cache beside it: all positions are run
    nearest: ClassVar[bool] = True

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        model: Any = getattr(denoise, "model", None)
        if not hasattr(model, "backbone"):
            raise ConfigError("sampler.denoise: SparseD changes attention within a model, expected a model's Denoise")
        kind = model.backbone.model.config._attn_implementation
        for wrong, what in (
            (not isinstance(model.attention, Full), f"{model.attention}, expected full attention"),
            (batch.packed, "rows of several documents, expected one"),
            ("flash" in kind, f"{kind}, expected eager, sdpa or flex_attention"),
            (model.backbone.compiled, "compiled layers, expected sampler.compile=none"),
        ):
            if wrong:
                raise ConfigError(f"sampler.denoise: SparseD cannot choose blocks under {what}")
        choices: _Choices | None = None

        def sparse(query: Query) -> Prediction:
            nonlocal choices
            step, layout = query.step, query.batch or batch
            if step is None:
                return denoise(query)
            if choices is None or choices.batch is not layout:
                choices = _Choices(layout, self.size, self.select)
            dense_R = step.forward_R <= (step.given_R * self.skip).astype(np.int64)  # and one more, which chooses
            if not choices.begin(step, dense_R, query.row_R):
                return denoise(query)
            with _attending(model.backbone.model, choices):
                out = denoise(query)
            choices.known[choices.index[choices.new_R]] = True
            return out

        return sparse


@dataclass
class _Choices:
    """Which blocks each canvas, layer, head and block of queries attends to, and what is done about it at a step.

    Blocks are counted among a row's own context, and then, behind those of all contexts, among its own targets, so that
    neither padding nor other rows change them. keep: bool (S, H, N, N) per layer. known: whether a canvas has chosen.
    """

    batch: Batch
    size: int
    select: float
    slots: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    known: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    keep: list[Tensor] = field(default_factory=list)
    layer: int = 0  # that comes next in a forward

    def __post_init__(self) -> None:
        batch = self.batch
        context_BL, target_BL = batch.attend_BL & ~batch.target_BL, batch.attend_BL & batch.target_BL
        counts = (-(-mask_BL.sum(1) // self.size) for mask_BL in (context_BL, target_BL))
        self.count_B2 = torch.stack([*counts], 1)
        self.context, targets = (int(n) for n in self.count_B2.amax(0))
        self.n = self.context + targets
        block_BL = torch.where(target_BL, self.context + rank(target_BL) // self.size, rank(context_BL) // self.size)
        self.block_BL = block_BL.masked_fill(~batch.attend_BL, self.n)  # padding is a block that no other sees

    def begin(self, step: StepInfo, dense_R: Bools, row_R: Tensor) -> bool:
        """Take in the rows of a step. Returns whether one of them chooses, or attends to what it has chosen."""
        slots_R = step.copy_R * len(self.batch) + step.row_R
        if len(new := np.setdiff1d(slots_R, self.slots)):
            self.slots, self.known = np.append(self.slots, new), np.append(self.known, np.zeros(len(new), np.bool_))
            self.keep = [torch.cat([k, k.new_ones(len(new), *k.shape[1:])]) for k in self.keep]
        order = self.slots.argsort()
        self.index = order[np.searchsorted(self.slots, slots_R, sorter=order)]
        self.known[self.index[step.forward_R == 1]] = False
        known_R = self.known[self.index]
        self.new_R, self.layer = ~known_R & ~dense_R, 0
        self.some, self.row_R = bool(known_R.any()), row_R
        sent = (torch.from_numpy(x).to(row_R.device, non_blocking=True) for x in (self.index, ~known_R, self.new_R))
        self.index_R, self.dense_R, self.chooses_R = sent
        return bool((known_R | self.new_R).any())

    def choose(self, query_RHLD: Tensor, key_RHLD: Tensor, scaling: float) -> None:
        """Keep the choice of the rows that choose, in the layer that is run."""
        block_RL, attend_RL = self.block_BL[self.row_R], self.batch.attend_BL[self.row_R]
        member_RLN = F.one_hot(block_RL, self.n + 1)[..., : self.n].float()
        mass = query_RHLD.new_zeros((*query_RHLD.shape[:2], self.n, self.n), dtype=torch.float32)
        for start in range(0, query_RHLD.shape[2], self.size):  # what all queries pay all keys is too much to hold
            part = slice(start, start + self.size)
            score_RHQL = (query_RHLD[:, :, part] @ key_RHLD.transpose(2, 3)).float() * scaling
            paid_RHQL = score_RHQL.masked_fill(~attend_RL[:, None, None], -torch.inf).softmax(-1)
            paid_RHQN = paid_RHQL @ member_RLN[:, None]
            mass += member_RLN[:, None, part].transpose(2, 3) @ paid_RHQN
        found_RHNN = self._best(mass)
        if self.layer == len(self.keep):
            self.keep.append(found_RHNN.new_ones(len(self.slots), *found_RHNN.shape[1:]))
        old_RHNN = self.keep[self.layer][self.index_R]
        new_RHNN = torch.where(self.chooses_R[:, None, None, None], found_RHNN, old_RHNN)
        self.keep[self.layer] = self.keep[self.layer].index_copy(0, self.index_R, new_RHNN)

    def _best(self, mass_RHNN: Tensor) -> Tensor:
        """Returns bool, the blocks of keys that are paid most, of context and targets the same share of a row's own."""
        count_R2 = self.count_B2[self.row_R]
        kept = []
        for group, mass in enumerate(mass_RHNN.split([self.context, self.n - self.context], -1)):
            count_R111 = count_R2[:, group, None, None, None]
            there_N = torch.arange(mass.shape[-1], device=mass.device) < count_R111
            rank_RHNN = mass.masked_fill(~there_N, -1.0).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            kept.append(rank_RHNN < (count_R111 * self.select - 1e-9).ceil())
        return torch.cat(kept, -1)

    def mask(self, like: Tensor, kind: str) -> Any:
        """Returns the mask of the layer in the form that the attention takes; dense rows see all blocks."""
        keep_RHNN = self.keep[self.layer][self.index_R] | self.dense_R[:, None, None, None]
        keep_RHNN = F.pad(F.pad(keep_RHNN, (0, 1), value=False), (0, 0, 0, 1), value=True)
        (rows, heads, _, n), block_RL = keep_RHNN.shape, self.block_BL[self.row_R]
        length = block_RL.shape[1]
        if "flex" in kind:
            from torch.nn.attention.flex_attention import create_block_mask

            def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return keep_RHNN[row, head, block_RL[row, query], block_RL[row, key]]

            return create_block_mask(sees, rows, heads, length, length, device=str(like.device), _compile=like.is_cuda)
        by_query = keep_RHNN.gather(2, block_RL[:, None, :, None].expand(rows, heads, length, n))
        seen_RHLL = by_query.gather(3, block_RL[:, None, None].expand(rows, heads, length, length))
        if "eager" in kind:
            return torch.where(seen_RHLL, like.new_zeros(()), torch.finfo(like.dtype).min)
        return seen_RHLL


@contextmanager
def _attending(model: Any, choices: _Choices) -> Iterator[None]:
    """The layers of a transformers model choose, and attend to what they have chosen."""
    from transformers import AttentionInterface, AttentionMaskInterface

    config = model.config
    before = config._attn_implementation
    plain = getattr(sys.modules[type(model).__module__], "eager_attention_forward", None)
    attend = AttentionInterface().get_interface(before, plain)  # type: ignore[arg-type]
    name = f"{before}_by_blocks"

    def by_blocks(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        mask = choices.mask(query, before) if choices.some else attention_mask
        if choices.new_R.any():
            scaling = kwargs.get("scaling")
            keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            choices.choose(query, keys, query.shape[3] ** -0.5 if scaling is None else scaling)
        choices.layer += 1
        return attend(module, query, key, value, mask, *args, **kwargs)

    AttentionInterface.register(name, by_blocks)
    AttentionMaskInterface.register(name, AttentionMaskInterface()[before])
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
