"""A latent beside the canvas: one vector per row that makes tokens which are committed together depend on each other.

Shape letters: R rows, L canvas length, D backbone width, Z size of the latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1


@saveable
class Latent(nn.Module):
    """The encoder q(z | clean and noised ids) of a variational masked model (VMD, arXiv 2510.23606), and how z goes in.

    z is mapped to the backbone's width, without a bias, and added to the embeddings of masked positions: where z is
    zero or not given, the model is the one without it.

    size: Z. layers, heads: of the encoder, a transformer over the canvas, whose mean over the masked positions gives
        mean and variance of q. width (D) comes from the model at build time.
    Raises ConfigError for a width that the heads do not divide.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width: AtLeast1, size: AtLeast1 = 16, layers: AtLeast1 = 1, heads: AtLeast1 = 2) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.extras: a width of {width} is no multiple of heads {heads}")
        self.size = size
        layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.first = nn.LayerNorm(width)
        self.masked = nn.Embedding(2, width)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * size))
        self.up = nn.Sequential(
            nn.Linear(size, 2 * width, bias=False), nn.GELU(), nn.Linear(2 * width, width, bias=False)
        )

    def posterior(
        self, x_RLD: Tensor, masked_RL: Tensor, attend_RL: Tensor, position_ids_RL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean and the log-variance of q, (R, Z) fp32, of the embeddings (R, L, D) of clean ids.

        masked_RL: bool, the masked positions of the noised ids. attend_RL: bool, False on padding.
        """
        y_RLD = self.first(x_RLD.float()) + self.masked(masked_RL.long()) + waves(position_ids_RL, x_RLD.shape[2])
        y_RLD = self.encoder(y_RLD, src_key_padding_mask=~attend_RL)
        share_RL = masked_RL / masked_RL.sum(1, keepdim=True).clamp(min=1)
        mean_RZ, log_var_RZ = self.out((y_RLD * share_RL[..., None]).sum(1)).float().chunk(2, 1)
        return mean_RZ, log_var_RZ.clamp(-20, 20)

    def embed(self, x_RLD: Tensor, ids_RL: Tensor, values_RL: Tensor | None) -> Tensor:
        """Returns the embeddings with z added. values_RL: (R, L, Z), z at masked positions and zero at all others."""
        if values_RL is None:
            return x_RLD
        if values_RL.shape[2] != self.size:
            raise ConfigError(f"process.size: {values_RL.shape[2]}, expected {self.size}, that of the model's latent")
        return x_RLD + self.up(values_RL.to(next(self.up.parameters()).dtype)).to(x_RLD.dtype)


def waves(position_RL: Tensor, width: int) -> Tensor:
    """Returns (R, L, width) fp32, sines and cosines of positions (arXiv 1706.03762, section 3.5)."""
    half = (width + 1) // 2
    rate_H = 10_000 ** (-torch.arange(half, device=position_RL.device) / half)
    angle_RLH = position_RL[..., None] * rate_H
    return torch.cat([angle_RLH.sin(), angle_RLH.cos()], -1)[..., :width]
