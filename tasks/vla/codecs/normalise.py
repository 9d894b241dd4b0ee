"""Statistics of actions and states, and the maps from robot units to [-1, 1] and back that follow from them.

They belong to one data set on one robot: a policy is given the key of those it uses. Shape letters: N vectors,
D dimensions, Q intervals of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmdiff.errors import ConfigError, DataError, nearest

Floats = NDArray[np.float64]
Mode = Literal["quantile", "bounds", "mean_std", "none"]

Q = 256
"""Intervals of `Statistics.grid`."""

SPAN = 3.0
"""`mean_std` puts the mean at 0 and the mean plus or minus so many standard deviations at 1 and -1."""

RARE = 10.0
"""Values that reach so many times as far as their quantiles are no tails of one distribution: see `Normaliser.lost`."""

_VECTORS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True)
class Statistics:
    """Statistics of N vectors by dimension; an empty tuple where a source does not give one.

    std: of the population (divided by N). q01, q99: quantiles with linear interpolation, numpy's default.
    names: of the dimensions. grid: (Q + 1, D) quantiles at 0, 1/Q, ..., 1. untouched: dimensions that the source says
        are not normalised (OpenVLA: `mask` false). Raises DataError for lists of unequal length and what is not finite.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int
    names: tuple[str, ...] = ()
    grid: tuple[tuple[float, ...], ...] = ()
    untouched: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = [name for name in _VECTORS if getattr(self, name)]
        if not known:
            raise DataError(f"statistics hold none of {', '.join(_VECTORS)}")
        for name in known:
            values = getattr(self, name)
            if len(values) != self.dims:
                raise DataError(f"statistics: {name} has {len(values)} numbers, but {known[0]} has {self.dims}")
            if not np.isfinite(values).all():
                raise DataError(f"statistics: {name} of dimension {_first(~np.isfinite(values))} is not finite")
        if self.names and len(self.names) != self.dims:
            raise DataError(f"statistics: {len(self.names)} names for {self.dims} dimensions")
        if self.std and min(self.std) < 0:
            raise DataError(f"statistics: std holds {min(self.std):g}, which is below 0")
        for low, high in (("min", "max"), ("q01", "q99")):
            if getattr(self, low) and getattr(self, high):
                wrong = np.asarray(getattr(self, low)) > np.asarray(getattr(self, high))
                if wrong.any():
                    raise DataError(f"statistics: {low} is above {high} in dimension {_first(wrong)}")
        if self.grid:
            if len(self.grid) < 2 or any(len(row) != self.dims for row in self.grid):
                raise DataError(f"statistics: grid is not at least 2 rows of {self.dims} quantiles")
            if not (np.diff(self.grid, axis=0) >= 0).all():
                raise DataError("statistics: grid holds quantiles that fall")
        if not all(0 <= d < self.dims for d in self.untouched):
            raise DataError(f"statistics: untouched {list(self.untouched)} is not all in 0..{self.dims - 1}")

    @property
    def dims(self) -> int:
        """D."""
        return next(len(getattr(self, name)) for name in _VECTORS if getattr(self, name))

    @classmethod
    def of(cls, values_ND: ArrayLike, names: Sequence[str] = ()) -> Statistics:
        """Of data, in float64. Raises DataError for no data, another shape, and NaN or infinity, named by row."""
        x_ND = np.asarray(values_ND, np.float64)
        if x_ND.ndim != 2 or 0 in x_ND.shape:
            raise DataError(f"statistics of an array of shape {x_ND.shape}: expected (vectors, dimensions), at least 1")
        bad = np.argwhere(~np.isfinite(x_ND))
        if len(bad):
            n, d = bad[0].tolist()
            name = f' ("{names[d]}")' if d < len(names) else ""
            raise DataError(f"row {n}, dimension {d}{name}: {x_ND[n, d]} is not finite ({len(bad)} such values)")
        q_QD = np.quantile(x_ND, np.linspace(0, 1, Q + 1), axis=0)
        q01_D, q99_D = np.quantile(x_ND, [0.01, 0.99], axis=0)
        parts = (x_ND.mean(0), x_ND.std(0), x_ND.min(0), x_ND.max(0), q01_D, q99_D)
        vectors: dict[str, Any] = {name: tuple(v.tolist()) for name, v in zip(_VECTORS, parts, strict=True)}
        grid = tuple(map(tuple, np.maximum.accumulate(q_QD).tolist()))  # interpolation may fall by a rounding error
        return cls(**vectors, count=len(x_ND), names=tuple(map(str, names)), grid=grid)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; what is empty is left out."""
        return {name: _plain(value) for name, value in asdict(self).items() if value != ()}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_json`; also reads lerobot's (`count` a list of one) and OpenVLA's (`mask`).

        What else a file holds (q10, q50, ...) is not needed. Raises DataError.
        """
        if not isinstance(mapping, Mapping):
            raise DataError(f"statistics: {mapping!r} is not a mapping of {', '.join(_VECTORS)}")
        given: dict[str, Any] = {name: _vector(mapping.get(name), name) for name in _VECTORS}
        count = np.ravel(mapping.get("count", 0)).tolist()
        if len(count) != 1 or not isinstance(count[0], int | float) or count[0] < 0:
            raise DataError(f"statistics: count {mapping['count']!r} is not a number")
        untouched = tuple(map(int, _vector(mapping.get("untouched"), "untouched")))
        mask = mapping.get("mask")
        if mask is not None:
            if not isinstance(mask, Sequence) or not all(isinstance(m, bool) for m in mask):
                raise DataError(f"statistics: mask {mask!r} is not a list of true and false")
            untouched = tuple(sorted({*untouched, *(d for d, on in enumerate(mask) if not on)}))
        rows = mapping.get("grid") or ()
        grid = tuple(_vector(row, "grid") for row in (rows if isinstance(rows, list | tuple) else [rows]))
        names = tuple(map(str, mapping.get("names") or ()))
        return cls(**given, count=int(count[0]), names=names, grid=grid, untouched=untouched)


