"""Completion: the candidates of a line, and what real shells make of them."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from paths import ROOT

from mmdiff.commands import cli
from mmdiff.commands.start.completion import SCRIPTS, candidates
from mmdiff.config import packaged, to_yaml

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
needs_fish = pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")


LR = [f"train.stages.tune.lr{end}=" for end in ("", "_end", "_schedule")]
SHAPES = [f"train.stages.tune.lr_schedule={word}" for word in ("constant", "cosine")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, a configuration, and `mmdiff` on the path."""
    monkeypatch.chdir(tmp_path)
    for name in ("toy-lr=0.1", "toy b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(to_yaml(toy.config(name)))
    (tmp_path / "mine.yaml").write_text("base: vqa-demo\n")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "mmdiff"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m mmdiff "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def words(line: str) -> list[str]:
    return candidates(line, cli.VERBS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmdiff tra", ["train"]),
        ("mmdiff v", ["vla", "vqa"]),
        ("mmdiff --", ["--help", "--version"]),
        ("mmdiff train vqa-demo", ["vqa-demo", "vqa-demo-text"]),
        ("mmdiff train mi", ["mine.yaml"]),
        ("mmdiff config runs/t", ["runs/toy b", "runs/toy-lr=0.1"]),
        ("mmdiff train vqa-demo train.st", ["train.stages."]),
        ("mmdiff train vqa-demo train.stages.", ["train.stages.align.", "train.stages.tower.", "train.stages.tune."]),
        ("mmdiff train mine.yaml train.stages.tune.lr", LR),
        ("mmdiff train vqa-demo train.precision=", [f"train.precision={kind}" for kind in ("bf16", "fp16", "fp32")]),
        ("mmdiff train vqa-demo train.tensorboard=t", ["train.tensorboard=true"]),
        (
            "mmdiff train vqa-demo train.stages.tune.lr_schedule=c",
            SHAPES,
        ),
        ("mmdiff train vqa-demo model.backbone.hidden_size=", []),
        ("mmdiff train no-such train.see", ["train.seed="]),
        ("mmdiff train --note 'a note' vqa-demo train.see", ["train.seed="]),
        ("mmdiff train vqa-demo --fre", ["--fresh"]),
        ("mmdiff train --no", ["--note"]),
        ("mmdiff train --note ", []),
        ("mmdiff sweep vqa-demo --axis train.see", ["train.seed=["]),
        ("mmdiff sweep vqa-demo --axis train.seed=[0,1] sampler.remas", ["sampler.remasking="]),
        ("mmdiff eval 'runs/to", ["runs/toy b", "runs/toy-lr=0.1"]),
        ("mmdiff eval runs/toy-lr=0.1 sampler.st", ["sampler.steps="]),
        ("mmdiff compare runs/toy-lr=0.1 runs/", ["runs/toy b", "runs/toy-lr=0.1"]),
        ("mmdiff demo vq", ["vqa"]),
        ("mmdiff demo vqa train.see", ["train.seed="]),
        ("mmdiff runs --sort nam", ["name"]),
        ("mmdiff runs --sort train.see", ["train.seed"]),
        ("mmdiff new t", ["task"]),
        ("mmdiff completion ", ["bash", "fish", "zsh"]),
        ("mmdiff vqa ch", ["choose"]),
        ("mmdiff nope x", []),
        ("mmdiff", []),
        ("", []),
    ],
)
def test_candidates(line: str, expected: list[str], here: Path) -> None:
    assert words(line) == expected


def test_every_verb_and_every_configuration(here: Path) -> None:
    assert set(cli.VERBS) <= set(words("mmdiff ")) and {"asr", "protein"} <= set(words("mmdiff "))
    assert set(packaged()) <= set(words("mmdiff train "))
    for verb in cli.VERBS:
        found = words(f"mmdiff {verb} --")
        assert {"--json", "--help"} <= set(found)
        words(f"mmdiff {verb} x y.z=1 ")  # none fails


