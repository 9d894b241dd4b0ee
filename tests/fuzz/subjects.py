"""What is mutated: a subject for each kind of thing that the product reads, made by the product at toy size."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .judge import Subject
from .mutations import bytes_of, folder_of, text_of, tree_file, words_of

QUESTION = "what color is the circle"
SMALL = [
    "model.backbone.hidden_size=16",
    "model.backbone.layers=1",
    "model.backbone.heads=2",
    "model.backbone.intermediate_size=32",
    "model.encoders.image.width=16",
    "train.workers=0",
    "train.tensorboard=false",
    "train.stages.tower=null",
    "train.stages.align=null",
    "train.stages.tune.eval=null",
    "train.stages.tune.batch_size=2",
]
EVAL = ["eval.limit=2", "eval.examples=1", "eval.data.heldout=null", "eval.data.shuffled=null", "eval.data.blank=null"]


def write_picture(file: Path) -> None:
    from PIL import Image

    from mmdiff.tasks.vqa.scenes import Scenes

    picture = np.asarray(Scenes(n=1, seed=9)[0]["image"])
    Image.fromarray(picture).save(file)


def trained(folder: Path, *more: str, steps: int = 2) -> None:
    """A finished run of the demonstration's configuration at toy size, in runs/x."""
    from mmdiff import load_config, train

    with standing_in(folder):
        train(load_config("vqa-demo", ["name=x", f"train.stages.tune.steps={steps}", *SMALL, *more]))


def standing_in(folder: Path) -> Any:
    from contextlib import chdir

    return chdir(folder)


def model(folder: Path) -> None:
    trained(folder)
    (folder / "runs/x/model").rename(folder / "model")
    write_picture(folder / "cat.png")


def model_without_sums(folder: Path) -> None:
    model(folder)
    (folder / "model/SHA256SUMS").unlink()


def unfinished(folder: Path, *more: str) -> None:
    """A run with the checkpoints of steps 2 and 4, and the fifth step gone."""
    from mmdiff.training.stage import Stage

    step, calls = Stage._step, [0]

    class Cut(Exception):
        pass

    def counted(self: Stage, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == 6:
            raise Cut
        step(self, *args)

    Stage._step = counted  # type: ignore[method-assign]
    try:
        trained(folder, "train.save_every=2", *more, steps=6)
    except Cut:
        pass
    finally:
        Stage._step = step  # type: ignore[method-assign]


RESUME = ["train", "vqa-demo", "name=x", "train.stages.tune.steps=6", "train.save_every=2", *SMALL]
CACHED = "train.stages.tune.cache_features=true"


def weights_of(found: Any) -> str:
    return hashlib.sha256(Path("runs/x/model/model.safetensors").read_bytes()).hexdigest()


def numbers_of(found: Any) -> Any:
    from safetensors.numpy import load_file

    tensors = load_file("runs/x/model/model.safetensors")
    return [float(x) for name in sorted(tensors) for x in tensors[name].ravel()]


def close(a: Any, b: Any) -> bool:
    """Features that are computed again come from another batch, whose sums are rounded otherwise."""
    return len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-4


def prediction_of(found: Any) -> Any:
    return found["prediction"]


def scores_of(found: Any) -> Any:
    return {name: {k: v for k, v in of.items() if k != "rows_per_second"} for name, of in found["eval"].items()}


def questions(folder: Path) -> None:
    trained(folder)
    write_picture(folder / "cat.png")
    rows = [
        {
            "id": str(i),
            "image": "cat.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for i in range(3)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))


ROWS = "eval.data={rows: {target: mmdiff.tasks.vqa.llava.LlavaJSON, path: rows.json}}"


def clip(folder: Path) -> None:
    import soundfile
    import spoken

    spoken.saved(folder / "model")
    wave = spoken.wave(0.5)
    for name, kind in (("clip.wav", "WAV"), ("clip.flac", "FLAC"), ("clip.mp3", "MP3"), ("clip.ogg", "OGG")):
        soundfile.write(folder / name, wave, spoken.RATE, format=kind)
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"audio": "clip.wav", "id": str(i), "text": "one"}) + "\n" for i in range(3))
    )


def sound(folder: Path, dice: Random) -> tuple[list[str], str]:
    name = dice.choice(["clip.wav", "clip.flac", "clip.mp3", "clip.ogg"])
    return ["asr", "transcribe", "model", name], f"{name}: {bytes_of(folder / name, dice)}"


def texts_of(found: Any) -> Any:
    return [{k: r[k] for k in ("id", "pred_text") if k in r} for r in found["records"]]


