"""`make mutate`: single changes of the product's code, and whether the tests that execute the changed line notice.

    python -m tests.fuzz.mutants --number 300 --seed 0 [--only mmdiff/data/stream.py] [--without mmdiff/samplers]

cosmic-ray makes the mutants: a comparison, an arithmetic operator, a number, a truth value, `and` / `or`, `not`.
A mutant exists in the memory of one process only; what was found is written below build/mutants/, so that it may be
stopped and resumed. `--again` judges those that lived once more, after new tests. Exit code 1 when fewer than 95 % are
noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.noticing import ROOT, digest, judges, measured, noticed

FOUND = ROOT / "build" / "mutants"
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
WANTED = 0.95

IMPORTED = (  # what every process would import again
    "accelerate",
    "matplotlib.pyplot",
    "peft",
    "PIL.Image",
    "safetensors.torch",
    "scipy.stats",
    "tensorboard.compat.proto.event_pb2",
    "timm",
    "torch.utils.tensorboard",
    "torchvision",
    "transformers.models.esm.modeling_esm",
    "transformers.models.llama.modeling_llama",
)

Mutant = tuple[str, str, int]  # module, operator, occurrence


def mutants(only: list[str] | None, without: list[str]) -> dict[tuple[str, str], list[Mutant]]:
    """All mutants by (module, family)."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    paths = [ROOT / name for name in only or MODULES]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    for file in sorted(set(files)):
        module = str(file.relative_to(ROOT))
        if module.startswith(tuple(without)):
            continue
        nodes = list(ast_nodes(get_ast(file.read_text(encoding="utf-8"))))
        for name in operator_names():
            family = next((f for f, start in FAMILIES.items() if name.startswith(f"core/{start}")), None)
            if family is None or any(part in name for part in LEFT_OUT):
                continue
            operator = get_operator(name)()
            count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            found[module, family] += [(module, name, i) for i in range(count)]
    return {key: value for key, value in found.items() if value}


def drawn(all_of: dict[tuple[str, str], list[Mutant]], seed: int) -> Iterator[Mutant]:
    """Yields mutants without repetition: a module and family first, for one comparison has many replacements."""
    dice, left = Random(seed), {key: list(value) for key, value in all_of.items()}
    while left:
        key = dice.choice(sorted(left))
        yield left[key].pop(dice.randrange(len(left[key])))
        if not left[key]:
            del left[key]


def compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def source_of(mutant: Mutant) -> tuple[str, int, str]:
    """The mutated source, the number of the line that changed, and both forms of it."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    module, operator, occurrence = mutant
    before = (ROOT / module).read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(operator)(), occurrence)
    assert after is not None
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    line, a, b = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
    return after, line, f"line {line}: {a.strip()} -> {b.strip()}"


def kept(file: Path) -> dict[str, dict[str, Any]]:
    """What was found already, by mutant and module's digest; of several lines the last one."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {(entry := json.loads(line))["key"]: entry for line in lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a file or folder; may be given again")
    parser.add_argument("--without", action="append", default=[], help="a file or folder; may be given again")
    parser.add_argument("--seconds", type=float, default=45, help="of tests, that judge a mutant")
    parser.add_argument("--again", action="store_true", help="judge those that lived once more")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            import_module(name)
    torch = import_module("torch")
    torch.set_num_threads(1)
    gc.freeze()
    FOUND.mkdir(parents=True, exist_ok=True)
    file = FOUND / "judged.jsonl"
    reach, before = measured(FOUND / "reach.jsonl"), kept(file)
    failing = [name for name, entry in reach.items() if not entry["passes"]]
    lived: list[str] = []
    count = 0
    for module, operator, occurrence in drawn(mutants(given.only, given.without), given.seed):
        if count == given.number:
            break
        key = f"{module}@{digest(module)} {operator} {occurrence}"
        entry = before.get(key)
        if entry is None or given.again and not entry["noticed"]:
            source, line, what = source_of((module, operator, occurrence))
            if not compiles(source):
                continue
            files = judges(module, line, reach, given.seconds)
            entry = {"key": key, "what": what, "noticed": noticed(module, source, files, reach), "files": len(files)}
            with open(file, "a") as handle:
                handle.write(json.dumps(entry) + "\n")
            seen = entry["noticed"] or f"LIVED through {len(files)} files"
            print(f"{count + 1}/{given.number} {seen}: {module} {entry['what']}", file=sys.stderr, flush=True)
        count += 1
        lived += [] if entry["noticed"] else [f"{module} {entry['what']}"]
    share = 1 - len(lived) / max(1, count)
    found = {"mutants": count, "noticed": count - len(lived), "share": round(share, 4), "lived": lived}
    left_out = [f"not asked, since they fail as it is: {', '.join(failing)}"] if failing else []
    text = "\n".join([f"{count} mutants, {share:.1%} noticed", *lived, *left_out])
    print(json.dumps({**found, "failing": failing}) if given.json else text)
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
