"""Rows that share a packed row have the loss and the gradient that they have one by one, media and all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import Tensor

from mmdiff import train
from mmdiff.backbones import new_backbone
from mmdiff.backbones.family import find_family
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.packing import PackedModel, Packing
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import BlockCausal, Causal, CausalContext, Full, PrefixCausal
from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise

KEY = NoiseKey(0, step=3, stream="x", batch=5)


def samples(model: MMDiff, pictures: bool = True) -> list[Any]:
    """Ragged rows: a long one, short ones, pictures in front and in the middle, two spans."""
    draw = torch.Generator().manual_seed(1)

    def words(n: int) -> list[int]:
        return torch.randint(4, 9, (n,), generator=draw).tolist()

    image = [Media("image", torch.randn(1, 8, 8, generator=draw)) for _ in range(2)] if pictures else [Text([4])] * 2
    rows: list[Any] = [
        [Text(words(3)), Target(words(20))],
        [image[0], Text(words(2)), Target(words(4))],
        [Target(words(3))],
        [Text(words(2)), Target(words(2)), image[1], Text(words(1)), Target(words(3))],
        [Text(words(4)), Target(words(5))],
    ]
    return rows


def gradients(model: Any, objective: Denoise, batches: list[Batch], length: int) -> tuple[float, dict[str, Tensor]]:
    """The loss and gradients of the sum over batches. length: of packed rows; 0: as they are."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        plan = objective.plan(batch, KEY, model.vocab)
        packing = Packing.of(plan.batch, plan.row_R, length) if length else None
        assert (packing is None) == (not length)
        loss = objective.terms(PackedModel(model, packing) if packing else model, plan)["denoise"].value  # type: ignore[arg-type]
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5) and one[1].keys() == other[1].keys()
    most = max(float(g.abs().max()) for g in one[1].values())
    for name, gradient in one[1].items():
        assert float((gradient - other[1][name]).abs().max()) < 1e-5 * most, name


@pytest.mark.parametrize("length", [27, 40, 1])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    "attention", [Full(), Causal(), BlockCausal(3), BlockCausal(3, start="targets"), CausalContext(), PrefixCausal()]
)
def test_packed_rows_have_the_gradient_of_rows_one_by_one(attention: Pattern, copies: int, length: int) -> None:
    model = toy.model(attention)
    rows, objective = samples(model), Denoise(copies=copies)
    together = toy.batch_of(model, rows, side="right")
    plan = objective.plan(together, KEY, model.vocab)
    packing = Packing.of(plan.batch, plan.row_R, length)
    assert packing is not None and packing.at_KN.shape[0] < len(plan.ids_RL) or length == 1
    alone = [toy.batch_of(model, [row], [i], side="right") for i, row in enumerate(rows)]
    assert_equal(gradients(model, objective, [together], length), gradients(model, objective, alone, 0))


@pytest.mark.parametrize("family", ["bert", "esm", "modernbert", "roberta", "qwen3"])
def test_every_family_keeps_packed_rows_apart(family: str) -> None:
    torch.manual_seed(0)
    tokenizer = find_family(family).toy_tokenizer()
    backbone = new_backbone(family=family, tokenizer=tokenizer, hidden_size=32, layers=2, heads=2)
    model = MMDiff(backbone)
    model.eval()
    batch = collate(samples(model, pictures=False), model.vocab)
    objective = Denoise()
    assert_equal(gradients(model, objective, [batch], 30), gradients(model, objective, [batch], 0))


def test_what_packing_leaves_as_it_is() -> None:
    model = toy.model()
    full = toy.batch_of(model, samples(model)[:1], side="right")
    assert Packing.of(full, torch.arange(1), 64) is None  # no row is padded
    ragged = toy.batch_of(model, samples(model), side="right")
    found = Packing.of(ragged, torch.arange(5), 64)
    assert (
        found is not None and sorted(found.from_M.tolist()) == ragged.attend_BL.flatten().nonzero().flatten().tolist()
    )
    assert Packing.of(replace(ragged, attention=Full()), torch.arange(5), 64) is None


def test_a_packed_run_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"target": "toy.Corners", "lengths": [1, 2, 9]}
    fields = {
        "steps": 4,
        "batch_size": 6,
        "lr": 1e-3,
        "data": rows,
        "params": [{"match": "encoders", "train": False}, {"match": "*"}],
    }
    seen: list[int] = []
    of = Packing.of
    monkeypatch.setattr(Packing, "of", lambda *args: (found := of(*args)) and (seen.append(1) or found))
    for name, pack in (("padded", 0), ("packed", 32)):
        train(toy.config(name, stage=fields | {"pack": pack}))
    assert len(seen) >= 3  # a batch of one length has nothing to leave out
    a, b = (load_file(f"runs/{name}/model/model.safetensors") for name in ("padded", "packed"))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-5


def test_token_dropout_counts_the_masks_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = toy.config(image=False, stage={"pack": 32})
    config.model.backbone = {
        "target": "mmdiff.backbones.new_backbone", "family": "esm", "hidden_size": 16, "layers": 1, "heads": 2,
        "tokenizer": {"target": "mmdiff.backbones.families.esm.tokenizer"}, "options": {"token_dropout": True},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="^train.stages.only.pack: "):
        train(config)
