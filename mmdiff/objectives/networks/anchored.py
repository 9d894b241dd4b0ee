"""Anchored diffusion (ADLM, arXiv 2505.18456): a first network predicts tokens, above all important ones; a second one
denoises given what the first expects there.

The backbone is the anchor network: what it predicts at masked positions becomes expected embeddings, which further
layers over the whole canvas read. Their output is added to the backbone's states and begins at zero: an untrained
model is the backbone. The loss is that of masked diffusion plus `gamma` times the anchor network's cross-entropy of
rare tokens. How the paper chooses these was not seen: here they are ids that occur seldom in a table of counts.

Shape letters: R rows, L canvas length, P masked positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import visibility
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.saveable import saveable
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.token_rates import counts_of
from mmdiff.errors import ConfigError
from mmdiff.model.prefix import backbone_states
from mmdiff.objectives.denoise import Denoise, scored
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term, chunked
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, NotNegative
from mmdiff.protocols import Model

from .layers import Layer, placed, without_shift


@saveable
class Anchors(nn.Module):
    """The second network. layers: so many; the backbone's are the anchor network's. heads, ffn: attention heads, and
    the inner width as a multiple of D. width (D) comes from the model at build time.

    Raises ConfigError for a width that the heads do not divide, and for a model with shifted logits.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width: AtLeast1, layers: AtLeast1 = 2, heads: AtLeast1 = 4, ffn: AtLeast1 = 4) -> None:
        super().__init__()
        self.expected = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.layers = nn.ModuleList(Layer(width, heads, ffn) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.out[1].bias)  # type: ignore[arg-type]

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
        """Returns states (R, L, D) of the second network."""
        own_RLD = backbone_states(model, ids_RL, batch, features, row_R, media_R, extras=extras)
        return self.above(model, own_RLD, ids_RL, batch, row_R)

    def above(self, model: Any, own_RLD: Tensor, ids_RL: Tensor, batch: Batch, row_R: Tensor) -> Tensor:
        """Returns the second network's states, of the anchor network's."""
        without_shift(model, "Anchors")
        at = (batch.attend_BL[row_R] & (ids_RL == model.vocab.noise_id)).nonzero(as_tuple=True)
        table_VD = model.backbone.model.get_input_embeddings().weight
        dtype = next(self.parameters()).dtype

        def expected(h_PD: Tensor) -> Tensor:
            out_PD: Tensor = model.backbone.head(h_PD).float().softmax(-1).to(table_VD.dtype) @ table_VD
            return out_PD

        own_PD, x_RLD = own_RLD[at], own_RLD.to(dtype)
        if len(own_PD):
            expected_PD = chunked(expected, model.logit_chunk, own_PD).to(dtype)
            x_RLD = x_RLD.index_put(at, own_PD.to(dtype) + self.expected(expected_PD))
        seen = visibility(model.attention, batch, row_R)
        attend_RL = batch.attend_BL[row_R]
        pairs = seen.pattern.sees(_each(seen.key, 2), _each(seen.key, 1)) if seen is not None else True
        own = torch.eye(ids_RL.shape[1], dtype=torch.bool, device=ids_RL.device)
        sees_RLL = (attend_RL[:, None] & pairs) | own
        x_RLD = placed(x_RLD, batch.position_ids_BL[row_R])
        for layer in self.layers:
            x_RLD = layer(x_RLD, x_RLD, sees_RLL)
        moved_RLD: Tensor = own_RLD + self.out(x_RLD).to(own_RLD.dtype)
        return moved_RLD


def _each(key: Any, axis: int) -> Any:
    own = {name: v if isinstance(v, int) else v.unsqueeze(axis) for name, v in vars(key).items()}
    return replace(key, **own)


@part
@dataclass(frozen=True)
class AnchoredDenoise:
    """`denoise`, the loss of both networks together, and `anchor`, that of the anchor network at rare tokens.

    counts: a safetensors file of one tensor, how often each id occurs (`mmdiff.diffusion.token_rates.write_counts`);
        None: every id is an anchor.
    rare: an id is an anchor if it occurs at most so often; the released setting is 5. gamma: the weight of `anchor`;
    the released one is 3e-3. denoise: what is masked, and how it weighs. extra: the name of the model's `Anchors`.
    Raises ConfigError for a model without it, and for counts that are not there.
    """

    counts: str | None
    rare: NotNegative = 5
    gamma: NotNegative = 3e-3
    denoise: Denoise = field(default_factory=Denoise)
    extra: str = "anchors"

    @classmethod
    def toy(cls, counts: str | None, **arguments: Any) -> AnchoredDenoise:
        """The same with every id an anchor, for a toy has ids of its own."""
        return cls(None, **arguments)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> NoisedBatch:
        out = self.denoise.plan(batch, key, vocab)
        count_V = np.zeros(vocab.size) if self.counts is None else counts_of(self.counts, vocab.size)
        anchor_BL = torch.from_numpy(count_V <= self.rare)[out.batch.ids_BL]
        out.drawn["anchor"] = out.masked_RL & anchor_BL[out.row_R]
        out.counts["anchor"] = out.counts["denoise"]
        return out

    def terms(self, model: Model, plan: NoisedBatch) -> dict[str, Term]:
        network: Any = model.extras[self.extra] if self.extra in model.extras else None
        if not isinstance(network, Anchors):
            raise ConfigError(f"model.extras.{self.extra}: the model has no Anchors of this name")
        features = model.encode(plan.batch.media)
        own_RLD = backbone_states(model, plan.ids_RL, plan.batch, features, plan.row_R)
        h_RLD = network.above(model, own_RLD, plan.ids_RL, plan.batch, plan.row_R)
        restrict = self.denoise.restrict
        out = {"denoise": scored(model, plan, h_RLD, self.denoise.emphasis, restrict=restrict)}
        anchors = scored(model, replace(plan, masked_RL=plan.drawn["anchor"]), own_RLD, restrict=restrict)
        out["anchor"] = Term(anchors.value, self.gamma)
        return out
