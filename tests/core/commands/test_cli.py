"""The command line: what it prints where, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmdiff
import mmdiff.tasks
from mmdiff.commands import cli
from mmdiff.commands.arguments import overrides_of, row_of
from mmdiff.config import packaged
from mmdiff.errors import DataError, UserError


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text("# A small one:  mmdiff config small.yaml\ntrain: {seed: 3, stages: {tune: {steps: 5}}}\n")
    return str(path)


def last_object(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"mmdiff {mmdiff.__version__}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0 and "--json" in capsys.readouterr().out


def test_config_prints_what_is_resolved(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", small, "train.stages.tune.steps=9"]) == 0
    out = capsys.readouterr().out
    assert "name: small\n" in out and "steps: 9\n" in out and "  seed: 3\n" in out


@pytest.mark.parametrize("turn", range(4))
def test_options_may_stand_anywhere(small: str, turn: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = [small, "train.seed=4", "sampler.steps=2"]
    assert cli.main(["config", *words[:turn], "--json", *words[turn:]]) == 0
    config = last_object(capsys.readouterr().out)
    assert config["train"]["seed"] == 4 and config["sampler"]["steps"] == 2


def test_ls_names_every_packaged_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls", "--json"]) == 0
    found = last_object(capsys.readouterr().out)["configs"]
    assert list(found) == packaged() and all(found.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "x"], 'no verb "trian" (did you mean "train"?)'),
        (["config"], "Parameter NAME requires an argument."),
        (["config", "no-such-config"], 'no configuration, .yaml file or run folder "no-such-config"'),
        (["config", "no/such.yaml"], "no/such.yaml: cannot be read"),
        (["config", "SMALL", "trian.seed=1"], 'trian: no such field (did you mean "train"?)'),
        (["config", "SMALL", "train.seed=many"], "train.seed: 'many' is not a whole number"),
        (["config", "SMALL", "--frsh"], "unknown argument '--frsh'"),
        (["config", "SMALL", "--fresh"], "unknown argument '--fresh'"),
        (["config", "SMALL", "--jsn"], "unknown argument '--jsn' (did you mean \"--json\"?)"),
        (["train", "SMALL", "--frsh=1"], "unknown argument '--frsh=1' (did you mean \"--fresh\"?)"),
        (["config", "SMALL", "more"], "'more' is not an override"),
        (["ls", "more"], "unknown argument 'more'"),
        (["--json", "ls"], "unknown argument '--json'"),
        (["generate", "runs/x", "question"], "'question' is not key=value"),
        (["generate", "runs/x", "state:=[1"], "state: '[1' is not JSON"),
        (["generate", "runs/x", "state:=" + "[" * 3000], "state: '" + "[" * 40 + "..."),
        (["generate", "runs/x", "state:=" + "9" * 5000], "state: '" + "9" * 40 + "..."),
        (["generate", "runs/x", "image=a", "image=b"], "image: given twice"),
        (["demo", "no-such"], 'no demonstration "no-such" (known: asr, protein'),
    ],
)
def test_refusals(words: list[str], message: str, small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([small if word == "SMALL" else word for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mmdiff: error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize("name", packaged())
def test_a_slip_in_a_packaged_name_is_put_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", f"{name}x"]) == 2
    assert f'did you mean "{name}"' in capsys.readouterr().err


def run(verb: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `verb`, any function, in the place of `ls`."""
    monkeypatch.setitem(cli.VERBS, "ls", verb)
    return cli.main(["ls", *words])


def test_errors_of_people_are_one_line_and_others_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: BaseException) -> Any:
        def verb() -> Any:
            raise error

        return verb

    assert run(fail(DataError("rows.jsonl: row 3:\n  no image")), monkeypatch) == 2
    assert capsys.readouterr().err == "mmdiff: error: rows.jsonl: row 3: no image\n"
    assert run(fail(KeyboardInterrupt()), monkeypatch) == 130
    with pytest.raises(ZeroDivisionError):
        run(fail(ZeroDivisionError()), monkeypatch)


