"""Damaged checkpoints: moved aside, training goes on from the one before. A full disk: one line, nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures import disks
from failures.kills import in_a_child
from failures.runs import cut_at
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff import train
from mmdiff.config.settings import Config
from mmdiff.data.stream import Component, Stream
from mmdiff.errors import ConfigError
from mmdiff.files import damaged, digest, read_json, write_sums
from mmdiff.model import MMDiff
from mmdiff.runs.moments import load_moments, moments
from mmdiff.training.stage import Stage

STAGE = {"steps": 7, "params": [{"match": "encoders", "train": False}, {"match": "*"}]}
NEWEST, BEFORE = Path("runs/cut/checkpoints/step-00000004"), Path("runs/cut/checkpoints/step-00000002")


def config(name: str) -> Config:
    return toy.config(name, stage=STAGE, save_every=2, keep=2)


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended at its sixth step, with the checkpoints of steps 2 and 4."""
    monkeypatch.chdir(tmp_path)
    cut_at(5, config("cut"), monkeypatch)
    return NEWEST


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.unlink()  # frozen weights have one inode in all checkpoints
    file.write_bytes(content)


def resumed() -> dict[str, Tensor]:
    train(config("cut"))
    return load_file("runs/cut/model/model.safetensors")


def whole() -> dict[str, Tensor]:
    train(config("whole"))
    return load_file("runs/whole/model/model.safetensors")


FILES = ["trained.safetensors", "frozen.safetensors", "optimizer.safetensors", "trainer.json", "config.json", "missing"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over(cut: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "missing":
        (cut / "optimizer.safetensors").unlink()
        name = "optimizer.safetensors"
    else:
        flip(cut / name)
    again = resumed()
    error = capsys.readouterr().err
    assert f"step-00000004/{name}" in error and "resuming from step-00000002" in error
    assert not cut.with_name("damaged-step-00000004").joinpath("nothing").exists()
    once = whole()
    assert again.keys() == once.keys() and all(torch.equal(again[k], once[k]) for k in once)
    assert (NEWEST.parent / "damaged-step-00000004").is_dir()  # kept, to look at


def test_nothing_is_thrown_away_when_all_are_damaged(cut: Path) -> None:
    for checkpoint in (NEWEST, BEFORE):
        flip(checkpoint / "trained.safetensors")
    for _ in range(2):  # the second time as well: it must not begin again from nothing
        with pytest.raises(ConfigError, match="trained.safetensors: is damaged.*--fresh"):
            train(config("cut"))
    assert NEWEST.is_dir() and BEFORE.is_dir()


def test_frozen_weights_that_were_damaged_are_written_again(cut: Path) -> None:
    flip(Path("runs/cut/checkpoints/frozen-only.safetensors"))
    again, once = resumed(), whole()
    assert all(torch.equal(again[k], once[k]) for k in once)
    assert damaged(Path("runs/cut/checkpoints/step-00000006")) is None


def moment(edit: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "optimizer.safetensors")
        edit(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "optimizer.safetensors")

    return change


KEY = "exp_avg:connectors.image.linear.weight"
SQUARE = "exp_avg_sq:connectors.image.linear.weight"
MOMENTS = {
    "short": (lambda t: t.update({KEY: t[KEY][:1]}), "has shape"),
    "long": (lambda t: t.update({KEY: torch.zeros(64, 64)}), "has shape"),
    "one number": (lambda t: t.update({SQUARE: torch.zeros(())}), "has shape"),
    "whole numbers": (lambda t: t.update({KEY: t[KEY].to(torch.int64)}), "holds I64"),
    "half": (lambda t: t.update({KEY: t[KEY].half()}), "holds torch.float16"),
    "not finite": (lambda t: t[KEY].fill_(float("nan")), "not finite"),
    "infinite": (lambda t: t[SQUARE].fill_(float("inf")), "not finite"),
    "negative": (lambda t: t[SQUARE].fill_(-1.0), "is negative"),
    "step of a matrix": (lambda t: t.update({KEY.replace("exp_avg", "step"): torch.ones(3)}), "has shape"),
    "one is missing": (lambda t: t.pop(SQUARE), "is missing"),
    "of nothing": (
        lambda t: t.update({"exp_avg:no.such": torch.zeros(1)}),
        ": moments of no.such, which this stage does not train",
    ),
}


@pytest.mark.parametrize("harm", MOMENTS)
def test_moments_that_do_not_fit_are_refused_before_the_kernel_reads_them(cut: Path, harm: str) -> None:
    edit, message = MOMENTS[harm]
    moment(edit)(cut)
    write_sums(cut)
    with pytest.raises(ConfigError, match=f"optimizer.safetensors.*{message}") as error:
        train(config("cut"))
    assert "\n" not in str(error.value)


def test_a_file_of_moments_that_is_none(cut: Path) -> None:
    (cut / "optimizer.safetensors").write_bytes(b"not at all")
    write_sums(cut)
    with pytest.raises(ConfigError, match="optimizer.safetensors: not a readable safetensors file"):
        train(config("cut"))


WEIGHT = "connectors.image.linear.weight"
WEIGHTS = {
    "not finite": (lambda t: t[WEIGHT].fill_(float("nan")), "holds numbers that are not finite"),
    "infinite": (lambda t: t[WEIGHT].fill_(float("inf")), "holds numbers that are not finite"),
    "whole numbers": (lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.int32)}), "holds I32, expected plain floats"),
    "true or false": (lambda t: t.update({WEIGHT: t[WEIGHT] > 0}), "holds BOOL, expected plain floats"),
    "complex": (lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.complex64)}), "holds C64, expected plain floats"),
}


