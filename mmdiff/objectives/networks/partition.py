"""Partition generative modelling (PGM, arXiv 2505.18883): two groups of tokens predict each other, without masks.

The backbone encodes the tokens that are there, each group by itself. What stands at the other positions is decoded
from nothing but their positions, by cross-attention to what was encoded: an output never depends on its own token or
on its group. In training every token of both groups is predicted in one pass; a generation encodes what is committed
and decodes what is masked, so that its early steps are short.

Context, all that is no target, sees itself alone and is seen by both groups.

Shape letters: B samples, R rows, L canvas length, N encoded positions, M decoded ones, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import Documents, PrefixCausal
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.saveable import saveable
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.errors import ConfigError
from mmdiff.model.prefix import Positions, scatter_to_canvas
from mmdiff.objectives.denoise import Denoise, scored
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Model

from .layers import Layer, placed, without_shift

GROUPS = PrefixCausal() & Documents()
"""Who sees whom, with a group in the place of a stream: what is of one group, and the context before it."""


@saveable
class Partition(nn.Module):
    """The decoder: so many layers of cross-attention, the first from positions alone (the paper's GroupSwap).

    layers: of the decoder; the backbone's are the encoder's. heads, ffn: attention heads, and the inner width as a
    multiple of D. width (D) comes from the model at build time.
    Raises ConfigError for a width that the heads do not divide, and for a model with shifted logits.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width: AtLeast1, layers: AtLeast1 = 2, heads: AtLeast1 = 4, ffn: AtLeast1 = 4) -> None:
        super().__init__()
        self.begin = nn.Parameter(torch.randn(width) / width**0.5)
        self.position = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
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
        """Returns states (R, L, D): of masked positions those that predict them. Only the others are encoded.

        memory: of one generation. `queried_RL`, bool, says which positions are asked for: only these are decoded.
        """
        target_RL, attend_RL = batch.target_BL[row_R], batch.attend_BL[row_R]
        masked_RL = attend_RL & (ids_RL == model.vocab.noise_id)
        group_RL = (target_RL & ~masked_RL).long()
        encoded = Positions.of(attend_RL & ~masked_RL)
        asked_RL = masked_RL if memory is None else masked_RL & memory["queried_RL"]
        decoded = Positions.of(asked_RL)
        return self._run(model, ids_RL, batch, features, row_R, media_R, extras, group_RL, encoded, decoded)

    def both(self, model: Any, noised: NoisedBatch) -> Tensor:
        """Returns states (R, L, D) of every target, given context and the targets of the other group.

        The groups are the masked targets of a copy and the others; the ids are clean.
        """
        batch, row_R = noised.batch, noised.row_R
        group_RL = torch.where(batch.target_BL[row_R], 1 + noised.masked_RL.long(), 0)
        attend_RL = batch.attend_BL[row_R]
        encoded, decoded = Positions.of(attend_RL), Positions.of(attend_RL & (group_RL > 0))
        features = model.encode(batch.media)
        return self._run(model, batch.ids_BL[row_R], batch, features, row_R, None, None, group_RL, encoded, decoded)

    def _run(
        self,
        model: Any,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        row_R: Tensor,
        media_R: Tensor | None,
        extras: Mapping[str, Tensor] | None,
        group_RL: Tensor,
        encoded: Positions,
        decoded: Positions,
    ) -> Tensor:
        """group_RL: 0: context, 1, 2: targets of a group."""
        without_shift(model, "Partition")
        position_RL, length = batch.position_ids_BL[row_R], ids_RL.shape[1]
        document_RL = batch.segment_BL[row_R]
        slots = {kind: encoded.take(slot_BL[row_R]) for kind, slot_BL in batch.slots.items()}
        if media_R is not None:
            slots = {kind: slot_RN.masked_fill(~media_R[:, None], -1) for kind, slot_RN in slots.items()}
        beside = {name: encoded.take(values_RL) for name, values_RL in (extras or {}).items()}
        group_RN, where_RN, document_RN = (encoded.take(x) for x in (group_RL, position_RL, document_RL))
        h_RND = ids_RL.new_zeros(len(ids_RL), 0, model.backbone.dim, dtype=self.begin.dtype)
        if encoded.at_BN.shape[1]:
            seen_RN = encoded.real_BN | ~encoded.real_BN.any(1, keepdim=True)  # a row that is all masks sees something
            x_RND = model.embedded(encoded.take(ids_RL), features, slots, seen_RN, beside)
            at = Coordinates(document_RN, (group_RN > 0).long(), group_RN)
            h_RND = model.backbone.hidden(x_RND, seen_RN, where_RN, Visibility(GROUPS, at)).to(self.begin.dtype)
        own_RM, document_RM = decoded.take(group_RL), decoded.take(document_RL)
        sees_RMN = encoded.real_BN[:, None] & (document_RM[..., None] == document_RN[:, None])
        sees_RMN = sees_RMN & ((group_RN[:, None] == 0) | (group_RN[:, None] != own_RM[..., None]))
        states_RND = placed(h_RND, where_RN)
        y_RMD = self.begin.expand(*own_RM.shape, -1)
        y_RMD = y_RMD + self.position(placed(torch.zeros_like(y_RMD), decoded.take(position_RL)))
        for layer in self.layers:
            y_RMD = layer(y_RMD, states_RND, sees_RMN)
        y_RMD = self.norm(y_RMD)
        over_RLD = scatter_to_canvas(encoded.at_BN, h_RND, h_RND.new_zeros(len(ids_RL), length, h_RND.shape[2]))
        dtype = model.backbone.embed(ids_RL[:1, :1]).dtype
        return scatter_to_canvas(decoded.at_BN, y_RMD, over_RLD).to(dtype)


@part
@dataclass(frozen=True)
class PartitionDenoise:
    """Both directions of a partition in one pass: the bound per target token, every token of which is predicted.

    A token of the masked group weighs as in `Denoise`, one of the other group as if that were masked (weight * rate /
    (1 - rate)), both halved. Of levels that may mask nothing (`Bernoulli`, `ExactCount` with `none`) it is unbiased.

    denoise: how a partition is drawn. extra: the name of the model's `Partition`.
    Raises ConfigError for a model without it, and for scopes and changes, of which a partition has none.
    """

    denoise: Denoise = field(default_factory=lambda: Denoise(levels=Bernoulli(stratified=True)))
    extra: str = "partition"

    def __post_init__(self) -> None:
        if self.denoise.scopes or self.denoise.changes or self.denoise.corrupt or self.denoise.emphasis:
            raise ConfigError("objective.denoise: scopes, changes, corrupt, emphasis: a partition has none, leave them")
        if self.denoise.denominator != "tokens":
            raise ConfigError(f"objective.denoise.denominator: {self.denoise.denominator}, expected tokens")

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        out = self.denoise.plan(batch, key, vocab)
        seen_RL = (1 - out.rate_RL.double()).clamp(min=1e-12)
        other_RL = (out.weight_RL.double() * out.rate_RL / seen_RL).float()
        out.weight_RL = torch.where(out.masked_RL, out.weight_RL, other_RL) / 2
        return out

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        network = model.extras[self.extra] if self.extra in model.extras else None
        if not isinstance(network, Partition):
            raise ConfigError(f"model.extras.{self.extra}: the model has no Partition of this name")
        both = replace(plan, masked_RL=plan.scored_RL)
        return {"denoise": scored(model, both, network.both(model, plan), restrict=self.denoise.restrict)}
