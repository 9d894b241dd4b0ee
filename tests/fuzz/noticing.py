"""Which test files execute a line of the product, and whether they notice another source of its module.

Every test file is run once in a process of its own under coverage, which gives its lines and its seconds. A mutant is
then judged by the files that execute its line, until one fails: that of the module's name first where it is quick, then
the quickest, up to a bound.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.machinery
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider"]
MEMORY = 8 << 30  # bytes of a process: a mutant may ask for any amount
GRACE = 30  # seconds of the CPU beside those of the tests, before a mutant is one that hangs

Measured = dict[str, dict[str, Any]]
"""By test file: its digest, whether it passes, its seconds, and its lines by module."""


def test_files() -> list[str]:
    found = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "tests").rglob("test_*.py"))
    return [f for f in found if not f.startswith(("tests/fuzz/", "tests/house/"))]


def measured(kept: Path) -> Measured:
    """Measure the test files that are not in the file `kept`, or are others there."""
    found: Measured = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            entry = json.loads(line)
            found[entry["file"]] = entry
    todo = [file for file in test_files() if found.get(file, {}).get("digest") != digest(file)]
    for i, file in enumerate(todo):
        part = kept.with_name("lines.json")
        part.unlink(missing_ok=True)
        code, seconds = in_a_process(lambda file=file, part=part: _under_coverage(file, part), 1800)
        lines = json.loads(part.read_text()) if part.exists() else {}
        entry = {"file": file, "digest": digest(file), "passes": code == 0, "seconds": round(seconds, 2)}
        found[file] = {**entry, "lines": lines}
        with open(kept, "a") as handle:
            handle.write(json.dumps(found[file]) + "\n")
        _say(f"measured {i + 1}/{len(todo)}: {file}, {seconds:.1f} s{'' if code == 0 else f', FAILS ({code})'}")
    return {file: found[file] for file in test_files()}


def digest(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:12]


def judges(module: str, line: int, reach: Measured, most: float) -> list[str]:
    """The test files that judge a change of a line, which take `most` seconds together, or are one.

    Of a line that runs on import (a constant, the head of a function), those that enter what it belongs to: the
    function, the methods of the class, or the functions of the module.
    """
    homes = _homes(ast.parse((ROOT / module).read_text(encoding="utf-8")), line)
    files = next((found for lines in homes if (found := _hits(module, lines, reach))), [])
    own = f"test_{Path(module).stem}.py"
    chosen: list[str] = []
    total = 0.0
    for file in sorted(files, key=lambda f: reach[f]["seconds"] / (4 if Path(f).name == own else 1)):
        total += reach[file]["seconds"]
        if chosen and total > most:
            break
        chosen.append(file)
    return chosen


def noticed(module: str, source: str, files: list[str], reach: Measured) -> str | None:
    """How the test files notice this source of a module; None when they do not."""
    if not files:
        return None
    seconds = sum(reach[file]["seconds"] for file in files)
    code, _ = in_a_process(lambda: _with_source(module, source, files), GRACE + 3 * seconds)
    return None if code == 0 else "a test fails" if code in (1, 2) else f"exit code {code}"


def in_a_process(body: Callable[[], int], seconds: float) -> tuple[int, float]:
    """The exit code of `body` in a forked process without output, and the seconds that it took of the CPU."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.chdir(ROOT)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        tqdm.set_lock(threading.RLock())  # its own is shared by all processes, and one is killed that holds it
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        os._exit(body())
    end = time.monotonic() + 60 + 10 * seconds  # asleep, or waiting for another
    while time.monotonic() < end:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it started
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL, seconds


def _pytest(files: Iterable[str], *plugins: object) -> int:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # one of them minds that its package is imported already
    import pytest

    return int(pytest.main([*OPTIONS, *files], plugins=list(plugins)))


def _under_coverage(file: str, out: Path) -> int:
    from coverage import Coverage

    cover = Coverage(data_file=None, config_file=False, include=[f"{ROOT}/mmdiff/*", f"{ROOT}/tasks/*"], messages=False)

    class Lines:
        """From behind the imports of the test file on."""

        def pytest_collection_finish(self) -> None:
            cover.start()

        def pytest_sessionfinish(self) -> None:
            cover.stop()
            data = cover.get_data()
            lines = {os.path.relpath(f, ROOT): sorted(data.lines(f) or []) for f in data.measured_files()}
            out.write_text(json.dumps(lines))

    return _pytest([file], Lines())


def _with_source(module: str, source: str, files: list[str]) -> int:
    path, whole = str(ROOT / module), importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, name: str) -> Any:
        if os.path.realpath(self.path) == path:
            return compile(source, path, "exec")
        return whole(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    return _pytest(files)


def _hits(module: str, lines: set[int], reach: Measured) -> list[str]:
    """The files that execute one of the lines of a module."""
    return [f for f, entry in reach.items() if entry["passes"] and lines.intersection(entry["lines"].get(module, []))]


def _homes(tree: ast.Module, line: int) -> Iterable[set[int]]:
    """Sets of lines, ever larger; lines that run on import are in none but the last."""
    bodies = [_lines(n.body) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and line in _lines([n], heads=True)]
    around.sort(key=lambda n: len(_lines([n])))
    if any(line in body for body in bodies):
        yield {line}
        yield _lines(around[:1])
    for node in around:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield set().union(*(body for body in bodies if body <= _lines([node])))
    yield set().union(*bodies)
    yield set(range(1, 1 << 16))


def _lines(nodes: Sequence[Any], *, heads: bool = False) -> set[int]:
    """The lines of statements. heads: with their decorators."""
    first = min(n.lineno for n in nodes)
    if heads:
        first = min([first, *(d.lineno for n in nodes for d in getattr(n, "decorator_list", []))])
    return set(range(first, nodes[-1].end_lineno + 1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
