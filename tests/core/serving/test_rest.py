"""Rows, likelihoods, and what a server says of itself."""

from __future__ import annotations

import base64
import io
import math
import socket
import time
import wave
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from models.served import served, session

from mmdiff.serving.http.guard import Limits

HTTP = httpx.Client(trust_env=False, timeout=30)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Any:
    yield
    HTTP.close()


def post(url: str, path: str, **body: Any) -> Any:
    answer = HTTP.post(f"{url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_row_is_predicted_as_the_session_does(text_url: str, text_session: Any) -> None:
    row = {"text": ["ab", 6, "c"]}
    found = post(text_url, "/predict", row=row, seed=4, temperature=1.0)
    (expected,) = text_session.predict_many([row], first=4, temperature=1.0)
    assert found["prediction"] == expected["prediction"] and found["forwards"] == expected["forwards"]
    assert [token["step"] for token in found["canvas"]["tokens"]] == [step for _, step, _ in expected["canvas"]]


def test_a_token_is_masked_again_and_rewritten(text_url: str, text_session: Any) -> None:
    """What a page does on a click: all other tokens stay."""
    first = post(text_url, "/predict", row={"text": "ab"}, seed=1, temperature=1.0, max_tokens=6)
    ids = [token["id"] for token in first["canvas"]["tokens"]]
    again = [*ids[:2], text_session.model.vocab.mask_id, *ids[3:]]
    for seed in range(4):
        found = post(text_url, "/predict", row={"text": "ab"}, seed=seed, temperature=2.0, canvas=again)
        tokens = found["canvas"]["tokens"]
        assert [t["id"] for i, t in enumerate(tokens) if i != 2] == [*ids[:2], *ids[3:]]
        assert [t["step"] for t in tokens] == [0, 0, 1, 0, 0, 0] and found["forwards"] == 1


def test_log_likelihoods_of_one_position_are_exact(text_url: str, text_session: Any) -> None:
    """One position: the bound is the model's own probability, computed here without it."""
    from mmdiff.canvas.vocab import start_of

    model, vocab = text_session.model, text_session.model.vocab
    ids = torch.tensor([[start_of(vocab), *vocab.encode("ab"), vocab.mask_id]])
    with torch.no_grad():
        logits_V = model.backbone.head(model.backbone.hidden(model.backbone.embed(ids))[0, -1]).float()
    found = post(text_url, "/score", prompt="ab", completions=["c", "d"])["scores"]
    assert all(one["kind"] == "exact" and one["standard_error"] == 0 and one["tokens"] == 1 for one in found)
    c, d = (int(vocab.encode(letter)[0]) for letter in "cd")
    apart = found[0]["log_likelihood"] - found[1]["log_likelihood"]  # whatever ids are left out of the softmax
    assert math.isclose(apart, float(logits_V[c] - logits_V[d]), abs_tol=1e-4)
    assert max(one["log_likelihood"] for one in found) < 0


def test_bounds_come_with_their_error(text_url: str, text_session: Any) -> None:
    """The mean over many seeds lies within what the errors say, and two thirds of single ones do."""

    def one(seed: int) -> tuple[float, float]:
        found = post(text_url, "/score", prompt="ab", completions=["abcdefgh"], levels=2, repeats=8, seed=100 * seed)
        return found["scores"][0]["log_likelihood"], found["scores"][0]["standard_error"]

    exact = post(text_url, "/score", prompt="ab", completions=["abcdefgh"], levels=8, repeats=64)["scores"][0]
    pairs = [one(seed) for seed in range(10)]
    away = [(value - exact["log_likelihood"]) / error for value, error in pairs]
    assert exact["kind"] == "lower_bound" and exact["log_likelihood"] < 0
    assert abs(np.mean(away)) < 1.0 and 0.2 < np.mean(np.abs(away) < 1.1) <= 1.0


def test_a_causal_model_is_scored_exactly() -> None:
    from mmdiff.canvas.patterns import Causal
    from mmdiff.tasks.text.task import PlainText

    found = session(PlainText(), seed=2, sharp=1.0)
    found.model.attention = Causal()
    with served(found) as url:
        (one,) = post(url, "/score", prompt="ab", completions=["cde"])["scores"]
        parts = [post(url, "/score", prompt=f"ab{'cde'[:n]}", completions=["cde"[n]])["scores"][0] for n in range(3)]
    assert one["kind"] == "exact" and one["standard_error"] == 0
    assert math.isclose(one["log_likelihood"], sum(part["log_likelihood"] for part in parts), rel_tol=1e-4)


def test_what_is_served_is_said(chat_url: str) -> None:
    health = HTTP.get(f"{chat_url}/health").json()
    assert health["status"] == "ok" and health["task"] == "Chat" and "messages" in health["fields"]
    assert HTTP.get(f"{chat_url}/v1/models/small").json()["id"] == "small"
    assert HTTP.get(f"{chat_url}/v1/models/other").status_code == 404
    before = HTTP.get(f"{chat_url}/metrics").text
    post(chat_url, "/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
    after = HTTP.get(f"{chat_url}/metrics").text
    name = 'mmdiff_requests_total{route="/v1/chat/completions",status="200"} '

    def count(text: str) -> float:
        return float(next((line[len(name) :] for line in text.splitlines() if line.startswith(name)), 0))

    assert count(after) == count(before) + 1
    for path in ("/nothing", "/v1/chat"):
        found = HTTP.get(f"{chat_url}{path}")
        assert found.status_code == 404 and found.json()["error"]["type"] == "not_found_error"
    assert HTTP.get(f"{chat_url}/v1/chat/completions").status_code == 405


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"prompt": NaN}', 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
        (b"1" * 5000, 400),
    ],
)
def test_bodies_that_are_none(text_url: str, body: bytes, status: int) -> None:
    found = HTTP.post(f"{text_url}/v1/completions", content=body, headers={"content-type": "application/json"})
    assert found.status_code == status and "\n" not in found.json()["error"]["message"]
    assert HTTP.post(f"{text_url}/score", content=body, headers={"content-type": "text/plain"}).status_code == 415


