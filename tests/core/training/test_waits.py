"""A step of training asks the device for nothing; once, where a step that is not finite is to be skipped.

Counted on the CPU: what a step hands to the device is tainted, and so is what is computed of tainted tensors, by
storage. An operator whose result the host has to know (`item`, `nonzero`, an index by a boolean mask, ...) counts where
it reads a tainted tensor; so does a tensor that is made of host numbers on a device, for such a copy waits
(`torch.cuda.set_sync_debug_mode` counts both).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdiff import train
from mmdiff.commands.check import check
from mmdiff.objectives.denoise import Denoise
from mmdiff.parts import part
from mmdiff.training.step import Stepper

RAGGED = {"target": "toy.Corners", "lengths": [1, 2, 7]}
OWN = "mmdiff.objectives."
DENOISE = f"{OWN}denoise.Denoise"
BLOCKS = {"target": "mmdiff.canvas.patterns.BlockCausal", "size": 2, "start": "targets"}
PREFIX = {"target": "mmdiff.canvas.patterns.PrefixCausal"}


WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero", "unique_dim",
    "_unique2", "unique_consecutive", "unique_dim_consecutive", "bincount", "repeat_interleave", "argwhere", "histc",
}  # fmt: skip
READING = {"tolist", "numpy", "cpu", "__contains__", "__array__"}  # what a CPU tensor answers without an operator
MAKING = {"tensor", "as_tensor", "new_tensor"}


class Taint:
    """Tainted storages, kept so that none is made again at the same address, and the places that waited."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.waits: list[str] = []
        self.handed = False  # whether planning, on the host, is over

    def add(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage

    def has(self, value: Any) -> bool:
        return any(
            isinstance(t, Tensor) and t.layout == torch.strided and t.untyped_storage()._cdata in self.held
            for t in tree_leaves(value)
        )

    def wait(self, what: str) -> None:
        own = [
            f for f in traceback.extract_stack() if not {"site-packages", "test_waits.py"} & {*f.filename.split("/")}
        ]
        self.waits.append(f"{what}: {own[-1].filename}:{own[-1].lineno}")


class _Operators(TorchDispatchMode):
    def __init__(self, taint: Taint) -> None:
        super().__init__()
        self.taint = taint

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.name().removeprefix("aten::").partition(".")[0]
        if self.taint.has((args, kwargs)):
            indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
            masks = [i for i in indices if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
            known = name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None
            if (name in WAITING and not known) or masks:
                self.taint.wait(name)
            self.taint.add(out)
        return out


class _Functions(TorchFunctionMode):
    """What a CPU tensor answers without an operator."""

    def __init__(self, taint: Taint) -> None:
        super().__init__()
        self.taint = taint

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READING and args and isinstance(args[0], Tensor) and self.taint.has(args[0]):
            self.taint.wait(name)
        if (name in MAKING and kwargs.get("device") is not None) or name == "new_tensor":
            self.taint.wait(name)
        out = func(*args, **kwargs)
        placed = name == "to" and any(isinstance(x, torch.device | str) for x in (*args[1:], kwargs.get("device")))
        if placed and sys._getframe(1).f_code.co_name == "to_device":
            self.taint.handed = True
        if placed and self.taint.handed and not self.taint.has(args[0]):
            if not kwargs.get("non_blocking"):
                self.taint.wait("to")
            out = out.clone()
            self.taint.add(out)
        return out


@contextmanager
def counted(taint: Taint) -> Iterator[Taint]:
    """Within it, waits are counted in `taint`; `Tensor.to` with a device gives a copy, which is on the device."""
    with _Functions(taint), _Operators(taint):
        yield taint


@part
class Restricted(toy.Where):
    """Answers are words; other ids are left out."""

    def sample(self, row: Any, vocab: Any) -> Any:
        *context, target = super().sample(row, vocab)
        return [*context, replace(target, allow=((4, 9),))]


@part
class Asking(Denoise):
    """What every step did before."""

    def terms(self, model: Any, plan: Any) -> Any:
        assert len(plan.weight_RL[plan.masked_RL]) and float(plan.rate_RL.sum()) and len(plan.masked_RL.nonzero())
        return super().terms(model, plan)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Returns a list that gets what each step waits for."""
    found: list[list[str]] = []
    original = Stepper.take

    def take(self: Stepper, *args: Any) -> bool:
        taint = Taint()
        taint.add([*self.model.parameters(), *self.model.buffers(), list(self.optimizer.state.values())])
        with counted(taint):
            taken = original(self, *args)
        found.append(taint.waits)
        return taken

    monkeypatch.setattr(Stepper, "take", take)
    return found


def waits_of(monkeypatch: pytest.MonkeyPatch, attention: Any = None, task: str = "toy.Where", **fields: Any) -> Any:
    """Returns what each of two steps waited for."""
    found = watched(monkeypatch)
    stage = {"steps": 2, "data": RAGGED, **fields.pop("stage", {})}
    config = toy.config(stage=stage, **fields)
    if attention is not None:
        config = replace(config, model=replace(config.model, attention=attention))
    train(replace(config, task={"target": task}))
    return found


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ({"target": DENOISE}, {}),
        ({"target": DENOISE, "denominator": "sequences", "copies": 3}, {}),
        ({"target": DENOISE, "levels": {"target": "mmdiff.diffusion.mask_rates.Bernoulli"}, "random_length": 0.5}, {}),
        ({"target": DENOISE, "emphasis": {"target": f"{OWN}noising.emphasis.HardTokens"}}, {}),
        ({"target": DENOISE}, {"task": f"{__name__}.Restricted"}),
        ({"target": DENOISE, "copies": 2}, {"attention": PREFIX}),
        ({"target": f"{OWN}blocks.BlockDenoise", "copies": 2}, {"attention": BLOCKS}),
        ({"target": f"{OWN}composed.score_entropy.ScoreEntropy"}, {}),
        ({"target": f"{OWN}composed.consistency.MaskAgnostic"}, {}),
        ({"target": DENOISE}, {"stage": {"accumulate": 2, "pack": 16}}),
        ({"target": DENOISE}, {"stage": {"optimizer": {"target": "torch.optim.Muon"}, "anneal": 2}, "ema": 0.9}),
        ({"target": DENOISE}, {"stage": {"params": [{"match": "encoders", "train": False}, {"match": "*"}]}}),
    ],
)  # fmt: skip
def test_a_step_waits_for_nothing(objective: Any, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"objective": objective, **more.pop("stage", {})}
    assert waits_of(monkeypatch, stage=stage, **more) == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asr-demo", "asr-whisper-llada", "protein-chat", "text-demo-causal", "vqa-llada-v"])
def test_packaged_configurations_wait_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged sounds, padded rows, tiles, left-to-right training."""
    found = watched(monkeypatch)
    check(name)
    assert found and not any(found)


def test_a_step_that_may_be_skipped_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = waits_of(monkeypatch, on_divergence="skip")
    assert [len(step) for step in found] == [1, 1] and all("step.py" in step[0] for step in found)


def test_what_asks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = waits_of(monkeypatch, stage={"objective": {"target": f"{__name__}.Asking"}})
    assert [[wait.partition(":")[0] for wait in step] for step in found] == 2 * [
        ["index", "_local_scalar_dense", "nonzero"]
    ]
