"""Hidden states: of the backbone, of a network in its place, and of noised copies of a sample behind what is clean: its
context, or the clean blocks before a noised one, is run once.

Where the context, all positions that are not targets, sees itself only (`Pattern.one_target_block`), its states are the
same for every noised copy: one forward per sample and step of training, without approximation (as in dVLA and UD-VLA).
A generation keeps its keys and values too (`mmdiff.model.denoiser`).

Shape letters: B samples, L canvas length, R rows (copies of samples), n copies, C context positions (or
clean ones), T target positions, N positions of any kind, U blocks, P queried positions, D backbone width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Coordinates, Pattern, Visibility
from mmdiff.canvas.patterns import Causal, CausalContext, Documents, block_numbers, blocks_of, visibility
from mmdiff.canvas.query import Prediction, Query
from mmdiff.errors import ConfigError
from mmdiff.protocols import Model


@dataclass(frozen=True)
class Positions:
    """Some positions of each row, moved together to the left and padded to the longest row.

    at_BN: int64, where on the canvas they stand; L, the canvas length, for padding. real_BN: bool, False on padding.
    """

    at_BN: Tensor
    real_BN: Tensor

    @classmethod
    def of(cls, mask_BL: Tensor) -> Positions:
        count_B = mask_BL.sum(1)
        at_BN = (~mask_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(count_B.max())]
        real_BN = torch.arange(at_BN.shape[1], device=at_BN.device) < count_B[:, None]
        return cls(at_BN.masked_fill(~real_BN, mask_BL.shape[1]), real_BN)

    def take(self, values_BL: Tensor) -> Tensor:
        """Returns the values (B, N, ...) at these positions; padding takes those of the last position of the canvas."""
        at_BN = self.at_BN.clamp(max=values_BL.shape[1] - 1)
        at = at_BN.view(*at_BN.shape, *[1] * (values_BL.ndim - 2))
        return values_BL.gather(1, at.expand(*at_BN.shape, *values_BL.shape[2:]))


@dataclass(frozen=True)
class Layout:
    """What stands in the row of a sample whose clean ids are run once for all copies. Known on the host, it asks no
    device how much there is.

    block_BL: `block_numbers` of the batch. clean: positions that some block of targets sees. noised: those that copies
        have.
    """

    block_BL: Tensor
    clean: Positions
    noised: Positions

    @classmethod
    def of(cls, attention: Pattern, batch: Batch) -> Layout:
        block_BL = block_numbers(attention, batch)
        has_target_U = torch.bincount(block_BL.flatten(), batch.target_BL.flatten().float()) > 0
        last_B1 = block_BL.masked_fill(~batch.target_BL, -1).amax(1, keepdim=True)
        clean = Positions.of(batch.attend_BL & (block_BL < last_B1))  # nothing sees the ids of the last block
        return cls(block_BL, clean, Positions.of(batch.attend_BL & has_target_U[block_BL]))


def scatter_to_canvas(at_BN: Tensor, h_BND: Tensor, over_BLD: Tensor) -> Tensor:
    """Returns (B, L, D): hidden states at their positions of the canvas, those of `over_BLD` elsewhere."""
    longer_BLD = F.pad(over_BLD, (0, 0, 0, 1))  # the position added at the end takes padding
    return longer_BLD.scatter(1, at_BN[..., None].expand(-1, -1, h_BND.shape[2]), h_BND)[:, :-1]


def network_of(model: Model) -> Any:
    """Returns the extra that has `hidden`, None where none has. Raises ConfigError for two of them."""
    found = [name for name, extra in model.extras.items() if hasattr(extra, "hidden")]
    if len(found) > 1:
        raise ConfigError(f"model.extras: {found[0]} and {found[1]} are networks, expected one of them")
    return model.extras[found[0]] if found else None


def backbone_states(
    model: Model,
    ids_RL: Tensor,
    batch: Batch,
    features: Mapping[str, Tensor],
    row_R: Tensor,
    media_R: Tensor | None = None,
    memory: Any = None,
    extras: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Returns last hidden states (R, L, D) of one run of the backbone: `MMDiff.hidden` of a model without a network."""
    attend_RL = batch.attend_BL[row_R] if batch.padded else None
    slots = {kind: slot_BL[row_R] for kind, slot_BL in batch.slots.items()}
    if media_R is not None:
        slots = {kind: slot_RL.masked_fill(~media_R[:, None], -1) for kind, slot_RL in slots.items()}
    out: Tensor = model.backbone.hidden(
        model.embedded(ids_RL, features, slots, attend_RL, extras),
        attend_RL,
        batch.position_ids_BL[row_R],
        visibility(model.attention, batch, row_R),
        memory,
        batch.target_BL[row_R],
        (extras or {}).get("backbone"),
    )
    return out


