"""Noise against a plain reading of Philox4x64-10, and what it may depend on."""

from __future__ import annotations

import zlib

import numpy as np

from mmdiff.diffusion.keys import NoiseKey

WORD = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al., SC 2011, section 4, in plain integers."""
    for _ in range(10):
        a, b = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [(b >> 64) ^ counter[1] ^ key[0], b & WORD, (a >> 64) ^ counter[3] ^ key[1], a & WORD]
        key = [(key[0] + 0x9E3779B97F4A7C15) & WORD, (key[1] + 0xBB67AE8584CAA73B) & WORD]
    return counter


def test_the_plain_philox_gives_the_published_answers() -> None:
    """Random123's known-answer file: all zeros and all ones."""
    assert philox([0] * 4, [0] * 2) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([WORD] * 4, [WORD] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


def test_numbers_are_the_philox_blocks_of_seed_stream_step_sample_view() -> None:
    key = NoiseKey(seed=11, step=5, stream="mask")
    words = [w for n in (1, 2) for w in philox([n, 3, 7, 5], [11, zlib.crc32(b"mask")])]
    np.testing.assert_array_equal(key.uniform(sample=7, n=8, copy=3), [(w >> 11) / 2**53 for w in words])


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    key = NoiseKey(1)
    np.testing.assert_array_equal(key.uniform(4, 9)[:5], key.uniform(4, 5))


def test_a_key_is_of_the_first_step_and_of_one_sample() -> None:
    assert NoiseKey(3) == NoiseKey(seed=3, step=0, stream="", batch=1)


def test_every_part_of_the_key_matters() -> None:
    draws = [
        NoiseKey(0).uniform(0, 4),
        NoiseKey(1).uniform(0, 4),
        NoiseKey(-1).uniform(0, 4),
        NoiseKey(0, step=1).uniform(0, 4),
        NoiseKey(0, stream="a").uniform(0, 4),
        NoiseKey(0).fold("a").uniform(0, 4),
        NoiseKey(0).fold("a").fold("b").uniform(0, 4),
        NoiseKey(0).uniform(1, 4),
        NoiseKey(0).uniform(0, 4, copy=1),
    ]
    assert len(np.unique(np.stack(draws))) == 4 * len(draws)


def test_the_size_of_the_step_does_not_change_the_numbers() -> None:
    np.testing.assert_array_equal(NoiseKey(3, batch=8).uniform(2, 4), NoiseKey(3, batch=64).uniform(2, 4))


def test_numbers_are_uniform_and_samples_independent() -> None:
    rows = NoiseKey(0, stream="u").uniforms(range(2000), 8)
    assert rows.shape == (2000, 8) and rows.min() >= 0 and rows.max() < 1
    share = np.histogram(rows, bins=10, range=(0, 1))[0] / rows.size
    assert np.abs(share - 0.1).max() < 4 * (0.09 / rows.size) ** 0.5
    assert abs(np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1]) < 4 / 2000**0.5


def test_integer_stays_below_its_bound() -> None:
    drawn = [NoiseKey(seed).integer(3) for seed in range(60)]
    assert set(drawn) == {0, 1, 2}
