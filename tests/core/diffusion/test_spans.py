"""Maskings that depend on order or on tokens: by enumeration, and against the plain ones that they contain.

Shape letters: B rows, L positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount, Levels, Masked
from mmdiff.diffusion.spans import SIX, Beginnings, Cloze, Ends, Mixture, Nothing, Runs
from mmdiff.diffusion.token_rates import ImportantFirst, Spindle, write_counts
from mmdiff.errors import ConfigError


def draw(levels: Levels, rows: int, length: int, ids_BL: Any = None, seed: int = 0) -> Masked:
    rng = np.random.default_rng(seed)
    target_BL = np.ones((rows, length), dtype=bool)
    found = levels.mask(target_BL, rng.random(rows), rng.random(rows), rng.random((rows, length)), ids_BL)
    return found._replace(weight_BL=np.broadcast_to(found.weight_BL, target_BL.shape))


def sets(levels: Levels, length: int = 4, rows: int = 20_000) -> dict[str, float]:
    masked_BL = draw(levels, rows, length).masked_BL
    found, count = np.unique(masked_BL, axis=0, return_counts=True)
    return {"".join("x" if m else "." for m in row): n / rows for row, n in zip(found, count, strict=True)}


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (Ends(), {"...x": 1 / 4, "..xx": 1 / 4, ".xxx": 1 / 4, "xxxx": 1 / 4}),
        (Beginnings(), {"x...": 1 / 4, "xx..": 1 / 4, "xxx.": 1 / 4, "xxxx": 1 / 4}),
        (Cloze(), {"x...": 1 / 4, ".x..": 1 / 4, "..x.": 1 / 4, "...x": 1 / 4}),
        (Nothing(), {"....": 1.0}),
        (
            Runs(),
            {p: 1 / 16 for p in ("x...", ".x..", "..x.", "...x")}
            | {p: 1 / 12 for p in ("xx..", ".xx.", "..xx")}
            | {p: 1 / 8 for p in ("xxx.", ".xxx")}
            | {"xxxx": 1 / 4},
        ),
    ],
    ids=repr,
)
def test_which_sets_are_masked_and_how_often(levels: Levels, expected: dict[str, float]) -> None:
    found = sets(levels)
    assert found.keys() == expected.keys()
    for name, share in expected.items():
        assert found[name] == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


@pytest.mark.parametrize("levels", [*SIX, Mixture()], ids=lambda x: type(x).__name__)
def test_a_masked_position_weighs_n_over_k(levels: Levels) -> None:
    found = draw(levels, 2000, 5)
    k_B = found.masked_BL.sum(1)
    np.testing.assert_allclose((found.weight_BL[:, 0] * k_B), 5)
    np.testing.assert_allclose(found.rate_B, k_B / 5)


@pytest.mark.parametrize("levels", [*SIX, Mixture(), Nothing()], ids=lambda x: type(x).__name__)
def test_rows_of_unequal_length_mask_targets_only(levels: Levels) -> None:
    rng = np.random.default_rng(0)
    target_BL = np.arange(9) < rng.integers(1, 10, 300)[:, None]
    found = levels.mask(target_BL, rng.random(300), rng.random(300), rng.random((300, 9)))
    assert not (found.masked_BL & ~target_BL).any()
    if not isinstance(levels, Nothing):
        assert found.masked_BL.any(1).all()


def test_a_mixture_is_made_of_its_parts_in_their_shares() -> None:
    found = sets(Mixture([Cloze(), ExactCount(full=1.0)], [3.0, 1.0]))
    expected = {p: 3 / 16 for p in ("x...", ".x..", "..x.", "...x")} | {"xxxx": 1 / 4}
    assert found.keys() == expected.keys()
    assert all(found[p] == pytest.approx(share, abs=0.015) for p, share in expected.items())
    of_six = sets(Mixture())
    assert of_six["xxxx"] == pytest.approx((4 / 4 + 1) / 6, abs=0.015)  # four of them reach all; one is nothing else


def test_the_coin_of_a_part_is_uniform_again() -> None:
    """Half of the draws of a part that looks at its coin are full, in either half of the mixture's own coin."""
    found = sets(Mixture([ExactCount(full=0.5), ExactCount(full=0.5)]))
    assert found["xxxx"] == pytest.approx(0.5 + 0.5 / 4, abs=0.015)


@pytest.mark.parametrize(("of", "shares"), [([], []), ([Cloze()], [1.0, 2.0]), ([Cloze(), Ends()], [0.0, 0.0])])
def test_mixtures_that_cannot_be(of: Any, shares: Any) -> None:
    with pytest.raises(ConfigError, match=r"levels\.(of|shares)"):
        Mixture(of, shares)


# Tokens --------------------------------------------------------------------------------------------------------------

IDS = np.array([[0, 1, 2, 3, 4]])


