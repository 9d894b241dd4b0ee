"""Processes of a run started from a command line: one fails or a signal comes, and all end in one line; two hosts train
together."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from failures import kills
from paths import ROOT

from mmdiff.commands.cli import main
from mmdiff.files import lock, read_json, unlock
from mmdiff.training.stage import Stage

ROWS = """
import os
from pathlib import Path
from mmdiff.errors import DataError

class Rows:
    def __len__(self): return 64
    def __getitem__(self, index):
        metrics = Path("runs/bad/metrics.jsonl")
        if os.environ.get("RANK") == "1" and metrics.exists() and metrics.read_text().count("loss") >= 2:
            raise DataError("no picture")
        return {"question": "where", "answer": "north north"}
"""
RUN = """
name: {name}
model: {{backbone: {{target: toy.backbone}}}}
task: {{target: toy.Where, image: false}}
train:
  tensorboard: false
  log_every: 1
  sharding: full
  stages: {{only: {{steps: {steps}, batch_size: 2, data: {rows}, objective: mmdiff.objectives.denoise.Denoise}}}}
"""
HOSTS = """
set -e
ip link set lo up
unshare -n sleep 100 & other=$!
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
ip link add one type veth peer name two
ip link set two netns $other
ip addr add 10.77.0.1/24 dev one
ip link set one up
nsenter -t $other -n ip addr add 10.77.0.2/24 dev two
nsenter -t $other -n ip link set two up
launch() {
    GLOO_SOCKET_IFNAME=$1 $PYTHON -m mmdiff.training.launch --nnodes 2 --node-rank $2 --nproc-per-node 1 \\
        --master-addr 10.77.0.1 --master-port 29500 train good.yaml
}
export -f launch
launch one 0 & first=$!
nsenter -t $other -n bash -c "launch two 1"
wait $first
kill $other
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    Path("rows.py").write_text(ROWS)
    Path("bad.yaml").write_text(RUN.format(name="bad", steps=40, rows="rows.Rows"))
    Path("good.yaml").write_text(RUN.format(name="good", steps=3, rows="{target: toy.Corners}"))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), str(tmp_path)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


@pytest.mark.slow
def test_the_failure_of_one_process_ends_all_in_one_line(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "mmdiff.training.launch", "--nproc-per-node", "2", "train", "bad.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    said = done.stderr.replace("\r", "\n").splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    errors = [line for line in said if "error" in line.lower() or "terminated" in line]
    assert len(errors) == 1 and re.search(r"mmdiff: error: row \d+: no picture$", errors[0])


@pytest.mark.slow
def test_a_group_is_refused_without_a_traceback_while_another_process_trains(environment: dict[str, str]) -> None:
    """Its first process finds the lock; the others, which wait for it, lose it."""
    Path("runs").mkdir()
    held = lock(Path("runs/.good.lock"), "busy")
    command = [sys.executable, "-m", "mmdiff.training.launch", "--nproc-per-node", "2", "train", "good.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    unlock(held)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "mmdiff: error: runs/good: another process is training this run\n" in done.stderr
    assert not Path("runs/good").exists()


def namespaces() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip", "bash"))
    return tools and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="no network namespaces here")
def test_two_hosts_train_one_run(environment: dict[str, str]) -> None:
    """Two network namespaces, each a host with an address of its own."""
    command = ["unshare", "-rn", "--kill-child", "bash", "-c", HOSTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    trained = read_json(Path("runs/good/checkpoints/step-00000003/trainer.json"))
    assert trained["step"] == 3 and trained["samples"] == {"only": 4}  # 2 of each host
    assert read_json(Path("runs/good/metrics.json"))["steps"] == 3


def interrupted(number: int) -> tuple[int, str, float]:
    """Train with two data processes until the third step, then send the signal to the whole group as a terminal does;
    SIGKILL to the trainer alone. Returns its exit code, what it printed, and the seconds until no process was left."""

    def live() -> int:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `pytest &` has it ignored
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = sys.__unraisablehook__  # pytest's prints nothing
        original, calls = Stage._step, [0]

        def counted(self: Stage, *args: object) -> None:
            original(self, *args)  # type: ignore[arg-type]
            calls[0] += 1
            if calls[0] == 3:
                Path("sent").write_text(str(time.monotonic()))
                os.kill(os.getpid(), number) if number == signal.SIGKILL else os.killpg(0, number)

        Stage._step = counted  # type: ignore[method-assign]
        return main(["train", "good.yaml", "train.workers=2", "train.sharding=none"])

    code, said = kills.in_a_child(live, Path())
    return (
        code,
        said,
        time.monotonic() - float(Path("sent").read_text()),
    )  # data processes hold the pipe of what is said


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated"), (9, -9, "")])
def test_a_signal_to_a_run_with_data_processes(
    number: int, code: int, word: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, no traceback of the data processes or about them, and none of them is left; the run resumes."""
    Path("good.yaml").write_text(RUN.format(name="good", steps=30, rows="{target: toy.Corners}"))
    found, said, seconds = interrupted(number)
    assert found == code and "Traceback" not in said and "Error" not in said, said
    assert seconds < 4  # torch's own data processes look for their parent every 5 s
    assert [line for line in said.splitlines() if "mmdiff:" in line] == [f"mmdiff: {word}"] * bool(word)
    assert main(["train", "good.yaml", "train.workers=2", "train.sharding=none"]) == 0
