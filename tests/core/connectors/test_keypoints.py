"""Spatial softmax: coordinates by hand, and what has no grid."""

from __future__ import annotations

import pytest
import torch

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import build
from mmdiff.connectors.keypoints import SHARP, Keypoints
from mmdiff.errors import ConfigError


def media(n: int, tokens: list[int] | None = None) -> MediaBatch:
    return MediaBatch(torch.zeros(n, 3, 8, 8), crops=[1] * n, layouts=[()] * n, tokens=tokens)


def bare(points: int, grid: tuple[int, int] | None = None) -> Keypoints:
    """Slots are (2x, 2y, mean normalised feature): no MLP, no vectors of their own."""
    made = Keypoints(2, 4, points, grid=grid)
    made.layers = torch.nn.Identity()  # type: ignore[assignment]
    torch.nn.init.zeros_(made.own_KD)
    torch.nn.init.zeros_(made.maps.bias)
    return made


def test_coordinates_are_means_under_the_softmax() -> None:
    made = bare(1, (2, 3))
    with torch.no_grad():
        made.maps.weight[0] = torch.tensor([1.0, 0.0])
    features = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    out = made(features, media(2))
    assert out.shape == (2, 4) and made.slots(6, Item(torch.zeros(2, 3, 8, 8))) == 2
    for n in range(2):
        x_TE = [(row - row.mean()) / torch.sqrt(row.var(correction=0) + 1e-5) for row in features[n]]
        weight = torch.tensor([float(torch.exp(SHARP * x[0])) for x in x_TE])
        weight = weight / weight.sum()
        places = [(-1.0, -1.0), (0.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
        want = sum(
            float(w) * torch.tensor([2 * x, 2 * y, *v]) for w, (x, y), v in zip(weight, places, x_TE, strict=True)
        )
        torch.testing.assert_close(out[n], want, rtol=1e-4, atol=1e-5)


def test_a_sharp_map_finds_its_cell_wherever_it_is() -> None:
    made = bare(2)
    with torch.no_grad():
        made.maps.weight[:] = torch.tensor([[40.0, 0.0], [0.0, 40.0]])
    features = torch.zeros(1, 9, 2)
    features[0, :, 1] = features[0, :, 0] = 0.0
    features[0, 5] = torch.tensor([1.0, -1.0])  # row 1, column 2
    features[0, 6] = torch.tensor([-1.0, 1.0])  # row 2, column 0
    slots = made(features, media(1)).detach()
    torch.testing.assert_close(slots[:, :2], torch.tensor([[2.0, 0.0], [-2.0, 2.0]]))


def test_what_has_no_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="grid: 6 features are not square"):
        Keypoints(2, 4)(torch.zeros(1, 6, 2), media(1))
    with pytest.raises(ConfigError, match="unequal length"):
        Keypoints(2, 4)(torch.zeros(1, 4, 2), media(1, [4]))


def test_its_node_makes_the_same_again() -> None:
    made = Keypoints(3, 8, 5)
    again = build(made.node, where="connector")
    again.load_state_dict(made.state_dict())
    features = torch.randn(2, 16, 3)
    assert made(features, media(2)).shape == (10, 8)
    torch.testing.assert_close(again(features, media(2)), made(features, media(2)))
