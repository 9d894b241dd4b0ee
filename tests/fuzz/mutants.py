"""`make mutate`: single changes of the product's code, and whether the tests that name the module notice them.

    python -m tests.fuzz.mutants --number 300 --seed 0 [--only mmdiff/data/stream.py] [--json]

cosmic-ray makes the mutants: a comparison, an arithmetic operator, a number, a truth value, `and` / `or`, `not`.
A mutant exists in the memory of one process only, no file is written. Exit code 1 when fewer than 95 % are noticed.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    "mmdiff/canvas",
    "mmdiff/data",
    "mmdiff/diffusion",
    "mmdiff/model",
    "mmdiff/objectives",
    "mmdiff/samplers",
    "mmdiff/runs",
    "mmdiff/training",
    "mmdiff/backbones",
    "mmdiff/connectors",
    "mmdiff/evaluation/evaluate.py",
    "tasks/vqa/metrics.py",
    "tasks/vqa/captions.py",
    "tasks/protein/score",
    "tasks/protein/data/markov.py",
    "tasks/protein/data/alignments.py",
    "tasks/vla/codecs",
]
FAMILIES = {
    "comparison": "ReplaceComparisonOperator_",
    "arithmetic": "ReplaceBinaryOperator_",
    "number": "NumberReplacer",
    "truth": "ReplaceTrueWithFalse",
    "untruth": "ReplaceFalseWithTrue",
    "and": "ReplaceAndWithOr",
    "or": "ReplaceOrWithAnd",
    "not": "AddNot",
}
LEFT_OUT = ("_BitOr", "_BitAnd", "_BitXor", "RShift", "LShift", "_Is", "Is_", "IsNot")  # types, sets, `is None`
SECONDS = 240
WANTED = 0.95

Mutant = tuple[str, str, int]  # module, operator, occurrence


def mutants(only: list[str] | None) -> dict[tuple[str, str], list[Mutant]]:
    """All mutants by (module, family)."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    paths = [ROOT / name for name in only or MODULES]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    for file in sorted(set(files)):
        module = str(file.relative_to(ROOT))
        nodes = list(ast_nodes(get_ast(file.read_text(encoding="utf-8"))))
        for name in operator_names():
            family = next((f for f, start in FAMILIES.items() if name.startswith(f"core/{start}")), None)
            if family is None or any(part in name for part in LEFT_OUT):
                continue
            operator = get_operator(name)()
            count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            found[module, family] += [(module, name, i) for i in range(count)]
    return {key: value for key, value in found.items() if value}


def drawn(all_of: dict[tuple[str, str], list[Mutant]], number: int, seed: int) -> list[Mutant]:
    """Mutants without repetition: a module and family first, for one comparison has many replacements."""
    dice, left = Random(seed), {key: list(value) for key, value in all_of.items()}
    out: list[Mutant] = []
    while left and len(out) < number:
        key = dice.choice(sorted(left))
        out.append(left[key].pop(dice.randrange(len(left[key]))))
        if not left[key]:
            del left[key]
    return out


def source_of(mutant: Mutant) -> tuple[str, str]:
    """The mutated source, and the line that changed."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    module, operator, occurrence = mutant
    before = (ROOT / module).read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(operator)(), occurrence)
    assert after is not None
    for i, (a, b) in enumerate(zip(before.splitlines(), after.splitlines(), strict=False)):
        if a != b:
            return after, f"line {i + 1}: {a.strip()} -> {b.strip()}"
    return after, "no line differs"


def tests_of(module: str) -> list[str]:
    """The test files that name a module, that of its own name first; those of its room where none does."""
    dotted = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    dotted = dotted if dotted.startswith("mmdiff.") else f"mmdiff.{dotted}"
    package, _, name = dotted.rpartition(".")
    files = [f for f in sorted((ROOT / "tests").rglob("test_*.py")) if not {"fuzz", "house"} & set(f.parts)]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    naming = [f for f, t in texts.items() if dotted in t or f"from {package} import" in t and name in t]
    own = [f for f in texts if f.name == f"test_{name}.py"]
    room = module.split("/")[1] if module.startswith("mmdiff") else module.split("/")[-2]
    chosen = list(dict.fromkeys([*own, *naming])) or [f for f in texts if room in f.parts]
    return [str(f) for f in chosen]


def noticed(module: str, source: str | None) -> bool:
    """Whether the tests fail with this source of a module. None: the module as it is."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.chdir(ROOT)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        path, whole = str(ROOT / module), importlib.machinery.SourceFileLoader.get_code

        def get_code(self: Any, name: str) -> Any:
            if source is not None and os.path.realpath(self.path) == path:
                return compile(source, path, "exec")
            return whole(self, name)

        importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests_of(module)])))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a file or folder; may be given again")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import accelerate  # noqa: F401  what every process would import again
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    chosen = drawn(mutants(given.only), given.number, given.seed)
    lived: list[str] = []
    sound: dict[str, bool] = {}
    for i, mutant in enumerate(chosen):
        module = mutant[0]
        if module not in sound:
            sound[module] = not noticed(module, None)
        if not sound[module]:
            print(f"{module}: its tests fail without a mutation", file=sys.stderr)
            return 2
        source, what = source_of(mutant)
        seen = noticed(module, source)
        lived += [] if seen else [f"{module} {what}"]
        print(f"{i + 1}/{len(chosen)} {'noticed' if seen else 'LIVED'}: {module} {what}", file=sys.stderr, flush=True)
    share = 1 - len(lived) / max(1, len(chosen))
    found = {"mutants": len(chosen), "noticed": len(chosen) - len(lived), "share": round(share, 4), "lived": lived}
    print(json.dumps(found) if given.json else "\n".join([f"{len(chosen)} mutants, {share:.1%} noticed", *lived]))
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
