"""Processes of a run started from a command line: one fails and all end in one line; two hosts train together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from mmdiff.files import read_json

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
