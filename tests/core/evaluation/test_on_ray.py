"""`mmdiff predict --ray`: real Ray, two workers on this machine; the same records, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import toy
from paths import ROOT

from mmdiff import train

pytestmark = [pytest.mark.slow, pytest.mark.needs("ray")]
N = 400
WORKER = "ray::MapWorker"  # what Ray calls a process that runs mmdiff.evaluation.on_ray.Worker


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(toy.config(stage={"steps": 4}))
    rows = toy.Corners(n=N, lengths=(2, 3))
    lines = [{**rows[i], "image": rows[i]["image"].tolist(), "id": f"r{i}"} for i in range(N)]
    lines[9]["answer"] = ""
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(home: Path, out: str, *words: str) -> subprocess.Popen[str]:
    base = [sys.executable, "-m", "mmdiff", "predict", "runs/toy", "rows.jsonl", "sampler.temperature=1.5"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
    words = ("--out", out, "--batch-size", "2", "--on-error", "skip", "--json", *words)
    return subprocess.Popen([*base, *words], cwd=home, env=env, text=True, stderr=-1, stdout=-1)


def finished(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def everybody() -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*")]


def workers(parent: int) -> list[int]:
    """The processes of Ray below a process that hold the model."""
    return [p for p in everybody() if named(p).startswith(WORKER) and parent in ancestors(p)]


def named(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


def ancestors(process: int) -> list[int]:
    found = []
    with suppress(OSError):
        while process > 1:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(process)
    return found


def test_workers_give_the_records_of_one_process_and_a_killed_one_loses_none(home: Path) -> None:
    assert finished(command(home, "alone.jsonl"))["skipped"] == 1
    child = command(home, "ray.jsonl", "--ray", "local", "--workers", "2")
    killed: list[int] = []

    def kill() -> None:
        file, deadline = home / "ray.jsonl", time.monotonic() + 240
        while child.poll() is None and time.monotonic() < deadline and not killed:
            begun = file.read_text().count("\n") if file.exists() else 0
            if 0 < begun < N and len(found := workers(child.pid)) == 2:
                os.kill(found[0], signal.SIGKILL)
                killed.append(begun)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    found = finished(child)
    thread.join()
    assert killed and found["predicted"] == N - 1 and found["skipped"] == 1
    assert (home / "ray.jsonl").read_bytes() == (home / "alone.jsonl").read_bytes()
    lines = [json.loads(line) for line in (home / "ray.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(N))


def test_a_killed_driver_resumes(home: Path) -> None:
    child = command(home, "resumed.jsonl", "--ray", "local")
    file, deadline = home / "resumed.jsonl", time.monotonic() + 240
    while not file.exists() or not file.read_text().count("\n"):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    below = [p for p in everybody() if child.pid in ancestors(p)]
    child.kill()
    child.communicate()
    for process in below:  # the daemons of Ray look for their driver now and then only
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    begun = file.read_text().count("\n")
    assert 0 < begun < N
    found = finished(command(home, "resumed.jsonl"))  # on this process alone, which is no other setting
    assert found["resumed"] == begun and file.read_bytes() == (home / "alone.jsonl").read_bytes()
