"""Small pictures of one's own: balanced rows, their texts, and the packaged recipe, which learns to look."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config import load_config
from mmdiff.connectors.whole import Whole
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.encoders.conv import ConvTower
from mmdiff.errors import ConfigError, DataError
from mmdiff.evaluation.evaluate import evaluate
from mmdiff.model import MMDiff
from mmdiff.objectives.heads import WordHead
from mmdiff.objectives.readout import Naming
from mmdiff.session import load
from mmdiff.tasks.dialogue.balance import Balanced
from mmdiff.tasks.dialogue.controls import Shuffled
from mmdiff.tasks.dialogue.texts import Texts
from mmdiff.tasks.vqa.llava import LlavaJSON
from mmdiff.training.train import train

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}


def rows_of(folder: Path, n: int, seed: int) -> str:
    """One square each, of a drawn colour and place, with a question for its colour and one for yes or no."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        color = list(COLORS)[int(rng.integers(3))]
        picture = np.full((32, 32, 3), 245, np.uint8)
        x, y = (int(v) for v in rng.integers(0, 20, 2))
        picture[y : y + 12, x : x + 12] = COLORS[color]
        Image.fromarray(picture).save(folder / f"{seed}-{i}.png")
        asked = [("what color is the shape?", color), ("is it red?", "yes" if color == "red" else "no")]
        rows += [{"image": f"{seed}-{i}.png", "question": q, "answer": a} for q, a in asked]
    (folder / f"{seed}.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / f"{seed}.json")


def test_answers_come_up_equally_often_and_no_row_is_lost() -> None:
    rows = [{"question": "q", "answer": a} for a in "yyyyyynnnab"]
    balanced = Balanced(rows, least=2)  # a and b, of one row each, are taken together
    made = [balanced[i]["answer"] for i in range(len(balanced))]
    assert len(made) == 3 * 6
    assert {a: made.count(a) for a in "ynab"} == {"y": 6, "n": 6, "a": 3, "b": 3}
    assert {id(balanced[i]) for i in range(len(balanced))} == {id(row) for row in rows}
    with pytest.raises(ConfigError, match="none has an answer"):
        Balanced([{"question": "q"}])
    for reads in (Balanced, lambda rows: list(Texts(rows))):
        with pytest.raises(DataError, match=r"^a\.jsonl line 2: answer is not text: 7$"):
            reads([{"question": "q", "answer": 7, "where": "a.jsonl line 2"}])


def test_texts_are_those_of_questions_and_answers() -> None:
    rows = [
        {"image": "x.png", "question": "is it red?", "answer": ["no", "no", "yes"]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    ]
    assert [row["text"] for row in Texts(rows)] == ["\nis it red?", "no", "hi", "ho"]  # type: ignore[arg-type]


def test_naming_reads_words_from_the_largest_features_of_samples_with_a_picture() -> None:
    """By hand: one channel per word of the answer, whose largest feature lies anywhere; the row of text is left out."""
    tower = ConvTower(size=8, width=4, cell=4)
    backbone = new_backbone(tokenizer=word_tokenizer(["a", "b"]), hidden_size=8, layers=1, heads=2)
    model = MMDiff(
        backbone,
        {"image": tower},
        {"image": Whole(width_in=4, width_out=8)},
        {"image": WordHead(width_in=4, vocab_size=backbone.vocab.size)},
    )
    picture = np.zeros((8, 8, 3), np.uint8)
    rows = [[Text([4]), Target([5])], [Media("image", picture), Target([4, 1])], [Media("image", picture), Target([5])]]
    batch = collate(rows, model.vocab, model.readers)
    plan = Naming().plan(batch, NoiseKey(0, batch=3), model.vocab)
    assert plan.item_P.tolist() == [0, 1] and plan.id_P.tolist() == [4, 5]  # no end id
    features_NTE = torch.randn(2, 4, 4)
    batch.media["image"].features_NTE = features_NTE
    want = 0.0
    for n, label in ((0, 4), (1, 5)):
        x = torch.tensor([max(float(features_NTE[n, t, e]) for t in range(4)) for e in range(4)])
        x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)
        logits = model.heads["image"](x)
        want += float((logits.logsumexp(0) - logits[label]).detach())
    assert float(Naming().terms(model, plan)["naming"].value.detach()) == pytest.approx(want, rel=1e-5)
    slots_MD = model.encode(batch.media)["image"]
    assert slots_MD.shape == (10, 8)  # 4 cells and the whole, of 2 pictures
    whole_2D = model.connectors["image"].mlp.mapped(features_NTE.amax(1)[:, None])[:, 0]  # type: ignore[union-attr, operator]
    torch.testing.assert_close(slots_MD[[0, 5]], whole_2D)
    with pytest.raises(DataError, match="1 samples have 2 crops of image"):
        two = collate([[Media("image", picture), Media("image", picture), Target([4])]], model.vocab, model.readers)
        Naming().plan(two, NoiseKey(0, batch=1), model.vocab)


def test_a_pooling_tower_sees_a_cell_wherever_it_is() -> None:
    torch.manual_seed(0)
    tower = ConvTower(size=32, width=16, cell=8, pool=True)
    torch.nn.init.zeros_(tower.positions_TE)
    image = torch.zeros(1, 3, 32, 32)
    image[..., 10:13, 10:13] = 1
    moved = image.roll((8, 8), (2, 3))  # by a whole cell, which the border does not reach either
    map_44E = tower(image).detach().view(4, 4, -1)
    torch.testing.assert_close(tower(moved).detach().view(4, 4, -1)[2, 2], map_44E[1, 1])
    with pytest.raises(ConfigError, match="cell: 12 is not a power of 2"):
        ConvTower(size=24, cell=12, pool=True)


def test_the_recipe_for_ones_own_pictures_learns_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds at a small size; a model that does not look is right in one of three colours."""
    monkeypatch.chdir(tmp_path)
    train_rows, heldout = rows_of(tmp_path, 150, 0), rows_of(tmp_path, 60, 1)
    sizes = {"tower": 80, "look": 120, "tune": 120}
    config = load_config(
        "vqa-own",
        [
            f"train.stages.tune.data.path={train_rows}",
            f"train.stages.tune.eval.path={heldout}",
            "model.backbone.hidden_size=48",
            "model.backbone.layers=2",
            "model.backbone.tokenizer.vocab_size=300",
            "train.workers=0",
            *(f"train.stages.{name}.steps={n}" for name, n in sizes.items()),
            *(f"train.stages.{name}.batch_size=16" for name in sizes),
            *(f"train.stages.{name}.warmup=5" for name in sizes),
        ],
    )
    train(config)
    session, rows = load("runs/vqa-own"), LlavaJSON(heldout)
    own, _ = evaluate(session, rows, name="own", batch_size=160)
    other, _ = evaluate(session, Shuffled(rows, seed=0), name="other", batch_size=160)
    assert own["exact_match"] > 0.95, own
    assert other["exact_match"] < 0.7, other
