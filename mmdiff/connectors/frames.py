"""Connectors for runs of frames: convolutions that make fewer of them, and a learned mix of an encoder's layers.

Shape letters: N crops, T features per crop, E width in, D width out, C channels, K layers, M slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.canvas.batch import MediaBatch, packed, real_NT
from mmdiff.canvas.sample import Item
from mmdiff.config import build_part
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1, Positive

from .mlp import scaled_norm


@saveable
class ConvFrames(nn.Module):
    """Applies convolutions over time with a GELU between them, then Linear, ReLU, Linear, ReLU and a LayerNorm.

    With `keep_tail: false` this is the semantic adapter of DIFFA (arXiv 2507.18452): one slot per four features, 50 Hz
    to 12.5 Hz.

    channels: of each convolution; as wide as the features, and the last as many times wider as all strides together.
    strides: of each convolution. kernel: of all, in features. hidden: between the linear maps, `width_in` by default.
    keep_tail: whether the last features make a slot though they are fewer than the strides span; DIFFA drops them. A
        crop always has one slot.
    out_norm: what the LayerNorm starts at, see `scaled_norm`; 1 in DIFFA.
    Raises ConfigError for sizes that do not fit each other.
    """

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        *,
        strides: Sequence[AtLeast1] = (1, 4),
        channels: Sequence[AtLeast1] | None = None,
        kernel: AtLeast1 = 3,
        hidden: AtLeast1 | None = None,
        keep_tail: bool = True,
        out_norm: Positive | None = 1.0,
    ) -> None:
        super().__init__()
        span = prod(strides)
        channels = [width_in] * (len(strides) - 1) + [width_in * span] if channels is None else channels
        if not strides or len(strides) != len(channels):
            raise ConfigError(f"channels: {channels} are not one for each of the strides {strides}")
        hidden = width_in if hidden is None else hidden
        if kernel % 2 == 0:
            raise ConfigError(f"kernel: {kernel} has no middle, expected an odd number")
        self.strides, self.span, self.keep_tail = strides, span, keep_tail
        sizes = zip([width_in, *channels[:-1]], channels, strides, strict=True)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, stride, kernel // 2) for a, b, stride in sizes)
        self.linears = nn.ModuleList([nn.Linear(channels[-1], hidden), nn.Linear(hidden, width_out)])
        self.out_norm = scaled_norm(width_out, out_norm)

    def slots(self, tokens: int, item: Item) -> int:
        return len(item.values) * self.frames(tokens)

    def frames(self, tokens: int) -> int:
        """Returns how many slots a crop of `tokens` features makes."""
        return -(-self._kept(tokens) // self.span)

    def _kept(self, tokens: int) -> int:
        return tokens if self.keep_tail else max(tokens // self.span * self.span, min(tokens, self.span))

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        tokens = media.tokens or [features_NTE.shape[1]] * len(features_NTE)
        counts = [self._kept(n) for n in tokens]
        x_NTC = features_NTE
        for i, (conv, stride) in enumerate(zip(self.convs, self.strides, strict=True)):
            x_NTC = F.gelu(x_NTC) if i else x_NTC
            # alone, a crop ends in zeros: neither its padding nor what was computed of that may be seen
            x_NTC = x_NTC.masked_fill(~real_NT(counts, x_NTC)[..., None], 0.0)
            x_NTC = conv(x_NTC.transpose(1, 2)).transpose(1, 2)
            counts = [-(-n // stride) for n in counts]
        x_MC = packed(x_NTC, counts)
        for linear in self.linears:
            x_MC = linear(x_MC).relu()
        out_MD: Tensor = self.out_norm(x_MC)
        return out_MD


@saveable
class LayerMix(nn.Module):
    """A learned softmax mix of the encoder's layers in front of another connector (SUPERB, arXiv 2105.01051).

    width_in: of `layers` layers, one behind the other; all weigh the same at the start.
    inner: a connector, or the dotted path of one. settings: its arguments but the widths.
    Raises ConfigError when `layers` does not divide the features, and for an inner that is no connector.
    """

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        *,
        layers: AtLeast1,
        inner: Any = "mmdiff.connectors.mlp.MLP",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if width_in % layers:
            raise ConfigError(f"layers: {layers} do not make {width_in} features, check the layers of the encoder")
        if isinstance(inner, str):
            node = {**(settings or {}), "target": inner}
            inner = build_part(node, where="inner", width_in=width_in // layers, width_out=width_out)
        elif settings is not None:
            raise ConfigError(f"settings: inner is made already, expected the dotted path of one: {inner!r}")
        self.mix_K = nn.Parameter(torch.zeros(layers))
        self.inner = inner

    def slots(self, tokens: int, item: Item) -> int:
        return int(self.inner.slots(tokens, item))

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        layers_NTKE = features_NTE.unflatten(2, (len(self.mix_K), -1))
        out_MD: Tensor = self.inner((layers_NTKE * self.mix_K.softmax(0)[:, None]).sum(2), media)
        return out_MD
