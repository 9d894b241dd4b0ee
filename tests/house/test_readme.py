"""The README is true: its blocks run, in their order, in an empty folder; its paths, verbs and keys exist."""

from __future__ import annotations

import pkgutil
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from mmdiff.commands import cli
from mmdiff.tasks.vqa.demo import LINES

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)

NOT_RUN = {  # the first word of a line, and why; `test_what_is_not_run_exists` looks at what it names
    "pip": "changes the environment",
    "make": "minutes, and `make test` runs this file",
    "torchrun": "eight GPUs",
}


def lines(word: str) -> list[list[str]]:
    """Commands that begin with a word."""
    every = [shlex.split(line) for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line]
    return [command for command in every if command[0] == word]


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`mmdiff ...` runs in this process, through the function that the installed command calls."""
    assert PROJECT["scripts"]["mmdiff"] == "mmdiff.commands.cli:main"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    ran = []
    for kind, text in BLOCKS:
        ran.append(kind)
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
        elif kind == "yaml":  # its first line says which file it is
            name = text.splitlines()[0].removeprefix("# ")
            assert re.fullmatch(r"\w+\.yaml", name), f"a yaml block opens with the name of its file, not {name!r}"
            Path(name).write_text(text, encoding="utf-8")
        elif kind == "text":  # not run: it needs what takes minutes, or does not end
            for line in text.splitlines():
                assert shlex.split(line)[:3] == ["mmdiff", "vla", "serve"] or line.startswith("mmdiff sweep "), line
        else:
            assert kind == "bash", f"a block of kind {kind!r}: run it here, or write it as text"
            for line in text.splitlines():
                word, *words = shlex.split(line)
                if word not in NOT_RUN:
                    assert word == "mmdiff", f"{line!r}: not a command of ours, and not in NOT_RUN"
                    assert cli.main(words) == 0, f"{line!r}: {capsys.readouterr().err.splitlines()[-1]}"
    assert {"bash", "python", "yaml"} <= set(ran)
    assert (tmp_path / "runs/tiny/report.html").is_file() and (tmp_path / "runs/mine/model").is_dir()


def test_what_is_not_run_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for _, target in lines("make"):
        assert target in targets
    for _, install, _, what in lines("pip"):
        assert install == "install"
        assert set(re.findall(r"\w+", what)) <= PROJECT["optional-dependencies"].keys()
    for *_, module, verb, name in lines("torchrun"):
        assert module == "mmdiff" and (ROOT / f"{module}/__main__.py").is_file()
        assert verb in cli.VERBS and (ROOT / f"configs/{name}.yaml").is_file()
    assert {word for word in NOT_RUN if lines(word)} == set(NOT_RUN), "a reason is left over"


def test_the_extras_it_names_exist() -> None:
    sentence = re.search(r"The extra `.*", README)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence.group())) <= PROJECT["optional-dependencies"].keys()


def first_cells(heading: str) -> list[str]:
    """The first column of the table that comes first after a text."""
    rows = README.split(heading, 1)[1].split("\n| ", 1)[1].split("\n\n", 1)[0].splitlines()
    return [row.removeprefix("| ").split("|")[0].strip(" `") for row in rows[2:]]


def test_the_tables_are_complete() -> None:
    assert first_cells("`mmdiff demo vqa --json`") == list(LINES)
    assert set(first_cells("## Commands")) == set(cli.VERBS)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_paths_exist(page: str) -> None:
    """Links, and code words that look like a path of this repository."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    spelled = re.findall(r"`((?:mmdiff|encoders|tasks|configs|tests|benchmarks)/[\w/.-]*)`", text)
    for path in [*linked, *spelled]:
        assert (ROOT / path).exists(), f"{page}: {path}"


def test_dotted_paths_exist() -> None:
    """`mmdiff.a.b` in the prose of any page."""
    for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for dotted in sorted(set(re.findall(r"`(mmdiff(?:\.\w+)+)", (ROOT / page).read_text(encoding="utf-8")))):
            pkgutil.resolve_name(dotted)  # raises


def test_keys_in_the_table_of_places_exist() -> None:
    from mmdiff.config.settings import Config, GenerationConfig, ModelConfig, StageConfig

    table = README.split("## Where to add", 1)[1]
    fields = {**vars(GenerationConfig()), **vars(ModelConfig()), **vars(StageConfig()), **vars(Config())}
    for key in re.findall(r"`((?:sampler|model|train|task)\.[\w.<>]+)", table):
        last = [name for name in key.split(".") if name not in ("target", "path", "image", "<stage>")][-1]
        assert last in fields, key


def test_every_configuration_opens_with_its_command() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        command = shlex.split(first.split(":  ")[-1])
        assert first.startswith("# ") and command[0] == "mmdiff" and command[1] in cli.VERBS, path.name
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert command[2] == path.stem or tree.get("demo"), path.name