def proteins(folder: Path) -> None:
    from protein_models import saved

    saved(folder / "model")
    natural = ["MKTAYIAKQR", "ACDEFGHIKLMN", "PQRSTVWY", "MKLVAGDE"]
    (folder / "n.fasta").write_text("".join(f">n{i} of nature\n{s}\n" for i, s in enumerate(natural)))
    (folder / "n.csv").write_text("id,sequence\n" + "".join(f"n{i},{s}\n" for i, s in enumerate(natural)))
    (folder / "n.a3m").write_text(">a\nMKTAYIAKQR\n>b\nMK-AYIAkqKQR\n>c\nMKT--IAKQR\n>d\nMATAYIAKQR\n")


def sequence(folder: Path, dice: Random) -> tuple[list[str], str]:
    name = dice.choice(["n.fasta", "n.csv"])
    words = ["protein", "score", "model", name, "--methods", "bound", "--levels", "2"]
    return words, f"{name}: {dice.choice([text_of, bytes_of])(folder / name, dice)}"


def read_profile() -> tuple[int, Any]:
    from mmdiff.errors import UserError
    from mmdiff.tasks.protein.data.alignments import read_alignment

    try:
        found = read_alignment("n.a3m")
    except UserError:
        return 2, None
    return 0, [list(found.ids), list(found.sequences)]


def embedded(folder: Path) -> None:
    from mmdiff.commands.cli import main

    proteins(folder)
    with standing_in(folder):
        assert main(["protein", "embed", "model", "n.fasta", "--out", "e", "--json"]) == 0


def robots(folder: Path) -> None:
    from robots.demos import write

    write(folder / "data")


def published(folder: Path) -> None:
    from mmdiff.backbones.load import toy_backbone

    toy_backbone("GSAI-ML/LLaDA-8B-Base").save_pretrained(folder / "m", original_format=True)


def request(folder: Path) -> None:
    from robots.policy_server import PICTURE, STATE, encoded

    body = {"image": encoded(PICTURE), "instruction": "open the drawer", "state": STATE, "seed": 3}
    (folder / "body.json").write_text(json.dumps(body))


def answer_request() -> tuple[int, Any]:
    """The server's answer: 200, or a refusal of 4xx in one line of JSON."""
    from robots.policy_server import StandIn
    from starlette.testclient import TestClient

    from mmdiff.serving.app import make_app
    from mmdiff.serving.http.guard import line_only

    client = TestClient(make_app(StandIn(), error=line_only), base_url="http://127.0.0.1", raise_server_exceptions=True)
    answer = client.post("/act", content=Path("body.json").read_bytes(), headers={"content-type": "application/json"})
    found = answer.json()
    if 400 <= answer.status_code < 500:
        assert isinstance(found["error"], str) and "\n" not in found["error"] and len(found["error"]) < 2000, found
        return 2, None
    found.pop("seconds", None)
    return (0 if answer.status_code == 200 else 1), found


def configuration(folder: Path) -> None:
    from mmdiff import load_config
    from mmdiff.config import to_yaml

    (folder / "mine.yaml").write_text(to_yaml(load_config("vqa-demo", SMALL)))


COMMANDS = [
    ["config", "vqa-demo", "train.seed=1"],
    ["ls"],
    ["eval", "runs/x", *EVAL],
    ["sweep", "runs/x", "--axis", "sampler.steps=[1,2]", *EVAL],
    ["generate", "runs/x", "image=cat.png", f"question={QUESTION}", "sampler.steps=2"],
    ["vqa", "choose", "runs/x", "image=cat.png", f"question={QUESTION}", "--option", "red", "--option", "blue"],
    ["check", "mine.yaml"],
    ["runs", "--sort", "train.seed", "--filter", "state=finished", "--root", "runs"],
    ["note", "runs/x", "a note", "--add"],
    ["sweep", "mine.yaml", "--axis", "train.seed=[0,1]", "--jobs", "2", "--dry-run"],
    ["new", "task", "own_task", "--out", "."],
    ["completion", "words", "mmdiff train vqa-demo train.stages.tune.l"],
]


def commands(folder: Path) -> None:
    questions(folder)
    configuration(folder)


def command(folder: Path, dice: Random) -> tuple[list[str], str]:
    words, what = words_of(dice.choice(COMMANDS), dice)
    if (
        "demo" in words
        or "train" in words[:1]
        or ("sweep" in words and "mine.yaml" in words and "--dry-run" not in words)
    ):
        words = ["ls"]
    return words, f"{what} -> {words!a}"


def within(*names: str, payloads: bool = False) -> Callable[[Path, Random], str]:
    def mutate(folder: Path, dice: Random) -> str:
        return folder_of(folder / dice.choice(names), dice, payloads=payloads)

    return mutate