def test_what_cannot_be_read_gives_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.yaml").write_text("a: [")
    for line in ("mmdiff train bad.yaml train.see", "mmdiff train 'bad.yaml", "mmdiff eval no/such/", "mmdiff \\"):
        assert cli.main(["completion", "words", "--", line]) == 0
        assert "error" not in "".join(capsys.readouterr())
    assert cli.main(["completion", "bsh"]) == 2
    assert 'no script for "bsh" (did you mean "bash"?)' in capsys.readouterr().err


def test_it_does_not_wait_for_torch(here: Path) -> None:
    lines = ["mmdiff ", "mmdiff train vqa-demo train.s", "mmdiff eval runs/toy-lr=0.1 s", "mmdiff runs --sort t"]
    code = (
        "import sys; from mmdiff.commands.cli import main\n"
        f"for line in {lines}:\n"
        "    assert main(['completion', 'words', '--', line]) == 0\n"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def in_bash(line: str) -> list[str]:
    """What a real bash has in COMPREPLY, words split as readline does it: at `=`, too."""
    code = (
        'source <(mmdiff completion bash); complete -p mmdiff; COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; '
        'COMP_WORDS=(mmdiff); COMP_CWORD=1; compopt() { :; }; _mmdiff; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", code, "bash", line], capture_output=True, text=True, check=True)
    head, *found = done.stdout.splitlines()
    assert head == "complete -o default -F _mmdiff mmdiff" and done.stderr == ""
    return found


def test_bash(here: Path) -> None:
    assert in_bash("mmdiff train vqa-demo train.stages.tune.lr_s") == ["train.stages.tune.lr_schedule="]
    assert in_bash("mmdiff train vqa-demo train.precision=f") == ["fp16", "fp32"]  # behind the last =
    assert in_bash("mmdiff eval runs/toy") == ["runs/toy\\ b", "runs/toy-lr=0.1"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("mmdiff train vqa-demo train.prec\t", "mmdiff train vqa-demo train.precision="),
        ("mmdiff train vqa-demo train.precision=b\t", "mmdiff train vqa-demo train.precision=bf16 "),
        ("mmdiff eval runs/toy-\t", "mmdiff eval runs/toy-lr=0.1 "),
        ("mmdiff compa\t", "mmdiff compare "),
    ],
)
def test_a_person_at_bash(typed: str, expected: str, here: Path) -> None:
    """An interactive bash in a terminal, in which the Tab key is pressed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        seen = ""

        def until(text: str) -> None:
            nonlocal seen
            end = time.monotonic() + 20
            while text not in seen:
                assert time.monotonic() < end, repr(seen)
                if select.select([terminal], [], [], 0.1)[0]:
                    seen += os.read(terminal, 4096).decode()

        os.write(terminal, b"source <(mmdiff completion bash); echo ready$((1+1))\n")
        until("ready2")
        seen = ""
        os.write(terminal, typed.encode())
        until(expected)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


@needs_zsh
def test_zsh(here: Path) -> None:
    """`compadd -a` is given the name of an array; its double prints what is in it."""
    code = (
        'eval "$(mmdiff completion zsh)"; compadd() { print -l -- ${(P)@[-1]}; }; _files() { print FILES; }; '
        "words=(mmdiff train vqa-demo train.st); CURRENT=4; _mmdiff; "
        "words=(mmdiff train vqa-demo-t); CURRENT=3; _mmdiff; "
        "words=(mmdiff nope x); CURRENT=3; _mmdiff"
    )
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train.stages.", "vqa-demo-text", "FILES"] and done.stderr == ""


@needs_fish
def test_fish(here: Path) -> None:
    for line, expected in (("mmdiff train vqa-demo train.st", "train.stages."), ("mmdiff compa", "compare")):
        code = f"mmdiff completion fish | source; complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
        assert expected in done.stdout.split()


def test_the_scripts_are_those_that_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, text in SCRIPTS.items():
        assert cli.main(["completion", shell]) == 0
        assert capsys.readouterr().out == text