@pytest.mark.parametrize("harm", WEIGHTS)
def test_weights_of_another_kind_are_refused(cut: Path, harm: str) -> None:
    edit, message = WEIGHTS[harm]
    tensors = load_file(cut / "trained.safetensors")
    edit(tensors)
    save_file(tensors, cut / "trained.safetensors")
    write_sums(cut)
    with pytest.raises(ConfigError, match=f"trained.safetensors: {WEIGHT} {message}"):
        MMDiff.from_pretrained(cut)


def test_checksums_are_those_of_sha256sum(cut: Path) -> None:
    lines = (cut / "SHA256SUMS").read_text().splitlines()
    assert lines[0].startswith("# mmdiff signature ")
    sums = {name: digest for digest, name in (line.split("  ") for line in lines[1:])}
    files = {str(p.relative_to(cut)) for p in cut.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert set(sums) == files and "backbone/config.json" in files
    for name, expected in sums.items():
        assert hashlib.sha256((cut / name).read_bytes()).hexdigest() == expected == digest(cut / name)


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  ../../other", "0" * 64 + "  /etc/passwd"])
def test_checksums_that_are_none(cut: Path, line: str) -> None:
    (cut / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(ConfigError) as error:
        MMDiff.from_pretrained(cut)
    assert "SHA256SUMS" in str(error.value) and "\n" not in str(error.value)


def test_a_copied_folder_is_as_good(cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut, tmp_path / "copy")
    assert damaged(tmp_path / "copy") is None and MMDiff.from_pretrained(tmp_path / "copy")
    assert read_json(tmp_path / "copy" / "trainer.json")["step"] == 4


def test_names_and_parameters_of_a_group_belong_together() -> None:
    """A name too few would give every moment after it to the wrong parameter."""
    tensors = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": tensors, "names": ["a"]}])
    for p in tensors:
        p.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(ValueError, match="zip"):
        moments(optimizer)
    with pytest.raises(ValueError, match="zip"):
        load_moments(optimizer, Path("any"))


def test_tokens_are_the_positions_attended_in_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ragged rows, in two micro-batches per step: a picture takes 4 slots, a question 1, an answer its words."""
    monkeypatch.chdir(tmp_path)
    rows = {"target": "toy.Corners", "n": 6, "lengths": [1, 2, 5]}
    run = toy.config("t", stage={"steps": 3, "batch_size": 2, "accumulate": 2, "data": rows})
    found = train(run)
    order = Stream([Component("", toy.Corners(6, lengths=[1, 2, 5]), toy.Where())], seed=0)
    words = [len(toy.Corners(6, lengths=[1, 2, 5])[order.locate(n)[1]]["answer"].split()) for n in range(12)]
    assert found["tokens"] == sum(4 + 1 + n for n in words) and len(set(words)) == 3


# Full disks

SHORT = {"steps": 2, "batch_size": 2, "eval": {"target": "toy.Corners", "n": 3, "seed": 2}}


def run() -> None:
    train(toy.config(stage=SHORT))


def cached() -> None:
    frozen = [{"match": "encoders", "train": False}, {"match": "*"}]
    train(toy.config(stage={**SHORT, "params": frozen, "cache_features": True}))


@pytest.mark.slow
@pytest.mark.parametrize("call", [run, cached])
@pytest.mark.parametrize("disk", [disks.full, disks.small])
def test_a_full_disk(disk: Callable[..., int], call: Callable[[], None], tmp_path: Path) -> None:
    assert disk(call, tmp_path, ignore=["*.sqlite"]) > 10


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    disks.read_only(run, tmp_path)


def test_the_error_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar of the steps is closed before."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a")

    monkeypatch.setattr(Stage, "_save", full)
    code, said = in_a_child(lambda: disks.code_of(run), tmp_path / "a")
    assert code == 2 and said.splitlines()[-1] == "mmdiff: error: a: No space left on device"
