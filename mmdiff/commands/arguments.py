"""From the words of a command line to a verb and its arguments.

A task brings verbs of its own in a module `mmdiff.tasks.<name>.cli`: `VERBS`, and a docstring that heads their help. It
is found by its position, and imported when one of its verbs is called.

    def transcribe(args: argparse.Namespace) -> Output:
        \"\"\"write down what is said in audio files\"\"\"
        files, overrides = overrides_of(args.words)
        ...

    def _transcribe(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run")
        parser.add_argument("words", nargs="+", metavar="AUDIO | key=value")

    VERBS = {"transcribe": Verb(transcribe, _transcribe)}

is `mmdiff asr transcribe runs/x a.wav sampler.steps=4` when it stands in `tasks/asr/cli.py`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mmdiff import __version__
from mmdiff.errors import UserError, nearest

Output = tuple[Mapping[str, Any], str]
"""What a verb found: one JSON object, and text for people (see `mmdiff.commands.cli.table`)."""


class Verb(NamedTuple):
    """run: its docstring is the help. arguments: tells the parser what `run` is given, besides `--json`."""

    run: Callable[[argparse.Namespace], Output]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(argv: Sequence[str], core: Mapping[str, Verb]) -> tuple[Verb, argparse.Namespace]:
    """The verb that is called, one of `core` or of a task, and its arguments. Options may stand anywhere.

    Raises UserError for verbs and arguments that are not there; SystemExit after `--help` and `--version`.
    """
    prog, about, verbs, tasks = (
        "mmdiff",
        "Masked-diffusion language models by configuration.",
        core,
        _tasks() - core.keys(),
    )
    if argv and argv[0] in tasks:
        module = import_module(f"mmdiff.tasks.{argv[0]}.cli")
        prog, about, verbs, tasks = f"mmdiff {argv[0]}", module.__doc__ or "", module.VERBS, set()
        argv = argv[1:]
    if not argv or argv[0].startswith("-"):
        _help(prog, about, verbs, tasks).parse_known_args(argv or ["--help"])  # --help and --version end here
        raise UserError(f"unknown argument {argv[0]!r}")
    name, *argv = argv
    if name not in verbs:
        raise UserError(f'no verb "{name}"{nearest(name, {*verbs, *tasks})}')
    parser = _Parser(prog=f"{prog} {name}", description=verbs[name].run.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    verbs[name].arguments(parser)
    args, rest = parser.parse_known_intermixed_args(argv)
    if rest:
        known = [option for option in parser._option_string_actions if rest[0].startswith("-") and len(option) > 2]
        raise UserError(f"unknown argument {rest[0]!r}{nearest(rest[0].partition('=')[0], known)}")
    return verbs[name], args


def _tasks() -> set[str]:
    """Tasks with verbs: rooms of `mmdiff.tasks` that hold `cli.py` or `cli/`; none is imported."""
    rooms = [room for folder in import_module("mmdiff.tasks").__path__ for room in Path(folder).iterdir()]
    return {room.name for room in rooms if (room / "cli.py").is_file() or (room / "cli" / "__init__.py").is_file()}


def _help(prog: str, about: str, verbs: Mapping[str, Verb], tasks: Iterable[str]) -> _Parser:
    """A parser that only lists what there is."""
    parser = _Parser(prog=prog, description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mmdiff {__version__}")
    listed = parser.add_subparsers(metavar="VERB")
    for name, verb in verbs.items():
        listed.add_parser(name, help=(verb.run.__doc__ or "").partition("\n")[0].replace("%", "%%"))
    for name in sorted(tasks):
        listed.add_parser(name, help=f"verbs of a task: {prog} {name} --help")
    return parser


def overrides_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other words, overrides) of words that may be both: `a.wav b.wav sampler.steps=4`."""
    dotted = [word for word in words if re.match(r"[\w-]+(\.[\w-]+)+=", word)]
    return [word for word in words if word not in dotted], dotted


def row_of(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Fields of a row, and overrides (their keys have dots). `key=text` is text as it stands, `key:=value` is JSON."""
    row: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip(":"):
            raise UserError(f"{word!r} is not key=value")
        if "." in key:
            overrides.append(word)
        elif key.endswith(":"):
            try:
                row[key[:-1]] = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{key[:-1]}: {text!r} is not JSON ({error})") from None
        else:
            row[key] = text
    return row, overrides
