"""Replay: errors against closed forms, and recorded actions that take the recorded course in the simulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.codecs.bins import DCTBins, UniformBins
from mmdiff.tasks.vla.codecs.normalise import Normaliser, Statistics
from mmdiff.tasks.vla.data.episode import Episode

pytest.importorskip("gymnasium")
from mmdiff.tasks.vla.rollout.record import record  # noqa: E402
from mmdiff.tasks.vla.rollout.replay import replay, round_trip  # noqa: E402
from mmdiff.tasks.vla.task import VLA  # noqa: E402

LAYOUTS = [("reach-red", 5), ("reach-red", 6), ("reach-blue", 5), ("reach-blue", 6)]


class Kept:
    """Stands where `LeRobot` does: episodes that are kept in memory."""

    action_names = ("dx", "dy", "gripper")

    def __init__(self, episodes: list[Episode]) -> None:
        self.episodes = episodes

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, i: int) -> Episode:
        return self.episodes[i]


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return list(record("reach", ["reach-red", "reach-blue"], 2, seed=5, noise=0.3, share=0.5))


@pytest.fixture
def dataset(episodes: list[Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "meta").mkdir()
    told = {"world": {"name": "reach"}, "layouts": LAYOUTS, "noise": 0.3, "share": 0.5}
    (tmp_path / "meta" / "world.json").write_text(json.dumps(told))
    monkeypatch.setitem(sys.modules, "mmdiff.tasks.vla.data.dataset", SimpleNamespace(LeRobot=lambda _: Kept(episodes)))
    return tmp_path


def task(episodes: list[Episode], bins: int = 32, **more: Any) -> VLA:
    statistics = Statistics.of(np.concatenate([e.action for e in episodes]), Kept.action_names).to_json()
    given: dict[str, Any] = {"state": "none", "normalise": "bounds", "codec": UniformBins(bins), **more}
    return VLA({"reach": {"action": statistics}}, **given)


def test_recorded_actions_take_the_recorded_course(dataset: Path, episodes: list[Episode]) -> None:
    found = replay(dataset, task(episodes, 256))
    assert found["drift"] < 1e-6 and found["notes"] == []
    assert found["raw"]["success"] == found["codec"]["success"] == 1 and found["raw"]["n"] == 4
    assert found["episodes"] == 4 and found["frames"] == sum(map(len, episodes)) and found["tokens"] == 15


def test_a_course_that_is_not_the_recorded_one_is_noted(dataset: Path, episodes: list[Episode]) -> None:
    file = dataset / "meta" / "world.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "layouts": [[t, s + 1] for t, s in LAYOUTS]}))
    found = replay(dataset, task(episodes))
    assert found["drift"] > 0.01 and "not the recorded layout" in found["notes"][0]
    file.write_text(json.dumps({**told, "share": 0.0}))  # the expert was disturbed: without that it goes elsewhere
    assert replay(dataset, task(episodes))["drift"] > 0.01


def test_tokens_that_are_too_coarse_fail_where_the_actions_do_not(dataset: Path, episodes: list[Episode]) -> None:
    found = replay(dataset, task(episodes, 2))
    assert found["raw"]["success"] == 1 and found["codec"]["success"] < 1


def test_errors_of_a_known_round_trip() -> None:
    # 4 bins of [-1, 1]: centres at -.75, -.25, .25, .75; [-1, 1] is [0, 8] here: centres 1, 3, 5, 7
    statistics = Statistics(mean=(), std=(), min=(0.0, -5.0), max=(8.0, -5.0), q01=(), q99=(), count=3)
    normaliser = Normaliser(statistics, "bounds")
    raw_ND = np.array([[0.0, -5.0], [3.5, -5.0], [9.0, -5.0]])
    back_ND = round_trip(raw_ND, normaliser, UniformBins(4), 2)
    np.testing.assert_allclose(back_ND, [[1.0, -5.0], [3.0, -5.0], [7.0, -5.0]])


def test_the_last_chunk_is_filled_up_with_its_last_action() -> None:
    statistics = Statistics(mean=(), std=(), min=(-1.0,), max=(1.0,), q01=(), q99=(), count=1)
    back_ND = round_trip(np.full((5, 1), 0.5), Normaliser(statistics, "bounds"), DCTBins(255, keep=1), 4)
    np.testing.assert_allclose(back_ND, 0.5, atol=1 / 255)  # one coefficient says what does not change


def test_figures_by_dimension(dataset: Path, episodes: list[Episode]) -> None:
    narrow = Statistics(
        mean=(), std=(), min=(-0.5,) * 3, max=(0.5,) * 3, q01=(), q99=(), count=1, names=("a", "b", "c")
    )
    found = replay(
        dataset, VLA({"k": {"action": narrow.to_json()}}, state="none", normalise="bounds", codec=UniformBins(10)),
        episodes=[1, 3],
    )  # fmt: skip
    raw_ND = np.concatenate([episodes[i].action for i in (1, 3)]).astype(float)
    back_ND = (np.floor(raw_ND.clip(-0.5, 0.4999999) * 10) + 0.5) / 10  # centres of ten bins of a tenth each
    for d, name in enumerate(("dx", "dy", "gripper")):
        assert found["error"][name]["mean"] == pytest.approx(abs(raw_ND - back_ND)[:, d].mean())
        assert found["error"][name]["max"] == pytest.approx(abs(raw_ND - back_ND)[:, d].max())
        assert found["error"][name]["clipped"] == (abs(raw_ND) > 0.5)[:, d].sum()
    assert found["mae"] == pytest.approx(abs(raw_ND - back_ND).mean())
    assert found["clipped"] == (abs(raw_ND) > 0.5).sum() and found["episodes"] == 2


def test_without_a_simulator_only_errors(dataset: Path, episodes: list[Episode]) -> None:
    (dataset / "meta" / "world.json").unlink()
    found = replay(dataset, task(episodes))
    assert "raw" not in found and found["mae"] > 0 and "nothing is simulated" in found["notes"][0]


def test_what_is_refused(dataset: Path, episodes: list[Episode]) -> None:
    for chosen in ([4], [-1], [], 5):
        with pytest.raises(ConfigError, match=r"episodes: .*, expected some of 0\.\.3"):
            replay(dataset, task(episodes), episodes=chosen)
    wide = Statistics.of(np.zeros((2, 7))).to_json()
    with pytest.raises(DataError, match="episode 0: actions of 3 dimensions, the policy's have 7"):
        replay(dataset, VLA({"k": {"action": wide}}, state="none"))
    file = dataset / "meta" / "world.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "layouts": LAYOUTS[:3]}))
    with pytest.raises(DataError, match="3 layouts, but the data set has 4 episodes"):
        replay(dataset, task(episodes))
    file.write_text(json.dumps({"world": {"name": "reach"}}))
    with pytest.raises(DataError, match="world.json: lacks 'layouts'; expected world, layouts, noise, share"):
        replay(dataset, task(episodes))


def test_a_data_set_has_nothing_called(dataset: Path, episodes: list[Episode], tmp_path: Path) -> None:
    there, file = tmp_path / "there", dataset / "meta" / "world.json"
    kept = json.loads(file.read_text())
    call = {"target": "os.system", "command": f"touch {there}"}
    for world in ({**kept["world"], "size": call}, {**kept["world"], **call}, {"name": "os.system", **call}):
        file.write_text(json.dumps({**kept, "world": world}))
        with pytest.raises(ConfigError, match="`target` is no option|if you trust it"):
            replay(dataset, task(episodes))
    assert not there.exists()
