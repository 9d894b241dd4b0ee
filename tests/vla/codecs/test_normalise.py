"""Statistics against known numbers, maps to [-1, 1] and back, files of others, and the choice by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.codecs.normalise import SPAN, Normaliser, Q, Statistics
from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.data.statistics import choose, read_statistics, statistics_of, to_json
from mmdiff.tasks.vla.data.writer import LeRobotWriter

NAMES = ("x", "y", "still", "gripper")


def values(n: int = 500, seed: int = 0) -> np.ndarray:
    """Wide, far from 0, constant, and one of two."""
    rng = np.random.default_rng(seed)
    columns = [rng.normal(0, 5, n), 1e4 + rng.exponential(1e-2, n), np.full(n, 0.1), 0.08 * (rng.random(n) < 0.3)]
    return np.stack(columns, 1)


def stats(seed: int = 0) -> Statistics:
    return Statistics.of(values(seed=seed), NAMES)


def test_known_numbers() -> None:
    found = Statistics.of(np.stack([np.arange(101.0), -2 * np.arange(101.0)], 1), ("a", "b"))
    assert found.mean == (50, -100) and found.min == (0, -200) and found.max == (100, 0) and found.count == 101
    np.testing.assert_allclose(found.q01, (1, -198), atol=1e-12)
    np.testing.assert_allclose(found.q99, (99, -2), atol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt((101**2 - 1) / 12) * np.array([1, 2]))
    np.testing.assert_allclose(np.array(found.grid)[:, 0], np.linspace(0, 100, Q + 1), atol=1e-12)
    assert found.dims == 2 and len(found.grid) == Q + 1 == 257


def test_float32_data_are_summed_in_float64() -> None:
    x = np.full((100_000, 1), 0.1, np.float32)
    assert abs(Statistics.of(x).mean[0] - float(np.float32(0.1))) < 1e-15


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    x = values(20)
    x[7, 1] = bad
    with pytest.raises(DataError, match=r'row 7, dimension 1 \("y"\)'):
        Statistics.of(x, NAMES)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        Statistics.of(np.zeros(shape))


def test_json_keeps_every_bit() -> None:
    found = stats()
    assert Statistics.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [1.0]}, "min has 2 numbers, but mean has 1"),
        ({"std": [1.0, -1.0]}, "below 0"),
        ({"max": [1.0, -9.0]}, "min is above max in dimension 1"),
        ({"q01": [0.0, float("nan")]}, "q01 of dimension 1 is not finite"),
        ({"min": "abc"}, "min 'abc' is not a list"),
        ({"names": ["a"]}, "1 names for 2"),
        ({"mask": [1, 2]}, "mask"),
        ({"mask": [True, True, False]}, "untouched"),
        ({"grid": [[0.0, 1.0], [1.0, 0.0]]}, "fall"),
        ({"count": [1, 2]}, "count"),
    ],
)
def test_broken_files_are_refused(change: dict[str, Any], said: str) -> None:
    whole = {"mean": [0.0, 0.0], "min": [-1.0, -1.0], "max": [1.0, 1.0]}
    Statistics.from_json(whole)
    with pytest.raises(DataError, match=said):
        Statistics.from_json({**whole, **change})


def test_nothing_is_no_statistics() -> None:
    with pytest.raises(DataError, match="none of"):
        Statistics.from_json({"count": 3})


# Maps


@pytest.mark.parametrize("mode", ["quantile", "bounds", "mean_std"])
def test_back_and_forth_inside_the_range(mode: Any) -> None:
    normaliser, x = Normaliser(stats(), mode, binary=("gripper",)), values()
    low, high = normaliser.range_2D
    inside = x.clip(low, high)
    inside[:, 3] = x[:, 3]
    back = normaliser.inverse(normaliser.forward(inside))
    assert (np.abs(back - inside) <= 1e-12 * np.maximum(1, np.abs(inside))).all()
    assert np.abs(normaliser.forward(x)).max() == 1


def test_ends_of_each_mode() -> None:
    found = Statistics.of(np.stack([np.arange(101.0)], 1))
    std = float(np.sqrt((101**2 - 1) / 12))
    for mode, low, high in (("quantile", 1, 99), ("bounds", 0, 100), ("mean_std", 50 - SPAN * std, 50 + SPAN * std)):
        normaliser = Normaliser(found, mode)  # type: ignore[arg-type]
        np.testing.assert_allclose(normaliser.range_2D[:, 0], [low, high], atol=1e-12)
        x = np.array([[low], [(low + high) / 2], [high]])
        np.testing.assert_allclose(normaliser.forward(x), [[-1], [0], [1]], atol=1e-12)
    raw = np.array([[-3.0], [-0.5], [0.25], [1.5]])
    assert Normaliser(found, "none").forward(raw).ravel().tolist() == [-1, -0.5, 0.25, 1]
    assert Normaliser(found, "none").inverse(raw).ravel().tolist() == [-1, -0.5, 0.25, 1]


def test_values_outside_are_clipped_and_counted() -> None:
    normaliser = Normaliser(Statistics.of(np.stack([np.arange(101.0)] * 2, 1)))
    x = np.array([[0.0, 50], [0.99, 99.01], [1, 99]])
    assert normaliser.clipped(x).sum() == 3
    assert normaliser.forward(x).tolist()[0][0] == -1 and normaliser.forward(x).tolist()[1] == [-1, 1]
    np.testing.assert_allclose(normaliser.inverse(normaliser.forward(x))[:, 0], [1, 1, 1])
    np.testing.assert_allclose(normaliser.inverse([[7, -7]]), [[99, 1]])  # nothing outside the data's range is sent


def test_published_formula() -> None:
    """OpenVLA's BOUNDS_Q99 with its 1e-8 and its inverse, where the mask is true."""
    normaliser, x = Normaliser(stats()), values(seed=1)[:, :2]
    q01, q99 = np.array(stats().q01)[:2], np.array(stats().q99)[:2]
    y = np.clip(2 * (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)
    np.testing.assert_allclose(normaliser.forward(values(seed=1))[:, :2], y, atol=1e-6)
    np.testing.assert_allclose(normaliser.inverse(np.pad(y, ((0, 0), (0, 2))))[:, :2], (y + 1) / 2 * (q99 - q01) + q01)


def test_a_constant_dimension_is_0_and_comes_back() -> None:
    normaliser = Normaliser(stats())
    assert (normaliser.forward(values())[:, 2] == 0).all()
    for y in (-1.0, 0.3, 1.0):
        assert normaliser.inverse([[0, 0, y, 0]])[0, 2] == 0.1
    assert normaliser.clipped([[0, 1e4 + 0.005, 0.2, 0]]).sum() == 1


@pytest.mark.parametrize("binary", [("gripper",), (3,), (-1,)])
def test_binary_dimensions_are_exact(binary: Any) -> None:
    normaliser = Normaliser(stats(), "quantile", binary)
    raw = np.array([[0, 1e4, 0.1, g] for g in (0.0, 0.039, 0.041, 0.08)])
    y = normaliser.forward(raw)[:, 3]
    assert y.tolist() == [-1, -1, 1, 1]
    for noise in (-0.9, -0.03, 0.03, 0.9):  # whatever a codec makes of them
        back = normaliser.inverse(np.pad((y + noise)[:, None], ((0, 0), (3, 0))))[:, 3]
        assert back.tolist() == [0, 0, 0.08, 0.08]
    assert normaliser.binary_D.tolist() == [False, False, False, True]


def test_untouched_dimensions() -> None:
    found = Statistics.from_json({**stats().to_json(), "mask": [True, True, True, False]})
    assert found.untouched == (3,)
    raw = np.array([[0, 1e4, 0.1, 0.7]])
    for normaliser in (Normaliser(found), Normaliser(stats(), untouched=("gripper",))):
        assert normaliser.forward(raw)[0, 3] == 0.7 and normaliser.inverse(raw)[0, 3] == 0.7
    assert Normaliser(found, binary=(3,)).inverse(raw)[0, 3] == 0.08  # a binary dimension is one all the same


def test_any_leading_shape() -> None:
    normaliser, x = Normaliser(stats()), values(24)
    assert np.array_equal(normaliser.forward(x.reshape(2, 3, 4, 4)).reshape(24, 4), normaliser.forward(x))
    assert np.array_equal(normaliser.forward(x[0]), normaliser.forward(x)[0])


def test_refusals_of_a_normaliser() -> None:
    with pytest.raises(ConfigError, match='did you mean "quantile"'):
        Normaliser(stats(), "quantiles")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='did you mean "gripper"'):
        Normaliser(stats(), binary=("griper",))
    with pytest.raises(ConfigError, match="binary: 4 is not a dimension"):
        Normaliser(stats(), binary=(4,))
    with pytest.raises(ConfigError, match="no names, give its number"):
        Normaliser(Statistics.of(values()), binary=("gripper",))
    without = Statistics.from_json({"min": [0.0], "max": [1.0]})
    with pytest.raises(ConfigError, match=r"quantile needs q01, which the statistics lack \(they have min, max\)"):
        Normaliser(without)
    Normaliser(without, "bounds")
    with pytest.raises(DataError, match=r"shape \(2, 3\).*4 dimensions"):
        Normaliser(stats()).forward(np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"values\[1, 2\]: nan"):
        Normaliser(stats()).forward([[0, 0, 0, 0], [0, 0, np.nan, 0]])


