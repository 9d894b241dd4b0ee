"""An encoder and a decoder of blocks (E2D2, arXiv 2510.22852): much work once per finished block, little per step.

The backbone encodes clean ids, block by block; a few layers denoise a block, whose positions see each other and the
encoded states of earlier blocks, as further keys of the same attention. `mmdiff.objectives.blocks.BlockDenoise` trains
it as any model of blocks; the sampler generates with it as with any other, and encodes again when a block is finished.

Shape letters: B samples, R rows (copies of them), L canvas length, M targets of a row, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import Documents, block_numbers
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.model.prefix import Positions, scatter_to_canvas
from mmdiff.parts.ranges import AtLeast1

from .layers import Layer, placed, without_shift


@dataclass
class Encoded:
    """What is encoded of R canvases, and stays so until one of these ids changes.

    done_RL: bool, the positions. row_R: the rows of the batch. cache: keys and values of the encoder; None: not kept.
    states_RLD: its last states, zero elsewhere. known: keys and values of the canvas for each layer of the decoder.
    """

    done_RL: Tensor
    ids_RL: Tensor
    row_R: Tensor
    cache: Any = None
    states_RLD: Tensor | None = None
    known: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def holds(self, ids_RL: Tensor, before_RL: Tensor, row_R: Tensor) -> bool:
        """Whether all that is encoded still stands there, and is asked for."""
        if not torch.equal(self.row_R, row_R):
            return False
        return not bool((self.done_RL & ((ids_RL != self.ids_RL) | ~before_RL)).any())

    def states(self) -> Tensor:
        assert self.states_RLD is not None
        return self.states_RLD


@saveable
class BlockDecoder(nn.Module):
    """The decoder: so many layers, each of which sees the encoder's last states (the paper's variant of that name).

    layers: of the decoder; the backbone's are the encoder's. heads, ffn: attention heads, and the inner width as a
    multiple of D. width (D) comes from the model at build time.
    Raises ConfigError for a width that the heads do not divide, a model with shifted logits, and one whose attention
    has no blocks (`mmdiff.canvas.patterns.BlockCausal`).
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width: AtLeast1, layers: AtLeast1 = 2, heads: AtLeast1 = 4, ffn: AtLeast1 = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, ffn) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def hidden(
        self,
        model: Any,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        row_R: Tensor,
        media_R: Tensor | None = None,
        memory: dict[str, Any] | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns states (R, L, D): every block of targets given earlier blocks as they stand.

        memory: of one generation. `queried_RL`, bool, says which positions are asked for: their blocks are decoded, and
            what was encoded before them is used again while it has not changed.
        """
        block_RL, asked_RL = _blocks(model, batch)[row_R], batch.target_BL[row_R]
        if memory is not None and "queried_RL" in memory:
            asked_U = torch.zeros(int(block_RL.max()) + 1, dtype=torch.bool, device=block_RL.device)
            asked_U[block_RL[memory["queried_RL"]]] = True
            asked_RL = asked_RL & asked_U[block_RL]
        before_RL = _before(batch.attend_BL[row_R], block_RL, asked_RL)
        if memory is None or not model.backbone.caches or batch.packed:
            encoded = self._encoded(model, ids_RL, before_RL, block_RL, batch, features, row_R, media_R)
        else:
            known: Encoded | None = memory.get("encoded")
            if known is None or not known.holds(ids_RL, before_RL, row_R):
                cache = model.backbone.memory(*ids_RL.shape)
                known = Encoded(torch.zeros_like(before_RL), ids_RL, row_R, cache)
            encoded = known
            new_RL = before_RL & ~encoded.done_RL
            if bool(new_RL.any()) or encoded.states_RLD is None:
                encoded = self._encoded(model, ids_RL, new_RL, block_RL, batch, features, row_R, media_R, encoded)
                memory["encoded"] = encoded
        return self._decoded(model, ids_RL, encoded, asked_RL, batch, features, block_RL, row_R, media_R, extras)

    def hidden_copies(
        self,
        model: Any,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        copies: int,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns states (R, L, D) of noised copies behind clean earlier blocks, which are encoded once per sample."""
        row_B, block_BL = torch.arange(len(batch), device=ids_RL.device), _blocks(model, batch)
        before_BL = _before(batch.attend_BL, block_BL, batch.target_BL)
        clean = self._encoded(model, batch.ids_BL, before_BL, block_BL, batch, features, row_B, None)
        row_R = row_B.repeat(copies)
        many = [(k.repeat(copies, 1, 1, 1), v.repeat(copies, 1, 1, 1)) for k, v in clean.known]
        encoded = replace(clean, states_RLD=clean.states().repeat(copies, 1, 1), known=many)
        asked_RL = batch.target_BL[row_R]
        return self._decoded(model, ids_RL, encoded, asked_RL, batch, features, block_BL[row_R], row_R, None, extras)

    def _encoded(
        self,
        model: Any,
        ids_RL: Tensor,
        new_RL: Tensor,
        block_RL: Tensor,
        batch: Batch,
        features: Any,
        row_R: Tensor,
        media_R: Tensor | None,
        before: Encoded | None = None,
    ) -> Encoded:
        """Returns the encoder's states of some positions. before: what is encoded already, with keys and values."""
        at = Positions.of(new_RL)
        over_RLD = self.norm.weight.new_zeros(*ids_RL.shape, model.backbone.dim)
        if before is not None and before.states_RLD is not None:
            over_RLD = before.states_RLD
        if at.at_BN.shape[1]:
            slots = {kind: at.take(slot_RL) for kind, slot_RL in _slots(batch, row_R, media_R).items()}
            real_RN = at.real_BN | ~at.real_BN.any(1, keepdim=True)  # a row without any sees something
            x_RND, where_RN = model.embedded(at.take(ids_RL), features, slots, real_RN), batch.position_ids_BL[row_R]
            if before is None:
                document_RN = at.take(batch.segment_BL[row_R])
                seen = Visibility(model.attention & Documents(), Coordinates(document_RN, at.take(block_RL)))
                h_RND = model.backbone.hidden(x_RND, real_RN, at.take(where_RN), seen)
            else:  # the column behind the canvas takes what fills up rows of fewer positions
                before.cache.part(at.at_BN, ragged=True)
                attend_RK, block_RK = F.pad(before.done_RL | new_RL, (0, 1)), F.pad(block_RL, (0, 1), value=-1)
                seen = Visibility(model.attention, Coordinates(block=block_RK), at.at_BN)
                h_RND = model.backbone.hidden(x_RND, attend_RK, at.take(where_RN), seen, before.cache)
            over_RLD = scatter_to_canvas(at.at_BN, h_RND.to(over_RLD.dtype), over_RLD)
        clean_RLD = placed(over_RLD, batch.position_ids_BL[row_R])
        known = [layer.keys(clean_RLD) for layer in self.layers]  # type: ignore[operator]
        done_RL, cache = (new_RL, None) if before is None else (new_RL | before.done_RL, before.cache)
        return Encoded(done_RL, ids_RL, row_R, cache, over_RLD, known)

    def _decoded(
        self,
        model: Any,
        ids_RL: Tensor,
        encoded: Encoded,
        asked_RL: Tensor,
        batch: Batch,
        features: Any,
        block_RL: Tensor,
        row_R: Tensor,
        media_R: Tensor | None,
        extras: Any,
    ) -> Tensor:
        without_shift(model, "BlockDecoder")
        attend_RL, document_RL = batch.attend_BL[row_R], batch.segment_BL[row_R]
        position_RL, at = batch.position_ids_BL[row_R], Positions.of(attend_RL & asked_RL)
        states_RLD = encoded.states()
        slots = {kind: at.take(slot_RL) for kind, slot_RL in _slots(batch, row_R, media_R).items()}
        beside = {name: at.take(values_RL) for name, values_RL in (extras or {}).items()}
        embedded_RMD = model.embedded(at.take(ids_RL), features, slots, None, beside)
        x_RMD = placed(embedded_RMD.to(states_RLD.dtype), at.take(position_RL))
        block_RM, document_RM = at.take(block_RL), at.take(document_RL)
        same_RMM = (block_RM[..., None] == block_RM[:, None]) & at.real_BN[:, None]
        before_RML = (block_RL[:, None] < block_RM[..., None]) & attend_RL[:, None]
        before_RML = before_RML & (document_RL[:, None] == document_RM[..., None])
        sees = torch.cat([same_RMM, before_RML], 2)
        for layer, known in zip(self.layers, encoded.known, strict=True):
            x_RMD = layer(x_RMD, x_RMD, sees, known)
        return scatter_to_canvas(at.at_BN, self.norm(x_RMD), states_RLD).to(embedded_RMD.dtype)


def _before(attend_RL: Tensor, block_RL: Tensor, asked_RL: Tensor) -> Tensor:
    """Returns bool (R, L), the positions of blocks before the last that is asked for."""
    last_R1 = block_RL.masked_fill(~asked_RL, -1).amax(1, keepdim=True)
    return attend_RL & (block_RL < last_R1)


def _blocks(model: Any, batch: Batch) -> Tensor:
    if not model.attention.exact_prefix or model.attention.one_target_block:
        raise ConfigError(f"model.attention: {model.attention}, expected blocks, mmdiff.canvas.patterns.BlockCausal")
    return block_numbers(model.attention, batch)


def _slots(batch: Batch, row_R: Tensor, media_R: Tensor | None) -> dict[str, Tensor]:
    slots = {kind: slot_BL[row_R] for kind, slot_BL in batch.slots.items()}
    return slots if media_R is None else {k: s.masked_fill(~media_R[:, None], -1) for k, s in slots.items()}
