"""The client: a simulator that runs in closed loop against a served policy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.session import Session

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from PIL import Image  # noqa: E402
from robots.policy_server import PICTURE, STATE, StandIn, served, task, wanted  # noqa: E402

from mmdiff.tasks.vla.serve.client import ActClient  # noqa: E402


def test_the_client_answers_as_the_policy_does(url: str) -> None:
    client = ActClient(url)
    assert (client.chunk, client.execute, client.sees) == (4, 4, True)
    rows = [
        {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE), "index": 3},
        {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE)},  # noise of number 1
    ]
    for found, right in zip(client.act(rows), (wanted(3), wanted(1)), strict=True):
        assert found.dtype == np.float64 and found.tolist() == right
    assert (client.calls, client.rows, client.forwards) == (1, 2, 10) and client.seconds > 0
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "png")
    assert client.act([{**rows[0], "image": file.getvalue()}])[0].tolist() == wanted(3)
    with pytest.raises(DataError, match=r"/act: 422: unnorm_key: 'bridge' is no key"):
        ActClient(url, key="bridge").act(rows)
    with pytest.raises(ConfigError, match="no answer .*is `mmdiff vla serve` running there"):
        ActClient("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="does not begin with http://"):
        ActClient("127.0.0.1:8777")


class Looking(StandIn):
    """Steers by what it sees: to the middle of the disc that the instruction names, closing where it gets there."""

    def answer(self, row: Mapping[str, Any], index: int, **named: Any) -> dict[str, Any]:
        from mmdiff.tasks.vla.worlds.reach import COLORS

        color = COLORS[row["instruction"].split()[2]]
        y, x = np.nonzero((row["image"] == color).all(-1))
        goal = (np.array([x.mean(), y.mean()]) + 0.5) * 2 / row["image"].shape[0] - 1
        place, chunk = row["state"].astype(np.float64), []
        noise = np.random.default_rng(index).normal(0, 0.05, (4, 2))  # the same for the same index
        for _ in range(4):
            away = (goal - place) / 0.1
            move = np.clip(away, -1, 1) + noise[len(chunk)]
            chunk.append([*move, 1.0 if abs(away).max() <= 1 else -1.0])
            place = place + 0.1 * np.clip(move, -1, 1)
        return {"prediction": chunk, "forwards": 4, "canvas": []}


class InProcess:
    chunk, sees = 4, True

    def __init__(self, session: Any) -> None:
        self.session = session

    def act(self, rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        one = [self.session.predict_many([row], first=row["index"])[0] for row in rows]
        return [np.asarray(answer["prediction"]) for answer in one]


@pytest.mark.needs("gymnasium")
def test_a_simulator_runs_against_the_server() -> None:
    from mmdiff.tasks.vla.rollout.rollout import rollout
    from mmdiff.tasks.vla.worlds.world import make_world

    worlds = [make_world({"name": "reach"}, task) for task in ("reach-red", "reach-blue")]
    seeds = [[0, 1, 2], [3, 4, 5]]
    session = Looking()
    right = rollout(worlds, seeds, InProcess(session), execute=2)
    with served(session) as url:
        client = ActClient(url)
        found = rollout(worlds, seeds, client, execute=2)
    assert sum(episode.success for episode in found) >= 5  # it sees what it is shown
    assert [(e.seed, e.success, e.steps) for e in found] == [(e.seed, e.success, e.steps) for e in right]
    for one, other in zip(found, right, strict=True):
        np.testing.assert_array_equal(one.actions_ND, other.actions_ND)
    assert client.rows == sum(e.chunks for e in found) and client.forwards == 4 * client.rows


@pytest.mark.needs("gymnasium")
def test_a_model_acts_over_http_as_it_does_in_process(real: Session) -> None:
    from mmdiff.tasks.vla.rollout.policies import ModelPolicy
    from mmdiff.tasks.vla.rollout.rollout import rollout
    from mmdiff.tasks.vla.worlds.world import make_world

    session = replace(real, task=task(keys=tuple(real.task.statistics), key="bridge"))
    worlds = [make_world({"name": "reach", "size": 16, "max_steps": 7}, name) for name in ("reach-red", "reach-blue")]
    for inpaint in (False, True):
        right = rollout(worlds, [0, 1], ModelPolicy(session), execute=3, inpaint=inpaint)
        with served(session) as url:
            found = rollout(worlds, [0, 1], ActClient(url), execute=3, inpaint=inpaint)
        for one, other in zip(found, right, strict=True):
            assert one.steps == other.steps == 7
            np.testing.assert_array_equal(one.actions_ND, other.actions_ND)
        assert not np.array_equal(found[0].actions_ND, found[1].actions_ND)
