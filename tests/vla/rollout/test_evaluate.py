"""Closed-loop evaluation on Reach with a policy whose answers are known: it looks for the disc it is told of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.connectors.mlp import Linear
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.state import StateMLP
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.session import Session
from mmdiff.tasks.vla.codecs.bins import UniformBins
from mmdiff.tasks.vla.codecs.normalise import Statistics
from mmdiff.tasks.vla.rollout.ablations import ABLATIONS, swaps, without_image
from mmdiff.tasks.vla.rollout.closed_loop import ComparisonPolicy, picked
from mmdiff.tasks.vla.rollout.evaluate import evaluate_policy, home
from mmdiff.tasks.vla.rollout.policies import Chunk, ExpertPolicy, ModelPolicy
from mmdiff.tasks.vla.rollout.rollout import Rollout
from mmdiff.tasks.vla.task import VLA

pytest.importorskip("gymnasium")
from mmdiff.tasks.vla.worlds.reach import COLORS, STRIDE  # noqa: E402
from mmdiff.tasks.vla.worlds.world import make_world, row_of  # noqa: E402

TASKS = ["reach-red", "reach-green", "reach-blue"]
SPEC = {"name": "reach", "max_steps": 30}


class Looking:
    """Goes in chunks to the middle of the pixels of the colour it is told of; stands still where there are none."""

    sees = True

    def __init__(self, chunk: int = 2, clumsy: bool = False) -> None:
        self.chunk, self.clumsy = chunk, clumsy
        self.instructions: set[str] = set()

    def act(self, rows: Sequence[Any]) -> list[Chunk]:
        return [self._chunk(row) for row in rows]

    def _chunk(self, row: Any) -> Chunk:
        self.instructions.add(row["instruction"])
        named = [color for color in COLORS if color in row["instruction"]]
        found = (row["image"] == COLORS[named[0]]).all(-1).nonzero() if named else ((), ())
        if not len(found[0]) or (self.clumsy and named == ["green"]):
            return np.zeros((self.chunk, 3))
        goal_2 = (np.array([found[1].mean(), found[0].mean()]) + 0.5) * 2 / len(row["image"]) - 1
        at_2, chunk = row["state"].astype(float), []
        for _ in range(self.chunk):
            way_2 = goal_2 - at_2
            far = abs(way_2).max()
            move_2 = way_2 / max(far, STRIDE)
            chunk.append([*move_2, 1.0 if far <= STRIDE else -1.0])
            at_2 = at_2 + STRIDE * move_2
        return np.array(chunk)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("eval") / "out"
    policy = Looking(clumsy=True)
    figures = evaluate_policy(policy, SPEC, TASKS, out=out, episodes=5, seed=3, worlds=6, latency=3)
    assert policy.instructions == {"", *(f"reach the {c} disc" for c in ("red", "green", "blue"))}
    return figures, out


def test_success_and_ablations(evaluated: tuple[dict[str, Any], Path]) -> None:
    figures, _ = evaluated
    assert {task: of["success"] for task, of in figures["by_task"].items()} == {
        "reach-red": 1.0, "reach-green": 0.0, "reach-blue": 1.0,
    }  # fmt: skip
    assert figures["n"] == 15 and figures["success"] == pytest.approx(2 / 3)
    assert figures["success_low"] < 2 / 3 < figures["success_high"]
    ablations = figures["ablations"]
    assert list(ablations) == ["no_image", "no_language", "swapped", "random", "expert"]
    assert [ablations[k]["success"] for k in ("no_image", "no_language", "swapped", "expert")] == [0, 0, 0, 1]
    assert figures["latency_ms"]["p50"] > 0 and figures["control_hz"] > 0 and figures["notes"] == []


def test_what_is_written(evaluated: tuple[dict[str, Any], Path]) -> None:
    figures, out = evaluated
    info = json.loads((out / "eval_info.json").read_text())
    assert [task["task_group"] for task in info["per_task"]] == TASKS and info["overall"]["n_episodes"] == 15
    assert info["per_task"][1]["metrics"]["successes"] == [False] * 5
    films = sorted(str(f.relative_to(out)) for f in out.rglob("*.gif"))
    assert films == [
        "videos/reach-blue_0/reach-blue-seed3-success.gif",
        "videos/reach-green_0/reach-green-seed3-failure.gif",
        "videos/reach-red_0/reach-red-seed3-success.gif",
    ]
    assert sorted(info["overall"]["video_paths"]) == films
    lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 15 and [line["seed"] for line in lines[:6]] == [3, 4, 5, 6, 7, 3]
    kept = json.loads((out / "figures.json").read_text())
    assert kept["by_task"] == figures["by_task"] and kept["settings"]["swapped"]["reach-blue"][0] == "reach-red"
    page = (out / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == 3 and "http" not in page.replace("http-equiv", "")
    assert [f.name for f in out.parent.iterdir()] == ["out"]  # nothing is left aside


def test_figures_do_not_depend_on_how_many_worlds_there_are(tmp_path: Path) -> None:
    def figures(**more: Any) -> Any:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        found = evaluate_policy(
            Looking(), SPEC, TASKS[:2], out=out, episodes=3, videos=0, latency=0, ablations=["random"], **more
        )
        return found["by_task"], found["ablations"], (out / "episodes.jsonl").read_text()

    one = figures(worlds=1)
    assert one == figures(worlds=2) == figures(worlds=7) == figures(worlds=4, batch=1)
    assert one != figures(worlds=2, seed=1)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_policy_beside_it_and_processes(tmp_path: Path, processes: int) -> None:
    """Episodes, their order, films and the other policy's tasks are the same in one process and in two."""
    others = {"blind": ComparisonPolicy(Looking(chunk=4), ("reach-red", "reach-blue"), without_image)}
    more: dict[str, Any] = {"episodes": 2, "ablations": ["swapped"], "latency": 0, "execute": 3, "notes": ["as told"]}
    found = evaluate_policy(
        Looking(chunk=3), SPEC, TASKS, out=tmp_path / "out", others=others, processes=processes, **more
    )
    assert list(found["ablations"]) == ["swapped", "blind"]
    assert {task: of["success"] for task, of in found["ablations"]["blind"]["by_task"].items()} == {
        "reach-red": 0.0, "reach-blue": 0.0,
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()]
    told = [(line["policy"], line["task"], line["seed"]) for line in lines]
    tasks = {"full": TASKS, "swapped": TASKS, "blind": ["reach-red", "reach-blue"]}
    assert told == [(name, task, seed) for name, of in tasks.items() for task in of for seed in (0, 1)]
    assert list(found["by_task"]) == TASKS and found["success"] == 1.0
    assert len(list((tmp_path / "out").rglob("*.gif"))) == 3 and "as told" in (tmp_path / "out/report.html").read_text()


