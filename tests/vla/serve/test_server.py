"""POST /act of a real server to real HTTP clients: answers, many clients at a time, the start and the end."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmdiff.commands.cli import main
from mmdiff.errors import ConfigError
from mmdiff.session import Session

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from PIL import Image  # noqa: E402
from robots.policy_server import HTTP, NAMES, PICTURE, STATE, StandIn, ask, numpy_json, served, task, until, wanted  # noqa: E402

from mmdiff.serving.app import make_app  # noqa: E402
from mmdiff.serving.http.guard import is_local  # noqa: E402
from mmdiff.serving.http.listening import LIMITS, listen  # noqa: E402
from mmdiff.tasks.vla.serve.client import encoded  # noqa: E402
from mmdiff.tasks.vla.serve.policy import contract_of  # noqa: E402
from mmdiff.tasks.vla.serve.server import serve  # noqa: E402


def test_an_answer(url: str) -> None:
    answer = ask(url)
    assert answer.status_code == 200
    found = answer.json()
    seconds = found.pop("seconds")
    assert 0 <= seconds < 60
    assert found == {"actions": wanted(), "names": list(NAMES), "forwards": 5, "execute": 4, "seed": 3}


def test_a_picture_in_any_form_is_the_same_picture(url: str) -> None:
    png = encoded(PICTURE)
    forms: list[dict[str, Any]] = [
        {"image": f"data:image/png;base64,{png}"},
        {"image": png[:40] + "\n" + png[40:]},
        {"image": PICTURE.tolist()},
        {"image": (PICTURE / 255.0).tolist()},
        {"image": numpy_json(PICTURE)},
        {"image": numpy_json(PICTURE.astype(">i8"))},
        {"image": [png]},
        {"images": [png]},
        {"images": PICTURE.tolist()},
        {"images": [PICTURE.tolist()]},
        {"images": numpy_json(PICTURE[None])},
        {"images": {"image": png}},
        {"full_image": numpy_json(PICTURE)},
        {"image": png, "state": numpy_json(np.float64(STATE))},
        {"image": png, "unnorm_key": "arm"},
        {"image": png, "given": []},
    ]
    for form in forms:
        answer = ask(url, **{"image": None, **form})
        assert answer.status_code == 200, (answer.text, list(form))
        assert answer.json()["actions"] == wanted(), list(form)


def test_a_jpeg_is_seen_as_its_decoder_sees_it(url: str) -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "jpeg")
    seen = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    found = ask(url, image=base64.b64encode(file.getvalue()).decode()).json()
    assert found["actions"] == wanted(image=seen) != wanted()


def test_the_double_encoded_form_of_openvla_oft(url: str) -> None:
    inner = {"full_image": numpy_json(PICTURE), "instruction": "open the drawer", "state": numpy_json(np.array(STATE))}
    body = {"encoded": json.dumps({**inner, "seed": 3})}
    assert HTTP.post(f"{url}/act", json=body).json()["actions"] == wanted()


def test_given_actions_and_seeds_reach_the_policy(url: str) -> None:
    given = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert ask(url, given=given).json()["actions"] == wanted(given=np.float32(given))
    assert ask(url, seed=8).json()["actions"] == wanted(8) != wanted()
    unnamed = [ask(url, seed=None).json() for _ in range(2)]
    assert [a["actions"] for a in unnamed] == [wanted(a["seed"]) for a in unnamed]
    assert unnamed[1]["seed"] == unnamed[0]["seed"] + 1


def test_cameras_in_order_and_by_name() -> None:
    wrist = 255 - PICTURE
    both = [encoded(PICTURE), encoded(wrist)]
    with served(StandIn(2), cameras=("front", "wrist")) as url:
        right = wanted(image=[PICTURE, wrist])
        for form in (
            {"images": both},
            {"image": both},
            {"full_image": both[0], "wrist_image": both[1]},
            {"wrist_image": numpy_json(wrist), "full_image": PICTURE.tolist()},
            {"images": {"wrist": both[1], "front": both[0]}},
            {"images": numpy_json(np.stack([PICTURE, wrist]))},
            {"images": [PICTURE.tolist(), wrist.tolist()]},
        ):
            assert ask(url, **{"image": None, **form}).json()["actions"] == right, list(form)
        for form, said in (
            ({"images": both[:1]}, "images: 1 pictures, expected 2 (front, wrist)"),
            ({"image": both[0]}, "image: 1 pictures, expected 2 (front, wrist)"),
            ({"images": {"front": both[0]}}, "images.wrist: missing"),
            ({"images": {"front": both[0], "wirst": both[1]}}, 'did you mean "wrist"?'),
            ({"image": both[0], "wrist_image": both[1]}, "wrist_image: given beside image"),
        ):
            answer = ask(url, **{"image": None, **form})
            assert answer.status_code == 422 and said in answer.json()["error"], answer.text


def test_several_keys_must_be_chosen_from(real: Session) -> None:
    row = {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE)}
    with served(real) as url:
        said = ask(url)
        assert said.status_code == 422
        assert said.json()["error"] == "unnorm_key: missing, expected bridge or fractal20220817"
        assert "expected bridge or fractal20220817" in ask(url, unnorm_key="arm").json()["error"]
        found = [ask(url, unnorm_key=key).json()["actions"] for key in real.task.statistics]
    assert found[0] != found[1]
    for key, actions in zip(real.task.statistics, found, strict=True):
        chosen = replace(real, task=task(keys=tuple(real.task.statistics), key=key))
        assert actions == chosen.predict_many([row], first=3)[0]["prediction"]
    with served(replace(real, task=task(keys=tuple(real.task.statistics), key="bridge"))) as url:
        assert ask(url).json()["actions"] == found[0]  # the policy's own key


# What is no request for actions


def test_other_requests(url: str) -> None:
    assert HTTP.post(f"{url}/act", data={"instruction": "open"}).status_code == 415
    assert "expected application/json" in HTTP.post(f"{url}/act", content=b"{}").json()["error"]
    assert HTTP.get(f"{url}/act").status_code == 405
    missing = HTTP.get(f"{url}/atc")
    assert missing.status_code == 404 and "GET /atc" in missing.json()["error"]
    assert "/act" in HTTP.get(f"{url}/openapi.json").json()["paths"] and HTTP.get(f"{url}/docs").status_code == 404


def test_a_body_that_is_too_large(url: str) -> None:
    answer = ask(url, instruction="x" * 300_000)
    assert answer.status_code == 413 and "more than 200000 bytes" in answer.json()["error"]
    pieces = (b"x" * 50_000 for _ in range(8))  # of no stated length
    answer = HTTP.post(f"{url}/act", content=pieces, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert ask(url).status_code == 200


def test_a_fault_of_the_model_shows_nothing_of_the_inside(url: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(url, instruction="break")
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error; see the server's log"}
    assert "secret" in caplog.text  # in the server's log
    assert ask(url).status_code == 200


def test_health_and_metrics() -> None:
    with served(StandIn(), execute=2) as url:
        health = HTTP.get(f"{url}/health").json()
        assert health["uptime"] >= 0
        assert (
            health.items()
            >= {
                "status": "ok",
                "model": "stand-in",
                "task": "VLA",
                "chunk": 4,
                "execute": 2,
                "dims": 3,
                "names": list(NAMES),
                "state": 2,
                "cameras": ["image"],
                "key": "arm",
                "keys": ["arm"],
                "max_body": LIMITS.body,
            }.items()
        )
        assert ask(url).json()["execute"] == 2 and len(ask(url).json()["actions"]) == 4
        ask(url, seed=-1)
        metrics = HTTP.get(f"{url}/metrics").text
        counts = {status: f'mmdiff_requests_total{{route="/act",status="{status}"}}' for status in (200, 422, 500)}
        assert f"{counts[200]} 2.0" in metrics and f"{counts[422]} 1.0" in metrics and counts[500] not in metrics


def test_what_cannot_be_served() -> None:
    with pytest.raises(ConfigError, match="execute: 5 is not 1 to 4"):
        make_app(StandIn(), own={"execute": 5})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="task: object gives no chunks of actions"):
        contract_of(object())
    with pytest.raises(ConfigError, match="cameras: front, front; expected 2 different names"):
        contract_of(task(2), ("front", "front"))
    assert contract_of(task(2)).cameras == ("image0", "image1")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: 127.0.0.1:{port} cannot be listened at"):
            serve("runs/none", port=port)
    with pytest.raises(ConfigError, match="port: 70000 is not 0 to 65535"):
        serve("runs/none", port=70000)
    with pytest.raises(ConfigError, match="runs/none: no such folder"):
        serve("runs/none", port=0)
    assert [is_local(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.7", "robot")] == [
        *[True] * 3,
        *[False] * 4,
    ]


# Many clients


def test_one_model_call_at_a_time_and_each_client_its_own_answer() -> None:
    session = StandIn()
    session.gate.clear()
    with served(session) as url:
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: ask(url, seed=i).json()["actions"]}))
            for i in range(12)
        ]
        for thread in threads:
            thread.start()
        until(lambda: session.rows)
        assert HTTP.get(f"{url}/health").status_code == 200  # is not held up
        session.gate.set()
        for thread in threads:
            thread.join()
    assert found == {i: wanted(i) for i in range(12)}
    assert session.most == 1


def test_a_client_that_goes_away_harms_nobody() -> None:
    session = StandIn()
    session.gate.clear()

    def half(url: str, instruction: str, whole: bool = True) -> socket.socket:
        body = json.dumps({"image": encoded(PICTURE), "instruction": instruction, "state": STATE}).encode()
        host, port = url.removeprefix("http://").split(":")
        client = socket.create_connection((host, int(port)))
        lines = [
            "POST /act HTTP/1.1",
            f"Host: {host}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        client.sendall("\r\n".join([*lines, "", ""]).encode() + (body if whole else body[:20]))
        return client

    with served(session) as url:
        cut = half(url, "cut in the middle", whole=False)
        first = half(url, "first")
        until(lambda: session.inside == 1)  # the model is at work on it
        second = half(url, "second")
        until(lambda: "mmdiff_requests_waiting 1.0" in HTTP.get(f"{url}/metrics").text)
        for client in (cut, first, second):
            client.close()
        HTTP.get(f"{url}/health")  # the server has seen by now that they are closed
        session.gate.set()
        assert ask(url).json()["actions"] == wanted()
        metrics = HTTP.get(f"{url}/metrics").text
    assert [row["instruction"] for row in session.rows] == ["first", "open the drawer"]  # "second" was dropped in time
    assert "mmdiff_requests_waiting 0.0" in metrics and 'status="500"' not in metrics


def test_a_queue_that_is_full() -> None:
    session = StandIn()
    session.gate.clear()
    with served(session, waiting=1) as url:
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(2)]
        threads[0].start()
        until(lambda: session.inside == 1)
        threads[1].start()
        until(lambda: "mmdiff_requests_waiting 1.0" in HTTP.get(f"{url}/metrics").text)
        answer = ask(url)
        assert answer.status_code == 503 and answer.json()["error"].startswith("busy: 1 requests")
        session.gate.set()
        for thread in threads:
            thread.join()
        assert ask(url).status_code == 200


# The whole server


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_lets_a_request_finish(
    number: signal.Signals, word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # a shell's job in the background ignores Ctrl-C
    try:
        _ended_by(number, word, monkeypatch, capfd)
    finally:
        signal.signal(number, before)


def _ended_by(
    number: signal.Signals, word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    session = StandIn()
    session.gate.clear()
    monkeypatch.setattr("mmdiff.session.load", lambda run, *overrides, task, dtype: session)
    found: dict[str, Any] = {}
    said: list[str] = []

    def client() -> None:
        try:
            until(lambda: said.append(capfd.readouterr().err) or "/act" in "".join(said))
            port = int(re.findall(r":(\d+)/act", "".join(said))[0])
            asking = threading.Thread(target=lambda: found.update(ask(f"http://127.0.0.1:{port}").json()))
            asking.start()
            until(lambda: session.inside == 1)
        finally:  # also where nothing came: the server would go on for ever, and the test with it
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        session.gate.set()
        asking.join()

    thread = threading.Thread(target=client)
    thread.start()
    assert main(["vla", "serve", "runs/x", "--host", "0.0.0.0", "--port", "0"]) == 128 + number
    thread.join()
    assert found["actions"] == wanted()
    said.append(capfd.readouterr().err)
    assert (
        "warning: 0.0.0.0 is reached from other machines, and there is no authentication (set MMDIFF_TOKEN)"
        in "".join(said)
    )
    lines = "".join(said).splitlines()
    assert lines[-1] == f"mmdiff: {word}" and len([line for line in lines if line.startswith("mmdiff: ")]) == 1, lines
