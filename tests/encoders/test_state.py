"""The encoder of vectors: shapes, refusals, the same numbers under checkpointing and after saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmdiff.config import build
from mmdiff.encoders.state import StateMLP
from mmdiff.errors import ConfigError, DataError


def test_known_numbers() -> None:
    torch.manual_seed(0)
    encoder = StateMLP(3, width=8, hidden=5, tokens=2)
    x = torch.randn(4, 3)
    first, _, last = encoder.layers
    h = x @ first.weight.T + first.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    expected = (h @ last.weight.T + last.bias).reshape(4, 2, 8)
    torch.testing.assert_close(encoder(x), expected)


@pytest.mark.parametrize("data", [[1, 2, 3], np.array([1.0, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.bfloat16)])
def test_vectors_of_any_kind(data: object) -> None:
    item = StateMLP(3).read(data)
    assert item.values.dtype == torch.float32 and item.values.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1, 2], r"state of shape \(2,\): expected 3 numbers"),
        ([[1, 2, 3]], r"shape \(1, 3\)"),
        ([1, float("nan"), 3], r"state\[1\]: nan"),
        ([1, 2, float("inf")], r"state\[2\]: inf"),
        ("left", "str is not 3 numbers"),
        ([[1], [2, 3]], "list is not 3 numbers"),
        (None, "shape"),
    ],
)
def test_other_data_are_refused(data: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        StateMLP(3).read(data)


def test_checkpointing_changes_no_number() -> None:
    torch.manual_seed(0)
    encoder = StateMLP(3, width=8, hidden=5).train()
    x = torch.randn(4, 3)
    grads = []
    for on in (False, True):
        encoder.gradient_checkpointing(on)
        encoder.zero_grad()
        encoder(x).square().sum().backward()
        grads.append(encoder.layers[0].weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


def test_saved_and_made_again(tmp_path: Path) -> None:
    encoder = StateMLP(3, width=8)
    save_file(encoder.state_dict(), tmp_path / "w.safetensors")
    again = StateMLP(3, width=8, weights=str(tmp_path / "w.safetensors"))
    x = torch.randn(2, 3)
    assert torch.equal(again(x), encoder(x)) and again.node["weights"] is None
    assert build(again.node)(x).shape == (2, 1, 8)
    small = build(encoder.node, toy=True)
    assert small(x).shape == (2, 1, 8) and StateMLP.toy(3).width == 32


@pytest.mark.parametrize("name", ["dims", "width", "hidden", "tokens"])
def test_impossible_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0: expected a whole number of at least 1"):
        StateMLP(**{"dims": 3, name: 0})
