"""The command line: one function a verb, a line or two over the Python interface each; its docstring is its help.

A verb returns what it found twice: as one JSON object (`--json` prints it on the last line of stdout) and as text for
people. Progress and tables go to stderr. What a person can put right ends in one line on stderr and exit code 2.

A task brings verbs of its own, see `mmdiff.commands.arguments`.
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
from typing import Any

from mmdiff.errors import ConfigError, UserError

from .arguments import Output, Verb, parse, row_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake in what was asked for, 130 interrupted."""
    try:
        verb, args = parse(sys.argv[1:] if argv is None else list(argv), VERBS)
        result, text = verb.run(args)
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
    from mmdiff.config import load_config, to_yaml

    resolved = load_config(args.name, args.words)
    return asdict(resolved), to_yaml(resolved).rstrip()


def ls(args: argparse.Namespace) -> Output:
    """list the packaged configurations"""
    from mmdiff.config import packaged

    found = {}
    for name in packaged():
        first, _, _ = (files("mmdiff.configs") / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
        found[name] = first.removeprefix("#").strip() if first.startswith("#") else ""
    width = max(map(len, found), default=0)
    return {"configs": found}, "\n".join(f"{name:{width}}  {line}".rstrip() for name, line in found.items())


def check(args: argparse.Namespace) -> Output:
    """build a configuration at toy size and run each of its stages for a few steps"""
    from mmdiff.config import load_config

    from .check import check as run

    return table(run(load_config(args.name, args.words), progress=_say))


def train(args: argparse.Namespace) -> Output:
    """train a configuration, or go on with its run"""
    from mmdiff.config import load_config
    from mmdiff.training.train import train as run

    return table(run(load_config(args.name, args.words), fresh=args.fresh))


def evaluate(args: argparse.Namespace) -> Output:
    """score a run on its held-out rows"""
    from mmdiff.evaluation.evaluate import evaluate_run

    return table(evaluate_run(args.name, args.words))


def sweep(args: argparse.Namespace) -> Output:
    """score a run for every combination of some settings, as one table and one plot"""
    from mmdiff.evaluation.sweep import read_axes
    from mmdiff.evaluation.sweep import sweep as run
    from mmdiff.evaluation.sweep_report import label

    axes = read_axes(args.axis)
    result = run(args.name, axes, args.words, name=args.sweep, metric=args.metric, fresh=args.fresh)
    metric, lines = result["metric"], result["cells"]
    shown = {f"{label(line['cell'], axes)} {line['set']}": line["figures"].get(metric) for line in lines}
    return result, table({"metric": metric, **shown, "report": result["report"]})[1]


def generate(args: argparse.Namespace) -> Output:
    """answer one row with a run: image=cat.jpg question="..." state:=[0.1,0.2] sampler.steps=4"""
    row, overrides = row_of(args.words)
    from mmdiff.session import load

    return table(load(args.name, *overrides).predict(row))


def demo(args: argparse.Namespace) -> Output:
    """run a demonstration from beginning to end"""
    from mmdiff.config import load_config, locate

    resolved = load_config(f"{args.name}-demo", args.words)
    if resolved.demo is None:
        raise ConfigError(f"demo: {args.name}-demo does not say what to run, expected a dotted path")
    return table(locate(resolved.demo, "demo")(resolved, fresh=args.fresh))


# Arguments


def _on(what: str, *more: Callable[[argparse.ArgumentParser], None]) -> Callable[[argparse.ArgumentParser], None]:
    """NAME key=value ..., and more."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", metavar="RUN" if what == RUN else "NAME", help=what)
        parser.add_argument(
            "words", metavar="key=value", nargs="*", default=[], help="settings by dotted key, values in YAML"
        )
        for other in more:
            other(parser)

    return add


def _fresh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="start again, not from where it stopped")


def _axes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--axis", metavar="key=[a,b]", action="append", required=True, help="a key and its values; may be given again"
    )
    parser.add_argument("--metric", help="the figure that is plotted (default: the first)")
    parser.add_argument("--name", dest="sweep", metavar="NAME", help="runs/<run>/sweeps/NAME (default: from the keys)")


CONFIG, RUN = "a packaged name, a .yaml file or a run folder", "a run folder"
VERBS: dict[str, Verb] = {
    "config": Verb(config, _on(CONFIG)),
    "ls": Verb(ls),
    "check": Verb(check, _on(CONFIG)),
    "train": Verb(train, _on(CONFIG, _fresh)),
    "eval": Verb(evaluate, _on(RUN)),
    "sweep": Verb(sweep, _on(RUN, _axes, _fresh)),
    "generate": Verb(generate, _on(RUN)),
    "demo": Verb(demo, _on("NAME of a packaged NAME-demo", _fresh)),
}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(result: Mapping[str, Any]) -> Output:
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