@pytest.fixture
def counts(tmp_path: Path) -> str:
    path = tmp_path / "counts.safetensors"
    write_counts(path, [0] * 1000 + [1] * 100 + [2] * 10 + [3] * 1, 5)
    return str(path)


def spindle_at(counts: str, t: float) -> tuple[Any, Any]:
    """Rates and weights at a time; a position's own rate is found by bisection of its number."""
    levels, level = Spindle(counts, eps=1e-9), np.array([(t - 1e-9) / (1 - 1e-9)])
    target, low, high = np.ones(IDS.shape, dtype=bool), np.zeros(IDS.shape), np.ones(IDS.shape)
    for _ in range(45):
        middle = (low + high) / 2
        found = levels.mask(target, level, level, middle, IDS)
        low, high = np.where(found.masked_BL, middle, low), np.where(found.masked_BL, high, middle)
    return low[0], np.broadcast_to(found.weight_BL, IDS.shape)[0]


def test_spindle_masks_rare_tokens_first_and_ends_where_the_linear_schedule_does(counts: str) -> None:
    rates = [spindle_at(counts, t)[0] for t in np.linspace(0.01, 0.99, 25)]
    assert (np.diff(rates, axis=0) > 0).all()
    assert (np.diff(rates[12]) > 0.01).all()  # ids are in the order of their counts
    np.testing.assert_allclose(spindle_at(counts, 1e-6)[0], 0, atol=1e-5)
    np.testing.assert_allclose(spindle_at(counts, 1 - 1e-6)[0], 1, atol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_spindle_weighs_by_the_rate_of_its_own_token(counts: str, t: float) -> None:
    (below, _), (rate, weight), (above, _) = (spindle_at(counts, t + d) for d in (-1e-5, 0, 1e-5))
    np.testing.assert_allclose(weight, (above - below) / 2e-5 / rate, rtol=1e-4)


def test_spindle_of_one_frequency_is_the_linear_schedule(counts: str) -> None:
    ids = np.full((200, 6), 2)
    found, plain = draw(Spindle(counts), 200, 6, ids), draw(Bernoulli(), 200, 6)
    np.testing.assert_array_equal(found.masked_BL, plain.masked_BL)
    np.testing.assert_allclose(found.weight_BL, plain.weight_BL)
    rare = draw(Spindle(counts, strength=0.0), 200, 5, np.tile(IDS, (200, 1)))
    np.testing.assert_allclose(rare.weight_BL, draw(Bernoulli(), 200, 5).weight_BL)


def test_important_tokens_are_masked_first(counts: str) -> None:
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(IDS, (500, 1)), axis=1)
    found = draw(ImportantFirst(counts), 500, 5, ids)
    for masked, row in zip(found.masked_BL, ids, strict=True):
        assert sorted(row[masked]) == list(range(5 - masked.sum(), 5))
    np.testing.assert_allclose(found.weight_BL[:, 0] * found.masked_BL.sum(1), 5)


def test_a_soft_order_is_drawn_by_importance(counts: str) -> None:
    """Of two tokens, which is masked alone: in proportion to exp(-log frequency / softness)."""
    ids = np.tile(np.array([[0, 3]]), (40_000, 1))
    common = np.log1p([1000, 1]) / np.log1p(1000)
    for softness in (0.3, 2.0):
        masked_BL = draw(ImportantFirst(counts, softness), 40_000, 2, ids).masked_BL
        one_B = masked_BL.sum(1) == 1
        weight = np.exp(-common / softness)
        expected = weight[1] / weight.sum()
        assert masked_BL[one_B, 1].mean() == pytest.approx(expected, abs=4 * 0.5 / one_B.sum() ** 0.5)


def test_tokens_that_are_as_common_are_masked_at_random(counts: str) -> None:
    masked_BL = draw(ImportantFirst(counts), 6000, 3, np.full((6000, 3), 1)).masked_BL
    np.testing.assert_allclose(masked_BL.mean(0), 2 / 3, atol=0.03)


def test_tables_that_do_not_fit_are_refused(tmp_path: Path, counts: str) -> None:
    target, one = np.ones((1, 1), dtype=bool), np.full(1, 0.5)
    for path, ids, message in (
        ("none.safetensors", np.zeros((1, 1), dtype=np.int64), "expected a safetensors file"),
        (counts, np.full((1, 1), 5), "5 ids, expected one for each"),
        (counts, None, "looks at tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            ImportantFirst(path).mask(target, one, one, one[None], ids)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    broken, ids = Spindle(str(tmp_path / "broken.safetensors")), np.zeros((1, 1), dtype=np.int64)
    with pytest.raises(ConfigError, match="not a safetensors file"):
        broken.mask(target, one, one, one[None], ids)
    with pytest.raises(ConfigError, match="1 / pi"):
        Spindle(counts, strength=0.33)
