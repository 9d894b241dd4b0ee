"""New words and reserved ids of a saved model: what was there stays to the bit, whatever moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor

from mmdiff import check, load, train
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families import esm
from mmdiff.backbones.reserve import near_mean
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config import load_config
from mmdiff.config.settings import ModelConfig
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.objectives.heads import WordHead


def small(reserve: dict[str, int] | None = None, **more: Any) -> MMDiff:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "layers": 1, "heads": 2, "reserve": reserve}
    backbone = new_backbone(tokenizer=word_tokenizer(toy.WORDS), **sizes, **more)
    head = WordHead(width_in=16, vocab_size=backbone.vocab.size, words=2)
    parts = ({"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=16)}, {"image": head})
    return MMDiff(backbone, *parts).eval()


def tables(model: MMDiff) -> dict[str, Tensor]:
    backbone, head = model.backbone.model, model.heads["image"].linear
    return {
        "embedding": backbone.get_input_embeddings().weight.detach().clone(),
        "head": backbone.get_output_embeddings().weight.detach().clone(),
        "words 0": head.weight.detach().unflatten(0, (2, -1))[0].clone(),
        "words 1": head.bias.detach().unflatten(0, (2, -1))[1].clone(),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_old_rows_stay_and_those_of_ranges_move_along(tmp_path: Path, dtype: str) -> None:
    """9 words, then `action` 9 to 12 and `state` 12 to 14: two words and one more `state` id move both ranges by 2."""
    model = small({"action": 3, "state": 2}, vocab_size=16, dtype=dtype)
    before = tables(model)
    model.grow(["zebra", "<point>"], {"state": 3, "mode": 4})
    after, vocab = tables(model), model.vocab
    assert vocab.ranges == {"action": (11, 14), "state": (14, 17), "mode": (17, 21)} and vocab.size == 128
    moved = {**{i: i for i in range(9)}, 11: 9, 12: 10, 13: 11, 14: 12, 15: 13}
    for name, old in before.items():
        assert len(after[name]) == 128
        for new_id, old_id in moved.items():
            assert torch.equal(after[name][new_id], old[old_id]), (name, new_id)
        fresh = after[name][[9, 10, *range(16, 128)]].float()
        assert fresh.isfinite().all() and (fresh.flatten(1).std(1) > 0 if fresh.ndim > 1 else fresh != 0).all()
        assert not any(torch.equal(row, o.float()) for row in fresh for o in old)
    old_VD = before["embedding"].float()
    near_VD = (after["embedding"][16:].float() - old_VD.mean(0)) / old_VD.std(0, correction=0)
    rounded = 0.0 if dtype == "float32" else 0.02  # of a mean, in bfloat16
    assert 0.009 < float(near_VD.std()) < 0.011 + rounded  # 1 %; 1,792 draws: five standard errors are 8 % of it
    model.save_pretrained(tmp_path / "grown")
    again = MMDiff.from_pretrained(tmp_path / "grown")
    assert again.vocab.ranges == vocab.ranges
    assert all(torch.equal(value, tables(again)[name]) for name, value in after.items())
    assert again.vocab.encode("North zebra <point>") == vocab.encode("North zebra <point>") == [5, 9, 10]


def test_a_table_with_free_rows_does_not_grow_and_free_rows_that_get_a_name_are_drawn() -> None:
    model = small(vocab_size=16)
    before = tables(model)
    assert model.vocab.encode("zebra") == [3]  # which must not be remembered
    model.grow(["zebra"])
    after = tables(model)
    assert model.vocab.size == 16 and model.vocab.encode("zebra") == [9]
    for name, old in before.items():
        kept = [i for i in range(16) if i != 9]
        assert torch.equal(after[name][kept], old[kept]) and not torch.equal(after[name][9], old[9])


def test_new_rows_are_the_same_each_time_and_those_of_two_words_are_not() -> None:
    """One rule, by the table and the id, whether a table grows or has rows to spare, in one step or in two."""
    twice = [small(vocab_size=16), small(vocab_size=16)]
    for model in twice:
        model.grow(["zebra"])
        torch.manual_seed(len(twice) + id(model) % 7)
        model.grow(["lynx"])
    one, other = (tables(model) for model in twice)
    for name in ("embedding", "head"):
        assert torch.equal(one[name], other[name])
        assert (one[name][9] - one[name][10]).abs().max() > 0.01 * one[name].float().std()
    table_VD = tables(small(vocab_size=16))["embedding"]
    assert torch.equal(one["embedding"][9], near_mean(table_VD, [9])[0])
    ninth_D, tenth_D = near_mean(table_VD, [9, 10])
    assert (ninth_D - tenth_D).abs().max() > 0.01 * table_VD.float().std()
    grown = small()  # of 9 rows
    had_VD = tables(grown)["embedding"]
    grown.grow(["zebra"])
    assert torch.equal(tables(grown)["embedding"][9:], near_mean(had_VD, range(9, 128)))


def test_tied_tables_stay_tied(tmp_path: Path) -> None:
    model = small()
    model.backbone.model.config.tie_word_embeddings = True
    model.backbone.model.tie_weights()
    model.grow(["zebra"])
    into, out = model.backbone.model.get_input_embeddings(), model.backbone.model.get_output_embeddings()
    assert into.weight is out.weight and len(into.weight) == 128


def test_a_word_of_letters_is_a_word_by_itself_only() -> None:
    model = small()
    model.grow(["cat", "<point>"])
    unknown, cat, point = model.vocab.encode("catalogue"), *model.vocab.encode("cat <point>")
    assert (cat, point) == (9, 10) and unknown == [3]
    assert model.vocab.encode("Cat where<point>north") == [9, 4, 10, 5]
    assert model.vocab.decode([9, 5]) == "cat north"


@pytest.mark.parametrize(
    ("words", "reserve", "message"),
    [
        (["north"], {}, "words: 'north' is a token already, or given twice"),
        (["North"], {}, "words: 'North' is a token already, or given twice"),
        (["zebra", "zebra"], {}, "words: 'zebra' is a token already, or given twice"),
        (["two words"], {}, "words: 'two words' is not a word, expected text without white space"),
        ([""], {}, "words: '' is not a word"),
        (["\ud800"], {}, "words: '\\ud800' is not a word"),
        ("zebra", {}, "words: 'zebra' is no list of string"),
        ([], {"action": 2}, "reserve.action: 2 ids, but the model has 3 of that name"),
        ([], {"mode": 0}, "reserve.mode: 0 is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_changes_nothing(words: Any, reserve: Any, message: str) -> None:
    model = small({"action": 3})
    before, vocab = tables(model), model.vocab
    with pytest.raises(ConfigError) as raised:
        model.grow(words, reserve)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert model.vocab is vocab and len(vocab.tokenizer) == 9
    assert all(torch.equal(value, tables(model)[name]) for name, value in before.items())


def test_what_cannot_grow_is_refused() -> None:
    backbone = new_backbone(family="esm", tokenizer=esm.tokenizer(), hidden_size=16, layers=1, heads=2)
    with pytest.raises(ConfigError, match="the vocabulary of the family 'esm' cannot grow"):
        MMDiff(backbone).grow([], {"bins": 2})
    adapted = small()
    add_adapters(adapted, {"part": "backbone", "r": 2, "alpha": 4.0, "dropout": 0.0, "modules": "lm_head"})
    with pytest.raises(ConfigError, match="its head is a Linear, which cannot grow"):
        adapted.grow(["zebra"])
    headed = small()
    headed.heads["image"] = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="heads.image: Linear has no method `grow`"):
        headed.grow(["zebra"])


def test_training_starts_from_a_saved_model_with_more_words(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ModelConfig(weights=str(trained), words=["zebra"], reserve={"action": 2})
    config = replace(toy.config("grown", stage={"steps": 1}), model=more)
    assert check(config)["loss"]["only"] > 0
    train(config)
    model = load("runs/grown").model
    assert model.vocab.encode("zebra") == [9] and model.vocab.range("action") == (10, 12)
    kept = load_config("runs/grown").model
    assert (kept.words, kept.reserve) == (["zebra"], {"action": 2})
    longer = toy.config("grown", stage={"steps": 2})
    train(replace(longer, model=more))  # resumes from a checkpoint whose table has grown
    assert len(load("runs/grown").model.vocab.tokenizer) == 10
