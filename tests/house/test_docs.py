"""The pages are true: blocks run, in order, in an empty folder for each page; paths, names, verbs and keys exist."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import shutil
import tomllib
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from imports import module_graph
from paths import ROOT

from mmdiff.commands import cli
from mmdiff.tasks.vqa.demo import LINES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
READ = [*RUN, "ARCHITECTURE.md", "CONTRIBUTING.md"]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in [*READ, "CHANGELOG.md"]}
BLOCKS = {page: re.findall(r"^```(\w+)\n(.*?)^```$", TEXTS[page], re.M | re.S) for page in RUN}
PROSE = {page: re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S) for page, text in TEXTS.items()}

NOT_RUN = {  # the first word of a line, and why; `test_what_is_not_run_exists` looks at what it names
    "pip": "changes the environment",
    "make": "minutes, and `make test` runs this file",
    "torchrun": "eight GPUs",
}
LEFT = {"docs/index.md": ["runs/tiny/report.html"], "docs/vqa.md": ["runs/mine/model"]}  # what a page must have made
SAYS = {  # what a page must have printed: models of the first pages have learned what there was to learn
    "docs/start/text.md": [
        r"^prediction +hoot\.$",
        r"^prediction +owl$",
        r"^prediction +The owl in the kitchen says hoot\.$",
    ],
    "docs/start/pictures.md": [r"exact_match +1$"],
    "docs/start/sound.md": [r"0\.wav\tkitchen light on$", r"143\.wav\tgarden light off$", r"\.wer +0(\.0\d*)?$"],
    "docs/start/proteins.md": [r"^YKCDICGKSFSRSSNLTRHLRTH$", r"^C3A\t-[5-9]", r"^K2R\t-?0\."],
    "docs/start/robots.md": [r"^-0\.[01]\d+$", r"^\+0\.[01]\d+$"],
}


def commands(page: str) -> list[list[str]]:
    return [shlex.split(line) for kind, text in BLOCKS[page] if kind == "bash" for line in text.splitlines() if line]


def beginning(word: str) -> list[list[str]]:
    """Commands of all pages that begin with a word."""
    return [command for page in RUN for command in commands(page) if command[0] == word]


TRAINED = Counter(  # of packaged configurations: a file of the page's own may be another under the same name
    tuple(words) for words in beginning("mmdiff") if words[1] == "train" and not words[2].endswith(".yaml")
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """The runs that several pages train, by command: the first page trains, the others are given copies."""
    return {command: tmp_path_factory.mktemp("runs") for command, pages in TRAINED.items() if pages > 1}


def run_command(words: list[str], trained: dict[tuple[str, ...], Path]) -> int:
    """One `mmdiff ...`, through the function that the installed command calls."""
    kept, runs = trained.get(tuple(words)), Path("runs")
    if kept is None:
        return cli.main(words[1:])
    if not any(kept.iterdir()):
        before = {path.name for path in runs.glob("*")}
        code = cli.main(words[1:])
        for path in runs.glob("*"):
            if path.name not in before:
                shutil.copytree(path, kept / path.name)
        return code
    shutil.copytree(kept, runs, dirs_exist_ok=True)
    return 0


LONG = (
    *(f"docs/{name}.md" for name in "decoding experiments objectives proteins robots speech text training vqa".split()),
    *(f"docs/data/{name}.md" for name in "datasets fasta jsonl lerobot llava own parquet preferences tar".split()),
    *(f"docs/start/{name}.md" for name in "pictures robots".split()),  # as tests/vqa/test_own.py, tests/vla/test_own.py
)
"""Pages that train what others train too, or sweep: theirs are slow tests."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in RUN if BLOCKS[page]]
)
def test_every_block_runs(
    page: str,
    trained: dict[tuple[str, ...], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert PROJECT["scripts"]["mmdiff"] == "mmdiff.commands.cli:main"
    monkeypatch.chdir(tmp_path)
    if "datasets." in TEXTS[page]:  # a library that keeps what it read in the home of this user
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for kind, text in BLOCKS[page]:
        if kind == "python":
            exec(compile(text, page, "exec"), names)
        elif kind == "yaml":  # its first line says which file it is
            name = text.splitlines()[0].removeprefix("# ")
            assert re.fullmatch(r"\w+\.yaml", name), f"a yaml block opens with the name of its file, not {name!r}"
            Path(name).write_text(text, encoding="utf-8")
        elif kind == "text":  # not run: it needs what takes minutes, or does not end
            for line in text.splitlines():
                endless = (
                    "mmdiff serve ",
                    "mmdiff vla serve ",
                    "mmdiff sweep ",
                    "curl localhost:",
                    "mmdiff train asr-own ",
                    "mmdiff eval runs/asr-own",
                    "mmdiff train vla-own ",
                    "mmdiff eval runs/vla-own",
                    "mmdiff train protein-own ",
                    "mmdiff protein eval runs/protein-own",
                    "mmdiff protein embed runs/protein-own",
                    "mmdiff protein probe vectors ",
                )
                assert shlex.split(line) and line.startswith(endless), line
        elif kind == "console":  # mistakes: a command, and the one line that it ends with
            pairs = re.findall(r"^\$ mmdiff (.*)\n(mmdiff: error: .*)$", text, re.M)
            assert 2 * len(pairs) == len(text.splitlines()), "a command and one line, by turns"
            for command, line in pairs:
                capsys.readouterr()
                assert cli.main(shlex.split(command)) == 2, command
                out, err = capsys.readouterr()
                assert err.splitlines()[-1] == line and not out, command
        else:
            assert kind == "bash", f"a block of kind {kind!r}: run it here, or write it as text"
            for line in text.splitlines():
                words = shlex.split(line)
                if words[0] not in NOT_RUN:
                    assert words[0] == "mmdiff", f"{line!r}: not a command of ours, and not in NOT_RUN"
                    done = run_command(words, trained)
                    out, err = capsys.readouterr()
                    assert done == 0, f"{line!r}: {err.splitlines()[-1]}"
                    printed += out
    for path in LEFT.get(page, []):
        assert (tmp_path / path).exists()
    for pattern in SAYS.get(page, []):
        assert re.search(pattern, printed, re.M), pattern


def test_the_pages_have_blocks_of_every_kind() -> None:
    assert {kind for page in RUN for kind, _ in BLOCKS[page]} == {"bash", "python", "yaml", "text", "console"}
    assert LEFT.keys() <= set(RUN)


def test_what_is_not_run_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for _, target, *_ in beginning("make"):
        assert target in targets
    for _, install, _, what in beginning("pip"):
        assert install == "install"
        assert set(re.findall(r"\w+", what)) <= PROJECT["optional-dependencies"].keys()
    for *_, module, verb, name in beginning("torchrun"):
        assert module == "mmdiff" and (ROOT / f"{module}/__main__.py").is_file()
        assert verb in cli.VERBS and (ROOT / f"configs/{name}.yaml").is_file()
    assert {word for word in NOT_RUN if beginning(word)} == set(NOT_RUN), "a reason is left over"


def test_every_extra_is_named() -> None:
    sentences = re.search(r"The extra `.*", TEXTS["docs/start/install.md"])
    assert sentences is not None
    assert set(re.findall(r"`(\w+)`", sentences.group())) == PROJECT["optional-dependencies"].keys()


def links(page: str) -> set[str]:
    """The pages that a page leads to, as paths of the repository."""
    found = re.findall(r"\]\(([^)#:]+)", PROSE[page])
    return {os.path.normpath(Path(page).parent / link) for link in found} & set(TEXTS)


def test_the_readme_is_one_screen_and_leads_to_every_page() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 45
    assert links("README.md") >= {"ARCHITECTURE.md", "CONTRIBUTING.md", "docs/index.md"}
    missing = set(RUN[1:]) - {"docs/index.md"} - links("docs/index.md")
    assert not missing, "docs/index.md names every page"


def first_cells(page: str, heading: str) -> list[str]:
    """The first column of the table that comes first after a text."""
    rows = TEXTS[page].split(heading, 1)[1].split("\n| ", 1)[1].split("\n\n", 1)[0].splitlines()
    return [row.removeprefix("| ").split("|")[0].strip(" `") for row in rows[2:]]


def test_figures_are_those_of_their_pages() -> None:
    """Every number of the table of figures is on the page that the row leads to; programs that it names exist."""
    rows = re.findall(r"^\| (.*?) *\| (.*?) *\| `(.*?)` *\| .*\((.*?)\) *\|$", TEXTS["docs/figures.md"], re.M)
    assert len(rows) == len(re.findall(r"^\|", TEXTS["docs/figures.md"], re.M)) - 2 * 4  # heads of four tables
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for what, measured, command, page in rows:
        there = TEXTS[f"docs/{page}"].replace(",", "")
        for number in re.findall(r"\d+(?:\.\d+)?", measured):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", there), f"{what}: {number} is not on {page}"
        match command.split():
            case ["make", target, *_]:
                assert target in targets, command
            case ["python", *_]:
                assert (ROOT / re.findall(r"\S+\.py", command)[0]).is_file(), command
            case _:
                assert command.startswith("mmdiff "), command


def test_the_tables_are_complete() -> None:
    assert first_cells("docs/vqa.md", "`mmdiff demo vqa --json`") == list(LINES)
    assert set(first_cells("docs/commands.md", "## Verbs")) == set(cli.VERBS)


@pytest.mark.parametrize("page", READ)
def test_verbs_exist(page: str) -> None:
    """`mmdiff verb` and `mmdiff task verb`, in prose; blocks are run."""
    tasks = {cli.parent.name for cli in (ROOT / "tasks").glob("*/cli*")}
    for first, second in re.findall(r"`mmdiff ([a-z][\w-]*)(?: ([a-z][\w-]*)(?=[ `]))?", PROSE[page]):
        assert first in cli.VERBS or first in tasks, f"{page}: mmdiff {first}"
        if first in tasks and second:
            assert second in import_module(f"mmdiff.tasks.{first}.cli").VERBS, f"{page}: mmdiff {first} {second}"
        if first in ("check", "train") and second:
            assert (ROOT / f"configs/{second}.yaml").is_file(), f"{page}: mmdiff {first} {second}"
        if first == "demo" and second:
            assert (ROOT / f"configs/{second}-demo.yaml").is_file(), f"{page}: mmdiff demo {second}"


@pytest.mark.parametrize("page", TEXTS)
def test_paths_exist(page: str) -> None:
    """Links, from the folder of the page, and code words that look like a path of this repository."""
    for path, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", PROSE[page]):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor[1:] in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], anchor
    for path in re.findall(
        r"`((?:mmdiff|encoders|tasks|configs|tests|benchmarks|plugins|docs)/[\w/.-]*)`", PROSE[page]
    ):
        assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize("page", READ)
def test_dotted_paths_exist(page: str) -> None:
    """`mmdiff.a.b` in the prose of any page."""
    for dotted in sorted(set(re.findall(r"`(mmdiff(?:\.\w+)+)", TEXTS[page]))):
        try:
            pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{page}: {dotted} ({error})")


@pytest.fixture(scope="session")
def identifiers() -> set[str]:
    files = [file for room in ("mmdiff", "encoders", "tasks") for file in (ROOT / room).rglob("*.py")]
    return {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", READ)
def test_names_with_shape_letters_exist(page: str, identifiers: set[str]) -> None:
    """`ids_BL`: a value that a page names is called so in the code."""
    named = set(re.findall(r"\b([a-z]\w*_[A-Z]{1,4})\b", PROSE[page]))
    assert named <= identifiers, named - identifiers


@pytest.mark.parametrize("page", TEXTS)
def test_pages_name_nothing_of_the_machine_they_were_written_on(page: str) -> None:
    assert not re.search(r"\.\./shared|(?<![\w./])/(?:work|tmp|home|root)\b", TEXTS[page])


def test_keys_in_the_table_of_places_exist() -> None:
    from mmdiff.config.settings import Config, EvalConfig, GenerationConfig, ModelConfig, StageConfig

    table = TEXTS["CONTRIBUTING.md"].split("## Where to add", 1)[1].split("\n## ", 1)[0]
    parts = (GenerationConfig(), ModelConfig(), StageConfig(), EvalConfig(), Config())
    fields: dict[str, Any] = {name: value for part in parts for name, value in vars(part).items()}
    keys = re.findall(r"`((?:sampler|model|train|task|eval)\.[\w.<>]+)", table)
    assert keys
    for key in keys:
        last = [
            name for name in key.split(".") if name not in ("target", "path", "image", "<name>", "<stage>", "<set>")
        ][-1]
        assert last in fields, key


def test_every_configuration_opens_with_its_command() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        command = shlex.split(first.split(":  ")[-1])
        assert first.startswith("# ") and command[0] == "mmdiff" and command[1] in cli.VERBS, path.name
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert command[2] == path.stem or tree.get("demo"), path.name


def drawn_rooms() -> list[str]:
    """The dotted names of the tree in ARCHITECTURE.md, in its order."""
    found, folders = [], [""]
    tree = TEXTS["ARCHITECTURE.md"].split("## The rooms", 1)[1].split("\n## ", 1)[0]
    for indent, path in re.findall(r"^    ( *)([\w.]+/?)  ", tree, re.M):
        folders = [*folders[: 1 + len(indent) // 2], path.rstrip("/")]
        assert (ROOT / "/".join(folders[1:])).exists(), folders
        name = ".".join(folders[1:]).removesuffix(".py")
        found.append(name if name.startswith("mmdiff") else f"mmdiff.{name}")
    return found


def test_the_rooms_are_drawn_as_they_are() -> None:
    """Every package of the product is in the tree, and imports of its siblings only those above it."""
    drawn, graph = drawn_rooms(), module_graph()
    packages = {n for file in ROOT.glob("*/**/__init__.py") if (n := ".".join(file.parent.relative_to(ROOT).parts))}
    product = {n if n.startswith("mmdiff") else f"mmdiff.{n}" for n in packages if re.match("mmdiff|encoders|tasks", n)}
    assert product <= set(drawn), product - set(drawn)
    order = {name: i for i, name in enumerate(drawn)}

    def sibling(name: str, other: str) -> str:
        """The drawn room of `name` at the level where it and `other` part; empty where one holds the other."""
        mine, its = name.split("."), other.split(".")
        level = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), None)
        room = "" if level is None else ".".join(mine[: level + 1])
        return room if room in order else ""

    upward = {
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if (here := sibling(name, target)) and (there := sibling(target, name)) and order[there] > order[here]
    }
    assert not upward
