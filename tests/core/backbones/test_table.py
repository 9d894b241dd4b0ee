"""docs/backbones.md is true: its facts are the code's, every cell names a test, every family has a row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.family import FAMILIES, MASKED, find_family
from mmdiff.canvas.patterns import BlockCausal, CausalContext
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.config.presets import presets
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.objectives.denoise import Denoise

PAGE = (ROOT / "docs" / "backbones.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
FACTS = {name: row for row in ROWS if len(row) == 8 for name in re.findall(r"`([\w-]+)`", row[0])}
KINDS = {"AutoModelForCausalLM": "ForCausalLM", "AutoModelForMaskedLM": "ForMaskedLM"}


def test_every_family_has_a_row_and_every_preset_a_cell() -> None:
    assert set(FACTS) - {"model_type"} == set(FAMILIES)
    assert {name for row in FACTS.values() for name in re.findall(r"`([\w.-]+)`", row[7])} - {"presets"} <= set(
        presets()
    )
    page = (ROOT / "docs" / "sampling.md").read_text()
    table = page[page.index("| checkpoint | presets |") : page.index("sampler.preset=llada2.1-mini")]
    assert re.findall(r"`([\w.-]+)`", table).count("llada-1.5") == 1
    assert sorted(re.findall(r"`([\w.-]+)`", table)) == presets()


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(MASKED) - {"esmc"}))
def test_facts_of_published_models(name: str) -> None:
    _, _, class_of, mask, attention, shift, _, _ = FACTS[name]
    family: Any = find_family(name)
    raw = {"model_type": name, **dict(next(iter(family.PUBLISHED.values())))}
    if family.AUTO_CLASS == "AutoModelForCausalLM":
        config = family.config({"d_model": None, **raw} if name == "llada" else raw)
        ids = family.ids | {key: value for key, value in raw.items() if key == "mask_token_id" and value is not None}
        assert int(mask) == ids["mask_token_id"] and int(shift) == family.shift
        pattern = family.attention(raw)
        block = 32 if name == "Fast_dLLM_Qwen" else getattr(pattern, "size", None)
        kind_of = {CausalContext: "causal context", BlockCausal: "block-causal"}
        assert attention == ("full" if pattern is None else f"{kind_of[type(pattern)]} {block}")
        assert pattern is None or pattern.size == block
    elif name == "diffusion_gemma":
        config = family.config(raw)
        facts = family.facts(raw, config, family.toy_tokenizer())
        found = facts.mask_id, f"causal context {facts.attention.size}", facts.shift
        assert found == (None, attention, int(shift)) and mask == "none" and class_of == f"`{family.AUTO_CLASS}`"
        return
    else:
        config = family.config(raw)
        assert (int(mask), attention, shift) == (raw["mask_token_id"], "full", "0")
    assert class_of == f"`{type(config).__name__.removesuffix('Config')}{KINDS[family.AUTO_CLASS]}`"


def test_every_cell_is_a_test() -> None:
    cells = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", PAGE)
    assert len(cells) > 20
    for test, file in cells:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


@pytest.mark.parametrize("name", ["llada", "esm", "esm_diff", "llama", "qwen3"])
def test_toys_generate_train_and_take_adapters(name: str) -> None:
    """Ragged rows get what each gets alone; a step reaches every weight, or the adapters alone, recomputed or not."""
    torch.manual_seed(0)
    tokenizer, sizes = find_family(name).toy_tokenizer(), {"hidden_size": 32, "layers": 2, "heads": 4, "init_std": 0.3}
    model = MMDiff(new_backbone(family=name, tokenizer=tokenizer, **sizes))
    rows: list[Sample] = [[Text([5, 6, 7, 8]), Target(length=5)], [Text([9]), Target(length=7)]]
    together = model.generate(collate(rows, model.vocab, index=[0, 1]), early_stop=False).targets()
    for i, row in enumerate(rows):
        assert model.generate(collate([row], model.vocab, index=[i]), early_stop=False).targets() == [together[i]]
        assert model.vocab.mask_id not in together[i]
    batch = collate([[Text([5, 6]), Target([7, 8, 9, 10])]], model.vocab)

    def step() -> set[str]:
        plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        model.zero_grad()
        Denoise().terms(model.train(), plan)["denoise"].value.backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}

    assert not [n for n in {n for n, _ in model.named_parameters()} - step() if "key.bias" not in n]
    values = "v_proj" if name not in ("esm", "esm_diff") else "value"
    add_adapters(model, {"part": "backbone", "modules": values, "r": 2, "alpha": 4, "dropout": 0.0})
    assert step() and all("lora_" in n for n in step())
    model.backbone.gradient_checkpointing(True)
    assert step() and all("lora_" in n for n in step())


@torch.no_grad()
def test_transformers_reads_what_is_saved_of_esm(tmp_path: Path) -> None:
    from transformers import EsmForMaskedLM

    named: dict[str, Any] = {"hidden_size": 32, "layers": 2, "heads": 4, "init_std": 0.3}
    backbone = new_backbone(family="esm", tokenizer=find_family("esm").toy_tokenizer(), **named)
    ids = torch.randint(4, 24, (2, 9))
    for original in (False, True):
        backbone.save_pretrained(tmp_path / str(original), original_format=original)
        stock = EsmForMaskedLM.from_pretrained(tmp_path / str(original)).eval()
        torch.testing.assert_close(stock(input_ids=ids).logits, backbone(ids), atol=1e-5, rtol=1e-5)
        assert torch.equal(load_backbone(tmp_path / str(original))(ids), backbone(ids))
