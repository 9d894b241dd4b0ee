"""Hostile and slow clients: memory is bounded, the others are served, and every refusal is one line of JSON."""

from __future__ import annotations

import copy
import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.errors import ConfigError, DataError
from mmdiff.session import Session

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from robots.policy_server import HTTP, PICTURE, STATE, StandIn, ask, numpy_json, served, task, until, wanted  # noqa: E402

from mmdiff.commands.cli import main  # noqa: E402
from mmdiff.serving.http.guard import TOKEN, Limits, name_of, read_token  # noqa: E402
from mmdiff.tasks.vla.serve.client import ActClient, encoded  # noqa: E402

HASTY = Limits(body=300_000, in_all=700_000, stall=0.3, seconds=0.6, head=0.4, connections=40)
JSON = "Content-Type: application/json"


def dialled(
    url: str, *lines: str, length: int | None = None, body: bytes = b"", host: str = "localhost"
) -> socket.socket:
    """A connection on which the head of a POST /act is sent, and some of its body."""
    name, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((name, int(port)), timeout=10)
    head = ["POST /act HTTP/1.1", f"Host: {host}", *lines]
    head += [] if length is None else [f"Content-Length: {length}"]
    client.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return client


def answer(client: socket.socket) -> tuple[int, str]:
    """The status and the error of all that a server sends until it closes the connection."""
    found = b""
    while piece := client.recv(65536):
        found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    said = json.loads(body)
    assert set(said) == {"error"} and "\n" not in said["error"]
    return int(head.split()[1]), said["error"]


def test_bodies_that_are_half_sent() -> None:
    """They hold a bounded number of bytes, are dropped after a while, and nobody else waits for them."""
    with served(StandIn(), limits=HASTY) as url, ExitStack() as open_:
        half = [open_.enter_context(dialled(url, JSON, length=250_000, body=b" " * 200_000)) for _ in range(12)]
        assert HTTP.get(f"{url}/health").status_code == 200
        said = [answer(client) for client in half]
        assert sorted({status for status, _ in said}) == [408, 503]
        assert sum(status == 408 for status, _ in said) <= 3  # of 200 kB each, 700 kB in all
        assert any(error == "body: nothing for 0.3 s" for _, error in said)
        assert any("bodies of" in error and "at most 700000 may be" in error for _, error in said)
        assert ask(url).json()["actions"] == wanted()


def test_what_is_held_is_given_back() -> None:
    limits = Limits(body=300_000, in_all=310_000)
    with served(StandIn(), limits=limits) as url:
        for _ in range(3):
            assert ask(url).status_code == 200
            assert ask(url, instruction="x" * 290_000).status_code == 200
            assert ask(url, instruction="x" * 400_000).status_code == 413
            assert HTTP.post(f"{url}/act", content=b"{}" * 100_000).status_code == 415
            dialled(url, JSON, length=250_000, body=b" " * 200_000).close()


def test_a_body_that_drips() -> None:
    with served(StandIn(), limits=HASTY) as url, dialled(url, JSON, length=1000) as client:
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 5:
                client.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("sent", [b"", b"POST /act HTTP/1.1\r\nHo"])
def test_a_head_that_does_not_end(sent: bytes) -> None:
    with served(StandIn(), limits=HASTY) as url:
        name, port = url.removeprefix("http://").split(":")
        with socket.create_connection((name, int(port)), timeout=10) as client:
            client.sendall(sent)
            assert answer(client) == (408, "request: its head is not whole in 0.4 s")


def test_what_is_no_http() -> None:
    with served(StandIn(), limits=HASTY) as url:
        name, port = url.removeprefix("http://").split(":")
        for sent in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000):
            with socket.create_connection((name, int(port)), timeout=10) as client:
                client.sendall(sent)
                status, said = answer(client)
                assert status == 400 and said.startswith("request: no HTTP")


def test_more_connections_than_are_held() -> None:
    with served(StandIn(), limits=HASTY) as url, ExitStack() as open_:
        for _ in range(40):
            open_.enter_context(dialled(url, JSON, length=10))
        name, port = url.removeprefix("http://").split(":")
        last = open_.enter_context(socket.create_connection((name, int(port)), timeout=10))
        status, said = answer(last)
        assert status == 503 and said.startswith("busy: ")


def test_other_hosts_are_refused_where_only_this_machine_is_served() -> None:
    body = json.dumps({"image": encoded(PICTURE), "instruction": "go", "state": STATE}).encode()
    with served(StandIn(), local=True) as url:
        for host in ("evil.example", "evil.example:8777", "localhost.evil.example", "10.0.0.7", "", "127.0.0.1, evil"):
            with dialled(url, JSON, length=len(body), body=body, host=host) as client:
                status, said = answer(client)
                assert status == 421 and said.startswith("host: "), host
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8777", "[::1]:8777", "[::1]"):
            assert HTTP.get(f"{url}/health", headers={"Host": host}).status_code == 200, host
        assert ask(url).status_code == 200
    assert name_of("[::1]:8777") == "::1" and name_of("Robot:8777") == "robot"


