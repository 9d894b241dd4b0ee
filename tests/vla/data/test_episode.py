"""Broken episodes are named by episode and frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import DataError
from mmdiff.tasks.vla.data.episode import Episode, check_episode, check_finite


def episode(n: int = 4, **fields: Any) -> Episode:
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 255, (n, 8, 6, 3), np.uint8) for name in ("front", "wrist")}
    action, state = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)
    return replace(Episode("push", action, state, pictures, 10.0), **fields)


def spoiled(values: np.ndarray, frame: int, dim: int, value: float) -> np.ndarray:
    values = values.copy()
    values[frame, dim] = value
    return values


def test_whole_episodes_pass() -> None:
    check_episode(episode())
    check_episode(episode(state=None, images={}), dims=3, state_dims=0, cameras={})
    check_episode(episode(), dims=3, state_dims=2, cameras={"front": (8, 6, 3), "wrist": None})
    assert len(episode(7)) == 7


GOOD = episode()
BROKEN: dict[str, tuple[Episode, str]] = {
    "nan action": (episode(action=spoiled(GOOD.action, 2, 1, np.nan)), r"e 5 frame 2: action\[1\] is nan"),
    "inf state": (episode(state=spoiled(GOOD.state, 3, 0, -np.inf)), r"e 5 frame 3: state\[0\] is -inf"),
    "empty": (episode(action=np.zeros((0, 3), np.float32)), r"e 5: no frames"),
    "flat": (episode(action=np.zeros(4, np.float32)), r"e 5: action has shape \(4,\)"),
    "no dimensions": (episode(action=np.zeros((4, 0), np.float32)), r"e 5: action has 0 dimensions, expected at least"),
    "list": (episode(action=[[0.0]] * 4), r"e 5: action is list, expected an array"),
    "words": (episode(action=np.full((4, 3), "x")), r"e 5: action is ndarray, expected an array of numbers"),
    "short state": (episode(state=GOOD.state[:3]), r"e 5: 3 states, 4 actions"),
    "short camera": (episode(images={"front": GOOD.images["front"][:3]}), r"e 5: camera 'front' has 3 pictures, 4 act"),
    "float picture": (
        episode(images={"front": np.zeros((4, 8, 6, 3))}),
        r"frame 0: camera 'front': picture of float64",
    ),
    "grey": (episode(images={"front": np.zeros((4, 8, 6), np.uint8)}), r"frame 0: .*shape \(8, 6\)"),
    "sizes": (
        episode(images={"front": [np.zeros((8, 6, 3), np.uint8)] * 2 + [np.zeros((6, 8, 3), np.uint8)] * 2}),
        r"e 5 frame 2: camera 'front': picture of shape \(6, 8, 3\), those before have \(8, 6, 3\)",
    ),
    "no text": (episode(instruction=None), "e 5: instruction is None"),
    "fps": (episode(fps=0.0), "e 5: fps is 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str) -> None:
    broken, message = BROKEN[name]
    with pytest.raises(DataError, match=message) as error:
        check_episode(broken, "e 5")
    assert "\n" not in str(error.value)


def test_what_others_have() -> None:
    with pytest.raises(DataError, match="e 5: action has 3 dimensions, expected 4"):
        check_episode(GOOD, "e 5", dims=4)
    with pytest.raises(DataError, match="e 5: the state has 2 dimensions, expected 0"):
        check_episode(GOOD, "e 5", state_dims=0)
    with pytest.raises(DataError, match=r"""e 5: no camera 'frnt' \(did you mean "front"\?\)"""):
        check_episode(GOOD, "e 5", cameras={"frnt": None})
    with pytest.raises(DataError, match="e 5: camera 'wrist' is in no earlier episode"):
        check_episode(GOOD, "e 5", cameras={"front": None})
    with pytest.raises(DataError, match=r"frame 0: camera 'front': picture of shape \(8, 6, 3\), .* \(9, 6, 3\)"):
        check_episode(GOOD, "e 5", cameras={"front": (9, 6, 3), "wrist": None})
    check_episode(GOOD, cameras={"front": (9, 6, 3), "wrist": None}, pictures=False)


def test_a_dimension_is_called_by_its_name() -> None:
    with pytest.raises(DataError, match=r"x frame 12: action\[1\] \(grip\) is nan"):
        check_finite(spoiled(np.zeros((4, 2)), 2, 1, np.nan), "x", "action", ("dx", "grip"), first=10)
