"""A small transformer over log-mel frames for work on a CPU: three strided convolutions, then self-attention.

Shape letters: N crops (windows of sound), C mel bands, T time (100 frames per second, 12.5 tokens per second), E width,
H heads, K width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.model.published.tensors import fill_own
from mmdiff.parts.ranges import AtLeast1, BelowOne, Positive

from .media.audio import read_waveform, windows
from .media.mel import LogMel

RATE = 16_000  # samples per second


@saveable
class SpeechConv(nn.Module):
    """An encoder: log-mel frames (N, mels, T) -> (N, ceil(T / 8), width), 80 ms per token; 0.53 M parameters.

    seconds: longest window; a longer recording is cut into windows that follow each other, one crop each.
    weights: a safetensors file of this tower's own names. Raises ConfigError.
    Padding of a crop changes nothing: it is set to zero before every convolution, and never attended.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        mels: AtLeast1 = 80,
        width: AtLeast1 = 128,
        layers: AtLeast1 = 2,
        heads: AtLeast1 = 4,
        seconds: Positive = 30.0,
        dropout: BelowOne = 0.0,
        *,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width % 2 or width % heads:
            raise ConfigError(f"width: {width} is not an even multiple of heads {heads}")
        self.width = width
        self.seconds = seconds
        self.mel = LogMel(mels, RATE, seconds=seconds)
        self.tokens = tokens_of(self.mel.frames(self.mel.samples))
        channels = (mels, width, width)
        self.convs = nn.ModuleList(nn.Conv1d(c, width, 3, stride=2, padding=1) for c in channels)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.checkpointed = False
        if weights is not None:
            fill_own(self, weights)
            self.node["weights"] = None

    @classmethod
    def toy(cls, *, layers: int = 2, **given: Any) -> SpeechConv:
        """The same at a width of 32, with one layer at most."""
        return cls(**{**given, "width": 32, "layers": min(layers, 1), "heads": 2, "weights": None})

    def read(self, data: object) -> Item:
        """A path or an array with its rate (see `read_waveform`) -> log-mel windows. Raises DataError."""
        mels = [self.mel(wave) for wave in windows(read_waveform(data, RATE), self.seconds, RATE)]
        lengths = tuple(mel_CT.shape[1] for mel_CT in mels)
        values_NTC = pad_sequence([mel_CT.T for mel_CT in mels], batch_first=True)
        return Item(values_NTC.transpose(1, 2), lengths=lengths, tokens=tuple(map(tokens_of, lengths)))

    def forward(self, values_NCT: Tensor, length_N: Tensor | None = None) -> Tensor:
        if length_N is None:
            length_N = torch.full((len(values_NCT),), values_NCT.shape[2], device=values_NCT.device)
        x_NET = zeroed_behind(values_NCT, length_N)
        for conv in self.convs:
            length_N = (length_N + 1) // 2
            x_NET = zeroed_behind(F.gelu(conv(x_NET)), length_N)
        x_NTE = x_NET.transpose(1, 2)
        x_NTE = self.dropout(x_NTE + sinusoids(x_NTE.shape[1], self.width, x_NTE.device).to(x_NTE.dtype))
        attend_N11T = (torch.arange(x_NTE.shape[1], device=x_NTE.device) < length_N[:, None])[:, None, None]
        for block in self.blocks:
            if self.checkpointed and self.training:
                x_NTE = checkpoint(block, x_NTE, attend_N11T, use_reentrant=False)
            else:
                x_NTE = block(x_NTE, attend_N11T)
        out_NTE: Tensor = self.norm(x_NTE)
        return out_NTE

    def gradient_checkpointing(self, on: bool) -> None:
        self.checkpointed = on


class Block(nn.Module):
    """A pre-norm transformer layer. attend_N11T: True where a position may be attended."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NTE: Tensor, attend_N11T: Tensor) -> Tensor:
        qkv_NTE = self.qkv(self.attention_norm(x_NTE))
        q_NHTK, k_NHTK, v_NHTK = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in qkv_NTE.chunk(3, dim=2))
        h_NHTK = F.scaled_dot_product_attention(q_NHTK, k_NHTK, v_NHTK, attn_mask=attend_N11T)
        x_NTE = x_NTE + self.dropout(self.out(h_NHTK.transpose(1, 2).flatten(2)))
        out_NTE: Tensor = x_NTE + self.dropout(self.mlp(self.mlp_norm(x_NTE)))
        return out_NTE


def tokens_of(frames: int) -> int:
    """Returns the tokens after three convolutions of kernel 3, stride 2 and padding 1."""
    return -(-frames // 8)


def zeroed_behind(x_NCT: Tensor, length_N: Tensor) -> Tensor:
    """Returns crops with zeros behind their ends, as a convolution sees them behind the end of the longest crop."""
    return x_NCT.masked_fill(torch.arange(x_NCT.shape[2], device=x_NCT.device) >= length_N[:, None, None], 0.0)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Returns (length, width): sines, then cosines, of wavelengths from 2 pi to 20000 pi (arXiv:1706.03762, 3.5)."""
    rate_E = torch.exp(torch.arange(width // 2, device=device) * (-math.log(10_000) / (width // 2)))
    angle_TE = torch.arange(length, device=device)[:, None] * rate_E
    return torch.cat([angle_TE.sin(), angle_TE.cos()], 1)