def test_a_result_is_a_table_for_people_and_an_object_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb() -> Any:
        cli.log("working")
        return cli.table({"score": {"exact": 0.123456789, "none": float("nan")}, "folder": Path("runs/x")})

    assert run(verb, monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out == "score.exact  0.123457\nscore.none   nan\nfolder       runs/x\n" and err == "working\n"
    assert run(verb, monkeypatch, "--json") == 0
    out = capsys.readouterr().out
    assert out == '{"score": {"exact": 0.123456789, "none": null}, "folder": "runs/x"}\n'
    monkeypatch.setenv("RANK", "1")
    assert run(verb, monkeypatch) == 0 and capsys.readouterr().out == ""


def test_rows_and_overrides_are_told_apart() -> None:
    row, overrides = row_of(["image=cat.jpg", "question=a = b?", "n=3", "state:=[0.1, 2]", "sampler.steps=4"])
    assert row == {"image": "cat.jpg", "question": "a = b?", "n": "3", "state": [0.1, 2]}
    assert overrides == ["sampler.steps=4"]
    with pytest.raises(UserError, match="not key=value"):
        row_of(["=3"])


def test_files_and_overrides_are_told_apart() -> None:
    words = ["a.wav", "b/c=d.wav", "x.y/e=1.wav", "sampler.steps=4", "eval.data.test-clean.n=3", "task.case=a.b=c"]
    assert overrides_of(words) == (words[:3], words[3:])


KNOCK = '''"""Knocking on doors.

May import: what it likes.
"""
from mmdiff.commands.arguments import AtLeast1, overrides_of
from mmdiff.errors import DataError

def once(door: str, /, *words: str, out: str | None = None, times: AtLeast1 = 1):
    """Knock with 100 % of one's strength.

    And wait.

    Args:
        door: which one.
        out: the answer goes there.
    """
    if door == "none":
        raise DataError("no door")
    words, overrides = overrides_of(words)
    return {"door": door, "words": words, "overrides": overrides, "out": out, "times": times}, "knock"

def never():
    return {}, ""

VERBS = {"once": once, "never": never}
'''


@pytest.fixture
def knock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task with verbs, and one whose name a verb of the core has."""
    for name, code in {"knock": KNOCK, "ls": "raise AssertionError"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cli.py").write_text(code)
    monkeypatch.setattr(mmdiff.tasks, "__path__", [*mmdiff.tasks.__path__, str(tmp_path)])
    yield
    for name in [name for name in sys.modules if name.startswith("mmdiff.tasks.knock")]:
        del sys.modules[name]


@pytest.mark.usefixtures("knock")
def test_a_task_brings_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["once", "front", "a.wav", "--out", "x.jsonl", "b.wav", "sampler.steps=4"]
    assert cli.main(["knock", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "door": "front",
        "words": ["a.wav", "b.wav"],
        "overrides": ["sampler.steps=4"],
        "out": "x.jsonl",
        "times": 1,
    }
    monkeypatch.setattr(sys, "argv", ["mmdiff", "knock", *words])
    assert cli.main() == 0 and capsys.readouterr().out == "knock\n"
    assert cli.main(["ls"]) == 0 and "vqa-demo" in capsys.readouterr().out


@pytest.mark.usefixtures("knock")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["knok", "once"], 'no verb "knok" (did you mean "knock"?)'),
        (["knock", "onc"], 'no verb "onc" (did you mean "once"?)'),
        (["knock", "train"], 'no verb "train" (known: never, once)'),
        (["knock", "--json"], "unknown argument '--json'"),
        (["knock", "once"], "Parameter DOOR requires an argument."),
        (["knock", "once", "front", "--uot", "x"], "unknown argument '--uot' (did you mean \"--out\"?)"),
        (["knock", "once", "front", "--times", "0"], 'Invalid value "0" for --times. Must be >= 1.'),
        (["knock", "once", "front", "--times", "two"], 'Invalid value for --times: unable to convert "two" into int.'),
        (["knock", "once", "front", "--out"], "Parameter --out requires an argument."),
        (["knock", "never", "more"], "unknown argument 'more'"),
        (["knock", "once", "none"], "no door"),
    ],
)
def test_verbs_of_a_task_refuse_as_others_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"mmdiff: error: {message}") and err.count("\n") == 1


@pytest.mark.usefixtures("knock")
def test_help_lists_tasks_that_nobody_imports(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main([*words, "--help"])
        assert left.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    assert "knock Verbs of a task: mmdiff knock --help" in shown()
    assert "mmdiff.tasks.knock.cli" not in sys.modules
    text = shown("knock")
    assert text.startswith("Usage: mmdiff knock ") and "Knocking on doors." in text
    assert "May import" not in text
    assert "once Knock with 100 % of one's strength. never" in text
    text = shown("knock", "once")
    assert text.startswith("Usage: mmdiff knock once ") and "And wait." in text and "--json" in text and "--out" in text


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from mmdiff.commands.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([n for n in sys.modules if n == 'torch' or n.startswith('mmdiff.tasks.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def run_alone(code: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    """(exit code, stderr) of `mmdiff` in a process of its own, where `code` has run before."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nfrom mmdiff.commands.cli import main\nsys.exit(main())"]
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)
    return done.returncode, done.stderr


