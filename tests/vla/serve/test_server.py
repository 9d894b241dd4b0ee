"""POST /act: a real server, real HTTP clients, and a simulator that runs against it in closed loop."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.connectors.mlp import MLP
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.state import StateMLP
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.session import Session
from mmdiff.tasks.vla.codecs.normalise import Statistics

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
import httpx  # noqa: E402
from PIL import Image  # noqa: E402

from mmdiff.tasks.vla.serve import server as serving  # noqa: E402
from mmdiff.tasks.vla.serve.arrays import BadRequest  # noqa: E402
from mmdiff.tasks.vla.serve.client import ActClient, encoded  # noqa: E402
from mmdiff.tasks.vla.serve.policy import contract_of  # noqa: E402
from mmdiff.tasks.vla.serve.request import read_request  # noqa: E402
from mmdiff.tasks.vla.serve.server import is_local, listen, make_app, serve  # noqa: E402
from mmdiff.tasks.vla.task import VLA  # noqa: E402

NAMES = ("x", "y", "grip")
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
STATE = [0.5, -0.25]
HTTP = httpx.Client(trust_env=False)


def statistics(dims: int, names: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    return Statistics.of(np.random.default_rng([seed, dims]).normal(size=(50, dims)), names).to_json()


def task(cameras: int = 1, keys: Sequence[str] = ("arm",), **named: Any) -> VLA:
    """K = 4, D = 3, S = 2; every key has numbers of its own."""
    both = {k: {"action": statistics(3, NAMES, i), "state": statistics(2, seed=i)} for i, k in enumerate(keys)}
    return VLA(both, chunk=4, cameras=cameras, **named)


class StandIn:
    """A session whose answers are a known function of everything that a request says."""

    folder = Path("runs/stand-in/model")

    def __init__(self, cameras: int = 1) -> None:
        self.task = task(cameras)
        self.inside, self.most, self.rows = 0, 0, []
        self.gate = threading.Event()  # closed, an answer takes until it is opened
        self.gate.set()

    def predict_many(self, rows: Sequence[Mapping[str, Any]], *, first: int = 0, **named: Any) -> list[dict[str, Any]]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.rows.append(rows[0])
        time.sleep(0.001)
        assert self.gate.wait(20)
        self.inside -= 1
        return [self.answer(row, first + i, **named) for i, row in enumerate(rows)]

    def answer(self, row: Mapping[str, Any], index: int, **named: Any) -> dict[str, Any]:
        if row["instruction"] == "break":
            raise ZeroDivisionError("secret")
        if row["instruction"] == "too long":
            raise DataError(f"row {index}: instruction: 900 tokens, expected at most 64")
        pictures = row["image"] if isinstance(row["image"], list) else [row["image"]]
        seen = sum((i + 1) * float(p.astype(np.float64).mean()) for i, p in enumerate(pictures))
        base = seen + 10 * float(row["state"].sum()) + len(row["instruction"]) + 1e3 * index + len(row["dataset"])
        chunk = (base + np.arange(12.0).reshape(4, 3)) / 7
        if "given" in row:
            chunk[: len(row["given"])] = row["given"]
        return {"prediction": chunk.tolist(), "forwards": 5, "canvas": []}


@contextmanager
def served(session: Any, **options: Any) -> Iterator[str]:
    """The address of a real server in a thread."""
    listening = listen("127.0.0.1", 0)
    app = make_app(session, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def until(done: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module", autouse=True)
def client_is_closed() -> Iterator[None]:
    yield
    HTTP.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(StandIn(), max_body=200_000) as address:
        yield address


def numpy_json(array: np.ndarray) -> dict[str, Any]:
    """What json_numpy writes."""
    return {
        "__numpy__": base64.b64encode(array.tobytes()).decode(),
        "dtype": np.lib.format.dtype_to_descr(array.dtype),
        "shape": list(array.shape),
    }


def ask(url: str, **changes: Any) -> httpx.Response:
    """A good request, changed; None takes a field away."""
    payload = {"image": encoded(PICTURE), "instruction": "open the drawer", "state": STATE, "seed": 3, **changes}
    return HTTP.post(f"{url}/act", json={k: v for k, v in payload.items() if v is not None})


def wanted(seed: int = 3, **changes: Any) -> list[list[float]]:
    row = {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE), "dataset": "arm", **changes}
    answer: list[list[float]] = StandIn().answer(row, seed)["prediction"]
    return answer


# What is asked


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


@pytest.fixture(scope="module")
def real() -> Session:
    """A small model with random weights, whose task has statistics of two data sets."""
    torch.manual_seed(0)
    words = word_tokenizer("reach the red blue disc open drawer".split())
    backbone = new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2, reserve={"action": 32})
    encoders = {"image": ConvTower(16, 16, 8), "state": StateMLP(2, 16, 16)}
    connectors = {name: MLP(width_in=16, width_out=32) for name in encoders}
    model = MMDiff(backbone, encoders, connectors).eval()
    with torch.no_grad():  # else its answers hardly depend on what it sees
        for part in model.connectors.values():
            for parameter in part.parameters():
                parameter.mul_(20)
    sampler = GenerationConfig(steps=4, temperature=1.0)
    return Session(model, task(keys=("bridge", "fractal20220817")), sampler, Path("runs/real"))


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


# What is refused


def png(width: int, height: int) -> str:
    """A PNG file whose header says so many pixels; there is next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


