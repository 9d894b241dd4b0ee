"""FAST: what is encoded comes back up to rounding; what was not, comes back by the stated rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.codecs.bins import dct
from mmdiff.tasks.vla.codecs.fast import FAST

K, D = 5, 4


def smooth(n: int, chunk: int = K, dims: int = D, seed: int = 0) -> np.ndarray:
    """(n, chunk, dims): slow sine waves at 20 frames a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(chunk)[None, :, None] / 20
    rate, phase, size, mean = rng.uniform(0, 1, (4, n, 1, dims))
    return np.tanh((2 * mean - 1) + size * np.sin(6 * rate * time + 6 * phase))


@pytest.fixture(scope="module")
def fast() -> FAST:
    return FAST.train(smooth(300))


def untrained(**named: Any) -> FAST:
    """Coefficients only: every code is one."""
    return FAST({"scale": 10.0, "radius": 22, "merges": [], "max_tokens": K * D, **named})


def test_without_merges_codes_are_rounded_coefficients() -> None:
    codec = untrained()
    x = smooth(1, seed=3)[0]
    expected = np.round(10 * np.array([[sum(dct(K)[k] * x[:, d]) for d in range(D)] for k in range(K)]))
    assert codec.size == 46 and codec.end == 45
    assert np.array_equal(codec.encode(x), expected.astype(int).ravel() + 22)  # low first, dimensions together
    np.testing.assert_allclose(codec.decode(codec.encode(x), K, D), dct(K).T @ (expected / 10), atol=1e-12)


def test_merges_lose_nothing(fast: FAST) -> None:
    plain = untrained()
    for x in (*smooth(50, seed=1), *np.random.default_rng(0).uniform(-1, 1, (50, K, D))):
        roomy = FAST(fast.table, max_tokens=K * D)
        codes = roomy.encode(x)
        assert roomy.surplus(codes, K, D) == 0
        assert np.array_equal(roomy.decode(codes, K, D), plain.decode(plain.encode(x), K, D))
        n = fast.length(x)
        assert (codes[:n] < fast.end).all() and (codes[n:] == fast.end).all()


@pytest.mark.parametrize("chunk", [1, 5, 10, 20, 100])
def test_the_error_is_rounding(chunk: int) -> None:
    codec = FAST({"scale": 10.0, "radius": round(10 * chunk**0.5), "merges": [], "max_tokens": chunk * 2})
    bound_K = np.abs(dct(chunk)).sum(0) / 20
    assert bound_K.max() < 1 and (chunk > 5 or 0.05 <= bound_K.max() < 0.11)
    for x in (*smooth(20, chunk, 2), *np.random.default_rng(0).choice([-1.0, 1.0], (20, chunk, 2))):
        assert (np.abs(codec.decode(codec.encode(x), chunk, 2) - x) <= bound_K[:, None] + 1e-12).all()


@pytest.mark.parametrize("chunk", [5, 10, 20])
def test_fewer_codes_than_bins(chunk: int) -> None:
    """Published: 2 to 13 times fewer, at about the error of 32 bins."""
    x = smooth(300, chunk)
    codec = FAST.train(x)
    held_out = smooth(100, chunk, seed=1)
    lengths = [codec.length(y) for y in held_out]
    assert np.mean(lengths) < chunk * D / 2 and codec.max_tokens == max(codec.length(y) for y in x)
    roomy = FAST(codec.table, max_tokens=chunk * D)
    error = np.mean([np.abs(roomy.decode(roomy.encode(y), chunk, D) - y).mean() for y in held_out])
    assert 0.01 < error < 0.025


def test_too_few_and_too_many_coefficients() -> None:
    codec = untrained()
    x = smooth(1)[0]
    codes = codec.encode(x)
    cut = np.where(np.arange(K * D) < 6, codes, codec.end)
    assert codec.surplus(cut, K, D) == 6 - K * D
    c = dct(K) @ x
    c = np.where(np.arange(K * D).reshape(K, D) < 6, np.round(10 * c) / 10, 0)
    np.testing.assert_allclose(codec.decode(cut, K, D), dct(K).T @ c, atol=1e-12)
    assert codec.surplus(codes, 4, D) == D  # a chunk of 4 does not hold the last D
    expected = codec.decode(np.where(np.arange(K * D) < 4 * D, codes, codec.end), 4, D)
    assert np.array_equal(codec.decode(codes, 4, D), expected)
    assert (codec.decode(np.full(K * D, codec.end), K, D) == 0).all()
    behind = cut.copy()
    behind[9:] = codes[:11]  # what stands behind an end code does not count
    assert np.array_equal(codec.decode(behind, K, D), codec.decode(cut, K, D))


def test_a_long_chunk_is_cut(fast: FAST) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (K, D))
    short = FAST(fast.table, max_tokens=3)
    assert short.length(x) > 3 == short.tokens(K, D)
    codes = short.encode(x)
    assert np.array_equal(codes, FAST(fast.table, max_tokens=K * D).encode(x)[:3])
    assert short.surplus(codes, K, D) < 0 and short.decode(codes, K, D).shape == (K, D)


def test_a_longer_chunk_than_the_table_is_for() -> None:
    codec = untrained()
    assert codec.tokens(5, D) == codec.tokens(1, D) == K * D
    with pytest.raises(ConfigError, match="for chunks of at most 5 actions, given 6"):
        codec.tokens(6, D)


def test_training_is_repeatable_and_bounded() -> None:
    one, two = FAST.train(smooth(100), vocab=64), FAST.train(smooth(100), vocab=64)
    assert one.table == two.table and one.size <= 64
    assert one.size > 46 and len(FAST.train(smooth(100), vocab=46).table["merges"]) == 0
    with pytest.raises(ConfigError, match="vocab: 45 is below 46, the coefficients at scale 10"):
        FAST.train(smooth(10), vocab=45)


def test_files(fast: FAST, tmp_path: Path) -> None:
    path = tmp_path / "fast.json"
    fast.save(path)
    again = FAST(str(path))
    assert again.table == fast.table and again.max_tokens == fast.max_tokens
    assert again.node["table"] == json.loads(json.dumps(fast.table))  # nothing points at the file
    with pytest.raises(ConfigError, match="fast.json: exists"):
        fast.save(path)
    with pytest.raises(ConfigError, match="No such file"):
        FAST(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        FAST(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": 0}, "table.scale"),
        ({"radius": 0.5}, "table.radius"),
        ({"merges": [[0, 45]]}, r"table.merges\[0\]: \[0, 45\] is not two of the 45 codes"),
        ({"merges": [[0, 1], [45, 46]]}, r"table.merges\[1\]"),
        ({"merges": [3]}, "pairs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_broken_tables(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        untrained(**change)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="expected a mapping of scale"):
        FAST({"scale": 10.0})
    with pytest.raises(ConfigError, match="max_tokens=0"):
        FAST(untrained().table, max_tokens=0)
    for shape in ((3, 4), (3, 4, 2, 1), (0, 4, 2), (3, 0, 2), (3, 4, 0)):
        with pytest.raises(DataError, match="chunks of shape"):
            FAST.train(np.zeros(shape))
    assert FAST.train(np.zeros((1, 1, 1))).encode(np.zeros((1, 1)))  # one of everything is enough
    with pytest.raises(ConfigError, match="scale: 0"):
        FAST.train(smooth(3), scale=0)
