"""`mmdiff push` against a hub on this machine, by the real client: every byte arrives, in one commit, or none does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import toy
from huggingface_hub import snapshot_download
from models.local_hub import TOKEN, Hub, local_hub

from mmdiff import train
from mmdiff.commands import cli
from mmdiff.session import load
from mmdiff.sharing.export import export

LORA = [{"match": "backbone", "lora": {"r": 2, "alpha": 8}}, {"match": "*", "train": True}]
Run = tuple[int, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `toy`, and one that was stopped, `half`."""
    folder = tmp_path_factory.mktemp("push")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(toy.config(stage={"steps": 4, "lr": 0.03, "params": LORA}))
        train(toy.config("half", stage={"steps": 4}))
    shutil.rmtree(folder / "runs/half/model")
    (folder / "runs/half/metrics.json").unlink()
    return folder / "runs"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the other way to send large files, over LFS
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    with local_hub() as found:
        yield found


def push(hub: Hub, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """The exit code, and the result or the error line."""
    capfd.readouterr()
    code = cli.main(["push", *map(str, words), "--endpoint", hub.address, "--json"])
    out = capfd.readouterr()
    assert "Traceback" not in out.err and TOKEN not in out.err + out.out
    return code, json.loads(out.out.splitlines()[-1]) if code == 0 else out.err.splitlines()[-1]


def test_every_byte_arrives_and_comes_back(
    runs: Path, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = push(hub, capfd, runs / "toy", "me/corners", "--private", "--licence", "mit", "--message", "First")
    assert code == 0 and found["repo"] == "me/corners" and found["url"] == f"{hub.address}/me/corners"
    assert hub.private == {"me/corners": "private"} and hub.commits == [("me/corners", "First")]
    export(runs / "toy", tmp_path / "corners", licence="mit")
    here = {str(p.relative_to(tmp_path / "corners")): p.read_bytes() for p in (tmp_path / "corners").rglob("*")}
    there = hub.files["me/corners"]
    assert there.keys() == {*here, ".gitattributes"} and found["files"] == len(here)
    assert all(there[name] == data for name, data in here.items())
    sums = {line[66:]: line[:64] for line in there["SHA256SUMS"].decode().splitlines() if not line.startswith("#")}
    assert {name: hashlib.sha256(there[name]).hexdigest() for name in sums} == sums and len(sums) == len(here) - 2
    assert len(hub.blobs) == 2 and all(hashlib.sha256(blob).hexdigest() == oid for oid, blob in hub.blobs.items())
    again = snapshot_download("me/corners", endpoint=hub.address, token=TOKEN, local_dir=tmp_path / "again")
    rows = [toy.Corners(n=3)[i] for i in range(3)]
    before, after = (load(folder, trust=True).predict_many(rows) for folder in (runs / "toy", again))
    assert before == after


def test_a_second_push_replaces_the_first(
    runs: Path, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights that the new one does not have go in the same commit; what people added stays. An export goes as is."""
    assert push(hub, capfd, runs / "toy", "me/corners")[0] == 0
    hub.files["me/corners"] |= {"notes.md": b"mine", "old-00002.safetensors": b"old"}
    export(runs / "toy", tmp_path / "out", licence="mit")
    (tmp_path / "out/README.md").write_text("---\nlicense: mit\n---\nBy hand.\n")
    code, found = push(hub, capfd, tmp_path / "out", "me/corners")
    files = hub.files["me/corners"]
    assert code == 0 and len(hub.commits) == 2 and files["notes.md"] == b"mine"
    assert "old-00002.safetensors" not in files and files["README.md"].endswith(b"By hand.\n")
    assert push(hub, capfd, tmp_path / "out", "me/corners", "--merge")[0] == 2
    (tmp_path / "out/config.json").write_text("{}")
    code, line = push(hub, capfd, tmp_path / "out", "me/corners")
    assert code == 2 and "config.json: is damaged or was changed" in line and len(hub.commits) == 2


def test_what_a_run_has_not_finished_needs_a_word(runs: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    code, line = push(hub, capfd, runs / "half", "me/half")
    assert code == 2 and "half is not finished: this is its checkpoint at step 4" in line and "--force" in line
    log = runs / "half/metrics.jsonl"
    kept = log.read_text()
    log.write_text(kept + json.dumps({"step": 5, "stage": "only", "diverged": "the loss"}) + "\n")
    code, line = push(hub, capfd, runs / "half", "me/half")
    log.write_text(kept)
    assert code == 2 and "half has diverged" in line and hub.asked == []
    assert push(hub, capfd, runs / "half", "me/half", "--force")[0] == 0
    assert b"is not finished" in hub.files["me/half"]["README.md"]


def test_what_the_hub_refuses_is_one_line(
    runs: Path, hub: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_run = runs / "toy"
    for route, status in (("repos/create", 500), ("preupload", 404), ("lfs/", 403), ("/commit/", 412)):
        hub.failing = {route: status}
        code, line = push(hub, capfd, toy_run, "me/corners")
        assert code == 2 and f"{hub.address} answers {status}: " in line, line
        assert not hub.commits and set(hub.files.get("me/corners", {})) <= {".gitattributes"}
    hub.failing = {}
    code, line = push(hub, capfd, toy_run, "you/corners")
    assert code == 2 and "answers 403" in line and "You may not write to you" in line
    code, line = push(hub, capfd, toy_run, "a/b/c")
    assert code == 2 and "repo: " in line and "a/b/c" in line
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, line = push(hub, capfd, toy_run, "me/corners")
    assert code == 2 and "answers 401: " in line and "hf_wrong" not in line
    monkeypatch.delenv("HF_TOKEN")
    hub.asked.clear()
    code, line = push(hub, capfd, toy_run, "me/corners")
    assert code == 2 and "no token; set HF_TOKEN" in line and hub.asked == []


def test_a_hub_that_is_not_there_is_one_line(runs: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    away = Hub(address="http://127.0.0.1:9")
    code, line = push(away, capfd, runs / "toy", "me/corners")
    assert code == 2 and "http://127.0.0.1:9 cannot be reached" in line
    code, line = push(Hub(address="127.0.0.1"), capfd, runs / "toy", "me/corners")
    assert code == 2 and "'127.0.0.1' is no address" in line


@pytest.mark.needs("hf_xet")
def test_a_hub_without_xet_is_told(
    runs: Path, hub: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    code, line = push(hub, capfd, runs / "toy", "me/corners")
    assert code == 2 and "has no Xet storage, expected HF_HUB_DISABLE_XET=1" in line and not hub.commits