def hidden_copies(
    model: Model,
    ids_RL: Tensor,
    batch: Batch,
    features: Mapping[str, Tensor],
    copies: int,
    extras: Mapping[str, Tensor],
    layout: Layout | None = None,
) -> Tensor:
    """Returns hidden states (R, L, D) of R = copies * B rows, copy after copy; clean ids are run once per sample.

    The backbone sees one row per sample, `clean, copy 1, copy 2, ...`. A copy is a stream of those blocks that hold
    targets; each sees itself and the clean ids of earlier blocks. Where all targets are one block that is what
    `MMDiff.hidden` gives; where they are several it is block diffusion (BD3LM, arXiv 2503.09573).
    Raises ConfigError for a family of encoders, which embed a position by what else is in its row, and for a network
    without blocks.
    """
    if (network := network_of(model)) is not None:
        if not hasattr(network, "hidden_copies"):
            raise ConfigError(f"model.extras: {type(network).__name__} has no blocks, expected attention without them")
        out: Tensor = network.hidden_copies(model, ids_RL, batch, features, copies, extras)
        return out
    if not model.backbone.caches:
        raise ConfigError(f"backbone: {model.backbone.family} runs all positions of a canvas; copies can share none")
    layout, length = layout or Layout.of(model.attention, batch), batch.ids_BL.shape[1]
    block_BL, clean, noised = layout.block_BL, layout.clean, layout.noised
    whole = visibility(model.attention, batch, torch.arange(len(batch), device=ids_RL.device))

    def take(values_BL: Tensor | int) -> Any:
        if isinstance(values_BL, int):
            return values_BL
        return torch.cat([clean.take(values_BL), noised.take(values_BL).repeat(1, copies)], 1)

    sizes = [clean.at_BN.shape[1], *[noised.at_BN.shape[1]] * copies]
    stream_N = torch.cat([ids_RL.new_full((n,), stream) for stream, n in enumerate(sizes)])
    block_BN = take(whole.key.block)
    if model.attention.finished_is_context:  # a clean block is attended to as context is
        none_BL = torch.zeros_like(batch.target_BL)
        own_BL = blocks_of(CausalContext(media=model.attention.media), replace(batch, target_BL=none_BL))
        block_BN = torch.cat([clean.take(torch.as_tensor(own_BL)), block_BN[:, sizes[0] :]], 1)
    key = Coordinates(take(whole.key.document), block_BN, stream_N.expand(len(batch), -1))
    real_BN = torch.cat([clean.real_BN, noised.real_BN.repeat(1, copies)], 1)

    def take_copies(values_RL: Tensor) -> Tensor:
        return torch.cat([noised.take(values_BL) for values_BL in values_RL.chunk(copies)], 1)

    slots = {kind: slot_BN.repeat(1, copies) for kind, slot_BN in _slots(noised, batch).items()}
    x_BCD = model.embedded(clean.take(batch.ids_BL), features, _slots(clean, batch), None)
    beside = {name: take_copies(values_RL) for name, values_RL in extras.items()}
    x_BND = torch.cat([x_BCD, model.embedded(take_copies(ids_RL), features, slots, None, beside)], 1)
    seen = Visibility(whole.pattern, key)
    h_BCD, *h_nBND = model.backbone.hidden(x_BND, real_BN, take(batch.position_ids_BL), seen).split(sizes, 1)
    # a state that predicts the first position of the next block, of shifted logits, is that of a finished block
    ends_BL = block_BL != block_BL.roll(-model.backbone.facts.shift, 1)
    ends_BL[:, 0] &= ~batch.target_BL[:, 0]  # nothing stands before it, so its own state predicts it: not of clean ids
    at_BN = noised.at_BN.masked_fill(noised.take(ends_BL), length)
    clean_BLD = scatter_to_canvas(clean.at_BN, h_BCD, h_BCD.new_zeros(len(batch), length, h_BCD.shape[2]))
    return torch.cat([scatter_to_canvas(at_BN, h_BND, clean_BLD) for h_BND in h_nBND])


@dataclass(frozen=True)
class BehindClean:
    """A Denoise of p(id | the clean ids before it), for all queried positions of finished canvases in one forward.

    A row is run as `clean, noised`, both causal: a queried position holds the mask id in the second stream, where it
    sees itself and the clean ids before it. Of shifted logits, the state that predicts is the clean one to the left.
    """

    model: Any
    batch: Batch
    features: Mapping[str, Tensor]

    @torch.no_grad()
    def __call__(self, query: Query) -> Prediction:
        model, batch, row_R = self.model, query.batch or self.batch, query.row_R
        document = batch.segment_BL if batch.packed else 0
        block_BL = Causal().blocks(batch.target_BL, batch.attend_BL, document)
        length = batch.ids_BL.shape[1]

        def twice(values_BL: Tensor | int) -> Any:
            return values_BL if isinstance(values_BL, int) else values_BL[row_R].repeat(1, 2)

        ids_RN = torch.cat([query.ids_RL, query.ids_RL.masked_fill(query.predict_RL, model.vocab.noise_id)], 1)
        attend_RN = twice(batch.attend_BL) if batch.padded else None
        slots = {kind: twice(slot_BL) for kind, slot_BL in batch.slots.items()}
        if query.media_R is not None:
            slots = {kind: slot_RN.masked_fill(~query.media_R[:, None], -1) for kind, slot_RN in slots.items()}
        stream_N = torch.arange(2, device=row_R.device).repeat_interleave(length)
        key = Coordinates(twice(document), twice(block_BL), stream_N.expand(len(row_R), -1))
        h_RND = model.backbone.hidden(
            model.embedded(ids_RN, self.features, slots, attend_RN),
            attend_RN,
            twice(batch.position_ids_BL),
            Visibility(Causal() & Documents(), key),
        )
        row_P, position_P = query.at()
        shift = model.backbone.facts.shift
        first_P = batch.position_ids_BL[row_R[row_P], position_P] < shift  # nothing stands before it
        clean_P = ~first_P if shift else torch.zeros_like(first_P)
        at_P = torch.where(clean_P, position_P - shift, position_P + length)
        h_PD = h_RND[row_P, at_P]
        return Prediction(model.backbone.head(h_PD).float(), h_PD if query.hidden else None)


def _slots(positions: Positions, batch: Batch) -> dict[str, Tensor]:
    return {kind: positions.take(slot_BL).masked_fill(~positions.real_BN, -1) for kind, slot_BL in batch.slots.items()}