def test_more_actions_than_a_chunk_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="execute: 3, expected 1..2"):
        evaluate_policy(Looking(), SPEC, TASKS, out=tmp_path / "out", execute=3)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="out is there already; choose another folder"):
        evaluate_policy(Looking(), SPEC, TASKS, out=tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(Looking):
        def act(self, rows: Sequence[Any]) -> list[Chunk]:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        evaluate_policy(Broken(), SPEC, TASKS, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_folder_is_named_by_what_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    more: dict[str, Any] = {"episodes": 1, "ablations": [], "videos": 0, "latency": 0}
    for change in ({}, {"seed": 1}, {"execute": 1}, {"episodes": 2}):
        evaluate_policy(Looking(), SPEC, ["red"], **{**more, **change})
    names = sorted(f.name for f in tmp_path.iterdir())
    assert len(names) == 4 and sum(name.startswith("closed-loop-reach-seed0-") for name in names) == 3
    with pytest.raises(ConfigError, match="is there already"):
        evaluate_policy(Looking(), SPEC, ["reach-red"], **more)


def test_one_task_has_nothing_to_be_swapped_with(tmp_path: Path) -> None:
    more: dict[str, Any] = {"episodes": 2, "videos": 0, "latency": 0, "ablations": ["swapped"]}
    found = evaluate_policy(Looking(), SPEC, ["red"], out=tmp_path / "a", **more)
    assert found["ablations"] == {} and "swapped: a single task" in found["notes"][0]
    found = evaluate_policy(Looking(), SPEC, ["red"], out=tmp_path / "b", pairs={"red": "yellow"}, **more)
    assert found["ablations"]["swapped"]["success"] == 0 and found["notes"] == []


def test_a_simulator_without_an_expert_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any, rows: Any) -> Any:
        raise ConfigError("Reach: this simulator has no scripted expert")

    monkeypatch.setattr(ExpertPolicy, "act", none)
    more: dict[str, Any] = {"episodes": 1, "videos": 0, "latency": 0, "ablations": ["expert", "random"]}
    found = evaluate_policy(Looking(), SPEC, ["red"], out=tmp_path / "a", **more)
    assert list(found["ablations"]) == ["random"] and "no scripted expert" in found["notes"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ablations": ["no_images"]}, r'ablations: there is no "no_images" \(did you mean "no_image"\?\)'),
        ({"tasks": []}, r"tasks: none is named \(known: reach-blue"),
        ({"tasks": ["reach-rd"]}, 'did you mean "reach-red"'),
        ({"tasks": ["red", "reach-red"]}, 'tasks: "reach-red" is named twice'),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"episodes": 0}, "episodes=0: expected a whole number of at least 1"),
        ({"pairs": {"reach-yellow": "reach-red"}}, 'pairs: "reach-yellow" is not evaluated'),
        ({"pairs": {"reach-red": "red"}}, 'pairs: "reach-red" is given its own instruction'),
        ({"execute": 9}, "execute: 9, expected 1..2"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"tasks": TASKS, "out": tmp_path / "out", "videos": 0, "latency": 0, **change}
    with pytest.raises(ConfigError, match=message):
        evaluate_policy(Looking(), SPEC, given.pop("tasks"), **given)
    assert not (tmp_path / "out").exists()


