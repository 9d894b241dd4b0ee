"""Connectors: as many slots as promised, each made of the features it should be made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import build
from mmdiff.connectors.merge import FrameStack, PixelShuffle
from mmdiff.connectors.mlp import MLP, Linear
from mmdiff.errors import ConfigError


def media(*crops: int) -> MediaBatch:
    return MediaBatch(torch.zeros(sum(crops), 1), list(crops), [()] * len(crops))


PARTS: list[dict[str, Any]] = [
    {"target": "mmdiff.connectors.mlp.Linear"},
    {"target": "mmdiff.connectors.mlp.MLP"},
    {"target": "mmdiff.connectors.mlp.MLP", "hidden": 5, "norm": True},
    {"target": "mmdiff.connectors.merge.PixelShuffle", "factor": 3},
    {"target": "mmdiff.connectors.merge.PixelShuffle", "grid": [2, 18], "hidden": 5, "norm": True},
    {"target": "mmdiff.connectors.merge.FrameStack", "factor": 5},
    {"target": "mmdiff.connectors.merge.FrameStack", "factor": 36},
    {"target": "mmdiff.connectors.anyres.AnyRes"},
]


@pytest.mark.parametrize("node", PARTS, ids=lambda node: node["target"].split(".")[-1])
def test_slots_gradients_and_node(node: dict[str, Any]) -> None:
    torch.manual_seed(0)
    connector = build(node, width_in=8, width_out=6)
    features_NTE = torch.randn(3, 36, 8)
    out_MD = connector(features_NTE, media(1, 1, 1))
    assert out_MD.shape == (sum(connector.slots(36, Item(torch.zeros(1, 3, 4, 4))) for _ in range(3)), 6)
    out_MD.square().sum().backward()
    assert all(p.grad is not None for p in connector.parameters())
    again = build(json.loads(json.dumps(connector.node)))
    again.load_state_dict(connector.state_dict())
    assert torch.equal(again(features_NTE, media(1, 1, 1)), out_MD)


@pytest.mark.parametrize("node", PARTS[:-1], ids=lambda node: node["target"].split(".")[-1])
def test_views_follow_one_another(node: dict[str, Any]) -> None:
    connector = build(node, width_in=8, width_out=6)
    features_NTE = torch.randn(3, 36, 8)
    alone = [connector(features_NTE[i : i + 1], media(1)) for i in range(3)]
    assert torch.allclose(connector(features_NTE, media(2, 1)), torch.cat(alone), atol=1e-6)
    assert connector.slots(36, Item(torch.zeros(2, 3, 4, 4))) == 2 * len(alone[0])


def test_mlp_is_llavas() -> None:
    """Linear, GELU (exact), Linear with biases; 21.5 million parameters between SigLIP so400m and LLaDA-8B."""
    mlp = MLP(4, 6)
    first, _, second = mlp.layers
    x_NTE = torch.randn(2, 3, 4)
    wanted = F.linear(F.gelu(F.linear(x_NTE, first.weight, first.bias)), second.weight, second.bias)
    assert torch.equal(mlp(x_NTE, media(1, 1)), wanted.reshape(6, 6))
    with torch.device("meta"):
        assert sum(p.numel() for p in MLP(1152, 4096).parameters()) == 1153 * 4096 + 4097 * 4096 == 21_504_000


def test_norm_takes_scale_and_offset_away() -> None:
    mlp, x_NTE = MLP(4, 6, norm=True), torch.randn(2, 3, 4)
    assert torch.allclose(mlp(x_NTE * 100 + 7, media(1, 1)), mlp(x_NTE, media(1, 1)), atol=1e-3)


def test_linear_is_linear() -> None:
    linear, x_NTE = Linear(4, 6), torch.randn(2, 3, 4)
    assert torch.equal(
        linear(x_NTE, media(1, 1)), F.linear(x_NTE, linear.linear.weight, linear.linear.bias).flatten(0, 1)
    )


def open_merge(connector: Any) -> Any:
    """Without the MLP, so that the merged features themselves can be seen."""
    connector.mlp.layers = nn.Identity()
    return connector


def test_pixel_shuffle_merges_neighbours() -> None:
    """Features numbered row by row on a grid of 4 x 6: the second slot holds columns 2, 3 of rows 0, 1."""
    connector = open_merge(PixelShuffle(1, 1, 2, grid=(4, 6)))
    out_MD = connector(torch.arange(24.0)[None, :, None], media(1))
    assert out_MD.tolist()[:2] == [[0, 1, 6, 7], [2, 3, 8, 9]] and out_MD.tolist()[-1] == [16, 17, 22, 23]
    assert out_MD.shape == (connector.slots(24, Item(torch.zeros(1, 1))), 4)


def test_frame_stack_merges_what_follows() -> None:
    connector = open_merge(FrameStack(1, 1, 3))
    out_MD = connector(torch.arange(1.0, 11).reshape(2, 5, 1), media(1, 1))
    assert out_MD.tolist() == [[1, 2, 3], [4, 5, 0], [6, 7, 8], [9, 10, 0]]


def test_no_grid() -> None:
    with pytest.raises(ConfigError, match="30 features are not square"):
        PixelShuffle(8, 6).slots(30, Item(torch.zeros(1, 1)))
    with pytest.raises(ConfigError, match="30 features are not 4 x 6"):
        PixelShuffle(8, 6, grid=(4, 6)).slots(30, Item(torch.zeros(1, 1)))
    with pytest.raises(ConfigError, match=r"2 does not divide 27 x 27, expected one of \[3, 9, 27\]"):
        PixelShuffle(8, 6).slots(729, Item(torch.zeros(1, 1)))


@pytest.mark.parametrize("factor", [0, -1, 1.5, True])
def test_bad_factor(factor: Any) -> None:
    for kind in (PixelShuffle, FrameStack):
        with pytest.raises(ConfigError, match="factor"):
            kind(8, 6, factor)


def test_mlp_reads_published_and_saved_projectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = MLP(8, 6)
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    layers = {name.removeprefix("layers."): tensor for name, tensor in tensors.items()}
    named = {
        "published": {f"model.mm_projector.{name}": tensor for name, tensor in layers.items()},
        "bare": {f"mm_projector.{name}": tensor for name, tensor in layers.items()},
        "saved": {f"connectors.image.{name}": tensor for name, tensor in tensors.items()},
    }
    for name, held in named.items():
        save_file({**held, "model.norm.weight": torch.ones(3)}, tmp_path / f"{name}.safetensors")
        read = build(
            {"target": "mmdiff.connectors.mlp.MLP", "weights": f"{tmp_path / name}.safetensors"},
            width_in=8,
            width_out=6,
        )
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in read.state_dict().items())
        assert read.node["weights"] is None  # a saved model needs no other file
    with pytest.raises(ConfigError, match="shape"):
        MLP(8, 7, weights=str(tmp_path / "published.safetensors"))
    save_file({"model.mm_projector.0.weight": tensors["layers.0.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match="missing tensors"):
        MLP(8, 6, weights=str(tmp_path / "part.safetensors"))
    toy = build({"target": "mmdiff.connectors.mlp.MLP", "weights": "absent"}, toy=True, width_in=8, width_out=6)
    assert toy.layers[0].in_features == 8
