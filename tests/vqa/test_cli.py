"""`mmdiff generate` with questions about pictures and sounds, and `mmdiff vqa choose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.commands.cli import main
from mmdiff.connectors.mlp import MLP
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.speech import SpeechConv
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.session import load
from mmdiff.tasks.dialogue.choice import nll
from mmdiff.tasks.vqa.llava import write_clips
from mmdiff.tasks.vqa.task import VQA

pytestmark = pytest.mark.needs("soundfile", "torchaudio")

WORDS = "who speaks is there red cross a child an old man".split()
OPTIONS = ["a child", "an old man", "a child"]
TWO = ["tone0.wav", "tone1.wav"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees and hears, two clips, two pictures, and a file that is no sound."""
    from PIL import Image

    home = tmp_path_factory.mktemp("vqa")
    backbone = new_backbone(tokenizer=word_tokenizer(WORDS), hidden_size=16, layers=1, heads=2, init_std=0.3)
    encoders: dict[str, Any] = {
        "audio": SpeechConv(width=16, layers=1, heads=2),
        "image": ConvTower(size=8, width=16, cell=4),
    }
    connectors = {kind: MLP(encoder.width, backbone.dim) for kind, encoder in encoders.items()}
    task = {"target": "mmdiff.tasks.vqa.VQA", "answer_length": 3}
    save_model(MMDiff(backbone, encoders, connectors), home / "run", extra={"task": task, "sampler": {"steps": 3}})
    write_clips(home)
    for name, shade in (("dark.png", 10), ("light.png", 250)):
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(home / name)
    (home / "text.wav").write_text("not a sound")
    return home


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def called(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    "words, row",
    [
        (["audio=tone0.wav"], {"audio": "tone0.wav"}),
        (["image=dark.png"], {"image": "dark.png"}),
        (['image:=["dark.png","light.png"]'], {"image": ["dark.png", "light.png"]}),
        (["image=light.png", f"audio:={json.dumps(TWO)}"], {"image": "light.png", "audio": TWO}),
        ([], {}),
    ],
)
def test_questions_are_answered(words: list[str], row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = called(capsys, "generate", "run", "question=who speaks", *words)
    expected = load("run").predict({"question": "who speaks", **row})
    assert out == json.loads(json.dumps(expected)) and len(out["canvas"]) == 3 and out["forwards"] <= 3


def test_an_answer_as_people_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "run", "question=who speaks", "sampler.steps=1"]) == 0
    assert "\nforwards    1\n" in capsys.readouterr().out


def test_the_likeliest_option_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["vqa", "choose", "run", "question=who speaks", "audio=tone0.wav"]
    options = [word for option in OPTIONS for word in ("--option", option)]
    out = called(capsys, *asked, *options)
    model = load("run").model
    rows = [{"audio": "tone0.wav", "question": "who speaks", "answer": option} for option in OPTIONS[:2]]
    expected = nll(model, VQA(answer_length=3), rows)
    assert out["nll"] == pytest.approx([*expected, expected[0]], rel=1e-5)
    assert out["prediction"] == OPTIONS[int(np.argmin(expected))] == OPTIONS[out["index"]]
    assert out["ties"] == ([0, 2] if out["prediction"] == "a child" else [1])
    a_token = called(capsys, *asked, *options, "--normalise", "token", "task.answer_length=4")["nll"]
    assert a_token == pytest.approx([*nll(model, VQA(answer_length=4), rows, normalise="token"), a_token[0]], rel=1e-5)


@pytest.mark.parametrize(
    "words, message",
    [
        (["generate", "run", "question=is there a dog"], "does not know the word 'dog'"),
        (["generate", "run", "question=who speaks", "audio=text.wav"], "text.wav: not a sound file"),
        (["generate", "run", "question=who speaks", "audio=none.wav"], "none.wav: no such file"),
        (["generate", "run", "question=who speaks", "image=none.png"], "none.png: no such file"),
        (["generate", "run", "question=who speaks", "protein=MK"], "media of kind 'protein'"),
        (["generate", "run", "question=who speaks", "img=dark.png"], "unknown field: 'img' (did you mean \"image\"?)"),
        (["generate", "run", "question=who speaks", "view=dark"], "unknown field: 'view' (known: answer"),
        (["generate", "run", "question=who speaks", "image=" + "iVBO" * 2000], "not a path of 8000 characters"),
        (["vqa", "choose", "run", "question=who", "sounds=a", "--option", "a child"], 'did you mean "audio"'),
        (["vqa", "choose", "run", "question=who", "view=a", "--option", "a child"], "unknown field: 'view'"),
        (["generate", "none", "question=who speaks"], "none: no such folder"),
        (["vqa", "choose", "run", "question=who speaks", "--option", "a dog"], "does not know the word 'dog'"),
        (["vqa", "choose", "run", "question=who", "--option", "a child", "--normalise", "sums"], "--normalise"),
        (["vqa", "choose", "run", "question=who", "--options", "a child"], 'did you mean "--option"?'),
        (["vqa", "choose", "run", "question=who"], "--option"),
        (["vqa", "choose", "run", "who", "--option", "a child"], "'who' is not key=value"),
        (["vqa", "choose", "none", "question=who", "--option", "a child"], "none: no such folder"),
    ],
)
def test_every_refusal_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("mmdiff: error: ") and err.count("\n") == 1 and not out
