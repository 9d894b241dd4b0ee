"""Completion in bash, zsh and fish: verbs, options, configurations, runs, and settings key by key.

The script of a shell hands the line over as far as the cursor, `mmdiff completion words -- LINE`, and gets a candidate
per line. Nothing is imported that takes long, nothing that a configuration names is imported or called, and where
something goes wrong there are no candidates.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mmdiff.errors import UserError, nearest

from ..arguments import Verb, options_of, task_names

SCRIPTS = {
    "bash": """\
_mmdiff() {
  local line="${COMP_LINE:0:COMP_POINT}" typed word
  typed="${line##*[[:space:]]}"
  COMPREPLY=()
  while IFS= read -r word; do
    [[ $word == *[=./[] ]] && compopt -o nospace
    [[ $word == *[[:space:]\\'\\"\\\\\\(\\)\\&\\;\\<\\>\\|\\$\\`\\*\\?\\!]* ]] && printf -v word '%q' "$word"
    [[ $COMP_WORDBREAKS == *=* && $typed == *=* ]] && word="${word#*=}"  # bash completes what is behind the last =
    COMPREPLY+=("$word")
  done < <("${COMP_WORDS[0]}" completion words -- "$line" 2>/dev/null)
}
complete -o default -F _mmdiff mmdiff
""",
    "zsh": """\
#compdef mmdiff
_mmdiff() {
  local -a found open closed
  found=("${(@f)$("${words[1]}" completion words -- "${(j: :)${(@)words[1,CURRENT]}}" 2>/dev/null)}")
  open=(${(M)found:#*[=./\\[]})
  closed=(${found:#*[=./\\[]})
  (( ${#open} )) && compadd -S '' -a open
  (( ${#closed} )) && compadd -a closed
  (( ${#open} + ${#closed} )) || _files
}
if (( $+functions[compdef] )); then compdef _mmdiff mmdiff; fi
""",
    "fish": """\
function __mmdiff_words
    set -l line (commandline -cp)
    set -l command (string split -m1 ' ' -- $line)[1]
    $command completion words -- "$line" 2>/dev/null
end
complete -c mmdiff -a '(__mmdiff_words)'
""",
}
CONFIGURATIONS = ("config", "check", "train", "sweep")  # verbs whose first word is one
WITH_SETTINGS = (*CONFIGURATIONS, "eval", "generate", "demo")  # verbs that take settings behind it


def script_of(shell: str) -> str:
    """Returns the script of a shell. Raises UserError for another one."""
    if shell not in SCRIPTS:
        raise UserError(f'completion: no script for "{shell}"{nearest(shell, SCRIPTS)}')
    return SCRIPTS[shell]


def candidates(line: str, verbs: Mapping[str, Verb]) -> list[str]:
    """Returns what the last word of a command line may become, sorted; nothing where a file's name is as good.

    line: as far as the cursor, the command itself first. verbs: those of the core.
    """
    words = _split(line)[1:]
    if not words:
        return []
    *before, word = words
    return sorted({found for found in _all(before, word, verbs) if found.startswith(word)})


def _split(line: str) -> list[str]:
    """Returns the words of a line that may end within quotes; the last is empty behind a space."""
    for end in ("", "'", '"'):
        try:
            words = shlex.split(line + end)
        except ValueError:
            continue
        return [*words, ""] if not end and line[-1:].isspace() else words
    return line.split()


def _all(before: Sequence[str], word: str, verbs: Mapping[str, Verb]) -> Iterable[str]:
    if not before:
        return [*verbs, *task_names(), *(["--help", "--version"] if word.startswith("-") else [])]
    verb, *given = before
    if verb not in verbs and verb in task_names():
        verbs = import_module(f"mmdiff.tasks.{verb}.cli").VERBS
        if not given:
            return [*verbs, *(["--help"] if word.startswith("-") else [])]
        verb, *given = given
    if verb not in verbs:
        return []
    options = options_of(verbs[verb])
    if word.startswith("-"):
        return [*options, "--json", "--trust", "--help"]
    if given and options.get(given[-1]):  # the value of an option
        return _of_option(given[-1], word, given)
    plain = [w for i, w in enumerate(given) if not w.startswith("-") and not (i and options.get(given[i - 1]))]
    names = [p for p in inspect.signature(verbs[verb]).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(plain) < len(names) and names[len(plain)].kind is not inspect.Parameter.VAR_POSITIONAL:
        return _of_argument(verb, names[len(plain)].name, word)
    if names and names[-1].name == "runs":
        return _runs()
    return _settings(plain[0], word, verb) if verb in WITH_SETTINGS and plain else []


def _of_argument(verb: str, name: str, word: str) -> Iterable[str]:
    if verb == "demo":
        return [found.removesuffix("-demo") for found in _packaged() if found.endswith("-demo")]
    if verb == "new" and name == "kind":
        return ["task", "encoder"]
    if verb == "completion":
        return SCRIPTS
    if verb in CONFIGURATIONS:
        return [*_packaged(), *_but_runs(_files(word, ".yaml"))]
    return _but_runs(_files(word)) if name in ("run", "folder", "model") else []


def _of_option(option: str, word: str, given: Sequence[str]) -> Iterable[str]:
    if option == "--axis":
        plain = [w for w in given if not w.startswith("-")]
        return [key + "[" if key.endswith("=") else key for key in _keys(plain[0] if plain else "", word)]
    if option in ("--sort", "--filter"):
        from mmdiff.experiments.listing import COLUMNS, list_runs

        found = list_runs()[0]
        keys = {*COLUMNS, *(key for run in found[:20] for key in (*run.figures, *run.settings))}
        return _steps(keys, word) if option == "--sort" else [f"{key}=" for key in COLUMNS]
    return []


def _packaged() -> list[str]:
    from mmdiff.config import packaged

    return packaged()


def _but_runs(files: Iterable[str]) -> list[str]:
    """Returns runs, and files that are none."""
    runs = _runs()
    return [*runs, *(file for file in files if file.rstrip("/") not in runs)]


def _runs() -> list[str]:
    return [str(file.parent) for file in Path("runs").glob("*/config.yaml")]


def _files(word: str, ending: str = "") -> list[str]:
    """Returns folders, and files of an ending, beside what was typed; a folder ends with a slash."""
    folder, slash, _ = word.rpartition("/")
    found = []
    for entry in Path(f"{folder}/" if slash else ".").iterdir():
        path = f"{folder}{slash}{entry.name}"
        if entry.name.startswith("."):
            continue
        found += [f"{path}/"] if entry.is_dir() else [path] if entry.name.endswith(ending) else []
    return found


def _settings(name: str, word: str, verb: str) -> Iterable[str]:
    """Returns keys of a configuration up to the next dot, or the values of a key that has few."""
    key, equals, _ = word.partition("=")
    if not equals:
        return _keys(f"{name}-demo" if verb == "demo" else name, word)
    return [f"{key}={value}" for value in _values(key)]


def _keys(name: str, word: str) -> set[str]:
    from mmdiff.config import flatten, load_config, trusting
    from mmdiff.config.settings import Config

    try:
        with trusting():  # its keys are read, and nothing of it is called
            config = load_config(name)
    except UserError:
        config = Config()
    keys = {key for key in flatten(asdict(config)) if key and not key.startswith(("base", "demo"))}
    return {key if key.endswith(".") else f"{key}=" for key in _steps(keys, word)}


def _steps(keys: Iterable[str], word: str) -> set[str]:
    """Returns keys that begin with a word, cut behind the first dot after it."""
    found = set()
    for key in keys:
        if key.startswith(word):
            dot = key.find(".", len(word))
            found.add(key if dot < 0 else key[: dot + 1])
    return found


def _values(key: str) -> list[str]:
    """Returns the values of a setting that may have few: words, and true or false."""
    from mmdiff.config.schema import hints_of
    from mmdiff.config.settings import Config

    kind: Any = Config
    for part in key.split("."):
        if is_dataclass(kind):
            kind = hints_of(kind).get(part, Any)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return []
    return list(_words(kind))


def _words(kind: Any) -> Iterator[str]:
    if kind is bool:
        yield from ("true", "false")
    elif kind is NoneType:
        yield "null"
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) in (Union, UnionType):
        for inner in get_args(kind):
            yield from _words(inner)