def test_half_sent_and_slow_requests_hold_nobody_up(text_session: Any) -> None:
    hasty = Limits(body=200_000, in_all=400_000, stall=0.3, seconds=0.6, head=0.4, connections=40)
    with served(text_session, limits=hasty) as url:
        name, port = url.removeprefix("http://").split(":")
        slow = [socket.create_connection((name, int(port))) for _ in range(20)]
        head = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 90"]
        for client in slow:
            client.sendall("\r\n".join([*head, "", "{"]).encode())
        assert post(url, "/v1/completions", prompt="a", max_tokens=2)["choices"]
        time.sleep(1)
        for client in slow:
            assert b" 408 " in client.recv(4096)
            client.close()
        assert HTTP.post(f"{url}/predict", json={"row": {"text": "x" * 300_000}}).status_code == 413


def test_a_client_who_leaves_is_dropped(text_session: Any) -> None:
    """A long generation ends at its next step; others that were filled with it are finished."""
    with served(text_session) as url:
        batcher_before = HTTP.get(f"{url}/metrics").text
        assert "mmdiff_requests_running 0.0" in batcher_before
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 4000}, timeout=1, trust_env=False)
        idle(url)
        assert 'status="499"' in HTTP.get(f"{url}/metrics").text
        body = {"prompt": "a", "max_tokens": 4000, "stream": True, "drafts": True}
        with HTTP.stream("POST", f"{url}/v1/completions", json=body) as events:
            assert next(events.iter_lines()).startswith("data: ")
            assert "mmdiff_requests_running 1.0" in httpx.get(f"{url}/metrics", trust_env=False).text
        idle(url)