# Files and keys


def openvla() -> dict[str, Any]:
    plain = {k: v for k, v in stats().to_json().items() if k not in ("count", "names", "grid")}
    one = {"action": {**plain, "mask": [True] * 3 + [False]}, "proprio": plain}
    return {name: {**one, "num_transitions": 500, "num_trajectories": 9} for name in ("bridge", "libero_goal")}


def test_openvla(tmp_path: Path) -> None:
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(openvla()))
    for path in (tmp_path, tmp_path / "dataset_statistics.json"):
        found = read_statistics(path)
        assert set(found) == {"bridge", "libero_goal"}
        action, state = found["bridge"]["action"], found["bridge"]["state"]
        assert (action.q01, action.count, action.untouched) == (stats().q01, 500, (3,))
        assert (state.q99, state.untouched) == (stats().q99, ())


def test_lerobot_stats(tmp_path: Path) -> None:
    one = {**stats().to_json(), "count": [500], "q10": [0.0] * 4}
    del one["names"], one["grid"], one["q01"], one["q99"]  # older data sets have no quantiles
    picture = {"mean": [[[0.5]]] * 3, "std": [[[0.1]]] * 3}
    (tmp_path / "pusht" / "meta").mkdir(parents=True)
    file = tmp_path / "pusht" / "meta" / "stats.json"
    file.write_text(json.dumps({"action": one, "observation.state": one, "observation.images.top": picture}))
    found = read_statistics(str(file))
    assert list(found) == ["pusht"] and set(found["pusht"]) == {"action", "state"}
    assert found["pusht"]["action"].count == 500 and found["pusht"]["state"].mean == stats().mean
    with pytest.raises(ConfigError, match="q01"):
        Normaliser(found["pusht"]["action"])


