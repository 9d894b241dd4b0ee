"""Plain text on a canvas: windows, continuations, gaps, drafts; and training on windows resumes exactly."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Break, Target, Text
from mmdiff.config.settings import Config, ModelConfig, StageConfig, TrainConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.parts import part
from mmdiff.runs.folder import Run
from mmdiff.session import Session, load
from mmdiff.tasks.text import PlainText
from mmdiff.tasks.text.data.windows import Windows
from mmdiff.tasks.text.tokenizer import byte_pairs
from mmdiff.training.train import fit, make_accelerator

ROWS = [
    {"text": f"the {a} {b} sat on the {c}."} for a in ("red", "old") for b in ("cat", "dog") for c in ("mat", "bed")
]


RANDOM = {"target": "mmdiff.samplers.deliberation.MaskRandom", "ratio": 0.5}


@part
def documents() -> list[dict[str, str]]:
    return ROWS


@cache
def model() -> MMDiff:
    torch.manual_seed(0)
    return MMDiff(new_backbone(tokenizer=byte_pairs(ROWS, 280), hidden_size=32, layers=2, heads=2)).eval()


def session(**sampler: Any) -> Session[PlainText]:
    from mmdiff.config.settings import GenerationConfig

    return Session(model(), PlainText(max_new_tokens=6), GenerationConfig(**sampler), Path("nowhere"))


def test_a_window_is_a_canvas_of_its_documents() -> None:
    m = model()
    row = Windows(ROWS, m.vocab.tokenizer, 24)[0]
    assert len(row["pieces"]) > 1
    sample = PlainText().sample(row, m.vocab)
    batch = collate([sample], m.vocab)
    assert batch.ids_BL[0].tolist() == [i for ids in row["pieces"] for i in ids] and batch.packed
    starts = [n for n, kept in enumerate((~batch.target_BL[0]).tolist()) if kept]
    assert batch.position_ids_BL[0, starts].tolist() == [0] * len(row["pieces"])
    assert sum(isinstance(p, Break) for p in sample) == len(row["pieces"])
    together = collate([PlainText(separate=False).sample(row, m.vocab)], m.vocab)
    assert not together.packed and torch.equal(together.ids_BL, batch.ids_BL)
    assert torch.equal(together.target_BL, batch.target_BL)


def test_a_window_of_another_tokenizer_is_refused() -> None:
    row = Windows(ROWS, byte_pairs(ROWS, 270), 24)[0]
    with pytest.raises(DataError, match="document 0.*ids of another tokenizer"):
        PlainText().sample(row, model().vocab)


def test_a_text_that_spells_the_end_or_the_mask_has_neither() -> None:
    vocab = model().vocab
    text, target = PlainText().sample({"text": "a<eos><mask>b"}, vocab)
    assert isinstance(text, Text) and isinstance(target, Target) and target.ids is not None
    assert list(target.ids).count(vocab.eos_id) == 1 == [*target.ids].index(vocab.eos_id) / (len(target.ids) - 1)
    assert vocab.mask_id not in target.ids and PlainText().parse(target.ids, vocab) == "a<eos><mask>b"
    for row in ({"text": ["<mask>", 2]}, {"draft": "<mask>"}, {"text": "<mask>"}):
        given = [i for p in PlainText(spare=2).prompt(row, vocab) for i in getattr(p, "ids", None) or ()]
        assert vocab.mask_id not in given


def test_what_is_given_stays_and_gaps_are_filled() -> None:
    one = session(seed=1)
    made = one.predict({"text": ["the red", 3, " sat on", 2, "."]})
    assert len(made["canvas"]) == 5 and made["forwards"] == 5
    continued = one.predict({"text": "the red"})
    assert len(continued["canvas"]) == 6
    draft = one.predict({"draft": "the red cat"}, draft=RANDOM)
    kept = [token for token, step, _ in draft["canvas"] if step == 0]
    assert 0 < len(kept) < len(draft["canvas"])


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"text": ["a", "b"]}, "there is no gap"),
        ({"text": ["a", 0]}, "text: 0, expected a text, or a number"),
        ({"text": ["a", True]}, "text: True"),
        ({"text": ["a", 10**9]}, "text: 1000000000"),
        ({"text": 3}, "text: 3, expected a text"),
        ({"txt": "a"}, "unknown field.*did you mean"),
        ({"draft": ["a"]}, "draft:"),
    ],
)
def test_rows_that_are_not_text(row: dict[str, Any], error: str) -> None:
    with pytest.raises(DataError, match=error):
        session().predict(row)


def config(name: str, steps: int) -> Config:
    tokenizer = {"target": "mmdiff.tasks.text.tokenizer.byte_pairs", "documents": {"target": f"{__name__}.documents"}}
    tokenizer["vocab_size"] = 280  # type: ignore[assignment]
    data = {"target": "mmdiff.tasks.text.data.windows.Windows", "documents": {"target": f"{__name__}.documents"}}
    stage = StageConfig(
        steps=steps,
        batch_size=2,
        lr=1e-2,
        lr_schedule="constant",
        warmup=0,
        data={**data, "tokenizer": tokenizer, "length": 16},
        objective={"target": "mmdiff.objectives.denoise.Denoise"},
    )
    backbone = {
        "target": "mmdiff.backbones.new_backbone",
        "tokenizer": tokenizer,
        "hidden_size": 16,
        "layers": 1,
        "heads": 2,
    }
    return Config(
        name=name,
        model=ModelConfig(backbone=backbone),
        task={"target": "mmdiff.tasks.text.PlainText"},
        train=TrainConfig(stages={"fit": stage}, tensorboard=False, log_every=1, save_every=2),
    )


def test_training_on_windows_resumes_exactly(tmp_path: Path) -> None:
    """Four steps in one go, or two and then two more by another process: the same weights."""
    quiet: dict[str, Any] = {"progress_bar": False}
    whole, parts = config("whole", 4), config("parts", 4)
    for name, one in (("whole", whole), ("parts", dataclasses.replace(parts, train=config("parts", 2).train))):
        fit(one, Run(tmp_path / name), make_accelerator(one.train), **quiet)
    fit(parts, Run(tmp_path / "parts"), make_accelerator(parts.train), **quiet)
    first, second = (load(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_window_of_other_ids_cannot_be_trained_on(tmp_path: Path) -> None:
    wrong = config("wrong", 2)
    wrong.train.stages["fit"].data["tokenizer"] = {**wrong.train.stages["fit"].data["tokenizer"], "vocab_size": 270}
    with pytest.raises((DataError, ConfigError), match="another tokenizer"):
        fit(wrong, Run(tmp_path / "wrong"), make_accelerator(wrong.train), progress_bar=False)
