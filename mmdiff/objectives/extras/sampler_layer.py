"""A sampler layer: logits of what is still masked, anew after each token, without another call of the model.

Shape letters: R rows, N positions of a row that were masked when the model was called, D backbone width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1

from .latent import waves


@saveable
class SamplerLayer(nn.Module):
    """One transformer layer over the hidden states of a call and the tokens committed since (ADJUST, arXiv 2509.22738).

    Its output is added to the hidden states, and begins at zero: an untrained layer changes no logits. Attention is
    over the positions that were masked when the model was called; what they know of the rest is in their states. The
    published layer's inside was not seen.

    heads, ffn: attention heads, and the inner width as a multiple of D. width (D) comes from the model at build time.
    Raises ConfigError for a width that the heads do not divide.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width: AtLeast1, heads: AtLeast1 = 4, ffn: AtLeast1 = 4) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.extras: a width of {width} is no multiple of heads {heads}")
        self.state, self.token = nn.LayerNorm(width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.committed = nn.Embedding(2, width)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=ffn * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.out[1].bias)  # type: ignore[arg-type]

    def forward(self, h_RND: Tensor, x_RND: Tensor, new_RN: Tensor, position_RN: Tensor, padding_RN: Tensor) -> Tensor:
        """Returns states (R, N, D) that predict the positions, given the tokens committed since the call.

        h_RND: the states of the call that predict them. x_RND: embeddings of tokens. new_RN: bool, where they count.
        position_RN: int64. padding_RN: bool, True where a row has fewer positions.
        """
        dtype = self.committed.weight.dtype
        token_RND = self.token(x_RND.to(dtype)) * new_RN[..., None]
        y_RND = self.state(h_RND.to(dtype)) + token_RND + self.committed(new_RN.long())
        padding_RN = padding_RN & (torch.arange(padding_RN.shape[1], device=h_RND.device) > 0)  # a row sees something
        y_RND = self.layer(y_RND + waves(position_RN, y_RND.shape[2]).to(dtype), src_key_padding_mask=padding_RN)
        moved_RND: Tensor = h_RND + self.out(y_RND).to(h_RND.dtype)
        return moved_RND
