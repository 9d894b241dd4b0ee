"""The loop: splits of a batch change nothing, only what a rule names is trained, a folder is of one configuration."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures.runs import FROZEN_TOWER, apart, lines, same, weights
from safetensors.torch import load_file
from torch import Tensor

from mmdiff import load, train
from mmdiff.config.settings import Config, StageConfig
from mmdiff.data.stream import Batches, Component, Stream
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import build_model
from mmdiff.objectives.denoise import Denoise
from mmdiff.runs.folder import open_run
from mmdiff.training.optim import lr_factor

FORK = multiprocessing.get_context("fork")  # torch is imported already, and has one thread
RAGGED = {"target": "toy.Corners", "lengths": [1, 2, 5]}


class Unreadable(toy.Corners):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 5:
            raise DataError("no picture")
        return super().__getitem__(index)


class Gaps(Unreadable):
    on_error = "skip"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# One batch, split in several ways

EXACT = {"target": "mmdiff.objectives.denoise.Denoise"}
SPLITS = ("8x1", "4x2", "1x8")
BERNOULLI = EXACT | {"levels": {"target": "mmdiff.diffusion.mask_rates.Bernoulli"}}


def split(name: str, objective: dict[str, Any], batch_size: int, accumulate: int, **more: Any) -> Config:
    stage = {"steps": 2, "batch_size": batch_size, "accumulate": accumulate, "objective": objective, "data": RAGGED}
    return toy.config(name, stage=stage | {"lr": 1e-4, "params": FROZEN_TOWER}, save_every=1, **more)


@pytest.mark.parametrize(
    "objective",
    [
        EXACT,
        EXACT | {"denominator": "sequences", "copies": 2},
        BERNOULLI | {"denominator": "tokens", "random_length": 0.5},
        BERNOULLI | {"denominator": "masked"},
    ],
    ids=["tokens", "sequences", "cut", "masked"],
)
def test_accumulation_is_exact(objective: dict[str, Any]) -> None:
    """AdamW's first average after a step is 0.1 of the clipped gradient. Its step is not smooth at 0: the weights may
    differ by more than the gradients do, and by no more than the learning rate."""
    for name, batch_size, accumulate in (("8x1", 8, 1), ("4x2", 4, 2), ("1x8", 1, 8)):
        train(split(name, objective, batch_size, accumulate))
    first = {name: load_file(f"runs/{name}/checkpoints/step-00000001/optimizer.safetensors") for name in SPLITS}
    assert max(float(v.abs().max()) for k, v in first["8x1"].items() if k.startswith("exp_avg:")) > 1e-3
    for name in SPLITS[1:]:
        assert apart(first["8x1"], first[name]) < 1e-7
        assert apart(weights("8x1"), weights(name)) < 3e-6
        for a, b in zip(lines("8x1"), lines(name), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-6) and a["nll"] == pytest.approx(b["nll"], abs=1e-5)


def test_held_out_rows_that_cannot_be_read_stop_a_run_before_its_first_step() -> None:
    config = split("bad", EXACT, 8, 1)
    stage = replace(config.train.stages["only"], eval={"target": "toy.Missing"})
    with pytest.raises(ConfigError, match="train.stages.only.eval"):
        train(replace(config, train=replace(config.train, stages={"only": stage})))
    assert not list(Path("runs/bad/checkpoints").glob("step-*"))


@pytest.mark.parametrize("denominator", ["tokens", "sequences"])
def test_two_processes_equal_one(denominator: str) -> None:
    objective = EXACT | {"denominator": denominator}
    train(split("one", objective, 8, 1))
    toy.in_processes(2, split("two", objective, 2, 2))
    first = [load_file(f"runs/{run}/checkpoints/step-00000001/optimizer.safetensors") for run in ("one", "two")]
    assert apart(*first) < 1e-7 and apart(weights("one"), weights("two")) < 1e-6
    for a, b in zip(lines("one"), lines("two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6) and a["nll"] == pytest.approx(b["nll"], abs=1e-5)


# What is trained


def begin(name: str, **stage: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after: a learning rate of 0 moves nothing."""
    train(toy.config("before", stage=stage | {"lr": 0.0, "params": FROZEN_TOWER, "steps": 1}))
    train(toy.config(name, stage=stage))
    return weights("before"), weights(name)


