"""`mmdiff check` reads a few of the user's own rows, and speaks in words of the user's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff import check
from mmdiff.commands.own_files.own_rows import Words
from mmdiff.config.settings import Config, EvalConfig, ModelConfig, StageConfig, TrainConfig
from mmdiff.errors import UserError

WORDS = ["is", "it", "day", "yes", "no"]


def config(path: Path) -> Config:
    """Questions without media, in a vocabulary of five words."""
    tokenizer = {"target": "mmdiff.canvas.vocab.word_tokenizer", "words": WORDS}
    rows = {"target": "mmdiff.tasks.vqa.llava.LlavaJSON", "path": str(path)}
    return Config(
        name="mine",
        model=ModelConfig(
            backbone={
                "target": "mmdiff.backbones.new_backbone",
                "tokenizer": tokenizer,
                "hidden_size": 16,
                "layers": 1,
                "heads": 2,
            }
        ),
        task={"target": "mmdiff.tasks.vqa.VQA", "answer_length": 2},
        train=TrainConfig(
            stages={"tune": StageConfig(data=rows, objective={"target": "mmdiff.objectives.denoise.Denoise"})},
            tensorboard=False,
        ),
        eval=EvalConfig(data={"held": rows}),
    )


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text(json.dumps(rows))
    return file


def test_own_rows_are_read_and_only_a_few(tmp_path: Path) -> None:
    good = [{"question": "is it day", "answer": "yes"}] * 5
    late = [{"question": "is it day", "answer": "yes", "image": "none.png"}]
    said: list[str] = []
    file = written(tmp_path / "rows.json", good + late)
    assert check(config(file), progress=said.append)["forwards"] == [2, 2]
    assert f"train.stages.tune.data: 4 rows of {file}" in said and f"eval.data.held: 4 rows of {file}" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "is it day"}, "row 0"),
        ({"question": "is it day", "answer": "yes", "image": "none.png"}, "none.png"),
        ({"question": "is it day", "answer": "yes no yes no"}, "answer_length"),
    ],
)
def test_wrong_own_rows_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check(config(written(tmp_path / "rows.json", [row])))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_toy_rows_are_in_words_of_the_vocabulary() -> None:
    words = Words(("yes", "no"))
    assert words.known("Yes") == "Yes" and words.known("nothing") in words.all and words.known("<image>") == "<image>"