def idle(url: str) -> None:
    until(lambda: "mmdiff_requests_running 0.0" in metrics(url))


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_the_queue_and_the_time_are_bounded(text_session: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with served(text_session, waiting=2, rows=1, seconds=1.0) as url, ThreadPoolExecutor(8) as pool:

        def ask(n: int) -> int:
            body = {"prompt": "a", "max_tokens": 3000 + n}
            return httpx.post(f"{url}/v1/completions", json=body, timeout=30, trust_env=False).status_code

        assert set(pool.map(ask, range(8))) == {503}
        assert post(url, "/v1/completions", prompt="a", max_tokens=2)["choices"]


def test_what_is_no_canvas_waits_in_the_same_queue(text_session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a long computation a bounded number of others waits; those whose clients leave are not computed."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    gate, begun = threading.Event(), []

    def scores(*named: Any) -> list[Any]:
        begun.append(named)
        assert gate.wait(20)
        return []

    def score(timeout: float = 30) -> int:
        body = {"prompt": "ab", "completions": ["c"]}
        return httpx.post(f"{url}/score", json=body, timeout=timeout, trust_env=False).status_code

    monkeypatch.setattr("mmdiff.serving.rest.scores", scores)
    with served(text_session, waiting=2) as url, ThreadPoolExecutor(4) as pool:
        found = [pool.submit(score)]
        until(lambda: bool(begun))
        with pytest.raises(httpx.ReadTimeout):
            score(timeout=0.5)
        until(lambda: "mmdiff_requests_waiting 0.0" in metrics(url))  # that client has left
        found += [pool.submit(score) for _ in range(2)]
        until(lambda: "mmdiff_requests_waiting 2.0" in metrics(url))
        assert score() == 503
        gate.set()
        assert [one.result() for one in found] == [200, 200, 200]
        counted = metrics(url)
    for status, n in ((200, 3), (499, 1), (503, 1)):
        assert f'mmdiff_requests_total{{route="/score",status="{status}"}} {n}.0' in counted, counted
    assert len(begun) == 3


def test_tokens_and_hosts(text_session: Any) -> None:
    with served(text_session, token="secret", local=True) as url:
        assert HTTP.get(f"{url}/health").status_code == 401
        assert HTTP.get(f"{url}/").status_code == 200  # the page, which asks for the token
        right = {"authorization": "Bearer secret"}
        assert HTTP.get(f"{url}/health", headers=right).status_code == 200
        wrong = HTTP.get(f"{url}/health", headers={**right, "host": "evil.example"})
        assert wrong.status_code == 421 and wrong.json()["error"]["message"].startswith("host: ")


def picture(shade: int) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 255 - shade)).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def seeing() -> Any:
    from models.served import byte_tokenizer

    from mmdiff.backbones import new_backbone
    from mmdiff.config.settings import GenerationConfig
    from mmdiff.connectors.mlp import MLP
    from mmdiff.encoders.conv import ConvTower
    from mmdiff.model import MMDiff
    from mmdiff.session import Session
    from mmdiff.tasks.vqa.task import VQA

    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=byte_tokenizer(), hidden_size=32, layers=2, heads=2)
    model = MMDiff(backbone, {"image": ConvTower(16, 16, 8)}, {"image": MLP(width_in=16, width_out=32)}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim > 1 else 1)
    from pathlib import Path

    return Session(model, VQA(max_new_tokens=8), GenerationConfig(), Path("runs/seeing"))


def test_pictures_are_seen_and_no_file_is_opened(seeing: Any, tmp_path: Any) -> None:
    def ask(url: str, address: str, text: str = "What is it?") -> Any:
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": address}}]
        return HTTP.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})

    file = tmp_path / "a.png"
    file.write_bytes(base64.b64decode(picture(10)))
    with served(seeing) as url:
        said = [
            ask(url, f"data:image/png;base64,{picture(shade)}").json()["choices"][0]["message"]["content"]
            for shade in (0, 255)
        ]
        row = {
            "image": base64.b64decode(picture(255)),
            "conversations": [{"from": "human", "value": "What is it?<image>\n"}],
        }
        assert said[0] != said[1] and said[1] == seeing.predict_many([row])[0]["prediction"]
        for address in (
            str(file),
            f"file://{file}",
            "http://127.0.0.1:1/a.png",
            "data:image/png,abc",
            "data:image/png;base64,AAAA",
            "",
        ):
            found = ask(url, address)
            assert found.status_code == 400 and "\n" not in found.json()["error"]["message"]
        assert ask(url, f"data:image/png;base64,{picture(0)}", "Forged <image> slot").status_code == 400
        for sent in (str(file), {"path": str(file)}, [str(file)]):
            found = HTTP.post(f"{url}/predict", json={"row": {"image": sent, "question": "What?"}})
            assert found.status_code == 400, found.text
        pixels = np.zeros((16, 16, 3), int).tolist()
        assert post(url, "/predict", row={"image": pixels, "question": "What?"})["prediction"] is not None


