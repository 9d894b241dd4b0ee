"""Recipes for one's own data, on data whose right answers are known: made here, read as a stranger's.

    python benchmarks/own.py vqa                   # 5,000 pictures with questions, then `mmdiff train vqa-own`
    python benchmarks/own.py asr                   # 3,300 spoken sentences, then `mmdiff train asr-own`
    python benchmarks/own.py protein               # 3,000 sequences as a FASTA file, then `mmdiff train protein-own`
    python benchmarks/own.py families              # the same of three families mixed, and which is which
    python benchmarks/own.py vla                   # 1,200 episodes as a LeRobot folder, then `mmdiff train vla-own`
    python benchmarks/own.py reach                 # all of these episodes, then `mmdiff train vla-reach`

The last line is JSON. Data and runs lie under `runs/` of the working folder, and finished ones are kept (`--fresh`).
Of pictures: shares of right answers about held-out ones, by what is asked, and with another row's picture. Of clips:
word error rates in %, also with another row's clip. `learned` of the sequences: how far the bound on -log p of held-out
ones has come from that of their composition to the exact one; `named`: the share whose family a linear probe of the
run's vectors names, one of their composition, and their laws themselves. Of the robot: success in layouts it was not
shown, with its instruction, another one, and grey pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.config import build, load_config
from mmdiff.evaluation.evaluate import evaluate
from mmdiff.session import load
from mmdiff.tasks.dialogue.controls import Shuffled
from mmdiff.training.train import train

RUNS = Path("runs")
SEQUENCES, EPISODES = 3000, 400  # episodes: of each task
TASKS = ["reach-red", "reach-green", "reach-blue"]
FAMILIES = "protein-own-families"  # a run, and its sequences
LAYOUTS = 30  # of each task, of seeds from 0 on; demonstrations have seeds from 1000 on
PICTURES, CLIPS = (4000, 1000), (3000, 300)  # for training and held out
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = {
    "red": "#e01b24",
    "green": "#33a02c",
    "blue": "#1f4fd0",
    "yellow": "#f6d32d",
    "black": "#1e1e1e",
    "teal": "#008b8b",
}
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-gb+f2")


def pictures_with_questions(folder: Path, n: int, seed: int) -> Path:
    """Writes n pictures (64 x 64, one shape each, of a drawn size and place) and their rows; returns the file of these.

    Of each picture: its colour, its shape, and yes or no about four shapes and colours, right and wrong ones.
    """
    from PIL import Image, ImageDraw

    drawn, rows = random.Random(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        shape, colour = drawn.choice(SHAPES), drawn.choice(list(COLOURS))
        width, height = drawn.randint(16, 40), drawn.randint(16, 40)
        x, y = drawn.randint(0, 63 - width), drawn.randint(0, 63 - height)
        picture = Image.new("RGB", (64, 64), tuple(drawn.randint(225, 255) for _ in range(3)))
        draw, box = ImageDraw.Draw(picture), (x, y, x + width, y + height)
        if shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif shape == "rectangle":
            draw.rectangle(box, fill=COLOURS[colour])
        else:
            draw.polygon([(x, y + height), (x + width, y + height), (x + width // 2, y)], fill=COLOURS[colour])
        name = f"{seed}-{i}.png"
        picture.save(folder / name)
        other = [drawn.choice([s for s in SHAPES if s != shape]), drawn.choice([c for c in COLOURS if c != colour])]
        asked = [("colour", "what colour is it?", colour), ("shape", "what shape is it?", shape)]
        asked += [("shape yes-no", f"is it a {what}?", a) for what, a in ((shape, "yes"), (other[0], "no"))]
        asked += [("colour yes-no", f"is it {what}?", a) for what, a in ((colour, "yes"), (other[1], "no"))]
        rows += [{"image": name, "kind": kind, "question": question, "answer": a} for kind, question, a in asked]
    file = folder / f"{seed}.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def spoken_sentences(folder: Path, n: int, seed: int) -> Path:
    """Writes n clips of seven or eight words, voices, speeds, pitches and noise drawn; returns their manifest."""
    import soundfile

    from mmdiff.tasks.asr.data.espeak import say

    words = (
        ("please", "kindly", "now", "then"),
        ("move", "carry", "bring", "push", "take"),
        ("the",),
        ("red", "green", "heavy", "little", "broken", "wooden"),
        ("box", "chair", "lamp", "table", "bottle", "ladder"),
        ("into", "behind", "towards", "under"),
        ("the kitchen", "the garden", "my office", "our cellar", "that window"),
    )
    drawn, lines = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        text = " ".join(choices[drawn.integers(len(choices))] for choices in words)
        voice = VOICES[drawn.integers(len(VOICES))]
        wave, rate = say(text, voice, int(drawn.integers(140, 220)), int(drawn.integers(30, 70)))
        noisy = wave / 32768 + drawn.normal(0, 0.003, wave.shape)
        soundfile.write(folder / f"{seed}-{i}.wav", noisy.clip(-1, 1).astype(np.float32), rate)
        lines.append(json.dumps({"audio": f"{seed}-{i}.wav", "text": text}))
    file = folder / f"{seed}.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def rows_of(write: Callable[[Path, int, int], Path], folder: Path, sizes: tuple[int, int], suffix: str) -> list[str]:
    """Returns the files of the rows for training and of held-out ones, made where they are not there."""
    files = [folder / f"{seed}{suffix}" for seed in range(len(sizes))]
    for seed, (file, n) in enumerate(zip(files, sizes, strict=True)):
        if not file.exists():
            write(folder, n, seed)
    return [str(file) for file in files]


def trained(name: str, settings: list[str], fresh: bool) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Trains a recipe; returns the figures of its held-out rows, those with another row's media, and CPU seconds."""
    config = load_config(name, settings)
    start = time.process_time()
    train(config, fresh=fresh)
    seconds = time.process_time() - start
    rows, field = build(config.eval.data["heldout"], where="rows"), "audio" if name == "asr-own" else "image"
    session = load(RUNS / name)
    other = Shuffled(rows, 0, fields=[field])
    return evaluate(session, rows)[0], evaluate(session, other)[0], round(seconds, 1)


