"""Layers beside a backbone: attention of some states to others under a mask, pre-norm, without dropout.

Shape letters: R rows, Q states that look, K states that are looked at, D width, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.errors import ConfigError
from mmdiff.objectives.extras.latent import waves


class Layer(nn.Module):
    """x + attention(x to states), then + a feed-forward layer of it. The attention has one more key, which is learned,
    so that a state that sees no other has something to look at."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.extras: a width of {width} is no multiple of heads {heads}")
        self.heads = heads
        self.query, self.key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, width))
        inner = (nn.LayerNorm(width), nn.Linear(width, ffn * width), nn.GELU(), nn.Linear(ffn * width, width))
        self.feed = nn.Sequential(*inner)

    def keys(self, states_RKD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values (R, H, K, D / H) of states."""
        k_RKD, v_RKD = self.kv(self.key(states_RKD)).chunk(2, -1)
        return self._heads(k_RKD), self._heads(v_RKD)

    def forward(
        self, x_RQD: Tensor, states_RKD: Tensor, sees_RQK: Tensor, known: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Returns (R, Q, D). sees_RQK: bool, the states, and behind them what is `known`: further `keys`."""
        pairs = [self.keys(self.nothing.expand(len(x_RQD), -1, -1)), self.keys(states_RKD)]
        k, v = (torch.cat(same, 2) for same in zip(*pairs, *([] if known is None else [known]), strict=True))
        mask = F.pad(sees_RQK, (1, 0), value=True)[:, None]
        seen = F.scaled_dot_product_attention(self._heads(self.q(self.query(x_RQD))), k, v, attn_mask=mask)
        x_RQD = x_RQD + self.out(seen.transpose(1, 2).flatten(2))
        moved_RQD: Tensor = x_RQD + self.feed(x_RQD)
        return moved_RQD

    def _heads(self, x_RND: Tensor) -> Tensor:
        return x_RND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def placed(x_RLD: Tensor, position_RL: Tensor) -> Tensor:
    """Returns states with their positions added as waves."""
    return x_RLD + waves(position_RL, x_RLD.shape[2]).to(x_RLD.dtype)


def without_shift(model: Any, name: str) -> None:
    """Raise ConfigError for a backbone whose states predict the next position."""
    if model.backbone.facts.shift:
        raise ConfigError(f"model.extras: {name} predicts a position at itself, and this backbone the one behind it")