def test_what_no_rule_trains_stays_bit_for_bit() -> None:
    rules = [{"match": "encoders", "train": False}, {"match": "backbone", "train": False}, {"match": "connectors"}]
    before, after = begin("after", params=rules, weight_decay=0.5)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("connectors.")}


def test_lora_trains_adapters_only() -> None:
    rules = [{"match": "backbone", "lora": {"r": 2, "modules": "v_proj"}}, {"match": "*", "train": False}]
    before, after = begin("after", params=rules)
    adapters = {name for name in after if ".lora_" in name}
    assert len(adapters) == 4  # A and B in each of two layers
    plain = {name.replace(".base_layer", ""): value for name, value in after.items() if name not in adapters}
    assert same(before, plain)
    assert all(float(after[name].abs().max()) > 0 for name in adapters if ".lora_B" in name)


# Precision and the rest


def test_bf16_runs_and_its_weights_stay_fp32() -> None:
    result = train(toy.config("bf16", precision="bf16", stage={"steps": 30}))
    assert all(value.dtype == torch.float32 for value in weights("bf16").values())
    plain = train(toy.config("fp32", stage={"steps": 30}))
    assert 0 < abs(result["loss"]["only"] - plain["loss"]["only"]) < 0.2


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is fine on a GPU")
def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"^train.precision: fp16 needs a GPU, expected fp32 or bf16 here$"):
        train(toy.config(precision="fp16"))


def test_gradient_checkpointing_changes_nothing() -> None:
    for name, on in (("kept", False), ("again", True)):
        train(toy.config(name, gradient_checkpointing=on))
    assert apart(weights("kept"), weights("again")) < 1e-6
    assert [a["loss"] for a in lines("kept")] == pytest.approx([a["loss"] for a in lines("again")], abs=1e-6)


