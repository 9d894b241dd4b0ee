"""Codecs that are fitted to data: the table of FAST, and how far each coefficient of `DCTBins` reaches.

Shape letters: N chunks, K actions of a chunk, D dimensions of an action.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1

from .codecs.bins import DCTBins
from .codecs.fast import FAST
from .codecs.normalise import Mode, Normaliser, Statistics
from .data.dataset import LeRobot


@typed
def chunks_of(
    dataset: str, chunk: AtLeast1, normalise: Mode = "quantile", binary: tuple[int | str, ...] = ()
) -> tuple[NDArray[np.float64], Normaliser]:
    """Returns (N, K, D) in [-1, 1], a chunk per frame; after an episode's end the last action is repeated."""
    data = LeRobot(dataset)
    action_ND = data.actions()
    units = Normaliser(Statistics.of(action_ND, data.action_names or ()), normalise, binary)
    last_N = np.concatenate([np.full(data.length_E[e], data.rows(e).stop - 1) for e in range(len(data))])
    at_NK = np.minimum(np.arange(len(action_ND))[:, None] + np.arange(chunk), last_N[:, None])
    return units.forward(action_ND)[at_NK], units


def fit_fast(dataset: str, out: str, chunk: int, vocab: int, scale: float, **named: Any) -> dict[str, Any]:
    """Train FAST's table on a data set and write it to `out`, which must not exist. Returns its size and error."""
    if Path(out).exists():
        raise ConfigError(f"{out} is there already; nothing was overwritten")
    chunks_NKD, _ = chunks_of(dataset, chunk, **named)
    codec = FAST.train(chunks_NKD, vocab=vocab, scale=scale)
    sample_NKD = chunks_NKD[:: max(1, len(chunks_NKD) // 2000)]
    back_NKD = np.stack([codec.decode(codec.encode(x_KD), *x_KD.shape) for x_KD in sample_NKD])
    lengths = np.array([codec.length(x_KD) for x_KD in sample_NKD])
    codec.save(out)
    return {
        "table": out,
        "size": codec.size,
        "max_tokens": codec.tokens(*chunks_NKD.shape[1:]),
        "tokens": float(lengths.mean()),
        "tokens_of_bins": int(np.prod(chunks_NKD.shape[1:])),
        "mae": float(np.abs(back_NKD - sample_NKD).mean()),
    }


def fit_dct(dataset: str, chunk: int, bins: int, keep: int, **named: Any) -> dict[str, Any]:
    """Returns the ranges of `DCTBins` fitted to a data set, and the codec's error with and without them."""
    chunks_NKD, units = chunks_of(dataset, chunk, **named)
    smooth = np.flatnonzero(~units.binary_D)
    if not len(smooth):
        raise ConfigError("binary: all dimensions are, so that nothing is left to transform")
    fitted = DCTBins.fitted(chunks_NKD[..., smooth], bins, keep)
    found: dict[str, Any] = {"ranges": [round(r, 6) for r in fitted.ranges or ()], "tokens": keep * len(smooth)}
    for name, codec in (("mae", fitted), ("mae_without", DCTBins(bins, keep))):
        some_NKD = chunks_NKD[:: max(1, len(chunks_NKD) // 2000)][..., smooth]
        back_NKD = np.stack([codec.decode(codec.encode(x_KD), *x_KD.shape) for x_KD in some_NKD])
        found[name] = float(np.abs(back_NKD - some_NKD).mean())
    return found