def test_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with served(StandIn(), token="s3cret") as url:
        for given in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "s3cret"},
        ):
            for path in ("/health", "/metrics", "/none"):
                said = HTTP.get(url + path, headers=given)
                assert (
                    said.status_code == 401 and "s3c" not in said.text and said.headers["www-authenticate"] == "Bearer"
                )
            said = HTTP.post(f"{url}/act", content=b"x" * 100_000, headers=given)
            assert said.status_code == 401 and set(said.json()) == {"error"}
        assert HTTP.get(f"{url}/health", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        with pytest.raises(DataError, match="401: authorization: not the token"):
            ActClient(url)
        row = {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE), "index": 3}
        assert ActClient(url, token="s3cret").act([row])[0].tolist() == wanted(3)
        monkeypatch.setenv(TOKEN, "s3cret")
        assert ActClient(url).act([row])[0].tolist() == wanted(3)


def test_where_a_token_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN, " of-the-environment\n")
    assert read_token(None) == "of-the-environment"
    monkeypatch.setenv(TOKEN, " ")
    with pytest.raises(ConfigError, match=f"{TOKEN}: is empty"):
        read_token(None)
    file = tmp_path / "token"
    for content, said in (
        (b"", "is empty"),
        (b"two words", "no word"),
        (b"\xff", "no text"),
        (b"x" * 5000, "5,000 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            read_token(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_token(tmp_path / "none")
    file.write_text("abc\n")
    file.chmod(0o600)
    capsys.readouterr()
    assert read_token(file) == "abc" and not capsys.readouterr().err
    file.chmod(0o644)
    assert read_token(file) == "abc" and "can be read by other users" in capsys.readouterr().err
    assert main(["vla", "serve", "runs/none", "--token", "abc"]) == 2  # not on the command line


def many(text: str) -> Callable[[], bytes]:
    return lambda: b'{"image": [' + text.encode() * 4_000_001 + b"[]]}"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (lambda: b"[" * 100_000, 400, "body: not JSON (nested too deeply)"),
        (lambda: b'{"image":' * 20_000, 400, "body: not JSON (nested too deeply)"),
        (many("[],"), 413, "values, expected at most 4,000,000"),
        (lambda: b"\xff\xfe", 400, "body: not JSON"),
        (lambda: b"", 400, "body: not JSON"),
        (lambda: json.dumps({"seed": 10**4000}).encode(), 422, "instruction: nothing is not a sentence"),
    ],
)
def test_bodies_that_grow(body: Callable[[], bytes], status: int, message: str) -> None:
    with served(StandIn()) as url:
        said = HTTP.post(f"{url}/act", content=body(), headers={"Content-Type": "application/json"})
        assert said.status_code == status and message in said.json()["error"]
        assert len(said.json()["error"]) < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {**numpy_json(PICTURE), "dtype": ",".join(["u1"] * 5000)}}, "image.dtype: "),
        ({"image": {**numpy_json(PICTURE), "shape": [1 << 62, 1 << 62]}}, "image: 144 bytes, expected shape"),
        ({"state": [float("nan"), 0.0]}, "state[0]: nan, expected a finite number"),
        ({"state": [1e300, 0.0]}, "state[0]: inf, expected a finite number"),
        ({"given": [[0.0, float("-inf"), 0.0]]}, "given[0][1]: -inf, expected a finite number"),
    ],
)
def test_arrays_that_are_none(url: str, changes: dict[str, Any], message: str) -> None:
    payload = {"image": encoded(PICTURE), "instruction": "open the drawer", "state": STATE, **changes}
    said = HTTP.post(f"{url}/act", content=json.dumps(payload), headers={"Content-Type": "application/json"})
    assert said.status_code == 422 and message in said.json()["error"]


def test_after_all_that_the_server_answers() -> None:
    with served(StandIn(), limits=HASTY) as url:
        clients = [dialled(url, JSON, length=1000, body=b"{") for _ in range(20)]
        for client in clients:
            client.close()
        until(lambda: ask(url).status_code == 200)
        assert 'status="500"' not in HTTP.get(f"{url}/metrics").text


def test_weights_that_are_no_numbers_give_no_actions(real: Session) -> None:
    """Of logits that are NaN an argmax would be a finite action."""
    model = copy.deepcopy(real.model)
    broken = replace(real, model=model, task=task(keys=("arm",)))
    row = {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE)}
    assert np.isfinite(broken.predict_many([row], first=3)[0]["prediction"]).all()
    for state in ([np.nan, 0.0], [np.inf, 0.0]):
        with pytest.raises(DataError, match="state: .0. is not finite"):
            broken.predict_many([{**row, "state": np.float32(state)}])
    for wrong in (float("nan"), float("inf")):
        with torch.no_grad():
            for parameter in model.connectors["image"].parameters():
                parameter.fill_(wrong)
        with pytest.raises(DataError, match="logits are not finite"):
            broken.predict_many([row], first=3)
        with served(broken) as url:
            said = ask(url)
            assert said.status_code == 422 and "logits are not finite" in said.json()["error"]
