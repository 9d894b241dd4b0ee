"""Sweeps that train: a run is what `mmdiff train` makes of its settings, none is trained twice or stops the others."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import toy

from mmdiff.commands import cli
from mmdiff.config import load_config, to_yaml
from mmdiff.errors import ConfigError, DataError
from mmdiff.evaluation.evaluate import evaluate_run
from mmdiff.experiments import sweep as module
from mmdiff.experiments import trainings
from mmdiff.experiments.listing import list_runs
from mmdiff.experiments.seeds import over_seeds, spread
from mmdiff.experiments.sweep import sweep
from mmdiff.experiments.trainings import device_of, name_of
from mmdiff.runs.summary import summary_of

LR, SEED = "train.stages.only.lr", "train.seed"


class Forked:
    """What is used of `subprocess.Popen`, without the seconds in which a new Python imports torch."""

    started: list[list[str]] = []

    def __init__(self, command: Sequence[str], *, stdin: Any, stdout: Any, stderr: Any, env: Mapping[str, str]) -> None:
        assert command[1:3] == ["-m", "mmdiff"]
        self.started.append(list(command[3:]))
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            from accelerate.state import AcceleratorState, GradientState

            os.dup2(stderr.fileno(), 2)
            sys.stderr, sys.stdout = os.fdopen(2, "w"), open(os.devnull, "w")
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            code = 70
            try:
                code = cli.main(command[3:])
            finally:
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.code is not None
        return self.code


class Refusing(toy.Where):
    """A task that trains and cannot be scored."""

    def score(self, prediction: str, row: Any) -> dict[str, float]:
        raise DataError("no score of this row")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a configuration of the toy, four steps and two sets."""
    monkeypatch.chdir(tmp_path)
    config = toy.config("toy", stage={"steps": 4}, save_every=2)
    config.eval.data = {"a": {"target": "toy.Corners", "n": 6, "lengths": [4]}}
    (tmp_path / "toy.yaml").write_text(to_yaml(config))
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The commands of the processes that were started."""
    monkeypatch.setattr(trainings, "Popen", Forked)
    monkeypatch.setattr(trainings, "WAIT", 0.01)
    Forked.started.clear()
    yield Forked.started


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_plot", lambda file, *_: file.touch())


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_what_training_with_its_settings_makes(here: Path, started: list[list[str]]) -> None:
    axes = {LR: [0.01, 0.02], "sampler.steps": [1, 4]}
    out = sweep("toy.yaml", axes, ["eval.limit=5"])
    assert out["failed"] == {} and out["evaluated"] == 4 and len(started) == 2  # cells of one training share its run
    assert out["runs"] == ["runs/toy-lr=0.01", "runs/toy-lr=0.02"] and out["folder"] == "runs/toy-sweep-lr-steps"
    assert cli.main([*started[1][:2], "name=again", *started[1][3:]]) == 0  # the command, but for the name
    again, mine = (Path(f"runs/{name}/model/model.safetensors").read_bytes() for name in ("again", "toy-lr=0.02"))
    assert again == mine
    line = next(line for line in out["cells"] if line["cell"] == {LR: 0.02, "sampler.steps": 1})
    figures = evaluate_run("runs/toy-lr=0.02", ["eval.limit=5", "sampler.steps=1"])["eval"]["a"]
    assert line["figures"]["exact"] == figures["exact"] and line["figures"]["forwards"] == 1
    assert load_config("runs/toy-lr=0.02").train.stages["only"].lr == 0.02
    assert {run.name for run in list_runs()[0]} == {"again", "toy-lr=0.01", "toy-lr=0.02"}  # its results are no run


def test_what_diverges_is_reported_and_stops_nothing(
    here: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "toy.yaml", "--axis", f"{LR}=[1e30,0.01]", "--axis", f"{SEED}=[0,1]", "--jobs", "2", "--json"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert found["failed"].keys() == {"toy-lr=1e+30-seed=0", "toy-lr=1e+30-seed=1"} and len(started) == 4
    assert all("is not a finite number at step 2" in line for line in found["failed"].values())
    assert "runs/toy-lr=1e+30-seed=0: failed: train.stages.only: the loss" in err and "run 4 of 4" in err
    assert summary_of(Path("runs/toy-lr=1e+30-seed=0")).state == "diverged"
    assert {line["set"] for line in found["cells"]} == {"a", "(training)"} and len(found["cells"]) == 4
    by_set = {line["set"]: line for line in found["seeds"]}
    losses = [line["figures"]["loss"] for line in found["cells"] if line["set"] == "(training)"]
    (mean_line,) = [line for line in found["seeds"] if line["set"] == "(training)"]
    assert mean_line["cell"] == {LR: 0.01}
    assert mean_line["figures"]["loss"] == {
        "mean": pytest.approx(statistics.fmean(losses)),
        "std": pytest.approx(abs(losses[0] - losses[1]) / 2**0.5),
        "min": min(losses),
        "max": max(losses),
        "n": 2,
    }
    folder = Path(found["folder"])
    html = (folder / "sweep.html").read_text()
    assert "<b>toy-lr=1e+30-seed=0</b> failed: train.stages.only" in html and html.count("<table") == 2
    assert "Over seeds: mean ± standard deviation" in html and "(2)</td>" in html and "http" not in html
    with open(folder / "seeds.csv") as file:
        rows = {row["set"]: row for row in csv.DictReader(file)}
    assert float(rows["a"]["exact"]) == by_set["a"]["figures"]["exact"]["mean"] and rows["a"]["seeds"] == "2"
    assert float(rows["(training)"]["loss_std"]) == pytest.approx(by_set["(training)"]["figures"]["loss"]["std"])
    assert (folder / "logs/toy-lr=1e+30-seed=1.log").read_text().count("mmdiff: error: ") == 1
    started.clear()
    assert cli.main(words[:-1]) == 1  # what is finished is not trained again, what diverged is tried again
    assert sorted(words[2] for words in started) == ["name=toy-lr=1e+30-seed=0", "name=toy-lr=1e+30-seed=1"]
    text = capsys.readouterr().out
    assert "failed.toy-lr=1e+30-seed=0  train.stages.only" in text and "lr=0.01 a" in text and " ± " in text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_that_was_stopped_resumes_where_it_was(
    here: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {SEED: [0, 1, 2]}
    whole = sweep("toy.yaml", axes, ["name=whole"])["cells"]
    started.clear()
    waits = trainings.sleep

    def interrupted(seconds: float) -> None:
        waits(seconds)
        if len(started) == 2 and Path("runs/toy-seed=1/checkpoints/step-00000002/trainer.json").is_file():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainings, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep("toy.yaml", axes)
    assert len(started) == 2 and not Path("runs/toy-seed=2").exists()
    assert not list(Path("runs").glob(".*.lock"))  # nothing trains on behind its back
    out = sweep("toy.yaml", axes)
    assert [words[2] for words in started[2:]][-1] == "name=toy-seed=2" and len(started) <= 4

    def kept(lines: Sequence[Mapping[str, Any]]) -> list[Any]:
        clocks = ("rows_per_second", "seconds_training")
        return [[line["set"], {k: v for k, v in line["figures"].items() if k not in clocks}] for line in lines]

    assert kept(out["cells"]) == kept(whole)
    started.clear()
    assert sweep("toy.yaml", axes)["evaluated"] == 0 and started == []
    assert sweep("toy.yaml", {SEED: [1, 3]}, name="other")["evaluated"] == 2 and len(started) == 1
    assert len(sweep("toy.yaml", {SEED: [0, 1]}, fresh=True)["cells"]) == 4 and len(started) == 3
    assert len(list(Path("runs").glob("toy-seed=0.*"))) == 1  # the old one is aside


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(
    here: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "toy.yaml", "--axis", f"{SEED}=[0,1]", "eval.limit=4"]
    code = (
        "import sys; from mmdiff.commands.cli import main\n"
        f"assert main({[*words, '--dry-run']!r}) == 0\nassert main(['train', 'toy.yaml', '--dry-run']) == 0\n"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and not Path("runs").exists()
    assert (
        "runs/toy-seed=0  trains 4 steps  mmdiff train toy.yaml name=toy-seed=0 eval.limit=4 train.seed=0"
        in done.stdout
    )
    assert "settings of runs/toy-seed=0:" in done.stdout and "hidden" not in done.stdout
    assert cli.main([*words]) == 0
    capsys.readouterr()
    files = {str(p): p.stat().st_mtime_ns for p in Path().rglob("*")}
    words[3] = f"{SEED}=[1,2]"
    assert cli.main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["would"] for run in found["runs"]] == ["finished: nothing is left of 4 steps", "trains 4 steps"]
    assert (
        found["cells"] == 2 and found["sets"] == 2 and found["scored"] == 1 and found["runs"][1]["steps"] == {"only": 4}
    )
    assert found["runs"][1]["settings"]["train"]["seed"] == 2 and found["runs"][1]["run"] == "runs/toy-seed=2"
    assert found["runs"][1]["command"][:3] == ["mmdiff", "train", "toy.yaml"]
    assert cli.main([*words, "--dry-run", "--fresh"]) == 0
    assert "runs/toy-seed=1  moves what is there aside, trains 4 steps" in capsys.readouterr().out
    assert cli.main(["sweep", "runs/toy-seed=1", "--axis", "sampler.steps=[1,2]", "--dry-run"]) == 0
    assert "2 cells, 0 of 2 sets are scored already" in capsys.readouterr().out
    for changed, line in (
        ("train.stages.only.steps=9", "would       resumes at step 4 of 9"),
        ("train.seed=1", "would       finished: nothing is left of 4 steps"),
        (
            "train.seed=5",
            "would       is refused: runs/toy-seed=1 holds a run of another configuration (train.seed was 1",
        ),
    ):
        seed = [] if "seed" in changed else ["train.seed=1"]
        assert cli.main(["train", "toy.yaml", "name=toy-seed=1", *seed, changed, "--dry-run"]) == 0
        assert line in capsys.readouterr().out
    assert {str(p): p.stat().st_mtime_ns for p in Path().rglob("*")} == files


@pytest.mark.parametrize(
    ("axes", "overrides", "message"),
    [
        ({"name": ["a", "b"]}, [], "name: a sweep of a configuration changes model, task, train"),
        ({"trian.seed": [1]}, [], 'trian.seed: a sweep of a configuration changes .*did you mean "train"'),
        ({"train.sed": [1]}, [], 'train.sed: no such field .*did you mean "seed"'),
        ({"train.seed": [1, "x"]}, [], "train.seed: 'x' is not a whole number"),
        ({LR: [-1]}, [], "train.stages.only.lr=-1: expected a number of at least 0"),
        ({"sampler.steps": [1, 2]}, [], "sampler.steps: no axis changes training; train toy.yaml, and sweep its run"),
        ({SEED: [1], "sampler.steps": [0]}, [], "sampler.steps=0: expected"),
        ({SEED: [1], "sampler.remasking": ["randm"]}, [], 'sampler.remasking: .*did you mean "random"'),
        ({SEED: [1], "sampler.steps": [2]}, ["eval.data.a=null"], "eval.data names no set of rows"),
        ({"task.imag": [True]}, [], "task.imag: toy.Where takes no such argument"),
        ({SEED: [1]}, ["train.stages.only=null"], "train.stages: there is no stage to train"),
        ({SEED: [1]}, ["name=a/b"], "name: 'a/b' is not a name below runs"),
    ],
)
def test_nothing_is_trained_before_all_is_checked(
    axes: Any, overrides: list[str], message: str, here: Path, started: list[list[str]]
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep("toy.yaml", axes, overrides)
    assert started == [] and not Path("runs").exists()


def test_a_slip_in_the_name_is_put_right(here: Path) -> None:
    with pytest.raises(ConfigError, match=r'run folder "vqa-dmo" \(did you mean "vqa-demo"\?\)'):
        sweep("vqa-dmo", {SEED: [0]})


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_another_run_is_refused_before_any_is_trained(here: Path, started: list[list[str]]) -> None:
    sweep("toy.yaml", {SEED: [1]})
    started.clear()
    with pytest.raises(ConfigError, match="runs/toy-seed=1 holds a run of another configuration .*choose name="):
        sweep("toy.yaml", {SEED: [0, 1]}, ["train.clip=2.0"])
    assert started == [] and not Path("runs/toy-seed=0").exists()
    with pytest.raises(ConfigError, match="--metric: no set has a figure 'exct'"):
        sweep("toy.yaml", {SEED: [1]}, metric="exct", fresh=False)
    assert sweep("toy.yaml", {SEED: [1]}, metric="loss")["metric"] == "loss"


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_cannot_be_scored_and_one_that_is_killed_stop_nothing(
    here: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = sweep("toy.yaml", {"task": [f"{__name__}.Refusing", "toy.Where"]}, ["eval.limit=3"])
    assert out["failed"] == {"toy-task=Refusing": "data a row 0: no score of this row"}
    assert [(line["cell"]["task"], line["set"]) for line in out["cells"]][0] == ("toy.Where", "a")
    began = Forked.__init__

    def struck(self: Forked, command: Sequence[str], **named: Any) -> None:
        began(self, command, **named)
        if "train.seed=1" in command:
            self.kill()

    monkeypatch.setattr(Forked, "__init__", struck)
    out = sweep("toy.yaml", {SEED: [0, 1, 2]})
    assert out["failed"].keys() == {"toy-seed=1"} and "was ended by signal 9" in out["failed"]["toy-seed=1"]
    assert "logs/toy-seed=1.log" in out["failed"]["toy-seed=1"] and len(out["cells"]) == 4


def test_torchrun_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="starts processes of its own: call it without torchrun"):
        sweep("toy.yaml", {SEED: [1]})


def test_no_run_could_be_trained(here: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "toy.yaml", "--axis", f"{LR}=[1e30]"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("mmdiff: error: no run could be trained; runs/toy-lr=1e+30: train.stages.only: the loss")


@pytest.mark.usefixtures("undrawn")
def test_a_configuration_without_sets_has_the_figures_of_training(here: Path, started: list[list[str]]) -> None:
    out = sweep("toy.yaml", {SEED: [0, 1]}, ["eval.data.a=null"])
    assert out["metric"] == "loss" and [line["set"] for line in out["cells"]] == ["(training)"] * 2
    result = json.loads(Path("runs/toy-seed=1/metrics.json").read_text())
    assert out["cells"][1]["figures"]["loss"] == result["loss"]["only"] and out["cells"][1]["figures"]["steps"] == 4


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_no_process_behind(here: Path) -> None:
    """Real processes: kill -9 of the sweep ends what it started, so does Ctrl-C; in between the runs are resumed."""
    (here / "toy.yaml").write_text((here / "toy.yaml").read_text().replace("steps: 4", "steps: 100000"))
    command = [sys.executable, "-m", "mmdiff", "sweep", "toy.yaml", "--axis", f"{SEED}=[0,1]", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}

    def wait_for(state: str) -> None:
        """Wait until both runs are in a state, and have taken steps."""
        end = time.monotonic() + 60
        while [(run.state, (run.step or 0) >= 2) for run in list_runs()[0]] != [(state, True)] * 2:
            assert time.monotonic() < end and (state != "training" or parent.poll() is None), list_runs()
            time.sleep(0.1)

    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            wait_for("training")
            parent.send_signal(number)
            _, err = parent.communicate(timeout=30)
            wait_for("unfinished")
        finally:
            parent.kill()
            parent.communicate()
        assert parent.returncode == code
    assert err.splitlines()[-1] == "mmdiff: interrupted"


def test_names_of_runs() -> None:
    assert name_of("toy", "lr=0.001-seed=0") == "toy-lr=0.001-seed=0"
    odd = [name_of("toy", text) for text in ("a/b", "a b", "a\nb", "a_b")]
    assert len(set(odd)) == 4 and all("/" not in name and name.isprintable() for name in odd)
    long = [name_of("toy", "x" * 500 + end) for end in "ab"]
    assert len(set(long)) == 2 and all(len(name.encode()) <= 200 for name in long)
    assert len(name_of("é" * 90, "ü" * 90).encode()) <= 200


def test_devices_go_round() -> None:
    assert [device_of(i, None, 2) for i in range(3)] == ["0", "1", "0"]
    assert device_of(1, "4,7", 8) == "7" and device_of(1, "GPU-a", 8) is None and device_of(0, None, 1) is None
    assert device_of(0, "", 8) is None


def test_spread_over_seeds() -> None:
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": pytest.approx(7**0.5), "min": 1.0, "max": 6.0, "n": 3}
    assert spread([2.0])["std"] is None
    lines = [
        {
            "cell": {"lr": lr, "train.seed": seed, "sampler.seed": other},
            "set": "a",
            "figures": {"x": lr + seed, "t": "no"},
        }
        for lr in (0.1, 0.2)
        for seed in (0, 1)
        for other in (0, 1)
    ]
    axes: Any = {"lr": [0.1, 0.2], "train.seed": [0, 1], "sampler.seed": [0, 1]}
    first, second = over_seeds(axes, lines)
    assert first["cell"] == {"lr": 0.1} and first["figures"].keys() == {"x"}
    assert first["figures"]["x"]["mean"] == pytest.approx(0.6) and second["figures"]["x"]["n"] == 4
    assert over_seeds({"lr": [0.1]}, lines[:1]) == []
