"""Convolutions over frames and mixes of layers: DIFFA's adapter written out, true lengths, closed forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from spoken import CROP, check_lengths, filled, media
from torch import Tensor, nn

from mmdiff.config import build
from mmdiff.connectors.frames import ConvFrames, LayerMix
from mmdiff.connectors.merge import FrameStack
from mmdiff.connectors.mlp import MLP
from mmdiff.errors import ConfigError

IN, OUT = 4, 6


def adapter(ours: ConvFrames, width_in: int, width_out: int) -> nn.Module:
    """DIFFA's layers over (N, E, T), with the weights of `ours`."""

    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    published = nn.Sequential(
        nn.Conv1d(width_in, width_in, kernel_size=3, padding=1),
        nn.GELU(),
        nn.Conv1d(width_in, 4 * width_in, kernel_size=3, stride=4, padding=1),
        Turn(),
        nn.Linear(4 * width_in, width_in),
        nn.ReLU(),
        nn.Linear(width_in, width_out),
        nn.ReLU(),
        nn.LayerNorm(width_out),
    )
    published.load_state_dict(dict(zip(published.state_dict(), ours.state_dict().values(), strict=True)))
    return published


@torch.no_grad()
def test_semantic_adapter_of_diffa() -> None:
    """50 Hz to 12.5 Hz; the features that do not fill a slot are dropped before the convolutions."""
    torch.manual_seed(0)
    ours = ConvFrames(IN, OUT, keep_tail=False)
    published = adapter(ours, IN, OUT)
    tokens = [8, 21, 4, 17, 7]
    crops = [torch.randn(n, IN) for n in tokens]
    wanted = [published(crop[: len(crop) // 4 * 4].T[None])[0] for crop in crops]
    assert [len(out) for out in wanted] == [2, 5, 1, 4, 1]
    assert torch.allclose(ours(filled(crops), media(tokens)), torch.cat(wanted), atol=1e-5)
    kept = ConvFrames(IN, OUT)
    kept.load_state_dict(ours.state_dict())
    wanted = [published(crop.T[None])[0] for crop in crops]
    assert [len(out) for out in wanted] == [2, 6, 1, 5, 2]
    assert torch.allclose(kept(filled(crops), media(tokens)), torch.cat(wanted), atol=1e-5)


def test_parameters_of_diffa() -> None:
    """14.37 million for Whisper-small, 36.4 for Whisper-large-v3 (DIFFA-2); 375 slots are 30 s at 12.5 Hz."""
    with torch.device("meta"):
        small, large = ConvFrames(768, 4096), ConvFrames(1280, 4096)
    convs = (768 * 768 * 3 + 768) + (768 * 3072 * 3 + 3072)
    linears = (3072 * 768 + 768) + (768 * 4096 + 4096)
    assert sum(p.numel() for p in small.parameters()) == convs + linears + 2 * 4096 == 14_369_280
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(36.4e6, abs=0.05e6)
    assert small.slots(1500, CROP) == 375


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep_tail": False},
        {"strides": [2, 2, 2], "kernel": 5, "hidden": 7},
        {"strides": [3, 2], "channels": [5, 9], "kernel": 1, "keep_tail": False},
        {"strides": [1], "out_norm": None},
    ],
    ids=str,
)
def test_every_length(settings: dict[str, Any]) -> None:
    check_lengths(ConvFrames(IN, OUT, **settings), IN)


@pytest.mark.parametrize("layers", [1, 3])
def test_every_length_of_a_mix(layers: int) -> None:
    stack = "mmdiff.connectors.merge.FrameStack"
    check_lengths(LayerMix(layers * IN, OUT, layers=layers, inner=stack, settings={"factor": 1}), layers * IN)


@torch.no_grad()
def test_layers_are_mixed() -> None:
    """Even at the start; then by the softmax of the weights, whatever is inside."""
    mix = LayerMix(3 * IN, OUT, layers=3, inner="mmdiff.connectors.merge.FrameStack", settings={"factor": 2})
    assert isinstance(mix.inner, FrameStack)
    layers = [torch.randn(2, 5, IN) for _ in range(3)]
    features = torch.cat(layers, 2)
    batch = media([5, 2])
    assert torch.allclose(mix(features, batch), mix.inner(sum(layers) / 3, batch), atol=1e-6)
    mix.mix_K.copy_(torch.tensor([1.0, 2.0, 7.0]).log() + 5)
    wanted = 0.1 * layers[0] + 0.2 * layers[1] + 0.7 * layers[2]
    assert torch.allclose(mix(features, batch), mix.inner(wanted, batch), atol=1e-6)


@pytest.mark.parametrize(
    "node",
    [
        {"target": "mmdiff.connectors.frames.ConvFrames", "strides": [2, 2], "out_norm": 0.2},
        {"target": "mmdiff.connectors.frames.LayerMix", "layers": 2, "settings": {"hidden": 5, "out_norm": 0.2}},
    ],
    ids=lambda node: node["target"].split(".")[-1],
)
def test_gradients_node_and_scale(node: dict[str, Any]) -> None:
    torch.manual_seed(0)
    connector = build(node, width_in=8, width_out=64)
    features = torch.randn(3, 12, 8)
    out = connector(features, media([12, 3, 7]))
    assert torch.allclose(out.square().mean(1).sqrt(), torch.tensor(0.2), atol=0.01)
    (out**3).sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    again = build(json.loads(json.dumps(connector.node)))
    again.load_state_dict(connector.state_dict())
    assert torch.equal(again(features, media([12, 3, 7])), out)


def test_slots_start_at_the_scale_of_the_tokens() -> None:
    """`out_norm` of MLP and FrameStack: an RMS of 0.1 however large the features; without it nothing is added."""
    torch.manual_seed(0)
    for connector in (MLP(8, 64, out_norm=0.1), FrameStack(8, 64, 2, out_norm=0.1)):
        for size in (0.1, 100.0):
            out = connector(size * torch.randn(2, 6, 8), media([6, 3]))
            assert torch.allclose(out.square().mean(1).sqrt(), torch.tensor(0.1), atol=0.01)
    assert MLP(8, 64).state_dict().keys() == {f"layers.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    for scale in (0, -1.0, True, "0.1", float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="out_norm.*(expected a number above 0|is not a number)"):
            MLP(8, 64, out_norm=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"strides": 4}, "strides: 4 is not a list"),
        ({"strides": []}, r"not one for each of the strides \[\]"),
        ({"strides": [1, 0]}, "strides.1=0: expected a whole number of at least 1"),
        ({"channels": [8]}, r"channels: \[8\] are not one for each of the strides \(1, 4\)"),
        ({"kernel": 4}, "kernel: 4 has no middle"),
        ({"hidden": 0}, "hidden=0: expected a whole number of at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        ConvFrames(IN, OUT, **settings)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"layers": 3}, "layers: 3 do not make 8 features"),
        ({"layers": 2, "inner": "os.getcwd"}, "inner: target: os.getcwd is not made to be part of a model"),
        ({"layers": 2, "inner": "mmdiff.connectors.mlp.MPL"}, 'did you mean "MLP"'),
        ({"layers": 2, "settings": {"hiden": 3}}, 'did you mean "hidden"'),
        ({"layers": 2, "inner": MLP(4, 6), "settings": {"hidden": 3}}, "settings: inner is made already"),
    ],
)
def test_bad_mix(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        LayerMix(8, OUT, **settings)
