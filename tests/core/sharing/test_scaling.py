"""The memory of a device when a model is divided: the arithmetic by hand, and the tables of docs/scaling.md."""

from __future__ import annotations

from typing import Any

import pytest
from paths import ROOT

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.llada import toy_tokenizer
from mmdiff.backbones.families.published.llada import LLADA_8B, LLADA_MOE
from mmdiff.backbones.family import find_family, model_type_of
from mmdiff.sharing.inspection.scaling import Counts, counts, per_device, table

SHAPES = ((1, 1024), (1, 4096), (4, 4096))
MODELS: dict[str, Any] = {"LLaDA-8B": LLADA_8B, "LLaDA-MoE-7B-A1B": next(iter(LLADA_MOE.values()))}


def test_bytes_by_hand() -> None:
    count = Counts(all=1000, layer=100, outside=200, trained=1000, trained_layer=100, trained_outside=200)
    alone = per_device(count, sharding="none", devices=1, activations=7, logits=5)
    assert alone == {"state": 16_000, "gathered": 2000, "reduced": 0, "activations": 7, "logits": 5, "total": 18_012}
    full = per_device(count, sharding="full", devices=4, activations=0, logits=0)
    assert full["state"] == 4000 and full["gathered"] == 2 * (200 + 200) and full["reduced"] == 400 + 800
    lora = Counts(all=1010, layer=101, outside=200, trained=10, trained_layer=1, trained_outside=0)
    divided = per_device(lora, sharding="gradients", devices=4, activations=0, logits=0)
    assert divided["state"] == (160 + 2000) / 4 and divided["gathered"] == 2020 and divided["reduced"] == 6


def test_counts_are_those_of_a_model() -> None:
    model = new_backbone(tokenizer=toy_tokenizer(), family="llada", hidden_size=32, layers=3, heads=2).model
    found = counts(model)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert found.all == sum(p.numel() for p in model.parameters()) == 3 * layer + found.outside
    assert found.layer == layer and found.trained == found.all
    lora = counts(model, rank=4)
    assert lora.trained == lora.all - found.all > 0 and lora.trained_outside == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [0, 16])
def test_the_tables_of_the_page(name: str, rank: int) -> None:
    raw = dict(MODELS[name])
    own = find_family(model_type_of(raw))
    divisions = [("none", 1), ("gradients", 8), ("full", 8), *([] if rank else [("full", 64)])]
    lines = table(own, own.config(own.settle(raw, set())), rank=rank, shapes=SHAPES, divisions=divisions)
    title = f"{name}, {'LoRA' if rank else 'all weights'}:"
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert f"{title}\n\n" + "\n".join(lines) + "\n" in page