def test_the_gradient_is_clipped() -> None:
    train(toy.config("free", clip=1e9, stage={"lr_schedule": "constant", "steps": 1}, save_every=1))
    (line,) = lines("free")
    norm = line["grad_norm"]
    small = norm / 8
    config = toy.config("cut", clip=small, stage={"lr_schedule": "constant", "steps": 2}, save_every=1)
    train(config)
    saved = load_file("runs/cut/checkpoints/step-00000001/optimizer.safetensors")
    gradient = [v / 0.1 for k, v in saved.items() if k.startswith("exp_avg:")]
    assert lines("cut")[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert float(torch.cat([g.flatten() for g in gradient]).norm()) == pytest.approx(small, rel=1e-3)


def test_learning_rates_in_closed_form() -> None:
    stage = StageConfig(steps=100, warmup=0.1, lr_end=0.2)
    assert [lr_factor(s, stage) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert lr_factor(55, stage) == pytest.approx(0.2 + 0.8 * 0.5)
    assert lr_factor(40, stage) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert lr_factor(55, replace(stage, lr_schedule="linear")) == pytest.approx(0.6)
    assert lr_factor(99, replace(stage, lr_schedule="constant")) == 1.0
    assert [lr_factor(s, replace(stage, warmup=4)) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_factor(0, replace(stage, warmup=0.0)) == 1.0


def test_a_seed_decides_everything() -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(toy.config(name, seed=seed, stage={"steps": 3}))
    assert same(weights("a"), weights("b")) and lines("a") == lines("b")
    assert not same(weights("a"), weights("c")) and lines("a")[0]["loss"] != lines("c")[0]["loss"]


def test_data_processes_change_nothing() -> None:
    for workers in (0, 2):
        train(toy.config(f"w{workers}", workers=workers, stage={"steps": 3, "data": RAGGED}))
    assert same(weights("w0"), weights("w2")) and lines("w0") == lines("w2")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_named_in_one_line(workers: int) -> None:
    data = {"good": {"rows": "toy.Corners"}, "bad": {"rows": {"target": f"{__name__}.Unreadable", "n": 8}}}
    config = toy.config(workers=workers, stage={"steps": 40, "data": data})
    with pytest.raises(DataError, match=r"^data bad row 5: no picture$"):
        train(config)


# Run folders


def test_a_folder_of_another_configuration_is_refused() -> None:
    train(toy.config(stage={"steps": 2}))
    with pytest.raises(ConfigError, match=r"another configuration \(train.stages.only.lr was 0.01, is 0.02\)"):
        train(toy.config(stage={"steps": 2, "lr": 0.02}))
    train(toy.config(stage={"steps": 2, "lr": 0.02}), fresh=True)
    old, new = sorted(Path("runs").iterdir(), key=lambda p: -len(p.name))
    assert new.name == "toy" and old.name.startswith("toy.2") and (old / "model" / "config.json").is_file()
    Path("runs/mine").mkdir()
    Path("runs/mine/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run"):
        train(toy.config("mine"))
    with pytest.raises(ConfigError, match="is not a name below runs"):
        train(toy.config("../elsewhere"))


def test_a_finished_run_is_not_trained_again() -> None:
    first = train(toy.config())
    metrics = Path("runs/toy/metrics.jsonl").read_text()
    assert train(toy.config()) == first
    assert Path("runs/toy/metrics.jsonl").read_text() == metrics


def test_one_process_at_a_time() -> None:
    """A run in training refuses another process; a data process that outlives a killed one does not hold it."""
    config = toy.config()
    open_run(config)
    holder = """
import multiprocessing, sys, time
from pathlib import Path
from mmdiff.runs.folder import Run
run = Run(Path("runs/toy"))
run.lock()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        child = int(said.readline())
    try:
        with pytest.raises(ConfigError, match="another process is training this run"):
            train(config)
        process.kill()
        process.wait()
        os.kill(child, 0)  # still there
        train(config)
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_checkpoints_kept_and_shared_weights() -> None:
    train(toy.config(keep=2, stage={"steps": 7, "params": FROZEN_TOWER}))
    kept = sorted(Path("runs/toy/checkpoints").iterdir())
    assert [p.name for p in kept] == ["step-00000006", "step-00000007"]
    assert not [p for p in Path("runs").rglob("*") if ".part-" in p.name]
    inodes = {(p / "frozen.safetensors").stat().st_ino for p in kept}
    assert len(inodes) == 1  # written once, linked into each
    frozen = load_file(kept[0] / "frozen.safetensors")
    assert set(frozen) == {name for name in weights("toy") if name.startswith("encoders.")}
    last = load(kept[1])
    assert same({k: v for k, v in last.model.state_dict().items()}, weights("toy"))
    assert last.predict(toy.Corners()[0])["prediction"]


def test_stages_are_logged_with_their_bound() -> None:
    config = toy.config(stage={"steps": 4, "eval": {"target": "toy.Corners", "n": 5}}, eval_every=2, log_every=3)
    train(config)
    found = lines("toy")
    assert [line["step"] for line in found if "bound_per_token" in line] == [2, 4]
    assert [line["step"] for line in found if "loss" in line] == [2, 3, 4]
    assert all(line["stage"] == "only" and line["bound_per_sample"] > 0 for line in found if "bound_per_token" in line)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"data": None}, "train.stages.only.data: None is not a node of rows nor a mixture"),
        ({"data": {"a": {"row": "toy.Corners"}}}, 'train.stages.only.data.a.row: no such field (did you mean "rows"?)'),
        ({"data": {"a": {"weight": 1}}}, "train.stages.only.data.a: expected {rows: node, task: node, weight: number}"),
        ({"params": [{"match": "connectors"}]}, "params: no rule matches backbone.model"),
        ({"params": [{"match": "encoder"}, {"match": "*"}]}, "params: the rule 'encoder' matches no parameter"),
        (
            {"data": {"a": {"rows": {"target": "toy.Corners"}, "weight": 0}}},
            "train.stages.only.data.a.weight=0: expected",
        ),
        ({"optimizer": 5}, "train.stages.only.optimizer: 5 is not a node, expected {target: dotted.path, ...}"),
        ({"objective": None}, "train.stages.only.objective: None is not a node"),
        ({"batch_size": 10**7}, "train.stages.only.batch_size=10000000: expected a whole number from 1 to 1000000"),
        ({"cache_features": True}, "train.stages.only.cache_features: the image encoder is trained"),
    ],
)
def test_refusals(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        train(toy.config(stage=stage))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": 5}, "train.stages.later.data: 5 is not a node of rows nor a mixture"),
        ({"params": [{"matc": "*"}]}, 'train.stages.later.params[0].matc: no such field (did you mean "match"?)'),
        (
            {"objective": {"target": "mmdiff.objectives.denoise.Denoise", "level": 1}},
            "train.stages.later.objective.level",
        ),
    ],
)
def test_what_is_wrong_in_a_later_stage_is_found_before_the_first(wrong: dict[str, Any], message: str) -> None:
    config = toy.config(stage={"steps": 2})
    config.train.stages["later"] = replace(config.train.stages["only"], **wrong)
    with pytest.raises(ConfigError) as error:
        train(config)
    assert str(error.value).startswith(message) and not Path("runs").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../../up", "a\nb", "a" * 200])
def test_names_of_stages_that_files_cannot_have(name: str) -> None:
    config = toy.config(stage={"steps": 2})
    config.train.stages = {name: config.train.stages["only"]}
    with pytest.raises(ConfigError, match=r"^train.stages: '.*', expected a name of at most 80 bytes without '/'$"):
        train(config)


def test_the_toy_is_learnt() -> None:
    """Four answers: chance is 0.25."""
    train(toy.config(stage={"steps": 200, "batch_size": 16}, save_every=1000, log_every=10))
    losses = [line["loss"] for line in lines("toy")]
    assert losses[-1] < 0.2 * losses[0]
    session = load("runs/toy")
    rows = [toy.Corners(64, seed=9)[i] for i in range(64)]
    answers = session.predict_many(rows)
    assert sum(session.task.score(a["prediction"], r)["exact"] for a, r in zip(answers, rows, strict=True)) / 64 > 0.9


def test_the_step_takes_the_gradient_of_the_mean_over_all_target_tokens() -> None:
    """Splits agree with each other under a wrong denominator too; this compares with one batch computed by hand."""
    rows = {"target": "toy.Corners", "lengths": [1, 2, 5]}
    config = toy.config(image=False, stage={"steps": 1, "batch_size": 4, "accumulate": 2, "data": rows})
    train(config)
    logged = json.loads(Path("runs/toy/metrics.jsonl").read_text().splitlines()[0])
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    stream = Stream([Component("", toy.Corners(lengths=[1, 2, 5]), toy.Where(image=False))], seed=config.train.seed)
    batch = Batches(stream, model.vocab, model.readers)[list(range(8))]
    copies = Denoise().plan(batch, NoiseKey(config.train.seed, 0, "only", batch=8), model.vocab)
    loss = Denoise().terms(model, copies)["denoise"].value / int(batch.target_BL.sum())
    loss.backward()
    squares = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert logged["grad_norm"] == pytest.approx(squares**0.5, rel=1e-4)
    assert logged["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_are_skipped_are_counted_in_the_log(workers: int) -> None:
    """Each once, whichever data process met it, over two epochs of 8 rows."""
    stage = {"steps": 4, "batch_size": 4, "data": {"target": f"{__name__}.Gaps", "n": 8}}
    train(toy.config(stage=stage, workers=workers))
    counts = [line.get("rows_skipped", 0) for line in lines("toy") if "loss" in line]
    assert counts[-1] == 1 and counts == sorted(counts)
