"""Short clips of one's own: the words of their transcripts, and the packaged recipe for them, at a size of seconds."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from mmdiff.commands.cli import main
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.asr.data.wordlist import words_of


def test_words_are_those_of_the_transcripts_the_most_frequent_first() -> None:
    tokenizer = words_of([{"text": "light On"}, {"text": "light off"}, {"text": "a light"}])
    assert tokenizer.convert_ids_to_tokens(list(range(4, 9))) == ["transcribe", "light", "a", "off", "on"]
    assert tokenizer("Light OFF")["input_ids"] == [5, 7]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": " ", "where": "x line 1"}], "x line 1: text: ' ', expected a transcript"),
        ([{"audio": "a.wav"}], "text: None, expected a transcript"),
        ([{"text": "a <mask>"}], "text: <mask> is a special token"),
        ([{"text": "a b c"}], "transcripts of 3 different words, expected at most 2"),
    ],
)
def test_transcripts_that_are_refused(rows: list[dict[str, str]], said: str) -> None:
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        words_of(rows, most=2)
    with pytest.raises(ConfigError, match="rows: "):
        words_of(5)


@pytest.mark.slow
def test_the_recipe_learns_to_write_down_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six commands in 15 ways of speaking; in the one that is held out, most are written down without a fault."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("espeakng_loader")
    from mmdiff.tasks.asr.data.espeak import say

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows: dict[str, list[str]] = {"clips": [], "heldout": []}
    ways = list(product(["en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-us+m5"], [150, 175, 200]))
    for n, (place, state, way) in enumerate(product(["kitchen", "garage", "garden"], ["on", "off"], ways)):
        text = f"{place} light {state}"
        soundfile.write(f"data/{n}.wav", *say(text, *way, 50))
        rows["heldout" if way == ("en-us+f3", 175) else "clips"].append(json.dumps({"audio": f"{n}.wav", "text": text}))
    for name, lines in rows.items():
        (tmp_path / f"data/{name}.jsonl").write_text("\n".join(lines))
    small = ["hidden_size=64", "layers=2", "intermediate_size=128"]
    words = [f"model.backbone.{one}" for one in small]
    words += [
        "train.stages.listen.steps=90",
        "train.stages.tune.steps=90",
        "train.workers=0",
        "train.stages.tune.warmup=10",
    ]
    words += ["train.stages.listen.batch_size=16", "train.stages.tune.batch_size=16", "train.stages.listen.warmup=10"]
    assert main(["train", "asr-own", *words]) == 0
    assert main(["eval", "runs/asr-own", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["eval"]["heldout"]["wer"] <= 0.2, found  # without the sound: two words of three are guessed, about .39
