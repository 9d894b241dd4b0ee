"""Episodes of one's own: the words of their instructions, and the packaged recipe, which learns to look and reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.config import load_config
from mmdiff.errors import ConfigError, DataError
from mmdiff.session import Session, load
from mmdiff.tasks.vla.data.dataset import Steps
from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.data.writer import LeRobotWriter
from mmdiff.tasks.vla.wordlist import words_of
from mmdiff.training.train import train


def episodes_of(folder: Path, *instructions: str) -> Steps:
    action_ND = np.zeros((3, 2), np.float32)
    with LeRobotWriter(folder, fps=10) as writer:
        for text in instructions:
            writer.add(Episode(text, action_ND, action_ND, {"front": np.zeros((3, 16, 16, 3), np.uint8)}, 10))
    return Steps(str(folder))


def test_words_are_those_of_the_instructions(tmp_path: Path) -> None:
    rows = episodes_of(tmp_path / "a", "reach the Red disc", "reach the blue disc")
    tokenizer = words_of(rows)
    assert tokenizer.convert_ids_to_tokens(list(range(4, 9))) == ["blue", "disc", "reach", "red", "the"]
    assert len(words_of(rows, also=["green", "red"])) == 4 + 6
    with pytest.raises(DataError, match="instructions of 5 different words, expected at most 4"):
        words_of(rows, most=4)
    with pytest.raises(DataError, match="<mask> is a special token, expected words"):
        words_of(episodes_of(tmp_path / "b", "reach <mask>"))
    with pytest.raises(ConfigError, match="rows: list, expected {target: mmdiff.tasks.vla.data.dataset.Steps"):
        words_of([])


STEPS = 170
SIZE, STRIDE, COLORS = 16, 0.4, {"red": (220, 40, 40), "blue": (40, 60, 220)}

Layout = tuple[str, dict[str, float]]
"""The colour of an instruction, and where on a line of [-1, 1] the disc of each colour lies."""


def layouts(n: int, seed: int) -> list[Layout]:
    rng = np.random.default_rng(seed)
    sides = rng.permuted(np.tile([-1, 1], (n, 1)), axis=1) * rng.uniform(0.35, 0.85, (n, 2))
    return [(list(COLORS)[i % 2], dict(zip(COLORS, side.tolist(), strict=True))) for i, side in enumerate(sides)]


def shown(discs: dict[str, float]) -> np.ndarray:
    picture = np.full((SIZE, SIZE, 3), 128, np.uint8)
    for color, x in discs.items():
        middle = round((x + 1) / 2 * (SIZE - 1))
        picture[6:11, max(middle - 2, 0) : middle + 3] = COLORS[color]
    return picture


def demonstrated(folder: str, shown_to: list[Layout]) -> None:
    """Episodes that go straight to the disc that is named, from anywhere."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder, fps=10) as writer:
        for color, discs in shown_to:
            states = [float(rng.uniform(-1, 1))]
            for _ in range(5):
                states.append(states[-1] + float(np.clip(discs[color] - states[-1], -STRIDE, STRIDE)))
            state_N1 = np.array(states, np.float32)[:, None]
            picture = np.repeat(shown(discs)[None], 5, 0)
            writer.add(Episode(color, np.diff(state_N1, axis=0), state_N1[:-1], {"front": picture}, 10))


def reached(session: Session, given: list[Layout], *, grey: bool = False, other: bool = False) -> float:
    """The share of layouts in which the policy, from the middle, ends on the disc; one in four is met by chance."""
    at_N = np.zeros(len(given))
    for _ in range(6):
        rows: list[dict[str, Any]] = []
        for (color, discs), x in zip(given, at_N.tolist(), strict=True):
            named = next(name for name in COLORS if (name != color) == other)
            picture = np.full((SIZE, SIZE, 3), 128, np.uint8) if grey else shown(discs)
            rows.append({"image": picture, "state": [x], "instruction": named})
        at_N += np.array([found["prediction"][0][0] for found in session.predict_many(rows)])
    return float(np.mean([abs(x - discs[color]) < 0.2 for (color, discs), x in zip(given, at_N, strict=True)]))


def test_the_recipe_for_ones_own_episodes_learns_to_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two discs on a line, of which one is named: seconds at a small size. Without a picture, or with the other word,
    the same policy does not get there."""
    monkeypatch.chdir(tmp_path)
    demonstrated("mine", layouts(150, 0))
    words = ["data.path=mine", f"steps={STEPS}", "batch_size=48", "warmup=10", "lr=4.0e-3"]
    config = load_config(
        "vla-own",
        [
            *(f"train.stages.look.{word}" for word in words),
            "train.stages.join.steps=20",
            "train.stages.join.warmup=2",
            "train.stages.join.eval=null",
            "train.workers=0",
            "model.backbone.layers=2",
            f"model.encoders.image.size={SIZE}",
            "model.encoders.state.dims=1",
        ],
    )
    train(config)
    session, unseen = load("runs/vla-own"), layouts(60, 1)
    found = [reached(session, unseen), reached(session, unseen, grey=True), reached(session, unseen, other=True)]
    assert found[0] >= 0.9 and max(found[1:]) <= 0.5, found
