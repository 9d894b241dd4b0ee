"""The memory that `mmdiff inspect` shows, against what torch allocates on the CPU for the same forward and step.

Allocations are those of torch's profiler, in order of time: their sum at the end, or at the worst moment. Tolerances:
1 % of what a forward in float32 keeps, and has at one time, and 5 % in bfloat16, whose kernels on a CPU copy some
tensors to float32; 15 % of a whole training step, whose gradients of hidden states are not counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmdiff.backbones import Backbone, new_backbone
from mmdiff.backbones.families.llada import toy_tokenizer
from mmdiff.backbones.family import find_family
from mmdiff.model import MMDiff
from mmdiff.model.params import Lora, add_adapters
from mmdiff.model.scorer import cross_entropy
from mmdiff.sharing.inspection.counting.factors import lora_factors
from mmdiff.sharing.inspection.counting.memory import kept, memory_of
from mmdiff.sharing.inspection.figures import LOGITS, LOSS, Canvases
from mmdiff.sharing.inspection.thorough import on_meta

B, L, WIDTH = 2, 384, 128
FAMILIES = ["llada", "esm"]


def allocated(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a function has allocated when it ends and has not freed, and the most at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        out = run()
    events = found.profiler.kineto_results.events()
    now = most = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        now += size
        most = max(most, now)
    del out
    return now, most


def backbone(family: str, dtype: str = "float32", layers: int = 3) -> Backbone:
    torch.manual_seed(0)
    tokenizer = find_family(family).toy_tokenizer()
    made = new_backbone(
        family=family, tokenizer=tokenizer, hidden_size=WIDTH, layers=layers, heads=4, max_length=L, dtype=dtype
    )
    return made.train()


def shapes_of(real: Backbone) -> Any:
    return on_meta(find_family(real.family), copy.deepcopy(real.model.config), str(real.model.dtype).split(".")[1])


def ids() -> Tensor:
    return torch.zeros(B, L, dtype=torch.int64)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.01), ("bfloat16", 0.05)])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_forward_keeps(family: str, dtype: str, tolerance: float) -> None:
    real = backbone(family, dtype)
    run = ids()
    now, _ = allocated(lambda: real.hidden(real.embed(run)))
    assert kept(shapes_of(real), find_family(family), B, L).whole == pytest.approx(now, rel=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_forward_keeps_under_lora(family: str, dtype: str) -> None:
    real = backbone(family, dtype)
    model = MMDiff(real)
    modules = Lora().modules if family == "llada" else "query|key|value|dense"
    add_adapters(model, {"part": "backbone", "r": 4, "alpha": 8.0, "dropout": 0.0, "modules": modules})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    run = ids()
    now, _ = allocated(lambda: real.hidden(real.embed(run)))
    shapes = shapes_of(backbone(family, dtype))
    with lora_factors(shapes, 4) as factors:
        found = kept(shapes, find_family(family), B, L, factors)
    adapted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    slack = 4 * (sum(f.numel() for f in factors) - adapted)  # ESM: the head's layer, which has no name of its own
    assert abs(slack) < 4 * 4 * 4 * WIDTH
    assert found.whole == pytest.approx(now, rel=0.02 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_most_that_inference_has_at_one_time(family: str) -> None:
    real = backbone(family).eval()
    run = ids()
    with torch.no_grad():
        _, most = allocated(lambda: real.hidden(real.embed(run)))
    found = _memory(real)["inference"]
    assert found["working"] == pytest.approx(most, rel=0.01)
    assert found["weights"] == sum(p.numel() * p.element_size() for p in real.parameters())


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 1.05), ("float32", 1.4)])
def test_experts_are_counted(dtype: str, most: float) -> None:
    """Their kernels have shapes for bfloat16 alone: figures of float32 are too large, by what is float32 in both."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    fields: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": 256, "moe_intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 8,
        "num_experts_per_tok": 2, "is_causal": False, "use_cache": False, "pad_token_id": None,
    }  # fmt: skip
    config = Qwen3MoeConfig(**fields)
    real = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=getattr(torch, dtype)).train()
    llada, run = find_family("llada"), ids()
    now, _ = allocated(lambda: llada.run(real, llada.embed(real, run, None), None, None, None, False))
    shapes = on_meta(llada, config, dtype)
    found = memory_of(shapes, llada, Canvases(L, B, L, 8))
    assert 0.95 < found["full_training"]["activations"] / now < most
    assert found["full_training"]["weights"] == sum(p.numel() * p.element_size() for p in real.parameters())


def test_keys_and_values_are_the_buffers_of_a_memory() -> None:
    real = backbone("llada").eval()
    memory = real.memory(B, L)
    memory.whole(None)
    run = ids()
    with torch.no_grad():
        real.hidden(real.embed(run), memory=memory)
    held = sum(x.numel() * 4 for layer in memory.buffers for x in (layer.keys, layer.values) if x is not None)
    assert _memory(real)["inference"]["kv_cache"] == held
    assert _memory(backbone("esm"))["inference"]["kv_cache"] == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step(checkpointing: bool) -> None:
    """Two forwards with their backward passes, then AdamW: gradients of the first are there in the second."""
    real = backbone("llada")
    real.gradient_checkpointing(checkpointing)
    optimizer = torch.optim.AdamW(real.parameters(), fused=True)
    run, label = ids(), torch.zeros(B * L, dtype=torch.int64)

    def step() -> None:
        for _ in range(2):
            h_PD = real.hidden(real.embed(run)).flatten(0, 1)
            cross_entropy(real.head, h_PD, label, chunk=4096).nll_P.sum().backward()
        optimizer.step()

    step()  # makes the moments
    optimizer.zero_grad()
    _, most = allocated(step)
    found = _memory(real)["full_training"]
    static = found["weights"] + found["moments"]
    total = found["total_checkpointed" if checkpointing else "total"]
    assert found["moments"] == sum(
        x.numel() * x.element_size() for s in optimizer.state.values() for x in s.values() if x.dim()
    )
    assert total == pytest.approx(static + most, rel=0.15)
    assert found["total_checkpointed"] < 0.6 * found["total"]


def test_copies_of_logits_in_a_generation_and_in_a_loss() -> None:
    """A table so wide that all else is small beside it."""
    rows, masked = 20_000, 48
    made = new_backbone(tokenizer=toy_tokenizer(), hidden_size=16, layers=1, heads=2, vocab_size=rows)
    model = MMDiff(made).eval()
    prompt = torch.zeros(B, 3, dtype=torch.int64)
    _, most = allocated(lambda: model.generate(prompt, max_new_tokens=masked, steps=2))
    assert most == pytest.approx(LOGITS * 4 * B * masked * rows, rel=0.05)
    head = nn.Linear(16, rows, bias=False)
    h_PD, label = torch.randn(96, 16, requires_grad=True), torch.zeros(96, dtype=torch.int64)
    for chunk in (96, 32):
        _, most = allocated(lambda: cross_entropy(head, h_PD, label, chunk=chunk).nll_P.sum().backward())  # noqa: B023
        gradient = head.weight.numel() * 4
        assert most - gradient == pytest.approx(LOSS * 4 * chunk * rows, rel=0.15)


def _memory(real: Backbone) -> dict[str, Any]:
    family = find_family(real.family)
    return memory_of(shapes_of(real), family, Canvases(L, B, L, 8))
