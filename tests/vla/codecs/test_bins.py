"""Codecs: errors at their stated bounds, published formulas, and what comes back exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmdiff.config import build
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.codecs.bins import ActionCodec, DCTBins, QuantileBins, UniformBins, dct
from mmdiff.tasks.vla.codecs.fast import FAST
from mmdiff.tasks.vla.codecs.normalise import Normaliser, Statistics

K, D = 5, 4


def smooth(n: int, chunk: int = K, dims: int = D, seed: int = 0) -> np.ndarray:
    """(n, chunk, dims): slow sine waves at 20 frames a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(chunk)[None, :, None] / 20
    rate, phase, size, mean = rng.uniform(0, 1, (4, n, 1, dims))
    return np.tanh((2 * mean - 1) + size * np.sin(6 * rate * time + 6 * phase))


def robot(seed: int = 0) -> np.ndarray:
    """(N, 4) in robot units: skewed, mostly 0, constant, a gripper."""
    rng = np.random.default_rng(seed)
    n = 4000
    often = rng.normal(0, 2, n) * (rng.random(n) < 0.6)
    return np.stack([rng.exponential(3, n), often, np.full(n, 0.1), 0.04 * (rng.random(n) < 0.001)], 1)


def normaliser() -> Normaliser:
    return Normaliser(Statistics.of(robot(), ("x", "y", "still", "gripper")), "quantile", ("gripper",))


def codecs() -> list[ActionCodec]:
    made: list[ActionCodec] = [UniformBins(32), UniformBins(3), QuantileBins(256), QuantileBins(7), DCTBins(63, 2)]
    bound = normaliser()
    return [codec.bind(bound.statistics, bound) for codec in [*made, DCTBins(4, 1), FAST.train(smooth(50))]]


# All codecs


@pytest.mark.parametrize("codec", codecs(), ids=lambda c: f"{type(c).__name__}{c.size}")
def test_the_contract(codec: ActionCodec) -> None:
    total = codec.tokens(K, D)
    for x in (*smooth(20, seed=1), np.ones((K, D)), -np.ones((K, D)), np.zeros((K, D))):
        codes = codec.encode(x)
        assert codes.shape == (total,) and codes.dtype == np.int64
        assert codes.min() >= 0 and codes.max() < codec.size
        back = codec.decode(codes, K, D)
        assert back.shape == (K, D) and back.dtype == np.float64 and np.abs(back).max() <= 1
        assert np.array_equal(codec.encode(x * 1e3), codec.encode((x * 1e3).clip(-1, 1)))
    groups, each = codec.steps(K, D)
    assert groups * each == total
    for pad in ([False] * K, [True] * K):
        padded = codec.padded(pad, D)
        assert padded.shape == (total,) and padded.dtype == bool and (padded == pad[0]).all()
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        codec.decode([0, 0, 0], K, D)
    for wrong in (-1, codec.size):
        with pytest.raises(DataError, match=f"code 1: {wrong} is not in 0..{codec.size - 1}"):
            codec.decode([0, wrong] + [0] * (total - 2), K, D)
    with pytest.raises(DataError, match="action 2, dimension 1: nan"):
        codec.encode(np.where(np.arange(K * D).reshape(K, D) == 2 * D + 1, np.nan, 0))
    with pytest.raises(DataError, match="shape"):
        codec.encode(np.zeros(K))


@pytest.mark.parametrize("codec", codecs(), ids=lambda c: f"{type(c).__name__}{c.size}")
def test_grippers_come_back_exactly(codec: ActionCodec) -> None:
    """Every pattern of a gripper over the chunk, also one that is nearly never seen in the data."""
    maps, rng = normaliser(), np.random.default_rng(0)
    for pattern in range(2**K):
        raw = robot()[rng.integers(4000, size=K)]
        raw[:, 3] = [0.04 * (pattern >> k & 1) for k in range(K)]
        if isinstance(codec, FAST):
            codec = FAST(codec.table, max_tokens=K * D)
        back = maps.inverse(codec.decode(codec.encode(maps.forward(raw)), K, D))
        assert np.array_equal(back[:, 3], raw[:, 3])
        assert (back[:, 2] == 0.1).all()


