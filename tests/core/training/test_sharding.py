"""A run in shards over gloo processes is the run of one process: losses, moments, weights, averages, in any number."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures.kills import Watch
from failures.runs import apart, cut_at
from safetensors import safe_open
from safetensors.torch import load_file

from mmdiff import load, train
from mmdiff.config.settings import Config, TrainConfig
from mmdiff.errors import ConfigError, MissingExtra
from mmdiff.model import tensors
from mmdiff.training import parallel

FROZEN = {"match": "encoders", "train": False}
LORA = {"match": "backbone", "lora": {"r": 2, "alpha": 4, "modules": "q_proj|up_proj"}}
ROWS = {"target": "toy.Corners", "n": 9, "lengths": [1, 2, 5]}
SEEN_AND_BLIND = {
    "seen": {"rows": ROWS},
    "blind": {"rows": ROWS, "task": {"target": "toy.Where", "image": False}},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(name: str, world: int, **more: Any) -> Config:
    """Two stages, LoRA beside a frozen tower and then everything but the tower, on rows half of which have a picture:
    one of two processes may have none. A step has 4 samples."""
    fields = {"batch_size": 4 // world, "lr": 1e-3, "data": SEEN_AND_BLIND, "weight_decay": 0.1}
    evaluated = {"steps": 3, "eval": {"target": "toy.Corners", "n": 3, "seed": 2}}
    first = toy.config(stage=fields | evaluated | {"params": [FROZEN, {"match": "connectors"}, LORA]})
    second = toy.config(stage=fields | {"steps": 4, "params": [FROZEN, {"match": "*"}], "cache_features": True})
    stages = {"lora": first.train.stages["only"], "all": second.train.stages["only"]}
    return toy.config(name, stages=stages, keep=9, **{"ema": 0.9, "save_every": 1, **more})


def lines(name: str) -> list[dict[str, Any]]:
    clock = ("seconds", "tokens_per_second", "bound_per_token_swapped")  # a neighbour is one of the batch
    found = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


def assert_same_run(name: str, other: str) -> None:
    """To rounding: losses, the moments of a stage's first steps, the model, the averages."""
    for a, b in zip(lines(name), lines(other), strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for key in {"loss", "nll", "grad_norm", "bound_per_token"} & a.keys():
            assert a[key] == pytest.approx(b[key], abs=2e-5), key
    for step, near in ((1, 1e-7), (4, 1e-6), (7, 1e-5)):
        for file in ("optimizer", "ema", "trained", "frozen"):
            pair = [load_file(f"runs/{r}/checkpoints/step-{step:08d}/{file}.safetensors") for r in (name, other)]
            assert apart(*pair) < (1e-5 if file in ("trained", "ema") else near), (step, file)
    models = [load_file(f"runs/{r}/model/model.safetensors") for r in (name, other)]
    assert apart(*models) < 1e-5 and not [p for p in Path("runs").rglob("*") if ".part-" in p.name]


@pytest.mark.parametrize(
    ("world", "sharding"),
    [
        (2, "full"),
        pytest.param(2, "gradients", marks=pytest.mark.slow),
        pytest.param(2, "none", marks=pytest.mark.slow),
        pytest.param(4, "full", marks=pytest.mark.slow),
        pytest.param(4, "hybrid", marks=pytest.mark.slow),
    ],
)
def test_processes_give_the_run_of_one(world: int, sharding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two nodes of two, for `hybrid`
    train(run("one", 1))
    toy.in_processes(world, run("several", world, sharding=sharding))
    assert_same_run("one", "several")
    moved = load_file("runs/several/checkpoints/step-00000007/ema.safetensors")
    assert any(name.startswith("average:") and ".lora_" in name for name in moved)
    assert load("runs/several").predict(toy.Corners()[0])["prediction"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bfloat16_backbone_under_lora_in_float32(precision: str) -> None:
    """Parameters of two dtypes in a layer; in bf16 a layer's weights are put together in low precision."""

    def one_stage(name: str, world: int, **more: Any) -> Config:
        config = run(name, world, precision=precision, **more)
        words = {"target": "mmdiff.canvas.vocab.word_tokenizer", "words": toy.WORDS}
        sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "dtype": "bfloat16", "tokenizer": words}
        config.model.backbone = {"target": "mmdiff.backbones.new_backbone", **sizes}
        config.train.stages = {"lora": config.train.stages["lora"]}
        return config

    train(one_stage("one", 1))
    toy.in_processes(2, one_stage("two", 2, sharding="full"))
    for a, b in zip(lines("one"), lines("two"), strict=True):
        key = "loss" if "loss" in a else "bound_per_token"
        assert a[key] == pytest.approx(b[key], abs=1e-5 if precision == "fp32" and key == "loss" else 0.02)


@pytest.mark.slow
def test_a_checkpoint_resumes_in_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, then two with shards, and back; files hold whole tensors, here several files of each kind."""
    monkeypatch.setattr(tensors, "FILE_BYTES", 20_000)
    train(run("whole", 1))
    cut_at(5, run("handed", 1), monkeypatch)  # in the second stage
    longer = run("handed", 2, sharding="full")
    toy.in_processes(2, longer)
    folder = Path("runs/handed/checkpoints/step-00000007")
    names = sorted(p.name for p in folder.glob("optimizer-*"))
    assert len(names) > 2 and names[0].endswith(f"-of-{len(names):05d}.safetensors")
    for name in names:
        with safe_open(folder / name, "pt") as file:
            assert all(file.get_slice(key).get_shape() is not None for key in file.keys())
    more = replace(run("handed", 1).train.stages["all"], steps=9)
    one, other = (run(n, 1) for n in ("handed", "whole"))
    for config in (one, other):
        stages = {**config.train.stages, "all": more}
        train(replace(config, train=replace(config.train, stages=stages)))
    a, b = (load(f"runs/{n}").model.state_dict() for n in ("handed", "whole"))
    assert apart(a, b) < 1e-5
    assert [line["step"] for line in lines("handed")] == [line["step"] for line in lines("whole")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16", "sharding": "full"}, "train.precision: fp16"),
        (
            {"compile": "eager", "sharding": "full"},
            "train.compile: a graph of a layer does not put its shards together",
        ),
        ({"deepspeed": "ds.json", "sharding": "full"}, "train.deepspeed: divides the model by its own file"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parallel.make_accelerator(TrainConfig(**settings))


@pytest.mark.slow
def test_packed_rows_in_shards_are_the_rows_of_one_process() -> None:
    """Ragged rows, two forwards a step: each process packs its own; against one process without packing."""

    def packed(name: str, world: int, pack: int, **more: Any) -> Config:
        config = run(name, world, **more)
        rows = {"target": "toy.Corners", "n": 9, "lengths": [1, 2, 12]}
        stages = {
            n: replace(s, pack=pack, batch_size=8 // world, accumulate=2, data=rows)
            for n, s in config.train.stages.items()
        }
        return replace(config, train=replace(config.train, stages=stages))

    train(packed("whole", 1, 0))
    toy.in_processes(2, packed("packed", 2, 24, sharding="full"))
    assert_same_run("whole", "packed")


# Kills


def killed_at(change: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Trains in two processes, of which the first is killed before the n-th change of its files. Returns the number of
    changes that it made, and what the other one ends with."""
    import mmdiff

    real = mmdiff.train
    report = Path("report").resolve()

    def watched(config: Config) -> Any:
        watch = Watch(Path("runs"), change, report) if os.environ["RANK"] == "0" else None
        out = real(config)
        if watch is not None:
            watch.on = False
            report.write_text(str(watch.seen))
        return out

    with monkeypatch.context() as m:
        m.setattr(mmdiff, "train", watched)
        if not change:
            toy.in_processes(2, config)
            return int(report.read_text()), ""
        with pytest.raises(AssertionError):
            toy.in_processes(2, config)
    for _ in range(300):  # the other one is not waited for
        said = Path("rank1.log").read_text()
        if "UserError" in said:
            return change, said.splitlines()[-1]
        time.sleep(0.2)
    raise AssertionError(f"the other process does not end: {said[-2000:]}")


def one_stage(name: str, **more: Any) -> Config:
    config = pictured(name, 2, save_every=2, **more)
    config.train.stages = {"all": replace(config.train.stages["all"], cache_features=False)}
    return config


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "at"),
    [("full", 3), ("full", 5), ("full", 7), pytest.param("zero", 5, marks=pytest.mark.needs("deepspeed"))],
)
def test_a_run_of_two_processes_heals_after_a_kill(how: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL at three, five and seven eighths of the changes that the process makes which writes the files."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    more = divided_by(2) if how == "zero" else {"sharding": "full"}
    changes, _ = killed_at(0, one_stage("whole", **more), monkeypatch)
    _, said = killed_at(changes * at // 8, one_stage("cut", **more), monkeypatch)
    assert said == "mmdiff.errors.UserError: another process of this run ended; the same command resumes"
    toy.in_processes(2, one_stage("cut", **more))
    assert apart(*(load_file(f"runs/{name}/model/model.safetensors") for name in ("whole", "cut"))) == 0
    assert [line["step"] for line in lines("cut")] == [line["step"] for line in lines("whole")]
    assert not [p for p in Path("runs").rglob("*") if ".part-" in p.name]


# DeepSpeed


def divided_by(stage: int) -> dict[str, str]:
    Path("ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}, "gradient_clipping": "auto"}))
    return {"deepspeed": "ds.json"}


def pictured(name: str, world: int, **more: Any) -> Config:
    """As `run`, with a picture in every row: DeepSpeed knows no parameter without a gradient."""
    config = run(name, world, **more)
    stages = {n: replace(s, data={"all": SEEN_AND_BLIND["seen"]}) for n, s in config.train.stages.items()}
    return replace(config, train=replace(config.train, stages=stages))


def test_deepspeed_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"^deepspeed is not installed: pip install 'mmdiff\[deepspeed\]'$"):
        parallel.make_accelerator(TrainConfig(deepspeed="ds.json"))


@pytest.mark.needs("deepspeed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize(("world", "stage"), [(1, 1), (2, 1), (2, 2)])
def test_a_run_under_deepspeed_is_the_run_without(world: int, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    train(pictured("whole", 1))
    toy.in_processes(world, pictured("zero", world, **divided_by(stage)))
    assert_same_run("whole", "zero")


@pytest.mark.needs("deepspeed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("first", ["zero", "plain"])
def test_a_run_goes_in_and_out_of_deepspeed(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages are resumed by the other: checkpoints hold whole moments."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    train(pictured("whole", 1))

    def go(how: str) -> None:
        if how == "zero":
            toy.in_processes(2, pictured("mixed", 2, **divided_by(2)))
        else:
            train(pictured("mixed", 1))

    go(first)
    for folder in ("model", "checkpoints/step-00000006", "checkpoints/step-00000007"):
        shutil.rmtree(f"runs/mixed/{folder}")
    Path("runs/mixed/metrics.json").unlink()
    kept = Path("runs/mixed/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("runs/mixed/metrics.jsonl").write_text("".join(line for line in kept if json.loads(line)["step"] < 6))
    go("plain" if first == "zero" else "zero")
    assert_same_run("whole", "mixed")


@pytest.mark.needs("deepspeed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_run_in_bfloat16_and_one_that_diverges_under_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    train(pictured("whole", 1, precision="bf16"))
    toy.in_processes(2, pictured("zero", 2, precision="bf16", **divided_by(2)))
    for a, b in zip(lines("whole"), lines("zero"), strict=True):
        assert a.get("loss") == pytest.approx(b.get("loss"), abs=5e-3)
    lost = pictured("lost", 2, **divided_by(2))
    stages = {n: replace(s, lr=1e30, warmup=0.0) for n, s in lost.train.stages.items()}
    with pytest.raises(AssertionError, match="is not a finite number at step"):
        toy.in_processes(2, replace(lost, train=replace(lost.train, stages=stages, clip=0.0)))
    for file in Path("runs/lost").rglob("*.safetensors"):
        assert all(bool(t.isfinite().all()) for t in load_file(file).values())


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (None, {}, "ds.json: no such file"),
        ("{", {}, "ds.json: no JSON"),
        ("[]", {}, "ds.json: expected one JSON object"),
        ("{}", {}, "ds.json: no zero_optimization"),
        ('{"zero_optimisation": {"stage": 1}}', {}, 'did you mean "zero_optimisation"'),
        ('{"zero_optimization": {"stage": 3}}', {}, "stage: 3; train.sharding=full divides weights so"),
        ('{"zero_optimization": {"stage": 0}}', {}, "stage: 0, expected 1 or 2"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": {}}}', {}, "leave offload out"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}', {}, "gradient_clipping: the configuration"),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', {}, "bf16: the configuration decides it"),
        ('{"zero_optimization": {"stage": 2}}', {"on_divergence": "skip"}, "train.on_divergence: skip: DeepSpeed"),
        ('{"zero_optimization": {"stage": 2}}', {"compile": "eager"}, "train.compile: DeepSpeed hooks into"),
        ('{"zero_optimization": {"stage": 2}}', {}, "torchrun --nproc-per-node 1"),
    ],
)  # fmt: skip
def test_files_of_deepspeed_that_are_refused(
    file: str | None, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("RANK", raising=False)
    if file is not None:
        Path("ds.json").write_text(file)
    with pytest.raises(ConfigError, match="^train[.]") as error:
        parallel.make_accelerator(TrainConfig(deepspeed="ds.json", **settings))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_gradient_of_what_a_process_does_not_use_is_zero_and_not_missing() -> None:
    model = toy.model()
    parts = parallel.unused_parts(model)
    assert set(parts) == {"image"}
    parallel.touched(torch.zeros(()), parts).backward()
    assert all(p.grad is not None and not p.grad.any() for found in parts.values() for p in found)
