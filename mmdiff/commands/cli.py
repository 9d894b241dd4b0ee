"""The command line: one function per verb, a line or two over the Python interface each; its docstring is its help.

A verb returns what it found twice: as one JSON object (`--json` prints it on the last line of stdout) and as text for
people. Progress and tables go to stderr. What a person can put right ends in one line on stderr and exit code 2.

A task brings verbs of its own, see `mmdiff.commands.arguments`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from mmdiff.errors import ConfigError, UserError, nearest
from mmdiff.files import infinite_in, without_nan

from .arguments import FAILED, AtLeast1, Output, Verb, parse, row_of, table
from .chat import chat
from .ending import Signals, Stopped, one_line_errors, speaks
from .experiments import VERBS as EXPERIMENTS
from .serve import serve
from .sharing import VERBS as SHARING
from .start.completion import candidates, script_of
from .terminal import loading_logged, log, silence_other_packages

LONGEST = 1200
"""Most characters of an error line: a value of any length may stand in it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 where a part of the work failed and its result says which, or a
    figure is infinite, 2 a mistake in what was asked for or a file that cannot be read or written, 130 interrupted, 143
    terminated."""
    words = sys.argv[1:] if argv is None else list(argv)
    silence_other_packages()
    with Signals(whole_process=argv is None) as signals:
        try:
            try:
                with nullcontext() if {"--help", "-h"} & set(words) else loading_logged(words), one_line_errors():
                    call, as_json = parse(words, VERBS)
                    result, text = call()
                if signals.received:
                    raise Stopped
            except BaseException as error:
                if signals.received or isinstance(error, KeyboardInterrupt):  # whatever became of it on its way
                    raise Stopped from None
                if not isinstance(error, UserError):
                    raise
                if speaks():
                    line = " ".join(str(error).split())
                    line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 4 :]}"
                    print(f"mmdiff: error: {line}", file=sys.stderr)
                return 2
        except Stopped:  # it may have come while an error was being dealt with
            signals.say()
            return signals.code
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process gets here
        try:
            print(json.dumps(without_nan(result), default=str) if as_json else text, flush=True)
        except BrokenPipeError:  # `mmdiff config x | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if infinite := infinite_in(result):
        print(f"mmdiff: error: {infinite} is infinite: no figure of a model that works", file=sys.stderr)
    return 1 if result.get(FAILED) or infinite else 0


def config(name: str, /, *words: str) -> Output:
    """Print a configuration with its bases, overrides and defaults filled in.

    Args:
        name: a packaged name, a .yaml file or a run folder.
        words: settings as dotted.key=value, the value in YAML.
    """
    from mmdiff.config import check_nodes, load_config, to_yaml

    resolved = load_config(name, words)
    check_nodes(resolved, importing=False)  # torch takes seconds to import
    return asdict(resolved), to_yaml(resolved).rstrip()


def ls() -> Output:
    """List the packaged configurations."""
    from mmdiff.config import packaged

    found = {name: head_of(name) for name in packaged()}
    return {"configs": found}, listed(found)


def head_of(name: str) -> str:
    """Returns the first line of a packaged configuration, which says what it is."""
    first, _, _ = (files("mmdiff.configs") / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def listed(lines: Mapping[str, str]) -> str:
    """Returns names with a line each, for people."""
    width = max(map(len, lines), default=0)
    return "\n".join(f"{name:{width}}  {line}".rstrip() for name, line in lines.items())


def inspect(
    folder: str, /, *, length: AtLeast1 | None = None, batch: AtLeast1 = 1, rank: AtLeast1 = 8, dtype: str | None = None
) -> Output:
    """Show what a folder with a model is, and the memory it takes; no weight is read and no code is run.

    Args:
        folder: a folder as published, a run, a saved model or a hub id in the cache.
        length: positions of a canvas (default: the context length, at most 4096).
        batch: canvases of a forward.
        rank: rank of LoRA factors.
        dtype: of the weights in memory: float32 | bfloat16 | float16 | float64 (default: that of the files).
    """
    from mmdiff.sharing.inspection.inspect import inspect as look
    from mmdiff.sharing.inspection.text import as_text

    found = look(folder, length=length, batch=batch, rank=rank, dtype=dtype)
    return found, as_text(found)


def card(
    run: str,
    /,
    *,
    out: Path | None = None,
    licence: str | None = None,
    medical: bool = False,
    reported: Path | None = None,
) -> Output:
    """Write a model card, README.md beside the weights, of what is known of a run or a saved model.

    Args:
        run: a run, a checkpoint in it or a saved model.
        out: another file; a card that a person edited is not overwritten.
        licence: its identifier on the hub, such as apache-2.0.
        medical: with the items of MI-CLAIM-GEN, as far as they are known; the others are named.
        reported: a YAML file with items that you answer, {problem: ..., tier: 2B}.
    """
    from mmdiff.files import make_folder, output_file
    from mmdiff.sharing.card import missing_of, write_card

    make_folder("--out", output_file("--out", out))
    file = write_card(run, out=out, licence=licence, medical=medical, reported=reported)
    if not medical:
        return {"card": str(file)}, str(file)
    missing = missing_of(file)
    log(f"not reported, or in part: {', '.join(missing) or 'nothing'}")
    return {"card": str(file), "missing": missing}, str(file)


def check(name: str, /, *words: str) -> Output:
    """Build a configuration at toy size and run each of its stages for a few steps.

    Args:
        name: a packaged name, a .yaml file or a run folder.
        words: settings as dotted.key=value, the value in YAML.
    """
    from mmdiff.config import load_config

    resolved = load_config(name, words)  # before torch is imported: a slip need not wait for it
    from .check import check as run

    return table(run(resolved, progress=log))


def evaluate(run: str, /, *words: str) -> Output:
    """Score a run on its held-out rows.

    Args:
        run: a run folder.
        words: settings as dotted.key=value, the value in YAML.
    """
    from mmdiff.evaluation.evaluate import evaluate_run

    return table(evaluate_run(run, words))


def generate(run: str, /, *words: str, stream: bool = False) -> Output:
    """Answer one row with a run: image=cat.jpg question="..." state:=[0.1,0.2] sampler.steps=4.

    Args:
        run: a run, a checkpoint in it or a saved model.
        words: fields of the row as key=text or key:=JSON, and settings as dotted.key=value.
        stream: show the canvas after each step; `░` is a masked position.
    """
    row, overrides = row_of(words)
    from mmdiff.session import load

    return table(load(run, *overrides).predict(row, stream=sys.stderr if stream else None))


def demo(name: str = "", /, *words: str, fresh: bool = False) -> Output:
    """Run a demonstration from beginning to end; without a name, list them.

    Args:
        name: NAME of a packaged NAME-demo.
        words: settings as dotted.key=value, the value in YAML.
        fresh: start again instead of resuming.
    """
    from mmdiff.config import load_config, locate, packaged

    demos = [found.removesuffix("-demo") for found in packaged() if found.endswith("-demo")]
    if not name:
        heads = {found: head_of(f"{found}-demo") for found in demos}
        return {"demonstrations": heads}, listed(heads)
    if name not in demos:
        raise UserError(f'no demonstration "{name}"{nearest(name, demos)}')
    resolved = load_config(f"{name}-demo", words)
    if resolved.demo is None:
        raise ConfigError(f"demo: {name}-demo does not say what to run, expected a dotted path")
    return table(locate(resolved.demo, "demo")(resolved, fresh=fresh))


def completion(shell: str, /, *line: str) -> Output:
    """Print the script that completes commands in a shell: source <(mmdiff completion bash).

    Args:
        shell: bash, zsh or fish; words is what the scripts call.
        line: behind words, the command as far as the cursor.
    """
    if shell != "words":
        text = script_of(shell)
        return {"shell": shell, "script": text}, text.rstrip()
    try:
        found = candidates(" ".join(line), VERBS)
    except (UserError, OSError, ImportError):  # nobody asked for an error
        found = []
    return {"words": found}, "\n".join(found)


VERBS: dict[str, Verb] = {
    "config": config,
    "ls": ls,
    "inspect": inspect,
    "card": card,
    **SHARING,
    "check": check,
    **EXPERIMENTS,
    "eval": evaluate,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "demo": demo,
    "completion": completion,
}