def test_a_node_makes_the_same_codec() -> None:
    x = smooth(1)[0]
    for codec in (UniformBins(17), DCTBins(9, 2, [1.0, 0.5]), FAST.train(smooth(20), max_tokens=12)):
        assert isinstance(codec.node, dict)
        assert np.array_equal(build(codec.node).encode(x), codec.encode(x))


@pytest.mark.parametrize("make", [UniformBins, QuantileBins, DCTBins])
@pytest.mark.parametrize("bins", [1, 0, 2.5, True, "8"])
def test_impossible_bins(make: Any, bins: Any) -> None:
    with pytest.raises(ConfigError, match="bins.*whole number"):
        make(bins)


# Equal intervals


@pytest.mark.parametrize("bins", [2, 3, 32, 255, 256])
def test_the_error_is_at_most_half_an_interval(bins: int) -> None:
    codec = UniformBins(bins)
    x = np.concatenate([np.linspace(-1, 1, 4001), np.linspace(-1, 1, bins + 1)])[:, None]
    back = codec.decode(codec.encode(x), len(x), 1)
    assert np.abs(back - x).max() == pytest.approx(1 / bins, abs=1e-12)
    centres = codec.decode(np.arange(bins), bins, 1)
    assert codec.encode(centres).tolist() == list(range(bins))
    np.testing.assert_allclose(np.diff(centres.ravel()), 2 / bins)
    assert centres[0] == -centres[-1] == pytest.approx(1 / bins - 1)


def test_known_codes() -> None:
    assert UniformBins(4).encode([[-1, -0.5, -0.25], [0, 0.5, 1]]).tolist() == [0, 1, 1, 2, 3, 3]
    assert UniformBins(4).decode([0, 1, 2, 3], 2, 2).tolist() == [[-0.75, -0.25], [0.25, 0.75]]
    assert UniformBins(4).padded([False, True], 2).tolist() == [False, False, True, True]
    assert UniformBins(4).steps(5, 7) == (5, 7)


def test_255_bins_are_those_of_openvla() -> None:
    """Its formula: np.digitize over 256 edges, decoded through 255 centres; the id is vocabulary size - digit."""
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    x = np.random.default_rng(0).uniform(-1, 1, 5000)
    digit = np.digitize(x, edges)
    codec = UniformBins(255)
    codes = codec.encode(x[:, None])
    assert np.array_equal(32_000 - digit, 32_000 - 1 - codes)
    np.testing.assert_allclose(codec.decode(codes, len(x), 1)[:, 0], centres[(digit - 1).clip(0, 254)], atol=1e-12)


# Equal masses


def quantiled(x_ND: np.ndarray, bins: int, mode: Any = "bounds", **named: Any) -> tuple[QuantileBins, np.ndarray]:
    maps = Normaliser(Statistics.of(x_ND), mode, **named)
    return QuantileBins(bins).bind(maps.statistics, maps), maps.forward(x_ND)


@pytest.mark.parametrize("bins", [2, 8, 32, 256])
def test_bins_hold_equal_masses_and_medians(bins: int) -> None:
    rng = np.random.default_rng(0)
    codec, y = quantiled(np.stack([rng.exponential(1, 25_600), rng.normal(0, 1, 25_600)], 1), bins)
    codes = codec.encode(y).reshape(-1, 2)
    for d in range(2):
        counts = np.bincount(codes[:, d], minlength=bins)
        assert np.abs(counts - 25_600 / bins).max() <= 2  # interpolated edges
    back, (edges_DB, medians_DB) = codec.decode(codes.ravel(), len(y), 2), codec._bound(2)
    width = np.diff(edges_DB, axis=1)[np.arange(2), codes]
    assert (np.abs(back - y) <= width + 1e-12).all()
    if bins <= 32:
        for d, b in ((0, 0), (1, bins - 1), (1, 1)):
            inside = y[codes[:, d] == b, d]
            assert abs((inside < medians_DB[d, b]).mean() - 0.5) <= 2 / len(inside)