def test_swaps_and_pictures() -> None:
    told = {f"reach-{c}": f"reach the {c} disc" for c in ("red", "green", "blue")}
    assert {a: b for a, (b, _) in swaps(SPEC, told, None).items()} == dict(
        zip(told, [*list(told)[1:], "reach-red"], strict=True)
    )
    given = swaps(SPEC, told, {"reach-red": "reach-blue"})
    assert given["reach-red"] == ("reach-blue", "reach the blue disc") and given["reach-green"][0] == "reach-blue"
    one, two = np.zeros((4, 4, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
    row = without_image({"image": [one, two], "state": 3})
    assert [p.shape for p in row["image"]] == [(4, 4, 3), (2, 2, 3)] and row["state"] == 3
    assert all((p == 128).all() and p.dtype == np.uint8 for p in row["image"]) and not one.any()
    assert (without_image({"image": one})["image"] == 128).all() and without_image({"state": 3}) == {"state": 3}


def test_episodes_to_film() -> None:
    episodes = [Rollout("a", seed, success=seed in (2, 4, 5)) for seed in range(7)]
    assert picked(episodes, 2) == [2, 4, 0, 1] and picked(episodes[:2], 1) == [0] and picked(episodes, 0) == []


@pytest.fixture(scope="module")
def session() -> Session:
    """A policy of random weights, all parts as they are in use."""
    torch.manual_seed(0)
    words = word_tokenizer(["reach", "the", "disc", *COLORS])
    backbone = new_backbone(tokenizer=words, hidden_size=16, layers=1, heads=2, init_std=0.3, reserve={"action": 8})
    encoders = {"image": ConvTower(8, 16, 8), "state": StateMLP(2, 16, 16)}
    connectors = {kind: Linear(width_in=16, width_out=16) for kind in encoders}
    ends = Statistics(mean=(), std=(), min=(-1.0,) * 3, max=(1.0,) * 3, q01=(), q99=(), count=1)
    state = Statistics(mean=(), std=(), min=(-1.0,) * 2, max=(1.0,) * 2, q01=(), q99=(), count=1)
    statistics = {"reach": {"action": ends.to_json(), "state": state.to_json()}}
    task = VLA(statistics, chunk=4, codec=UniformBins(8), normalise="bounds")
    sampler = GenerationConfig(steps=3, temperature=1.0)
    return Session(MMDiff(backbone, encoders, connectors, {}), task, sampler, Path("runs/tiny/model"))


def test_a_model_in_closed_loop(session: Session, tmp_path: Path) -> None:
    spec = {"name": "reach", "size": 8, "max_steps": 6}
    ran = [
        evaluate_policy(
            session, spec, TASKS[:2], out=tmp_path / str(worlds), episodes=3, worlds=worlds, execute=3,
            latency=2, inpaint=True, videos=0,
        )
        for worlds in (2, 6)
    ]  # fmt: skip
    one, two = ((tmp_path / str(worlds) / "episodes.jsonl").read_text() for worlds in (2, 6))
    assert one == two and ran[0]["by_task"] == ran[1]["by_task"]
    assert set(ran[0]["ablations"]) == set(ABLATIONS)  # of an empty instruction too
    assert ran[0]["forwards_per_chunk"] == 3 and ran[0]["actions_per_second"] > 0
    more: dict[str, Any] = {"episodes": 1, "videos": 0, "latency": 0, "ablations": []}
    fewer = evaluate_policy(session, spec, ["red"], out=tmp_path / "steps", steps=1, temperature=0.0, **more)
    assert fewer["forwards_per_chunk"] == 1 and fewer["settings"]["sampler"] == {"steps": 1, "temperature": 0.0}


def test_chunks_of_a_model_are_within_its_units_and_hold_what_is_given(session: Session) -> None:
    world = make_world({"name": "reach", "size": 8}, "red")
    row = row_of(world.reset(seed=0)[0], "reach the red disc")
    given = np.array([[0.125, -0.875, 0.625], [0.375, 0.875, -0.125]])  # centres of eight bins
    policy = ModelPolicy(session)
    plain, led = policy.act([row, {**row, "given": given}])
    assert plain.shape == led.shape == (4, 3) and abs(plain).max() <= 1
    np.testing.assert_allclose(led[:2], given)
    with pytest.raises(ConfigError, match="gives no chunks of actions"):
        ModelPolicy(replace(session, task=toy.Where()))


def test_where_results_go(session: Session) -> None:
    for folder, wanted in (("runs/x/model", "runs/x"), ("runs/x/checkpoints/step-5", "runs/x"), ("saved", "saved")):
        assert home(replace(session, folder=Path(folder))) == Path(wanted)
    assert home(Looking()) == Path()


def test_worlds_used_again_are_as_new() -> None:
    """What `evaluate_policy` relies on: a world that has run gives the same episode as a new one."""
    used, new = make_world(SPEC, "reach-red"), make_world(SPEC, "reach-red")
    used.reset(seed=9)
    used.advance(used.expert())
    for world in (used, new):
        world.reset(seed=4)
    assert np.array_equal(used.observe()["pixels"]["front"], new.observe()["pixels"]["front"])
    assert np.array_equal(used.expert(), new.expert())