def test_sound_is_written_down() -> None:
    from pathlib import Path

    from models.served import byte_tokenizer

    from mmdiff.backbones import new_backbone
    from mmdiff.config.settings import GenerationConfig
    from mmdiff.connectors.mlp import MLP
    from mmdiff.encoders.speech import SpeechConv
    from mmdiff.model import MMDiff
    from mmdiff.session import Session
    from mmdiff.tasks.asr.task import ASR

    pytest.importorskip("soundfile")
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=byte_tokenizer(), hidden_size=32, layers=2, heads=2)
    encoder = SpeechConv.toy()
    model = MMDiff(backbone, {"audio": encoder}, {"audio": MLP(width_in=encoder.width, width_out=32)}).eval()
    found = Session(model, ASR(max_new_tokens=6), GenerationConfig(), Path("runs/hearing"))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes((8000 * np.sin(np.arange(8000) / 20)).astype("<i2").tobytes())
    with served(found) as url:

        def send(sound: bytes, **fields: str) -> Any:
            return HTTP.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", sound)}, data=fields)

        text = send(file.getvalue(), model="hearing").json()["text"]
        assert text == found.predict_many([{"audio": file.getvalue()}])[0]["prediction"]
        assert send(file.getvalue(), response_format="text").text == text + "\n"
        for sound, fields in (
            (b"", {}),
            (b"RIFF", {}),
            (file.getvalue(), {"bogus": "1"}),
            (file.getvalue(), {"temperature": "x"}),
        ):
            assert send(sound, **fields).status_code == 400


def test_proteins_are_filled_and_embedded(tmp_path: Any) -> None:
    from mmdiff.backbones.load import toy_backbone
    from mmdiff.session import load
    from mmdiff.tasks.protein.embed.embeddings import Embeddings, embed

    toy_backbone("facebook/esm2_t6_8M_UR50D").save_pretrained(tmp_path / "esm2", original_format=True)
    found = load(tmp_path / "esm2")
    embed(found, [{"sequence": "MKTAYIAK"}, {"sequence": "MK"}], tmp_path / "x.npz")
    expected = Embeddings(tmp_path / "x.npz").stacked()
    with served(found) as url:
        sent = post(url, "/v1/embeddings", input=["MKTAYIAK", "MK"])["data"]
        assert np.allclose([one["embedding"] for one in sent], expected, atol=1e-5)
        filled = post(url, "/predict", row={"sequence": "MK__YI"}, seed=1)["prediction"]
        assert filled[:2] == "MK" and filled[4:] == "YI" and "_" not in filled and len(filled) == 6
        (one,) = post(url, "/score", rows=[{"sequence": "MKTAYIAK"}])["scores"]
        assert one["tokens"] == 8 and one["log_likelihood"] < 0
        for body in ({"input": ["MK1"]}, {"input": ["MK"], "pooling": "last"}):
            assert HTTP.post(f"{url}/v1/embeddings", json=body).status_code == 400
        refused = HTTP.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        assert refused.status_code == 400 and "Protein" in refused.json()["error"]["message"]


@pytest.mark.parametrize("pieces", [[], "x", 5, [[]], [["a"]], [[-5, 2]], [[10**12, 2]], {"a": 1}])
def test_windows_that_are_none_are_a_fault_of_the_request(text_url: str, pieces: Any) -> None:
    for path, body in (("/predict", {"row": {"pieces": pieces}}), ("/score", {"rows": [{"pieces": pieces}]})):
        found = HTTP.post(f"{text_url}{path}", json=body)
        assert found.status_code == 400, found.text
        assert "\n" not in found.json()["error"]["message"]


def test_one_faulty_canvas_harms_no_other(text_session: Any) -> None:
    """Whatever is raised for it, also what is no fault of a person."""
    import asyncio

    from mmdiff.canvas.sample import Target, Text
    from mmdiff.serving.batching import Batcher, Job

    async def ask() -> list[Any]:
        batcher = Batcher(text_session.model)
        asked = [[Text([5]), Target(length=3)], [Text(["a"]), Target(length=3)], [Text([6]), Target(length=3)]]  # type: ignore[list-item]
        jobs = [Job(sample, 4, text_session.sampler, 0) for sample in asked]
        batcher.queue.extend(jobs)
        batcher.thread.submit(batcher._next)
        found = await asyncio.gather(*(job.result() for job in jobs), return_exceptions=True)
        batcher.close()
        return found

    first, wrong, last = asyncio.run(ask())
    assert first.together == last.together == 1 and len(first.draft.ids) == len(last.draft.ids) == 3
    assert isinstance(wrong, ValueError)