def test_frequent_values_come_back_exactly() -> None:
    """40 % zeros and what a quantile map puts on both ends."""
    codec, y = quantiled(robot(), 256, "quantile", binary=(3,))
    back = codec.decode(codec.encode(y), len(y), 4)
    zero = robot()[:, 1] == 0
    assert zero.mean() > 0.3 and np.array_equal(back[zero, 1], y[zero, 1])
    ends = np.abs(y[:, 0]) == 1
    assert ends.sum() >= 80 and np.array_equal(back[ends, 0], y[ends, 0])
    assert len(set(codec.encode(y).reshape(-1, 4)[zero, 1].tolist())) == 1  # one value, one code


def test_every_value_lies_in_its_bin() -> None:
    codec, y = quantiled(robot()[:, :2], 16)
    codes = codec.encode(y).reshape(-1, 2)
    edges_DB, _ = codec._bound(2)
    d = np.arange(2)
    assert (edges_DB[d, codes] <= y).all() and (y <= edges_DB[d, codes + 1]).all()


def test_values_outside_the_data_go_to_the_end_bins() -> None:
    maps = Normaliser(Statistics.of(np.linspace(-0.5, 0.5, 1001)[:, None]), "none")
    codec = QuantileBins(4).bind(maps.statistics, maps)
    assert codec.encode([[-1], [-0.3], [-0.2], [0.2], [0.3], [1]]).tolist() == [0, 0, 1, 2, 3, 3]
    np.testing.assert_allclose(codec.decode([0, 1, 2, 3], 4, 1)[:, 0], [-0.375, -0.125, 0.125, 0.375])


def test_refusals_of_quantile_bins() -> None:
    maps = normaliser()
    with pytest.raises(ConfigError, match="bind it"):
        QuantileBins(8).encode(np.zeros((K, D)))
    with pytest.raises(ConfigError, match=r"QuantileBins\(512\), but the statistics have a grid of 256"):
        QuantileBins(512).bind(maps.statistics, maps)
    bare = Statistics.from_json({"min": [0.0], "max": [1.0]})
    with pytest.raises(ConfigError, match="no grid of quantiles"):
        QuantileBins(8).bind(bare, Normaliser(bare, "bounds"))
    with pytest.raises(DataError, match="actions of 3 dimensions, the codec's statistics have 4"):
        QuantileBins(8).bind(maps.statistics, maps).encode(np.zeros((K, 3)))


def test_binding_leaves_the_codec_as_it_was() -> None:
    maps = normaliser()
    for codec in (QuantileBins(8), DCTBins(9, 2)):
        before = dict(vars(codec))
        assert codec.bind(maps.statistics, maps) is not codec and vars(codec) == before
    assert UniformBins(8).bind(maps.statistics, maps).size == 8


