"""Whether models still learn: every demonstration that runs on two CPU cores, its figures, and what they must reach.

    make figures                                   # all: about an hour
    python benchmarks/figures.py vqa text --json figures.json

Each demonstration is run by its command in the working folder, so finished runs are taken as they are (`--fresh`
trains them anew). Thresholds stand between what was measured (docs/) and what a model reaches that does not learn.
Exits 1 where a figure misses its threshold, or a command fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kit import Options, write_figures


@dataclass(frozen=True)
class Figure:
    """One figure of a demonstration. path: its keys in the JSON, as in `a.b`; sign: ">=" or "<=" the threshold."""

    path: str
    sign: str
    threshold: float


@dataclass(frozen=True)
class Demo:
    """commands: what is run one after another; the last one prints the figures as JSON on its last line.

    script: of this folder, which is run in place of `mmdiff`.
    """

    commands: tuple[tuple[str, ...], ...]
    figures: tuple[Figure, ...]
    script: str | None = None


def demo(name: str, *figures: Figure) -> Demo:
    return Demo((("demo", name, "--json"),), figures)


def own(name: str, *figures: Figure) -> Demo:
    return Demo(((name,),), figures, "own.py")


REACHES = (
    Figure("success", ">=", 0.97),
    Figure("swapped", "<=", 0.2),
    Figure("no_image", "<=", 0.2),
    Figure("expert", ">=", 0.99),
)
DEMOS = {
    "vqa": demo(
        "vqa",
        Figure("overall", ">=", 0.95),
        Figure("heldout", ">=", 0.8),  # from machine to machine .88 to .99
        Figure("shuffled", "<=", 0.35),
        Figure("blank", "<=", 0.35),
        Figure("language_only", "<=", 0.4),
    ),
    "asr": demo(
        "asr",
        Figure("standalone.clean", "<=", 10),
        Figure("deliberation.clean", "<=", 10),
        Figure("deliberation.noisy", "<=", 22),
        Figure("text_only.clean", ">=", 40),
        Figure("shuffled_audio.clean", ">=", 60),
    ),
    "protein": demo(
        "protein",
        Figure("accuracy.15", ">=", 0.7),
        Figure("accuracy.50", ">=", 0.55),
        Figure("bound", "<=", 1.5),
        Figure("jsd1", "<=", 0.002),
        Figure("motif_kept", ">=", 1),
    ),
    "vla": demo(
        "vla",
        Figure("success", ">=", 0.9),
        Figure("faucets", ">=", 0.9),
        Figure("swapped", "<=", 0.2),
        Figure("no_image", "<=", 0.2),
        Figure("expert", ">=", 0.95),
    ),
    "text": demo(
        "text",
        Figure("bound_bpb", "<=", 3.05),
        Figure("causal_bpb", "<=", 2.15),
        Figure("unigram_bpb", ">=", 3.3),
    ),
    "vqa-own": own(
        "vqa",
        Figure("overall", ">=", 0.97),
        Figure("shape", ">=", 0.97),
        Figure("colour", ">=", 0.97),
        Figure("shuffled", "<=", 0.6),  # four in six ask for yes or no
    ),
    "asr-own": own("asr", Figure("wer", "<=", 3), Figure("shuffled", ">=", 50)),
    "protein-own": own("protein", Figure("learned", ">=", 0.97)),
    "protein-own-families": own("families", Figure("learned", ">=", 0.955), Figure("named", ">=", 0.99)),
    "vla-own": own("vla", *REACHES),
    "vla-reach": own("reach", *REACHES),
}


def value_at(out: dict[str, Any], path: str) -> float:
    """Returns the number at a path, NaN where there is none."""
    found = reduce(lambda at, key: at.get(key) if isinstance(at, dict) else None, path.split("."), out)
    return float(found) if isinstance(found, int | float) else float("nan")


def holds(value: float, figure: Figure) -> bool:
    """Whether a figure meets its threshold; what is not a number does not."""
    return value >= figure.threshold if figure.sign == ">=" else value <= figure.threshold


def measured(demo: Demo, *, fresh: bool = False) -> tuple[dict[str, Any], str]:
    """Returns the figures of a demonstration, and why there are none ("" where there are)."""
    out = ""
    for command in demo.commands:
        extra = ["--fresh"] if fresh and (demo.script or command[0] in ("demo", "train")) else []
        program = ["-m", "mmdiff"] if demo.script is None else [str(Path(__file__).parent / demo.script)]
        done = subprocess.run([sys.executable, *program, *command, *extra], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return {}, f"`{demo.script or 'mmdiff'} {' '.join(command)}` ended with exit code {done.returncode}"
        out = done.stdout
    try:
        found = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}, "no JSON on the last line"
    return found, ""


def main() -> int:
    options = Options(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DEMOS)}; all where none is named")
    options.add_argument("--fresh", action="store_true", help="move finished runs aside and train them anew")
    given = options.parse_args()
    if unknown := [name for name in given.names if name not in DEMOS]:
        options.error(f"{unknown[0]!r}: not one of {', '.join(DEMOS)}")
    table: list[dict[str, Any]] = []
    for name in given.names or DEMOS:
        start = time.perf_counter()
        found, fault = measured(DEMOS[name], fresh=given.fresh)
        seconds = round(time.perf_counter() - start, 1)
        if fault:
            print(f"{name}: {fault}", file=sys.stderr)
        for figure in DEMOS[name].figures:
            value = value_at(found, figure.path)
            ok = holds(value, figure)
            table.append({"demo": name, **asdict(figure), "value": value if ok or value == value else None, "ok": ok})
            print(
                f"{name:8} {figure.path:24} {value:9.4f} {figure.sign} {figure.threshold:<7g} {'' if ok else 'MISSED'}"
            )
        print(f"{name:8} {seconds:.0f} s", flush=True)
    write_figures({"figures": table}, given.json)
    return 0 if all(row["ok"] for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
