"""Weights in 4 bits below LoRA: codes by hand and by another library, gradients, learning, saving, merging.

Shape letters: O outputs, I inputs, N weights, B blocks of 64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn

from mmdiff import train
from mmdiff.canvas.sample import Target, Text
from mmdiff.config.settings import Config
from mmdiff.data.collate import collate
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.model.params import LEVELS, FourBit, Lora, Rule, apply_rules, merge_adapters

RULES = [{"match": "backbone", "lora": {"r": 4, "four_bit": True}}]


def layer(inputs: int = 48, outputs: int = 30, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, dtype=dtype)


def test_a_code_is_the_nearest_level_of_its_block() -> None:
    """Also of a last block that is not full."""
    whole = layer(48, 31)
    made, flat_N = FourBit(whole), whole.weight.detach().flatten()
    assert made.weight.shape == whole.weight.shape
    for n, value in enumerate(flat_N.tolist()):
        block_B = flat_N[n // 64 * 64 : n // 64 * 64 + 64]
        largest = float(block_B.abs().max())
        nearest = min((level * largest for level in LEVELS), key=lambda x, v=value: abs(x - v))  # type: ignore[misc]
        assert float(made.weight.flatten()[n]) == pytest.approx(nearest, abs=1e-7)
    assert float((made.weight.flatten() - flat_N).abs().max()) <= 0.16 * float(flat_N.abs().max())
    zero = layer(8, 8)
    nn.init.zeros_(zero.weight)
    assert bool((FourBit(zero).weight == 0).all())


@pytest.mark.needs("bitsandbytes")
def test_codes_are_those_of_bitsandbytes() -> None:
    import bitsandbytes.functional as other

    whole = layer(128, 96)
    codes, state = other.quantize_4bit(whole.weight.detach(), blocksize=64, quant_type="nf4")
    made = FourBit(whole)
    assert torch.equal(codes.flatten(), made.codes) and torch.equal(state.absmax, made.largest)
    assert torch.equal(other.dequantize_4bit(codes, state), made.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_multiplies_and_differentiates_as_the_rounded_weights(dtype: torch.dtype) -> None:
    made = FourBit(layer(dtype=dtype))
    whole = made.whole()
    x = torch.randn(3, 5, 48, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, expected = made(x), whole(y)
    torch.testing.assert_close(out, expected)
    for one in (out, expected):
        one.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert not [name for name, p in made.named_parameters() if p.requires_grad]


def test_it_takes_a_quarter_of_the_memory() -> None:
    whole = layer(512, 512, torch.bfloat16)
    made = FourBit(whole)
    size = made.codes.numel() + 4 * made.largest.numel()
    assert 8 * size / whole.weight.numel() == 4.5


def model() -> MMDiff:
    torch.manual_seed(0)
    return MMDiff(toy.backbone()).eval()


def nll(m: MMDiff) -> Tensor:
    batch = collate([[Text([4]), Target([5, 6, 7])], [Text([4, 8]), Target([6])]], m.vocab)
    return bound(m, batch).nll_B


def trained_a_little(m: MMDiff) -> None:
    apply_rules(m, [Rule("backbone", lora=Lora(r=4, four_bit=True))], lr=1e-2, weight_decay=0.0)
    with torch.no_grad():
        for name, p in m.named_parameters():
            if ".lora_B." in name:
                p.normal_(std=0.3)


def test_only_layers_with_adapters_are_rounded() -> None:
    m = model()
    names = [name for name, module in m.named_modules() if type(module) is nn.Linear]
    trained_a_little(m)
    found = [name for name, module in m.named_modules() if isinstance(module, FourBit)]
    assert found and {name.removesuffix(".base_layer") for name in found} == {n for n in names if "lm_head" not in n}
    assert all(p.dtype == torch.float32 for p in m.parameters())


def test_a_saved_model_is_the_model_to_the_bit(tmp_path: Path) -> None:
    m = model()
    before = nll(m)
    trained_a_little(m)
    rounded = nll(m)
    assert not torch.equal(rounded, before)
    m.save_pretrained(tmp_path / "model")
    again = MMDiff.from_pretrained(tmp_path / "model")
    assert torch.equal(nll(again), rounded)
    kinds = {type(module).__name__ for module in again.modules()}
    assert "FourBit" in kinds


def test_merged_weights_are_whole_again(tmp_path: Path) -> None:
    m = model()
    trained_a_little(m)
    rounded = nll(m)
    assert merge_adapters(m) > 0
    assert not any(isinstance(module, FourBit) for module in m.modules())
    torch.testing.assert_close(nll(m), rounded, rtol=1e-4, atol=1e-5)
    m.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(nll(MMDiff.from_pretrained(tmp_path / "merged")), rounded, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the toy falls with everything but LoRA frozen in 4 bits, whose codes stay; eight steps are four and
    four."""
    monkeypatch.chdir(tmp_path)

    def config(name: str, steps: int) -> Config:
        stage = {"steps": steps, "batch_size": 8, "lr": 2e-2, "lr_schedule": "constant", "params": RULES}
        return toy.config(name, image=False, stage=stage, save_every=4)

    low = config("low", 2)
    low.train.precision = "bf16"
    train(low)
    train(config("whole", 40))
    train(config("parts", 20))
    train(config("parts", 40))
    whole, parts = (MMDiff.from_pretrained(f"runs/{name}/model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    fresh = model_of_run()
    trained_a_little(fresh)
    codes = {name: tensor for name, tensor in fresh.state_dict().items() if name.endswith("codes")}
    assert codes and all(torch.equal(tensor, whole[name]) for name, tensor in codes.items())
    losses = [json.loads(line)["loss"] for line in Path("runs/whole/metrics.jsonl").read_text().splitlines()]
    print(f"loss {losses[0]:.2f} -> {sum(losses[-5:]) / 5:.2f}")
    assert sum(losses[-5:]) / 5 < losses[0] - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["full", "gradients", "none"])
def test_two_processes_give_the_run_of_one(sharding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QLoRA in shards: factors, moments and gradients are divided, codes are whole in each process."""
    monkeypatch.chdir(tmp_path)

    def config(name: str, world: int, **more: Any) -> Config:
        rules = [{"match": "encoders", "train": False}, {"match": "connectors"}, *RULES]
        held_out = {"target": "toy.Corners", "n": 3, "seed": 2}
        stage = {"steps": 4, "batch_size": 4 // world, "lr": 1e-3, "params": rules, "eval": held_out}
        return toy.config(name, stage=stage, save_every=2, **more)

    train(config("one", 1))
    toy.in_processes(2, config("two", 2, sharding=sharding))
    lines = [
        [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for a, b in zip(*lines, strict=True):
        key = "loss" if "loss" in a else "bound_per_token"
        assert a[key] == pytest.approx(b[key], abs=1e-5)
    one, two = (MMDiff.from_pretrained(f"runs/{name}/model").state_dict() for name in ("one", "two"))
    assert one.keys() == two.keys() and any(name.endswith("codes") for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), rtol=0, atol=1e-5)


def model_of_run() -> MMDiff:
    from mmdiff.training.train import model_of

    return model_of(toy.config(image=False), None, toy=False)
