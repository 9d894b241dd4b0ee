"""The command line: one function a verb, a line or two over the Python interface each; its docstring is its help.

A verb returns what it found twice: as one JSON object (`--json` prints it on the last line of stdout) and as text for
people. Progress and tables go to stderr. What a person can put right ends in one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, NoReturn

from . import __version__
from .errors import ConfigError, UserError, nearest

Output = tuple[Mapping[str, Any], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake in what was asked for, 130 interrupted."""
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
        result, text = args.run(args)
    except UserError as error:
        print(f"mmdiff: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmdiff: interrupted", file=sys.stderr)
        return 130
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process gets here
        try:
            print(json.dumps(_json(result), default=str) if args.json else text, flush=True)
        except BrokenPipeError:  # `mmdiff config x | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def config(args: argparse.Namespace) -> Output:
    """print a configuration with its bases, overrides and defaults filled in"""
    from .config import load_config, to_yaml

    resolved = load_config(args.name, args.words)
    return asdict(resolved), to_yaml(resolved).rstrip()


def ls(args: argparse.Namespace) -> Output:
    """list the packaged configurations"""
    from .config import packaged

    found = {}
    for name in packaged():
        first, _, _ = (files("mmdiff.configs") / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
        found[name] = first.removeprefix("#").strip() if first.startswith("#") else ""
    width = max(map(len, found), default=0)
    return {"configs": found}, "\n".join(f"{name:{width}}  {line}".rstrip() for name, line in found.items())


def check(args: argparse.Namespace) -> Output:
    """build a configuration at toy size and run each of its stages for a few steps"""
    from .check import check as run
    from .config import load_config

    return _table(run(load_config(args.name, args.words), progress=_say))


def train(args: argparse.Namespace) -> Output:
    """train a configuration, or go on with its run"""
    from .config import load_config
    from .train import train as run

    return _table(run(load_config(args.name, args.words), fresh=args.fresh))


def evaluate(args: argparse.Namespace) -> Output:
    """score a run on its held-out rows"""
    from .evaluate import evaluate_run

    return _table(evaluate_run(args.name, args.words))


def generate(args: argparse.Namespace) -> Output:
    """answer one row with a run: image=cat.jpg question="..." state:=[0.1,0.2] sampler.steps=4"""
    row, overrides = _row(args.words)
    from .session import load

    return _table(load(args.name, *overrides).predict(row))


def demo(args: argparse.Namespace) -> Output:
    """run a demonstration from beginning to end"""
    from .config import load_config, locate

    resolved = load_config(f"{args.name}-demo", args.words)
    if resolved.demo is None:
        raise ConfigError(f"demo: {args.name}-demo does not say what to run, expected a dotted path")
    return _table(locate(resolved.demo, "demo")(resolved, fresh=args.fresh))


Verb = Callable[[argparse.Namespace], Output]
CONFIG, RUN = "a packaged name, a .yaml file or a run folder", "a run folder"
VERBS: dict[str, tuple[Verb, str, bool]] = {  # name -> function, what it works on, whether it may start afresh
    "config": (config, CONFIG, False),
    "ls": (ls, "", False),
    "check": (check, CONFIG, False),
    "train": (train, CONFIG, True),
    "eval": (evaluate, RUN, False),
    "generate": (generate, RUN, False),
    "demo": (demo, "NAME of a packaged NAME-demo", True),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="mmdiff", description="Masked-diffusion language models by configuration.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mmdiff {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb, (run, subject, fresh) in VERBS.items():
        sub = verbs.add_parser(verb, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
        if subject:
            sub.add_argument("name", metavar="NAME" if subject != RUN else "RUN", help=subject)
            sub.add_argument(
                "words", metavar="key=value", nargs="*", default=[], help="settings by dotted key, values in YAML"
            )
        if fresh:
            sub.add_argument("--fresh", action="store_true", help="start again, not from where the run stopped")
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UserError(f'no verb "{argv[0]}"{nearest(argv[0], VERBS)}')
    args, rest = parser.parse_known_args(argv or ["--help"])
    for word in rest:  # argparse gives up on positional arguments that stand after an option
        if word.startswith("-") or not hasattr(args, "words"):
            raise UserError(f"unknown argument {word!r}")
        args.words = [*args.words, word]
    return args


def _row(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _table(result: Mapping[str, Any]) -> Output:
    """A result, and the lines people read: `dotted.key  value`."""
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


def _json(value: Any) -> Any:
    """JSON knows no NaN and no infinity; they become null."""
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
