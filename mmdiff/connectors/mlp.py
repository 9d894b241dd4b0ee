"""Connectors that map each feature by itself.

Shape letters: N crops, T features per crop, E width in, D width out, M slots.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch, packed
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.parts.ranges import AtLeast1, Positive

from .weights import take


@saveable
class Linear(nn.Module):
    """One linear map: as many slots as features."""

    def __init__(self, width_in: AtLeast1, width_out: AtLeast1) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        out_NTD: Tensor = self.linear(features_NTE)
        return packed(out_NTD, media.tokens)


@saveable
class MLP(nn.Module):
    """Two linear layers with a GELU between them (LLaVA-1.5, arXiv 2310.03744): as many slots as features.

    hidden: width between the layers, `width_out` by default. norm: a LayerNorm before them.
    out_norm: a LayerNorm after them, see `scaled_norm`.
    weights: safetensors of a saved model, or of one that calls this connector of pictures `mm_projector` (LLaVA,
        LLaDA-V; `mlp2x_gelu`); other tensors there are left alone. Raises ConfigError.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        hidden: AtLeast1 | None = None,
        norm: bool = False,
        *,
        out_norm: Positive | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or width_out
        self.norm = nn.LayerNorm(width_in) if norm else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))
        self.out_norm = scaled_norm(width_out, out_norm)
        if weights is not None:
            take(self, weights, llava_name, kind="image")
            self.node["weights"] = None

    @classmethod
    def toy(cls, width_in: int, width_out: int, hidden: int | None = None, norm: bool = False, **settings: Any) -> MLP:
        return cls(width_in, width_out, None, norm, **{**settings, "weights": None})

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        return packed(self.mapped(features_NTE), media.tokens)

    def mapped(self, features_NTE: Tensor) -> Tensor:
        """Returns (N, T, D), padding included."""
        out_NTD: Tensor = self.out_norm(self.layers(self.norm(features_NTE)))
        return out_NTD


def llava_name(name: str) -> str | None:
    """Returns `layers.2.bias` for `model.mm_projector.2.bias`; None for a tensor of another part of that model."""
    found = re.fullmatch(r"(?:model\.)?mm_projector\.(\d+\.(?:weight|bias))", name)
    return None if found is None else f"layers.{found[1]}"


def scaled_norm(width: int, scale: float | None) -> nn.Module:
    """Returns a LayerNorm whose outputs start with an RMS of `scale`; the identity for None.

    From slots much larger or smaller than the token embeddings around them a model learns late or never, while its loss
    falls as a text model's does. scale: the RMS of the backbone's token embeddings.
    """
    if scale is None:
        return nn.Identity()
    norm = nn.LayerNorm(width)
    nn.init.constant_(norm.weight, scale)
    return norm
