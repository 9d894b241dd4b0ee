"""Parses a command line into a verb and its arguments.

A verb is a function: its parameters are the arguments and options, their annotations what is accepted, the docstring
the help. Cyclopts reads all three, so an option is added in one place. Positional-only parameters are arguments,
`*words` takes what may be repeated, keyword-only parameters are options:

    def count(run: str, /, *words: str, batch_size: AtLeast1 = 16, out: Path | None = None) -> Output:
        \"\"\"Count the birds in pictures.

        Args:
            run: a run, a checkpoint in it or a saved model.
            words: pictures, and settings such as `sampler.steps=4`.
            batch_size: pictures per batch.
            out: the file of counts, which an interrupted command resumes.
        \"\"\"

A task brings verbs in `tasks/<name>/cli.py`, or in a room of that name: a dictionary `VERBS`, and a docstring that
heads their help. It is found by its path and imported when one of its verbs is called. With the function above in a
file `tasks/birds/cli.py`, under "count", `mmdiff birds count runs/x a.jpg sampler.steps=4 --batch-size 8` calls it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError, UnusedCliTokensError
from cyclopts.validators import Number

from mmdiff import __version__
from mmdiff.config import trusting
from mmdiff.errors import UserError, line_of, nearest, shown
from mmdiff.parts import ranges
from mmdiff.parts.ranges import BITS, in_range

Output = tuple[Mapping[str, Any], str]
"""What a verb found: one JSON object, and text for people (see `table`)."""
FAILED = "failed"
"""The key of a result under which a verb names the parts of its work that failed, where the others are done."""
Verb = Callable[..., Output]


def within(kind: Any) -> Parameter:
    """Returns what has cyclopts check a number against an annotation of `mmdiff.parts.ranges`."""
    (bounds,) = get_args(kind)[1:]
    names = {"gte": bounds.ge, "gt": bounds.gt, "lte": bounds.le, "lt": bounds.lt}
    near = {name: bound for name, bound in names.items() if bound is not None and abs(bound) < 2**BITS}

    def finite(type_: Any, value: Any) -> None:
        if isinstance(value, int | float) and not in_range(value):
            raise ValueError("Must be a finite number.")

    return Parameter(validator=(finite, Number(**near)))


AtLeast0: TypeAlias = Annotated[int, within(ranges.AtLeast0)]
AtLeast1: TypeAlias = Annotated[int, within(ranges.AtLeast1)]
Positive: TypeAlias = Annotated[float, within(ranges.Positive)]
Share: TypeAlias = Annotated[float, within(ranges.Share)]
PositiveShare: TypeAlias = Annotated[float, within(ranges.PositiveShare)]


def parse(argv: Sequence[str], core: Mapping[str, Verb]) -> tuple[Callable[[], Output], bool]:
    """Returns the call that a command line asks for, of a verb of `core` or of a task, and whether to print JSON.

    Options may stand anywhere. Raises UserError for verbs and arguments that are not there; SystemExit after `--help`
    and `--version`.
    """
    prog, about, verbs, tasks = (
        "mmdiff",
        "Masked-diffusion language models by configuration.",
        core,
        task_names() - core.keys(),
    )
    if argv and argv[0] in tasks:
        module = import_module(f"mmdiff.tasks.{argv[0]}.cli")
        prog, about, verbs, tasks = f"mmdiff {argv[0]}", module.__doc__ or "", module.VERBS, set()
        argv = argv[1:]
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] not in ("--help", "-h", "--version"):
            raise UserError(f"unknown argument {argv[0]!r}")
        print(f"mmdiff {__version__}" if argv and argv[0] == "--version" else _listing(prog, about, verbs, tasks))
        raise SystemExit(0)
    name, *words = argv
    if name not in verbs:
        raise UserError(f'no verb "{name}"{nearest(name, {*verbs, *tasks})}')
    given = words[: words.index("--")] if "--" in words else words
    as_json, trust = "--json" in given, "--trust" in given
    for flag in ("--json", "--trust"):
        if flag in given:
            words.remove(flag)
    app = _app(f"{prog} {name}", verbs[name])
    if {"--help", "-h"} & set(given):
        app.help_print([])
        raise SystemExit(0)
    try:
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except (UnknownOptionError, UnusedCliTokensError) as error:
        if isinstance(error, UnknownOptionError):  # behind arguments of a fixed number it is a keyword, else a value
            unknown = error.token.value or error.token.keyword or ""
        else:
            unknown = (error.unused_tokens or [""])[0]
        names = [name for argument in app.assemble_argument_collection() for name in argument.names]
        options = ["--json", "--trust", *(name for name in names if name.startswith("-"))]
        near = nearest(unknown.partition("=")[0], options) if unknown.startswith("-") else ""
        raise UserError(f"unknown argument {unknown!r}{near}") from None
    except CycloptsError as error:
        raise UserError(line_of(error, 2000)) from None

    def call() -> Output:
        with trusting(trust):
            return command(*bound.args, **bound.kwargs)

    return call, as_json


def _app(prog: str, verb: Verb) -> App:
    app = App(
        name=prog,
        help_format="plaintext",
        help_epilogue="--json prints the result as one JSON object on the last line.\n--trust lets a folder that "
        "somebody else wrote name any code that can be imported (docs/security.md).",
        help_flags=(),
        version_flags=(),
        default_parameter=Parameter(negative=()),
    )
    app.default(verb)
    return app


def task_names() -> set[str]:
    """Returns the tasks with verbs: rooms of `mmdiff.tasks` that hold `cli.py` or `cli/`; none is imported."""
    rooms = [room for folder in import_module("mmdiff.tasks").__path__ for room in Path(folder).iterdir()]
    return {room.name for room in rooms if (room / "cli.py").is_file() or (room / "cli" / "__init__.py").is_file()}


def options_of(verb: Verb) -> dict[str, bool]:
    """Returns the options of a verb, each with whether a value follows it."""
    found = {}
    for argument in _app("", verb).assemble_argument_collection():
        for name in argument.names:
            if name.startswith("--"):
                found[name] = argument.hint is not bool
    return found


def _listing(prog: str, about: str, verbs: Mapping[str, Verb], tasks: Iterable[str]) -> str:
    """Returns what `--help` of a group of verbs prints."""
    lines = {name: (verb.__doc__ or "").strip().partition("\n")[0] for name, verb in verbs.items()}
    lines |= {name: f"Verbs of a task: {prog} {name} --help" for name in sorted(tasks)}
    width = max(map(len, lines), default=0)
    listed = "\n".join(f"  {name:{width}}  {line}".rstrip() for name, line in lines.items())
    first, _, _ = about.strip().partition("\n\n")  # the second says what the room may import
    return f"Usage: {prog} VERB ...\n\n{first}\n\n{listed}\n\n{prog} VERB --help says what a verb takes."


def overrides_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (other words, overrides) of words that are mixed: `a.wav b.wav sampler.steps=4`."""
    dotted = [word for word in words if re.match(r"[\w-]+(\.[\w-]+)+=", word)]
    return [word for word in words if word not in dotted], dotted


def row_of(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of a row, and overrides, whose keys have dots. `key=text` is plain text, `key:=value` JSON."""
    row: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip(":"):
            raise UserError(f"{shown(word)!r} is not key=value")
        if key.strip(":") in row:
            raise UserError(f"{shown(key.strip(':'))}: given twice")
        if "." in key:
            overrides.append(word)
        elif key.endswith(":"):
            try:
                row[key[:-1]] = json.loads(text)
            except (ValueError, RecursionError) as error:  # JSONDecodeError, numbers of thousands of digits, deep lists
                raise UserError(f"{key[:-1]}: {shown(text)!r} is not JSON ({str(error):.80})") from None
        else:
            row[key] = text
    return row, overrides


def table(result: Mapping[str, Any]) -> Output:
    """Returns a result with its lines for people, `dotted.key  value`."""
    flat: dict[str, str] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                add(f"{key}.{name}" if key else str(name), inner)
        else:
            flat[key] = f"{value:.6g}" if isinstance(value, float) else str(value)

    add("", result)
    width = max(map(len, flat), default=0)
    return result, "\n".join(f"{key:{width}}  {value}" for key, value in flat.items())
