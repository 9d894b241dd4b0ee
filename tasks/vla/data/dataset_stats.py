"""The statistics that a LeRobotDataset keeps of its features: exact, not estimated from histograms of a running range.

Shape letters: N vectors, D dimensions, C colours, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .episode import Array

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
PICTURES = 100  # of an episode count, evenly spread
SIDE = 150  # pixels; of larger pictures every second, third, ... pixel counts

Stats = dict[str, Any]


def vector_stats(values_ND: Array) -> Stats:
    """min, max, mean, std (of the population), count, and quantiles with linear interpolation, each a list of D."""
    values_ND = np.asarray(values_ND, np.float64)
    found = {"min": values_ND.min(0), "max": values_ND.max(0), "mean": values_ND.mean(0), "std": values_ND.std(0)}
    quantiles = dict(zip(QUANTILES, np.quantile(values_ND, list(QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in {**found, **quantiles}.items()} | {"count": [len(values_ND)]}


def column_stats(files: Sequence[Path], key: str, dims: int) -> Stats:
    """As `vector_stats`, of a column of parquet files: one number, or a list of `dims`, in each row."""
    import pyarrow.parquet as pq

    tables = (pq.read_table(file, columns=[key], use_threads=False) for file in files)
    chunks = (chunk if dims == 1 else chunk.flatten() for table in tables for chunk in table.column(key).chunks)
    return vector_stats(np.concatenate([chunk.to_numpy(zero_copy_only=False).reshape(-1, dims) for chunk in chunks]))


def sampled(length: int) -> Array:
    """Returns the frames of an episode whose pictures count in statistics."""
    return np.unique(np.linspace(0, length - 1, min(length, PICTURES)).round().astype(int))


class PictureStats:
    """How often every value of every colour occurs in uint8 pictures, from which all statistics follow exactly."""

    def __init__(self) -> None:
        self.count_C256 = np.zeros((3, 256), np.int64)
        self.pictures = 0

    def add(self, picture_HWC: Array) -> None:
        every = max(1, min(picture_HWC.shape[:2]) // SIDE)
        for colour in range(3):
            seen = picture_HWC[::every, ::every, colour].ravel()
            self.count_C256[colour] += np.bincount(seen, minlength=256)
        self.pictures += 1

    def __iadd__(self, other: PictureStats) -> PictureStats:
        self.count_C256 += other.count_C256
        self.pictures += other.pictures
        return self

    def stats(self) -> Stats:
        """As `vector_stats`, of values in 0..1; every entry has shape (C, 1, 1), `count` is of pictures."""
        value_256 = np.arange(256) / 255
        rows = []
        for count_256 in self.count_C256:
            upto_256 = np.cumsum(count_256)
            there = np.flatnonzero(count_256)
            mean = (count_256 * value_256).sum() / upto_256[-1]
            std = np.sqrt((count_256 * (value_256 - mean) ** 2).sum() / upto_256[-1])
            row = {"min": value_256[there[0]], "max": value_256[there[-1]], "mean": mean, "std": std}
            for name, q in QUANTILES.items():
                rank = (upto_256[-1] - 1) * q
                low = value_256[np.searchsorted(upto_256, np.floor(rank), side="right")]
                high = value_256[np.searchsorted(upto_256, np.ceil(rank), side="right")]
                row[name] = low + (high - low) * (rank % 1)
            rows.append(row)
        return {name: [[[float(row[name])]] for row in rows] for name in rows[0]} | {"count": [self.pictures]}


def flat(stats: Mapping[str, Stats]) -> dict[str, Any]:
    """{feature: {statistic: value}} to the columns of `meta/episodes`: `stats/<feature>/<statistic>`."""
    return {f"stats/{feature}/{name}": value for feature, found in stats.items() for name, value in found.items()}