def run_files(folder: Path, dice: Random) -> str:
    name = dice.choice(["config.yaml"] * 4 + ["metrics.json", "metrics.jsonl", "SHA256SUMS"])
    file = folder / "runs/x" / name
    if name == "config.yaml":
        return f"{name}: {tree_file(file, dice, payloads=True)}"
    return f"{name}: {bytes_of(file, dice)}"


def two_runs(folder: Path) -> None:
    """A run with a checkpoint and an evaluation, and its twin."""
    from mmdiff.evaluation.evaluate import evaluate_run
    from mmdiff.runs.notes import write_note

    trained(folder)
    with standing_in(folder):
        evaluate_run("runs/x", EVAL)
        write_note(Path("runs/x"), "a note")
    shutil.copytree(folder / "runs/x", folder / "runs/y")


def what_is_listed(folder: Path, dice: Random) -> str:
    run = folder / "runs/x"
    (trainer,) = run.glob("checkpoints/*/trainer.json")
    names = ["config.yaml", "metrics.json", "metrics.jsonl", "note.txt", "predictions-overall.jsonl", trainer]
    file = run / dice.choice(names)
    if file.suffix in (".yaml", ".json") and dice.random() < 0.7:
        return f"{file.name}: {tree_file(file, dice, payloads=True)}"
    return f"{file.name}: {text_of(file, dice) if dice.random() < 0.5 else bytes_of(file, dice)}"


COMPARE = ["compare", "runs/x", "runs/y", "--html", "page.html"]


def the_other(found: Any) -> Any:
    """A broken run changes nothing in the lines of the others."""
    return [run for run in found["runs"] if run["name"] == "y"]


GENERATE = ["generate", "model", "image=cat.png", f"question={QUESTION}", "sampler.steps=2"]
SUBJECTS = [
    Subject(
        "saved model",
        model,
        within("model", payloads=True),
        GENERATE,
        kept=("model",),
        vouched=True,
        result=prediction_of,
    ),
    Subject(
        "saved model without checksums", model_without_sums, within("model", payloads=True), GENERATE, kept=("model",)
    ),
    Subject("published folder", published, within("m", payloads=True), ["inspect", "m"], kept=("m",)),
    Subject("checkpoints", unfinished, within("runs/x/checkpoints"), RESUME, vouched=True, result=weights_of),
    Subject(
        "cached features",
        lambda folder: unfinished(folder, CACHED),
        lambda folder, dice: bytes_of(folder / "runs/x/features.sqlite", dice),
        [*RESUME, CACHED],
        vouched=True,
        result=numbers_of,
        same=close,
    ),
    Subject("run folder", trained, run_files, ["eval", "runs/x", *EVAL], kept=("runs/x/model",), result=scores_of),
    Subject("list of runs", two_runs, what_is_listed, ["runs"], kept=("runs",), vouched=True, result=the_other),
    Subject("compared runs", two_runs, what_is_listed, COMPARE, kept=("runs",)),
    Subject(
        "configuration",
        configuration,
        lambda folder, dice: tree_file(folder / "mine.yaml", dice, payloads=False),
        ["check", "mine.yaml"],
        kept=("mine.yaml",),
    ),
    Subject("command line", commands, command, ["ls"], kept=("runs/x/model", "cat.png")),
    Subject(
        "rows",
        questions,
        lambda folder, dice: tree_file(folder / "rows.json", dice, payloads=False),
        ["eval", "runs/x", ROWS, "eval.limit=2"],
        kept=("rows.json",),
        result=scores_of,
    ),
    Subject("picture", model, lambda folder, dice: bytes_of(folder / "cat.png", dice), GENERATE, result=prediction_of),
    Subject("sound", clip, sound, ["asr", "transcribe", "model", "clip.wav"], result=texts_of),
    Subject(
        "manifest",
        clip,
        lambda folder, dice: text_of(folder / "rows.jsonl", dice),
        ["asr", "transcribe", "model", "--manifest", "rows.jsonl"],
        kept=("rows.jsonl",),
        result=texts_of,
    ),
    Subject(
        "sequences", proteins, sequence, ["protein", "score", "model", "n.fasta", "--methods", "bound", "--levels", "2"]
    ),
    Subject("alignment", proteins, lambda folder, dice: text_of(folder / "n.a3m", dice), run=read_profile),
    Subject("embeddings", embedded, within("e"), ["protein", "embed", "model", "n.fasta", "--out", "e"]),
    Subject("robot data", robots, within("data"), ["vla", "data", "data"], kept=("data",)),
    Subject(
        "request",
        request,
        lambda folder, dice: tree_file(folder / "body.json", dice, payloads=False),
        run=answer_request,
    ),
    Subject("request bytes", request, lambda folder, dice: bytes_of(folder / "body.json", dice), run=answer_request),
]
