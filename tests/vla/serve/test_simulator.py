"""POST /world, and the page that drives a robot in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for package in ("starlette", "uvicorn", "httpx", "prometheus_client", "gymnasium"):
    pytest.importorskip(package)
import httpx  # noqa: E402
from models.served import served  # noqa: E402
from pages.browser import chromium, open_page  # noqa: E402
from PIL import Image  # noqa: E402

from mmdiff.backbones import new_backbone  # noqa: E402
from mmdiff.canvas.vocab import word_tokenizer  # noqa: E402
from mmdiff.config.settings import GenerationConfig  # noqa: E402
from mmdiff.connectors.mlp import MLP  # noqa: E402
from mmdiff.encoders.conv import ConvTower  # noqa: E402
from mmdiff.encoders.state import StateMLP  # noqa: E402
from mmdiff.model import MMDiff  # noqa: E402
from mmdiff.session import Session  # noqa: E402
from mmdiff.tasks.vla.codecs.normalise import Statistics  # noqa: E402
from mmdiff.tasks.vla.rollout.policies import ModelPolicy  # noqa: E402
from mmdiff.tasks.vla.rollout.rollout import noise_index, rollout  # noqa: E402
from mmdiff.tasks.vla.task import VLA  # noqa: E402
from mmdiff.tasks.vla.worlds.reach import Reach  # noqa: E402

WORLD = {"name": "reach", "size": 16, "tasks": ["reach-red", "reach-blue"], "max_steps": 16}


def robot(world: Any) -> Session[VLA]:
    """A policy with random weights, whose actions depend on what it sees."""
    torch.manual_seed(0)
    words = word_tokenizer("reach the red green blue yellow disc".split())
    backbone = new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2, reserve={"action": 32})
    encoders = {"image": ConvTower(16, 16, 8), "state": StateMLP(2, 16, 16)}
    model = MMDiff(backbone, encoders, {name: MLP(width_in=16, width_out=32) for name in encoders}).eval()
    with torch.no_grad():
        for part in model.connectors.values():
            for parameter in part.parameters():
                parameter.mul_(20)
    rng = np.random.default_rng(0)
    action = Statistics.of(rng.uniform(-1, 1, (512, 3)), ("dx", "dy", "gripper")).to_json()
    both = {"reach": {"action": action, "state": Statistics.of(rng.uniform(-1, 1, (512, 2))).to_json()}}
    task = VLA(both, chunk=4, execute=2, world=world)
    return Session(model, task, GenerationConfig(steps=3, temperature=1.0), Path("runs/robot"))


@pytest.fixture(scope="module")
def session() -> Session[VLA]:
    return robot(WORLD)


@pytest.fixture(scope="module")
def url(session: Session[VLA]) -> Iterator[str]:
    with served(session) as address:
        yield address


def post(url: str, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, trust_env=False, timeout=30)
    return answer.json() if answer.status_code == 200 else answer.json()["error"]["message"]


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_what_is_seen_is_what_the_world_shows(url: str) -> None:
    world = Reach("blue", size=16, max_steps=16)
    world.reset(seed=5)
    actions = np.random.default_rng(1).uniform(-1, 1, (4, 3)).round(2)
    frames = [world.render()]
    for action in actions:
        world.advance(action)
        frames.append(world.render())
    health = httpx.get(f"{url}/health", trust_env=False).json()["world"]
    assert health == {"name": "reach", "tasks": ["reach-red", "reach-blue", "reach-green", "reach-yellow"]}
    first = post(url, "/world", task="reach-blue", seed=5)
    assert first["steps"] == 0 and first["frames"] == [] and first["row"]["instruction"] == "reach the blue disc"
    assert (pixels(first["row"]["image"]) == frames[0]).all() and first["names"] == ["dx", "dy", "gripper"]
    found = post(url, "/world", task="reach-blue", seed=5, actions=actions.tolist(), first=1)
    assert found["steps"] == 4 and found["max_steps"] == 16 and not found["over"]
    assert all((pixels(png) == frame).all() for png, frame in zip(found["frames"], frames[2:], strict=True))
    assert np.allclose(found["row"]["state"], world.observe()["agent_pos"])
    assert found["expert"] == world.expert().tolist()


def test_a_policy_in_closed_loop_is_a_rollout(url: str, session: Session[VLA]) -> None:
    (expected,) = rollout([Reach("red", size=16, max_steps=16)], [3], ModelPolicy(session), execute=2)
    actions: list[list[float]] = []
    for chunk in range(99):
        world = post(url, "/world", seed=3, actions=actions)
        if world["over"]:
            break
        found = post(url, "/predict", row=world["row"], seed=noise_index("reach-red", 3, chunk))
        actions += found["prediction"][:2]
    assert world["task"] == "reach-red" and world["steps"] == expected.steps == len(expected.actions_ND)
    assert np.array_equal(actions[: expected.steps], expected.actions_ND) and world["success"] == expected.success


def test_the_routes_of_a_robot_are_described(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    kinds = {"/act": "ActRequest", "/world": "WorldRequest"}
    for path, kind in kinds.items():
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert (
            body == {"$ref": f"#/components/schemas/{kind}"}
            and "properties" in described["components"]["schemas"][kind]
        )
    assert post(url, "/act", instruction="reach").startswith("image: missing")  # one form of errors on one server


def test_an_episode_ends_where_its_expert_succeeds(url: str) -> None:
    actions: list[list[float]] = []
    while not (found := post(url, "/world", actions=actions, seed=2))["over"]:
        actions.append(found["expert"])
    assert found["success"] and found["steps"] == len(actions)
    assert post(url, "/world", actions=[*actions, [0, 0, 0]], seed=2) == found  # what lies behind is not executed


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"task": "reach-rde"}, 'did you mean "reach-red"'),
        ({"task": "../x"}, "there is no '../x' here"),
        ({"actions": [[0, 0]]}, "actions.0: has shape (2,), expected (3,)"),
        ({"actions": [[0, 0, 0]] * 17}, "actions: 17, expected at most 16 of an episode"),
        ({"actions": [[0, 0, 1e300]]}, "actions.0.2: 1e+300"),
        ({"actions": "x"}, "actions: 'x'"),
        ({"seed": -1}, "seed: -1"),
        ({"bogus": 1}, "bogus: no such field"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(url: str, body: dict[str, Any], said: str) -> None:
    found = post(url, "/world", **body)
    assert isinstance(found, str) and said in found and "\n" not in found


@pytest.mark.parametrize("world", [None, {"name": "libero"}, {"name": "os.path.join"}, {"name": "reach", "bogus": 1}])
def test_a_policy_without_a_simulator_that_runs_here_offers_none(world: Any) -> None:
    if world and world["name"] == "libero":
        import importlib.util

        if importlib.util.find_spec("libero"):
            pytest.skip("LIBERO is installed")
    with served(robot(world)) as url:
        health = httpx.get(f"{url}/health", trust_env=False).json()
        assert "world" not in health and health["chunk"] == 4
        assert httpx.post(f"{url}/world", json={}, trust_env=False).status_code == 404


@pytest.mark.slow
def test_the_page_drives_the_robot(url: str) -> None:
    with chromium() as browser, open_page(browser, url) as page:
        from playwright.sync_api import expect

        facts = page.locator(".robot > div > .facts")
        expect(facts).to_contain_text("0 of 16 steps · running")
        assert page.input_value("[aria-label=Instruction]") == "reach the red disc"
        page.click("text=One chunk")
        expect(facts).to_contain_text("2 of 16 steps")
        expect(page.locator("button.stop")).to_be_hidden()
        ask, act = page.sent[-2:]
        tokens = page.locator(".log .token").all_text_contents()
        assert len(tokens) == 12 and all(token.isdecimal() and int(token) < 32 for token in tokens)
        shown = [[float(v) for v in row.split("\t")[1:]] for row in page.locator("tbody").inner_text().splitlines()]
        assert np.allclose(act["actions"], shown[:2], atol=1e-3) and ask["row"]["instruction"] == "reach the red disc"
        # a token is rewritten, and the chunk executed in place of the last
        page.locator(".log .token").nth(0).click()
        expect(page.locator(".token.rewritten")).to_have_count(1)
        expect(page.locator("button.stop")).to_be_hidden()
        expect(facts).to_contain_text("2 of 16 steps")
        assert len(page.sent[-1]["actions"]) == 2 and page.sent[-1]["actions"][0][1:] == act["actions"][0][1:]
        # by hand, and by the expert to the end
        page.locator("img.world").focus()
        page.keyboard.press("ArrowLeft")
        expect(facts).to_contain_text("3 of 16 steps")
        assert page.sent[-1]["actions"][2] == [-1, 0, 0]
        expect(page.locator("button.stop")).to_be_hidden()
        page.click("text=Next layout")
        expect(facts).to_contain_text("0 of 16 steps")
        for n in range(1, 17):
            page.click("text=Expert")
            expect(facts).to_contain_text(f"{n} of 16 steps")
            expect(page.locator("button.stop")).to_be_hidden()
            if "running" not in facts.inner_text():
                break
        page.click("text=Start again")
        expect(facts).to_contain_text("0 of 16 steps")
        expect(page.locator("button.stop")).to_be_hidden()
        page.click("text=To the end")
        expect(facts).not_to_contain_text("running", timeout=20000)
        expect(page.locator("button.stop")).to_be_hidden()
        page.click("text=Act")
        expect(page.locator("#error")).to_contain_text("the episode is over")