def vqa(fresh: bool) -> dict[str, Any]:
    known, held = rows_of(pictures_with_questions, RUNS / "own-pictures", PICTURES, ".json")
    settings = [f"train.stages.tune.data.path={known}", f"train.stages.tune.eval.path={held}"]
    found, other, seconds = trained("vqa-own", settings, fresh)
    kinds = {kind: scores["exact_match"] for kind, scores in found["by_kind"].items()}
    return {"overall": found["exact_match"], **kinds, "shuffled": other["exact_match"], "cpu_seconds": seconds}


def asr(fresh: bool) -> dict[str, Any]:
    known, held = rows_of(spoken_sentences, RUNS / "own-clips", CLIPS, ".jsonl")
    settings = [f"train.stages.listen.data.path={known}", f"train.stages.tune.eval.path={held}"]
    found, other, seconds = trained("asr-own", settings, fresh)
    return {"wer": 100 * found["wer"], "shuffled": 100 * other["wer"], "cpu_seconds": seconds}


def protein(fresh: bool, families: int = 1) -> dict[str, Any]:
    from mmdiff.tasks.protein.data.alignments import background
    from mmdiff.tasks.protein.data.fasta import write_fasta
    from mmdiff.tasks.protein.data.markov import Subfamilies
    from mmdiff.tasks.protein.data.records import Record
    from mmdiff.tasks.protein.evaluate.evaluate import bound_per_residue
    from mmdiff.tasks.protein.residues import CANONICAL

    law, name = Subfamilies(families), "protein-own" if families == 1 else FAMILIES
    file = RUNS / f"{name}.fasta"
    RUNS.mkdir(exist_ok=True)
    if not file.exists():
        write_fasta(file, (Record(f"s{i}", "drawn", s) for i, (s, _) in enumerate(law.draw(SEQUENCES))))
    config = load_config("protein-own", [f"name={name}", f"train.stages.fit.data.path={file}"])
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
    bound = bound_per_residue(load(RUNS / name), rows)["nats"]
    return {  # seconds of this call: 0 where the run was finished
        "train": len(known),
        "heldout": len(test),
        "unigram": unigram,
        "bound": bound,
        "exact": exact,
        "learned": (unigram - bound) / (unigram - exact),
        "cpu_seconds": round(seconds, 1),
    }


def families(fresh: bool) -> dict[str, Any]:
    from mmdiff.tasks.protein.data.markov import Subfamilies
    from mmdiff.tasks.protein.embed.embeddings import vectors
    from mmdiff.tasks.protein.embed.probes import probe

    found, law = protein(fresh, 3), Subfamilies(3)
    sequences, numbers = zip(*law.draw(SEQUENCES), strict=True)
    session = load(RUNS / FAMILIES)
    read = np.concatenate([vectors(session, sequences[i : i + 100]) for i in range(0, SEQUENCES, 100)])
    scores = probe(read, [f"family {k}" for k in numbers], sequences=sequences)["scores"]
    shares = {name: scores[of]["accuracy"]["mean"] for name, of in (("named", "probe"), ("by_shares", "composition"))}
    likeliest = law.by_chain(sequences).argmax(1)
    return {**found, **shares, "likeliest": float((likeliest == np.array(numbers)).mean())}


def vla(fresh: bool, name: str = "vla-own") -> dict[str, Any]:
    from mmdiff.tasks.vla.rollout.evaluate import evaluate_policy
    from mmdiff.tasks.vla.rollout.record import record_dataset

    folder = RUNS / "own-episodes"
    if not folder.exists():
        record_dataset(folder, "reach", TASKS, EPISODES)
    config = load_config(name, [f"train.stages.look.data.path={folder}", "model.encoders.state.dims=2"])
    start = time.process_time()
    train(config, fresh=fresh)
    seconds = time.process_time() - start
    found = evaluate_policy(load(RUNS / name), {"name": "reach", "size": 32}, TASKS, episodes=LAYOUTS, videos=0)
    rates = {name: found["ablations"][name]["success"] for name in ("swapped", "no_image", "random", "expert")}
    return {"success": found["success"], **rates, "cpu_seconds": round(seconds, 1)}


RECIPES: dict[str, Callable[[bool], dict[str, Any]]] = {
    "vqa": vqa,
    "asr": asr,
    "protein": protein,
    "families": families,
    "vla": vla,
    "reach": partial(vla, name="vla-reach"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--fresh", action="store_true", help="move a finished run aside and train anew")
    given = parser.parse_args()
    print(json.dumps(RECIPES[given.recipe](given.fresh), allow_nan=False))


if __name__ == "__main__":
    main()