@dataclass(frozen=True)
class Normaliser:
    """Robot units to [-1, 1], a linear map per dimension, and back.

    mode: which values go to -1 and 1. "quantile": q01 and q99 (OpenVLA's BOUNDS_Q99); "bounds": min and max;
        "mean_std": the mean minus and plus `SPAN` standard deviations; "none": -1 and 1.
    binary: dimensions, by name or number (below 0: from the end), that are one of two values, as grippers are: above
        the middle of min and max is 1, all else -1, and the inverse gives min or max exactly, whatever the mode.
    untouched: dimensions that are passed as they are (in [-1, 1]; others clipped), besides those of the statistics.

    A dimension whose two values agree is constant: `forward` gives 0, `inverse` the value. Raises ConfigError for
    statistics that lack what the mode needs.
    """

    statistics: Statistics
    mode: Mode = "quantile"
    binary: tuple[int | str, ...] = ()
    untouched: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"normalise: {self.mode!r} is unknown{nearest(str(self.mode), get_args(Mode))}")
        for name in ("binary", "untouched"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, when it comes from a file
        _ = self.range_2D

    @property
    def dims(self) -> int:
        return self.statistics.dims

    @cached_property
    def binary_D(self) -> NDArray[np.bool_]:
        """Which dimensions are binary."""
        return self._mask(self.binary, "binary")

    @cached_property
    def range_2D(self) -> Floats:
        """(2, D): the values in robot units that go to -1 and to 1."""
        stats, ones = self.statistics, np.ones(self.dims)
        if self.mode == "none":
            low_D, high_D = -ones, ones
        elif self.mode == "mean_std":
            mean_D, std_D = self._need("mean"), self._need("std")
            low_D, high_D = mean_D - SPAN * std_D, mean_D + SPAN * std_D
        else:
            low, high = ("q01", "q99") if self.mode == "quantile" else ("min", "max")
            low_D, high_D = self._need(low), self._need(high)
        as_is_D = self._mask((*stats.untouched, *self.untouched), "untouched")
        low_D, high_D = np.where(as_is_D, -1.0, low_D), np.where(as_is_D, 1.0, high_D)
        if self.binary_D.any():
            low_D = np.where(self.binary_D, self._need("min"), low_D)
            high_D = np.where(self.binary_D, self._need("max"), high_D)
        return np.stack([low_D, high_D])

    def forward(self, raw: ArrayLike) -> Floats:
        """(..., D) in robot units -> (..., D) in [-1, 1]; what lies outside is clipped. DataError for NaN."""
        x, (low_D, high_D) = self._checked(raw), self.range_2D
        span_D = high_D - low_D
        with np.errstate(over="ignore"):  # a value far outside a tiny range is clipped
            scaled = 2 * (x - low_D) / np.where(span_D > 0, span_D, 1) - 1
        scaled = np.where(span_D > 0, scaled.clip(-1, 1), 0.0)
        return np.where(self.binary_D, np.where(x > low_D + span_D / 2, 1.0, -1.0), scaled)

    def clipped(self, raw_ND: ArrayLike) -> NDArray[np.int64]:
        """Returns by dimension, (D,), how many of N values lie outside the range that is kept."""
        x_ND, (low_D, high_D) = self._checked(raw_ND), self.range_2D
        return ((x_ND < low_D) | (x_ND > high_D)).sum(0)

    def lost(self) -> list[str]:
        """Returns a line for each dimension whose rare values are far outside the range of "quantile", and are clipped.

        A gripper that is closed in 1 % of all frames is one: hardly more than a constant is left of it.
        """
        stats, lines = self.statistics, []
        if self.mode == "quantile" and stats.min and stats.max:
            low_D, high_D = self.range_2D
            as_is_D = self.binary_D | self._mask((*stats.untouched, *self.untouched), "untouched")
            for d in np.flatnonzero(~as_is_D & (np.subtract(stats.max, stats.min) > RARE * (high_D - low_D))):
                name = stats.names[d] if d < len(stats.names) else str(d)
                reach = f"values from {stats.min[d]:g} to {stats.max[d]:g} are clipped to {low_D[d]:g} to {high_D[d]:g}"
                kept = f"task.binary=[{name}] keeps two values, task.normalise=bounds all"
                lines.append(f"{name}: {reach}, where 98 % of them lie; {kept}")
        return lines

    def inverse(self, x: ArrayLike) -> Floats:
        """(..., D) in [-1, 1] -> (..., D) in robot units; what lies outside [-1, 1] is clipped first."""
        y, (low_D, high_D) = self._checked(x).clip(-1, 1), self.range_2D
        raw = low_D + (y + 1) / 2 * (high_D - low_D)
        return np.where(self.binary_D, np.where(y > 0, high_D, low_D), raw)

    def _need(self, name: str) -> Floats:
        values = getattr(self.statistics, name)
        if not values:
            known = [field.name for field in fields(Statistics) if getattr(self.statistics, field.name)]
            raise ConfigError(
                f"normalise: {self.mode} needs {name}, which the statistics lack (they have {', '.join(known)});"
                " compute them from the data, or choose another mode"
            )
        return np.asarray(values, np.float64)

    def _mask(self, dims: Sequence[int | str], field: str) -> NDArray[np.bool_]:
        found_D, names = np.zeros(self.dims, bool), self.statistics.names
        for dim in dims:
            if isinstance(dim, str):
                if dim not in names:
                    known = nearest(dim, names) or " (the statistics have no names, give its number)"
                    raise ConfigError(f'{field}: no dimension "{dim}"{known}')
                found_D[names.index(dim)] = True
            elif isinstance(dim, bool) or not isinstance(dim, int) or not -self.dims <= dim < self.dims:
                raise ConfigError(f"{field}: {dim!r} is not a dimension, expected 0..{self.dims - 1} or a name")
            else:
                found_D[dim] = True
        return found_D

    def _checked(self, values: ArrayLike) -> Floats:
        x = np.asarray(values, np.float64)
        if not x.ndim or x.shape[-1] != self.dims:
            raise DataError(f"values of shape {x.shape}: the statistics are of {self.dims} dimensions")
        if not np.isfinite(x).all():
            where = np.argwhere(~np.isfinite(x))[0].tolist()
            raise DataError(f"values{where}: {x[tuple(where)]} is not finite")
        return x


def _vector(values: Any, name: str) -> tuple[float, ...]:
    if values is None:
        return ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, int | float) for v in values):
        raise DataError(f"statistics: {name} {values!r} is not a list of numbers")
    return tuple(map(float, values))


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _first(wrong: ArrayLike) -> int:
    return int(np.argmax(np.asarray(wrong)))
