"""Compiled layers: the same tokens, few graphs whatever the canvases, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from toy import Patches, Project, backbone, batch_of, samples

from mmdiff.backbones.load import toy_backbone
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.patterns import BlockCausal
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.samplers.links.caches import Delayed, Dual, Prefix

ROWS: list[tuple[list[Sample], list[int]]] = [
    (samples(), [8, 3, 5, 4]),  # ragged: rows of two spans, pictures, given words
    (samples()[2:], [5, 4]),
    (samples()[1:2], [3]),  # one row, not padded
]


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def made(layers: int, **named: Any) -> MMDiff:
    torch.manual_seed(0)
    m = MMDiff(backbone(layers=layers), {"image": Patches()}, {"image": Project(width_in=16, width_out=32)}, **named)
    for p in m.backbone.parameters():
        p.data.mul_(6.0 if p.ndim == 2 else 1.0)
    return m.eval()


def same(m: MMDiff, rows: list[Sample], index: list[int], backend: str, **named: Any) -> None:
    def run(compile: str) -> Generation:
        return m.generate(batch_of(m, rows, index), seed=1, early_stop=False, compile=compile, **named)

    plain, graphs = run("none"), run(backend)
    assert plain.ids_BL.tolist() == graphs.ids_BL.tolist() and plain.step_BL.tolist() == graphs.step_BL.tolist()
    assert torch.allclose(plain.confidence_BL, graphs.confidence_BL, atol=1e-5)


def generate_all(backend: str, *, whole: bool) -> None:
    """whole: also without keys and values. Two depths, caches, an exact one, padded rows and a single one."""
    m, causal = made(3), made(2, attention=BlockCausal(3))
    for rows, index in ROWS:
        for cache in (Dual(), Prefix(2), Delayed(3)):
            same(m, rows, index, backend, block_length=4, denoise=[cache])
        same(causal, rows, index, backend, block_length=4, temperature=1.0)
        if whole:
            same(m, rows, index, backend, steps=4, guidance_scale=0.5)


@pytest.mark.slow
def test_tokens_are_the_same_and_graphs_few_whatever_is_generated() -> None:
    """Not one more per layer, length, step or generation: part of a canvas, and whole ones of all slots or some, each
    of one row and of more, and one that is not padded."""
    generate_all("eager", whole=False)
    assert counters["stats"]["unique_graphs"] <= 7
    assert not counters["graph_break"] and not counters["unimplemented"]
    assert counters["frames"]["total"] == counters["frames"]["ok"] > 0


@pytest.mark.slow
def test_so_are_they_traced_for_a_compiler() -> None:
    m = made(2)
    m.backbone.facts = replace(m.backbone.facts, shift=1)
    same(m, *ROWS[2], "aot_eager", block_length=4, denoise=[Dual()])
    assert 0 < counters["stats"]["unique_graphs"] <= 2 and counters["aot_autograd"]["total"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_so_are_they_by_compiled_kernels_with_keys_and_without(backend: str) -> None:
    generate_all(backend, whole=True)
    assert counters["stats"]["unique_graphs"] <= 11


MORE = ["llada_moe", "llada2_moe", "sdar", "esm", "modernbert"]


@pytest.mark.parametrize("family", ["distilbert", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_families_are_compiled_too(family: str, tmp_path: Path) -> None:
    """Mixtures of experts, layers with masks of their own, and encoders, which keep nothing."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    torch.manual_seed(0)
    m = MMDiff(toy_backbone(tmp_path)).eval()
    mask = m.vocab.mask_id
    batch = collate([[Text([4, 5, 6]), Target([mask] * 8)], [Text([4]), Target([mask] * 5)]], m.vocab)
    plain, graphs = (m.generate(batch, block_length=4, early_stop=False, compile=by) for by in ("none", "eager"))
    assert plain.ids_BL.tolist() == graphs.ids_BL.tolist()
    assert 0 < counters["stats"]["unique_graphs"] <= 4 and not counters["graph_break"]


def test_nothing_is_left_behind() -> None:
    m = made(2)
    layers = m.backbone.model.model.layers
    with pytest.raises(ConfigError, match="compile"):
        m.generate(batch_of(m, samples()[1:2]), compile="cudagraph")
    with pytest.raises(ConfigError):
        m.generate(batch_of(m, samples()[1:2]), compile="eager", denoise=[Dual(), Prefix()])
    same(m, *ROWS[2], "eager", denoise=[Dual()])
    assert not m.backbone.compiled and all(layer._compiled_call_impl is None for layer in layers)
    before = counters["stats"]["unique_graphs"]
    m.generate(batch_of(m, samples()), compile="none")
    assert counters["stats"]["unique_graphs"] == before > 0
