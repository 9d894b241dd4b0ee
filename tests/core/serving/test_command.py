"""`mmdiff serve` as a process: published folders, bad arguments, signals; and the routes that a task brings."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from models.served import served
from paths import ROOT

import mmdiff
from mmdiff.backbones.load import toy_backbone
from mmdiff.commands.cli import main
from mmdiff.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bare") / "LLaDA-8B-Instruct"
    toy_backbone("GSAI-ML/LLaDA-8B-Instruct").save_pretrained(found, original_format=True)
    return found


@pytest.mark.slow
def test_a_published_folder_is_served_until_it_is_stopped(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "mmdiff",
        "serve",
        str(folder),
        "--port",
        "0",
        "sampler.preset=null",
        "sampler.steps=4",
    ]
    with open(log, "wb") as out:
        server = subprocess.Popen(command, stderr=out, cwd=tmp_path, env=path)
    try:
        end = time.monotonic() + 60
        while "http://" not in log.read_text():
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        url = log.read_text().split("http://")[1].split("/")[0]
        body = {"prompt": "Hello", "max_tokens": 8}
        with httpx.Client(base_url=f"http://{url}", trust_env=False, timeout=30) as http:
            found = http.post("/v1/completions", json=body).json()
            assert found["model"] == "LLaDA-8B-Instruct" and found["diffusion"]["forwards"] == 4
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 143 and "Traceback" not in log.read_text()


def test_bare_folders_get_the_task_and_the_settings_of_their_family(folder: Path, tmp_path: Path) -> None:
    text = mmdiff.load(folder)
    assert type(text.task).__name__ == "PlainText" and text.sampler.eos_policy == "last"
    assert mmdiff.load(folder, "sampler.steps=2").predict({"text": "a"}, max_new_tokens=4)["forwards"] == 2
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert type(mmdiff.load(folder).task).__name__ == "Chat"
    toy_backbone("JetLM/SDAR-4B-Chat").save_pretrained(tmp_path / "sdar", original_format=True)
    assert mmdiff.load(tmp_path / "sdar").sampler.block_length == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no such folder"),
        (["{folder}", "--port", "70000"], "port: 70000"),
        (["{folder}", "--rows", "0"], "0"),
        (["{folder}", "steps=4"], "is not a setting"),
        (["{folder}", "sampler.stesp=4"], 'did you mean "steps"'),
        (["{folder}", "--token-file", "{folder}/none"], "no such file"),
        (["{folder}", "--host", "no.such.host.invalid"], "is not an address"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, words: list[str], said: str, capsys: Any) -> None:
    free = [] if "--port" in words else ["--port", "0"]
    assert main(["serve", *(word.format(folder=folder) for word in words), *free]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1] and err[-1].startswith("mmdiff: error: ")


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded(folder: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(folder), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened at" in capsys.readouterr().err


def test_a_policy_acts_at_the_same_server() -> None:
    pytest.importorskip("starlette")
    from robots.policy_server import PICTURE, STATE, task

    from mmdiff.backbones import new_backbone
    from mmdiff.canvas.vocab import word_tokenizer
    from mmdiff.config.settings import GenerationConfig
    from mmdiff.connectors.mlp import MLP
    from mmdiff.encoders.conv import ConvTower
    from mmdiff.encoders.state import StateMLP
    from mmdiff.model import MMDiff
    from mmdiff.session import Session
    from mmdiff.tasks.vla.serve.client import ActClient

    words = word_tokenizer("open the drawer".split())
    backbone = new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2, reserve={"action": 32})
    encoders = {"image": ConvTower(16, 16, 8), "state": StateMLP(2, 16, 16)}
    model = MMDiff(backbone, encoders, {name: MLP(width_in=16, width_out=32) for name in encoders}).eval()
    policy = Session(model, task(), GenerationConfig(steps=4), Path("runs/robot"))
    row = {"image": PICTURE, "instruction": "open the drawer", "state": np.float32(STATE), "index": 3}
    with served(policy) as url:
        client = ActClient(url)
        (chunk,) = client.act([row])
        with pytest.raises(DataError, match="422: .*instruction"):
            client.act([{**row, "instruction": " "}])
    (expected,) = policy.predict_many([{**row, "dataset": "arm"}], first=3)
    assert client.chunk == 4 and np.allclose(chunk, expected["prediction"])