DEEP: list[Any] = []
for _ in range(900):
    DEEP = [DEEP]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"instruction": None}, r"instruction: nothing is not a sentence"),
    ({"instruction": "  "}, r"instruction: ' +' is not a sentence"),
    ({"instruction": ["open"]}, r"instruction: \['open'\] is not a sentence"),
    ({"instruction": "too long"}, r"^instruction: 900 tokens, expected at most 64"),
    ({"image": None}, r"image: missing, expected base64 of a PNG.*pictures: 1 \(image\)"),
    ({"image": ""}, r"image: empty, expected base64"),
    ({"image": "cat.jpg"}, r"image: 'cat.jpg' is not base64"),
    ({"image": "/etc/passwd"}, r"image: '/etc/passwd' is not base64|picture of \d+ bytes: not a picture"),
    ({"image": base64.b64encode(b"hello").decode()}, r"image: picture of 5 bytes: not a picture"),
    ({"image": encoded(PICTURE)[:80]}, r"image: .*(damaged|not a picture)"),
    ({"image": 7}, r"image: 7, expected base64"),
    ({"image": True}, r"image: True, expected base64"),
    ({"image": {}}, r"images?: 0 pictures|image.image: missing"),
    ({"image": []}, r"image: 0 pictures, expected 1 \(image\)"),
    ({"image": [[1, 2], [3]]}, r"image.*(pictures|unequal)"),
    ({"image": [[[1, 2, 3], [1, 2]]]}, r"image: lists of unequal length"),
    ({"image": [[[300, 0, 0]]]}, r"image: pixels 0 to 300, expected 0 to 255"),
    ({"image": [[[-1, 0, 0]]]}, r"image: pixels -1 to 0, expected 0 to 255"),
    ({"image": [[[1.5, 0, 0]]]}, r"image: picture of floats in 0..1.5: expected 0..1"),
    ({"image": [[[float("nan"), 0, 0]]]}, r"image: picture of floats"),
    ({"image": [[["a", "b", "c"]]]}, r"image"),
    ({"image": [[[1, 2]]]}, r"image: picture of shape \(1, 1, 2\): expected an array \(H, W, colours\)"),
    ({"image": png(20000, 20000)}, r"image: .*(20000 x 20000 pixels|too large)"),
    ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [9, 9, 3]}}, r"image: 3 bytes, expected shape"),
    ({"image": {"__numpy__": "", "dtype": "|u1", "shape": [1 << 40, 1 << 40, 0]}}, r"image"),
    ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [-3]}}, r"image.shape: \[-3\]"),
    ({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [3]}}, r"image.dtype: '\|O' is no type of real numbers"),
    ({"image": {"__numpy__": "AAAA", "dtype": "no", "shape": [3]}}, r"image.dtype: 'no'"),
    ({"image": {"__numpy__": "AAAA", "dtype": ["x"], "shape": [3]}}, r"image.dtype"),
    ({"image": {"__numpy__": 3, "dtype": "|u1", "shape": [3]}}, r"image.__numpy__: 3, expected base64"),
    ({"image": {"__numpy__": "AAAA"}}, r"image: an object of \['__numpy__'\]"),
    ({"images": [encoded(PICTURE)] * 2, "image": None}, r"images: 2 pictures, expected 1 \(image\)"),
    ({"images": [encoded(PICTURE)]}, r"images: given beside image"),
    ({"image": None, "wrist_image": "x", "full_image": "y"}, r"full_image: 2 pictures, expected 1|full_image"),
    ({"state": None}, r"state: missing, expected 2 numbers"),
    ({"state": [1, 2, 3]}, r"state: shape \(3,\), expected 2 numbers"),
    ({"state": [[1, 2]]}, r"state: shape \(1, 2\), expected 2 numbers"),
    ({"state": [1, float("nan")]}, r"state\[1\]: nan, expected a finite number"),
    ({"state": [1, float("inf")]}, r"state\[1\]: inf, expected a finite number"),
    ({"state": [1, 1e300]}, r"state\[1\]: inf, expected a finite number"),
    ({"state": [1, None]}, r"state: holds"),
    ({"state": ["1", "2"]}, r"state: holds '1', expected 2 numbers"),
    ({"state": [True, False]}, r"state: holds True"),
    ({"state": "1 2"}, r"state: '1 2', expected 2 numbers"),
    ({"state": {"x": 1}}, r"state: an object of \['x'\]"),
    ({"given": [[1, 2]]}, r"given: shape \(1, 2\), expected any number x 3 numbers"),
    ({"given": [[1, 2, 3]] * 4}, r"given: 4 actions, expected fewer than the 4 of a chunk"),
    ({"given": [[1, 2, float("nan")]]}, r"given\[0\]\[2\]: nan"),
    ({"unnorm_key": "bridge"}, r"unnorm_key: 'bridge' is no key of this policy's statistics, expected arm"),
    ({"unnorm_key": ["arm"]}, r"unnorm_key: \['arm'\]"),
    ({"seed": -1}, r"seed: -1 is not a whole number"),
    ({"seed": 1.5}, r"seed: 1.5 is not"),
    ({"seed": True}, r"seed: True is not"),
    ({"seed": 1 << 63}, r"seed: 9223372036854775808 is not"),
    ({"instrution": "open"}, r"'instrution': no such field \(did you mean \"instruction\"\?\)"),
    ({"state": DEEP}, r"state: holds|state: lists|state: shape"),
    ({"image": DEEP}, r"image"),
    ({"given": DEEP}, r"given"),
    ({"instruction": DEEP}, r"instruction: \[\[.* is not a sentence"),
    ({"unnorm_key": DEEP}, r"unnorm_key: \[\["),
    ({"seed": DEEP}, r"seed: \[\["),
    ({"state": {"__numpy__": "AAAA", "dtype": "(99999999999,99999999999)u1", "shape": [1]}}, r"state.dtype"),
    ({"state": {"__numpy__": "AAAA", "dtype": None, "shape": [1]}}, r"state.dtype"),
    ({"x" * 1000: 1}, r"'xxx.*no such field"),
    ({"encoded": "{}"}, r"encoded: expected a string of JSON, and no field beside it"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_wrong_field_is_named(url: str, changes: dict[str, Any], said: str) -> None:
    payload = {"image": encoded(PICTURE), "instruction": "open", "state": STATE, **changes}
    body = json.dumps({k: v for k, v in payload.items() if v is not None})  # also NaN, which httpx would not write
    answer = HTTP.post(f"{url}/act", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert re.search(said, answer.json()["error"]), answer.json()["error"]
    assert "\n" not in answer.json()["error"] and len(answer.json()["error"]) < 300


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: not JSON"),
        (b"{", "body: not JSON"),
        (b"\xff\xfe\x00", "body: not JSON"),
        (b"[" * 100_000, "body: not JSON (nested too deeply)"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "body: not JSON"),
        (b"[]", "body: [], expected a JSON object"),
        (b"null", "body: nothing, expected a JSON object"),
        (b'{"encoded": "{"}', "encoded: not JSON"),
        (b'{"encoded": "[]"}', "encoded: [], expected a JSON object"),
    ],
)
def test_what_is_no_json_object(url: str, body: bytes, said: str) -> None:
    answer = HTTP.post(f"{url}/act", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 400 and said in answer.json()["error"], answer.text


def test_other_requests(url: str) -> None:
    assert HTTP.post(f"{url}/act", data={"instruction": "open"}).status_code == 415
    assert "expected application/json" in HTTP.post(f"{url}/act", content=b"{}").json()["error"]
    assert HTTP.get(f"{url}/act").status_code == 405
    missing = HTTP.get(f"{url}/atc")
    assert missing.status_code == 404 and "GET /atc" in missing.json()["error"]
    assert "POST /act" in HTTP.get(url).text and HTTP.get(f"{url}/docs").status_code == 404


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
    assert answer.json() == {"error": "internal error; the server's log says more"}
    assert "secret" in caplog.text  # in the server's log
    assert ask(url).status_code == 200


def test_health_and_metrics() -> None:
    with served(StandIn(), execute=2) as url:
        health = HTTP.get(f"{url}/health").json()
        assert health.pop("uptime") >= 0
        assert health == {
            "status": "ok",
            "model": "runs/stand-in/model",
            "task": "VLA",
            "chunk": 4,
            "execute": 2,
            "dims": 3,
            "names": list(NAMES),
            "state": 2,
            "cameras": ["image"],
            "key": "arm",
            "keys": ["arm"],
            "max_body": serving.MAX_BODY,
        }
        assert HTTP.get(f"{url}/metrics").json()["seconds_p95"] is None
        assert ask(url).json()["execute"] == 2 and len(ask(url).json()["actions"]) == 4
        ask(url, seed=-1)
        metrics = HTTP.get(f"{url}/metrics").json()
        counts = {name: metrics[name] for name in ("answered", "refused", "failed", "waiting")}
        assert counts == {"answered": 2, "refused": 1, "failed": 0, "waiting": 0}
        assert 0 <= metrics["seconds_p50"] <= metrics["seconds_p95"]


def test_what_cannot_be_served() -> None:
    with pytest.raises(ConfigError, match="execute: 5 is not 1 to 4"):
        make_app(StandIn(), execute=5)  # type: ignore[arg-type]
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
        until(lambda: HTTP.get(f"{url}/metrics").json()["waiting"] == 2)
        for client in (cut, first, second):
            client.close()
        HTTP.get(f"{url}/health")  # the server has seen by now that they are closed
        session.gate.set()
        assert ask(url).json()["actions"] == wanted()
        policy = HTTP.get(f"{url}/metrics").json()
    assert [row["instruction"] for row in session.rows] == ["first", "open the drawer"]  # "second" was dropped in time
    assert policy["waiting"] == 0 and policy["failed"] == 0


def test_a_queue_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdiff.tasks.vla.serve.policy.MAX_WAITING", 1)
    session = StandIn()
    session.gate.clear()
    with served(session) as url:
        thread = threading.Thread(target=ask, args=(url,))
        thread.start()
        until(lambda: session.inside == 1)
        answer = ask(url)
        assert answer.status_code == 503 and answer.json()["error"].startswith("busy: 1 requests")
        session.gate.set()
        thread.join()
        assert ask(url).status_code == 200


# The whole server


def test_ctrl_c_lets_a_request_finish(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    try:
        _ctrl_c(monkeypatch, capfd)
    finally:
        signal.signal(signal.SIGINT, before)


def _ctrl_c(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    session = StandIn()
    session.gate.clear()
    monkeypatch.setattr("mmdiff.session.load", lambda run, *overrides, task: session)
    found: dict[str, Any] = {}
    said: list[str] = []

    def client() -> None:
        until(lambda: said.append(capfd.readouterr().err) or "/act" in "".join(said))
        port = int(re.findall(r":(\d+)/act", "".join(said))[0])
        asking = threading.Thread(target=lambda: found.update(ask(f"http://127.0.0.1:{port}").json()))
        asking.start()
        until(lambda: session.inside == 1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        session.gate.set()
        asking.join()

    thread = threading.Thread(target=client)
    thread.start()
    serve("runs/x", host="0.0.0.0", port=0)  # returns
    thread.join()
    assert found["actions"] == wanted()
    said.append(capfd.readouterr().err)
    assert "warning: 0.0.0.0 is reached from other machines, and there is no authentication" in "".join(said)
    assert "mmdiff: stopped" in "".join(said) and "Traceback" not in "".join(said)


# Closed loop


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


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"image": {"__numpy__": "", "dtype": "|u1", "shape": [1 << 39, 0, 1, 1]}},
            "549755813888 pictures, expected 1",
        ),
        ({"state": ["a" * 100_000] + ["b"] * 30_000}, "state: holds 'aaa"),
        ({"instruction": "\ud800"}, "no text of Unicode"),
    ],
)
def test_a_small_request_takes_little_room(change: dict[str, Any], message: str) -> None:
    body = {"image": PICTURE.tolist(), "instruction": "go", "state": STATE, **change}
    with pytest.raises(BadRequest, match=re.escape(message)):
        read_request(json.dumps(body).encode(), contract_of(task()))