STOP_AT_TORCH = """
import sys, time
began = time.monotonic()
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            print(f"{name} after {time.monotonic() - began:.2f} s", file=sys.stderr)
            raise SystemExit(9)
sys.meta_path.insert(0, Stop())
"""


def test_a_command_logs_that_it_is_loading_before_torch_is_imported(small: str, tmp_path: Path) -> None:
    code, err = run_alone(STOP_AT_TORCH, "train", small, "train.seed=4", cwd=tmp_path)
    told, stopped = err.splitlines()
    assert code == 9 and told == f"mmdiff: loading PyTorch for train {small}" and stopped.startswith("torch after")
    # neither a slip nor what needs no torch waits, or is announced
    for words in (["ls"], ["config", small], ["train", "--help"], ["train", "no-such"], ["train", small, "seed=1"]):
        code, err = run_alone(STOP_AT_TORCH, *words, cwd=tmp_path)
        assert code == (2 if words[0] == "train" and words[1] != "--help" else 0) and "loading" not in err


OTHERS_WARN = """
import logging, sys, types
other, ours = types.ModuleType("other"), types.ModuleType("mmdiff.tasks.mine")
for module in (other, ours):
    exec('''
import warnings
def warn():
    for kind in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.warn(f"{kind.__name__} of {__name__}", kind)
''', vars(module))
def warn():
    other.warn(), ours.warn()
    logging.getLogger("other").warning("a log line")
    logging.getLogger("other").error("a logged error")
    from transformers.utils import logging as theirs
    theirs.get_logger("transformers.models").warning("a line of transformers")
    return {}, "done"
import mmdiff.commands.cli as cli
cli.VERBS["ls"] = warn
"""


def test_warnings_of_other_packages_do_not_reach_the_terminal(tmp_path: Path) -> None:
    code, err = run_alone(OTHERS_WARN, "ls", cwd=tmp_path)
    assert code == 0 and "of other" not in err and "log line" not in err and "of transformers" not in err
    assert "UserWarning of mmdiff.tasks.mine" in err and "FutureWarning of mmdiff.tasks.mine" in err
    assert "a logged error" in err
    code, err = run_alone("import sys; sys.warnoptions.append('default')" + OTHERS_WARN, "ls", cwd=tmp_path)
    assert "UserWarning of other" in err  # who asks for warnings gets them


def play(config: Any, *, fresh: bool) -> dict[str, Any]:
    return {"name": config.name, "fresh": fresh, "seed": config.train.seed}


def test_demo_without_a_name_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--json"]) == 0
    found = last_object(capsys.readouterr().out)["demonstrations"]
    assert {"vqa", "asr", "protein", "vla"} <= found.keys() and found["vqa"].startswith("Visual question answering")
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("asr ")


def test_demo_runs_what_its_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine-demo").mkdir()
    file = tmp_path / "mine-demo" / "config.yaml"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "mine"]) == 2 and "no demonstration" in capsys.readouterr().err  # of any folder
    monkeypatch.setattr("mmdiff.config.packaged", lambda: ["mine-demo"])
    file.write_text(f"name: mine\ndemo: {__name__}.play\n")
    assert cli.main(["demo", "mine", "--fresh", "train.seed=4", "--json"]) == 0
    assert last_object(capsys.readouterr().out) == {"name": "mine-demo", "fresh": True, "seed": 4}  # as its folder is
    file.write_text("name: mine\n")
    assert cli.main(["demo", "mine"]) == 2
    assert "does not say what to run" in capsys.readouterr().err


def test_an_infinite_figure_is_printed_as_null_named_and_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"n": 2, "sets": {"heldout": {"bounds": [1.0, float("inf")], "spearman": float("nan")}}}
    monkeypatch.setattr(cli, "parse", lambda words, verbs: (lambda: (found, "text"), True))
    assert cli.main(["x"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["sets"]["heldout"] == {"bounds": [1.0, None], "spearman": None}
    assert err == "mmdiff: error: sets.heldout.bounds[1] is infinite: no figure of a model that works\n"
    del found["sets"]["heldout"]["bounds"]  # what has no value is no fault
    assert cli.main(["x"]) == 0
