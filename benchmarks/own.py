"""Recipes for one's own data, on data whose right answers are known: made here, read as a stranger's.

    python benchmarks/own.py protein               # 3,000 sequences as a FASTA file, then `mmdiff train protein-own`
    python benchmarks/own.py vla                   # 1,200 episodes as a LeRobot folder, then `mmdiff train vla-own`

The last line is JSON. Data and runs lie under `runs/` of the working folder, and finished ones are kept (`--fresh`).
`learned` of the sequences: how far the bound on -log p of held-out ones has come from that of their composition to the
exact one. Of the robot: success in layouts it was not shown, with its instruction, another one, and grey pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.config import build, load_config
from mmdiff.session import load
from mmdiff.training.train import train

RUNS = Path("runs")
SEQUENCES, EPISODES = 3000, 400  # episodes: of each task
TASKS = ["reach-red", "reach-green", "reach-blue"]
LAYOUTS = 30  # of each task, of seeds from 0 on; demonstrations have seeds from 1000 on


def protein(fresh: bool) -> dict[str, Any]:
    from mmdiff.tasks.protein.data.alignments import background
    from mmdiff.tasks.protein.data.fasta import write_fasta
    from mmdiff.tasks.protein.data.markov import Subfamilies
    from mmdiff.tasks.protein.data.records import Record
    from mmdiff.tasks.protein.evaluate.evaluate import bound_per_residue
    from mmdiff.tasks.protein.residues import CANONICAL

    law, file = Subfamilies(1), RUNS / "own-sequences.fasta"
    RUNS.mkdir(exist_ok=True)
    if not file.exists():
        write_fasta(file, (Record(f"s{i}", "drawn", s) for i, (s, _) in enumerate(law.draw(SEQUENCES))))
    config = load_config("protein-own", [f"train.stages.fit.data.path={file}"])
    start = time.process_time()
    train(config, fresh=fresh)
    seconds = time.process_time() - start
    stage = config.train.stages["fit"]
    known, rows = (list(build(node, where="rows")) for node in (stage.data, stage.eval))
    test = [row["sequence"] for row in rows]
    residues = sum(map(len, test))
    shares = dict(zip(CANONICAL, background([row["sequence"] for row in known]), strict=True))
    unigram = -sum(float(np.log(shares[letter])) for s in test for letter in s) / residues
    exact = -float(law.log_likelihood(test).sum()) / residues
    bound = bound_per_residue(load(RUNS / "protein-own"), rows)["nats"]
    return {  # seconds of this call: 0 where the run was finished
        "train": len(known),
        "heldout": len(test),
        "unigram": unigram,
        "bound": bound,
        "exact": exact,
        "learned": (unigram - bound) / (unigram - exact),
        "cpu_seconds": round(seconds, 1),
    }


def vla(fresh: bool) -> dict[str, Any]:
    from mmdiff.tasks.vla.rollout.evaluate import evaluate_policy
    from mmdiff.tasks.vla.rollout.record import record_dataset

    folder = RUNS / "own-episodes"
    if not folder.exists():
        record_dataset(folder, "reach", TASKS, EPISODES)
    config = load_config("vla-own", [f"train.stages.look.data.path={folder}", "model.encoders.state.dims=2"])
    start = time.process_time()
    train(config, fresh=fresh)
    seconds = time.process_time() - start
    found = evaluate_policy(load(RUNS / "vla-own"), {"name": "reach", "size": 32}, TASKS, episodes=LAYOUTS, videos=0)
    rates = {name: found["ablations"][name]["success"] for name in ("swapped", "no_image", "random", "expert")}
    return {"success": found["success"], **rates, "cpu_seconds": round(seconds, 1)}


RECIPES: dict[str, Callable[[bool], dict[str, Any]]] = {"protein": protein, "vla": vla}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--fresh", action="store_true", help="move a finished run aside and train anew")
    given = parser.parse_args()
    print(json.dumps(RECIPES[given.recipe](given.fresh), allow_nan=False))


if __name__ == "__main__":
    main()