# Frequencies


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_the_transform(length: int) -> None:
    matrix = dct(length)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)
    x = np.random.default_rng(0).normal(size=length)
    n = np.arange(length)
    for k in range(length):  # the definition of the DCT-II
        c = np.sqrt((2 if k else 1) / length) * sum(x * np.cos(np.pi * k * (2 * n + 1) / (2 * length)))
        assert (matrix @ x)[k] == pytest.approx(c)
    scipy_fft = pytest.importorskip("scipy.fft")
    np.testing.assert_allclose(matrix @ x, scipy_fft.dct(x, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize(("bins", "keep", "chunk"), [(63, 3, 5), (8, 1, 5), (255, 8, 8), (16, 2, 2), (33, 4, 20)])
def test_the_error_is_truncation_and_quantisation(bins: int, keep: int, chunk: int) -> None:
    codec, matrix = DCTBins(bins, keep), dct(chunk)
    rng = np.random.default_rng(0)
    range_C = np.abs(matrix[:keep]).sum(1)
    assert range_C[0] == pytest.approx(np.sqrt(chunk))
    quantisation = (np.abs(matrix[:keep]) * range_C[:, None]).sum(0) / bins
    for x in (*smooth(50, chunk), *rng.uniform(-1, 1, (50, chunk, D)), *rng.choice([-1.0, 1.0], (50, chunk, D))):
        assert (np.abs(matrix[:keep] @ x) <= range_C[:, None] + 1e-12).all()
        truncation = np.abs(matrix[keep:].T @ (matrix[keep:] @ x))
        back = codec.decode(codec.encode(x), chunk, D)
        assert (np.abs(back - x) <= quantisation[:, None] + truncation + 1e-12).all()


def test_a_coefficient_reaches_its_bound() -> None:
    """Signs of a basis function: r_k is attained, so no smaller range would do for all data."""
    for k in range(8):
        x = np.sign(dct(8)[k])
        assert (dct(8) @ x)[k] == pytest.approx(np.abs(dct(8)[k]).sum())


def test_low_frequencies_stand_first() -> None:
    codec = DCTBins(255, 3)
    assert codec.tokens(K, D) == 3 * D and codec.steps(K, D) == (3, D)
    middle = 127
    codes = codec.encode(np.full((K, D), 0.5)).reshape(3, D)
    assert (codes[0] > middle).all() and (codes[1:] == middle).all()
    x = np.zeros((K, D))
    x[:, 2] = 0.5 * dct(K)[1]
    codes = codec.encode(x).reshape(3, D)
    assert codes[1, 2] > middle and (np.delete(codes.ravel(), D + 2) == middle).all()
    assert (codec.decode(codec.encode(np.zeros((K, D))), K, D) == 0).all()  # what does not move stays


def test_no_coefficient_is_padded_unless_all_actions_are() -> None:
    codec = DCTBins(9, 2)
    assert not codec.padded([False, True, True], D).any() and codec.padded([True] * 3, D).all()
    maps = normaliser()
    bound = codec.bind(maps.statistics, maps)
    assert bound.tokens(3, D) == 2 * 3 + 3 and bound.steps(3, D) == (1, 9)
    assert bound.padded([False, True, True], D).tolist() == [False] * 7 + [True] * 2


def test_ranges_from_data_are_finer() -> None:
    x = smooth(300)
    plain, fitted = DCTBins(31, 4), DCTBins.fitted(x, 31, 4)
    assert fitted.ranges is not None and all(np.array(fitted.ranges) < np.abs(dct(K)[:4]).sum(1))
    error = [np.mean([np.abs(c.decode(c.encode(y), K, D) - y).mean() for y in x]) for c in (plain, fitted)]
    assert error[1] < error[0]


def test_fewer_codes_for_smooth_chunks() -> None:
    """Twelve coefficients are nearer to 20 entries of slow motion than 20 codes of 32 bins are."""
    x = smooth(300)
    error = [np.mean([np.abs(c.decode(c.encode(y), K, D) - y).mean() for y in x]) for c in (DCTBins(), UniformBins(32))]
    assert DCTBins().tokens(K, D) == 12 and error[0] < error[1]
    assert error[1] == pytest.approx(1 / 64, rel=0.05)  # uniform in an interval of 1/16


def test_refusals_of_dct_bins() -> None:
    with pytest.raises(ConfigError, match="keep=0"):
        DCTBins(8, 0)
    for ranges in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="ranges"):
            DCTBins(8, 2, ranges)
    with pytest.raises(ConfigError, match="keeps 6 coefficients, more than a chunk's 5 actions"):
        DCTBins(8, 6).tokens(K, D)
    with pytest.raises(ConfigError, match="keeps 6"):
        DCTBins(8, 6).encode(np.zeros((K, D)))
    with pytest.raises(ConfigError, match="keep: 6"):
        DCTBins.fitted(smooth(3), 8, 6)
