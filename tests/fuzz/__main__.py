"""`make fuzz`: mutations of everything that the product reads, and a table of what came of them.

    python -m tests.fuzz --number 2000 --seed 0 [--only "saved model"] [--report file.md] [--json]

Each trial is determined by the seed, the subject and its number, which a fault repeats. Exit code 1 after a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent.parent, HERE.parent / "support"):
    sys.path.insert(0, str(folder))

from tests.fuzz.judge import Subject, Verdict, log, trial  # noqa: E402
from tests.fuzz.subjects import SUBJECTS  # noqa: E402

KINDS = ("refused", "unaffected", "different", "fault")


def fuzz(subject: Subject, number: int, seed: int, home: Path, first: int = 0) -> list[tuple[int, Verdict]]:
    """The verdicts of `number` trials of one subject."""
    pristine, copy = home / "pristine", home / "trial"
    pristine.mkdir()
    subject.make(pristine)
    verdict, undamaged = trial(subject, pristine, copy, None)
    assert verdict.kind == "unaffected", f"{subject.name}, undamaged: {verdict}"
    out = []
    for i in range(first, first + number):
        verdict, _ = trial(subject, pristine, copy, Random(f"{seed}/{subject.name}/{i}"), undamaged)
        out.append((i, verdict))
        if verdict.kind == "fault":
            log(f"FAULT {subject.name} {i}: {verdict.what}: {verdict.why}")
    return out


def table(found: dict[str, Counter[str]]) -> str:
    lines = [
        "| what | tried | refused in one line | same result | another result | faulty |",
        "|---|---|---|---|---|---|",
    ]
    total = sum(found.values(), Counter())
    for name, counts in [*found.items(), ("all", total)]:
        cells = [name, str(sum(counts.values())), *(str(counts[kind]) for kind in KINDS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=2000, help="trials in all, shared evenly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first trial of each subject")
    parser.add_argument("--only", action="append", help="a subject by name; may be given again")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    given = parser.parse_args()
    chosen = [s for s in SUBJECTS if not given.only or s.name in given.only]
    if not chosen:
        parser.error(f"no subject {given.only}, expected {', '.join(s.name for s in SUBJECTS)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="mmdiff-fuzz-") as home:
        os.environ["XDG_CONFIG_HOME"] = str(Path(home) / "home")
        sys.path.insert(0, str(HERE / "payloads"))  # what a hostile folder names
        for n, subject in enumerate(chosen):
            own = Path(home) / str(n)
            own.mkdir()
            number = given.number // len(chosen) + (n < given.number % len(chosen))
            found[subject.name] = Counter(v.kind for _, v in fuzz(subject, number, given.seed, own, given.first))
            log(f"{subject.name}: {dict(found[subject.name])}")
    print(json.dumps({name: dict(counts) for name, counts in found.items()}) if given.json else table(found))
    return 1 if any(counts["fault"] for counts in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