def test_plain_mappings_and_paths_by_key(tmp_path: Path) -> None:
    entry = {"action": stats(), "state": stats(1)}
    plain = json.loads(json.dumps(to_json({"mine": entry})))
    assert read_statistics(plain) == {"mine": entry}
    assert read_statistics(plain["mine"]) == {"default": entry}
    (tmp_path / "a.json").write_text(json.dumps(plain))
    (tmp_path / "b.json").write_text(json.dumps(openvla()))
    found = read_statistics({"home": str(tmp_path / "a.json"), "bridge": str(tmp_path / "b.json"), "c": plain["mine"]})
    assert list(found) == ["home", "bridge", "c"] and found["home"] == found["c"] == entry
    with pytest.raises(ConfigError, match="holds bridge, libero_goal"):
        read_statistics({"mine": str(tmp_path / "b.json")})


def test_refusals_of_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_statistics(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="neither meta/info.json nor dataset_statistics.json"):
        read_statistics(tmp_path)
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_statistics(tmp_path / "s.json")
    for found, said in (
        ([], "expected a mapping"),
        ({"a": 3}, r"statistics\.a: 3 is neither"),
        ({"a": {"state": stats().to_json()}}, r"statistics\.a: no statistics of `action`, there are: state"),
        ({"a": {"action": {"mean": [1.0], "std": [1.0, 2.0]}}}, r"statistics\.a\.action: .*std has 2"),
        ({"a": {"action": [1.0]}}, r"statistics\.a\.action"),
    ):
        with pytest.raises(DataError, match=said):
            read_statistics(found)  # type: ignore[arg-type]


def test_choice_by_key() -> None:
    one = {"action": stats()}
    assert choose({"a": one}) == choose({"a": one}, "a") == choose({"a": one, "b": one}, "a") == "a"
    with pytest.raises(ConfigError, match="2 data sets, name one of them: bridge, libero_goal"):
        choose({"libero_goal": one, "bridge": one})
    with pytest.raises(ConfigError, match=r'no statistics of "libero" \(did you mean "libero_goal"\?\); there are:'):
        choose({"libero_goal": one, "bridge": one}, "libero")
    with pytest.raises(ConfigError, match=r'of "fractal"; there are: bridge, libero_goal$'):
        choose({"libero_goal": one, "bridge": one}, "fractal")


@pytest.mark.needs("pyarrow")
def test_of_a_lerobot_folder(tmp_path: Path) -> None:
    x_ND, names = values(60).astype(np.float32), {"action_names": NAMES, "state_names": ("a", "b")}
    with_state = LeRobotWriter(tmp_path / "robot", fps=10, **names)
    for part in range(3):
        with_state.add(Episode("go", x_ND[20 * part : 20 * part + 20], x_ND[20 * part : 20 * part + 20, :2]))
    with_state.finish()
    blind = LeRobotWriter(tmp_path / "blind", fps=10)
    blind.add(Episode("go", x_ND))
    blind.finish()
    found = statistics_of(tmp_path / "robot")
    assert found == {"action": Statistics.of(x_ND, NAMES), "state": Statistics.of(x_ND[:, :2], ("a", "b"))}
    assert read_statistics(tmp_path / "robot") == {"robot": found}
    assert read_statistics({"mine": tmp_path / "robot"}) == {"mine": found}
    assert set(statistics_of(tmp_path / "blind")) == {"action"}
    written = read_statistics(tmp_path / "robot" / "meta" / "stats.json")["robot"]["action"]
    assert (written.min, written.max, written.count) == (found["action"].min, found["action"].max, 60)
