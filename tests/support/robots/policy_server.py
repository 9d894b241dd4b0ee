"""A session whose answers are a known function of a request, behind a real server in a thread; and requests to it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from mmdiff.backbones.load import toy_backbone
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import DataError
from mmdiff.model import MMDiff
from mmdiff.serving.app import make_app
from mmdiff.serving.http.guard import line_only
from mmdiff.serving.http.listening import LIMITS, listen, settings
from mmdiff.tasks.vla.codecs.normalise import Statistics
from mmdiff.tasks.vla.serve.client import encoded
from mmdiff.tasks.vla.task import VLA

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
    sampler = GenerationConfig()

    def __init__(self, cameras: int = 1) -> None:
        self.task, self.model = task(cameras), MMDiff(toy_backbone("GSAI-ML/LLaDA-8B-Base"))
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
    """The address of a real server in a thread, which answers as `mmdiff vla serve`."""
    listening = listen("127.0.0.1", 0)
    own = {name: options.pop(name) for name in ("cameras", "execute") if name in options}
    app = make_app(session, error=line_only, own=own, **options)
    server = uvicorn.Server(settings(app, options.get("limits", LIMITS)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        app.state.service.batcher.close()
        assert not thread.is_alive()


def until(done: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


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
