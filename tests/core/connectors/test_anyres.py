"""Tiling and packing of large pictures: LLaDA-V's token counts, and transformers' LLaVA-OneVision as the reference."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import build
from mmdiff.connectors.anyres import AnyRes, grid_canvases, map_size, select_canvas, shrink, unpad
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.media.images import ImageSpec, pixels, read_image
from mmdiff.encoders.siglip import Siglip
from mmdiff.encoders.tiling import Tiles
from mmdiff.errors import ConfigError

Image = pytest.importorskip("PIL.Image")
TILE, SIDE = 384, 27  # pixels and features along a tile of LLaDA-V


def layout(height: int, width: int, tile: int = TILE, grid: int = 6) -> tuple[int, ...]:
    return (height, width, *select_canvas((height, width), tile, grid_canvases(grid)))


def count(height: int, width: int) -> int:
    rows, columns = map_size(layout(height, width), SIDE, 4)
    return SIDE**2 + rows * (columns + 1)


@pytest.mark.parametrize(
    ("height", "width", "slots"),
    [
        (384, 384, 1485),
        (100, 100, 1485),
        (480, 640, 2929),
        (768, 1024, 3627),
        (1080, 1920, 3649),
        (2304, 2304, 3699),
    ],
)
def test_known_counts(height: int, width: int, slots: int) -> None:
    """Counts of the released LLaDA-V, of which the first is worked out: 729 + 27 rows of 27 and a newline."""
    assert count(height, width) == slots


def test_counts_are_bounded() -> None:
    """The slack of 1.1 a side lets 4 tiles grow to 4.84: 729 + 3529 features, with the newlines 4341 at most."""
    draw = random.Random(0)
    sizes = [(draw.randint(50, 3000), draw.randint(50, 3000)) for _ in range(2000)]
    assert 4200 < max(count(*size) for size in sizes) <= 4341


def test_canvases_of_lavida() -> None:
    """Five, none of them square tiles alone: of equal ones the first is taken, two rows for a small square picture."""
    five = [(2, 1), (1, 2), (2, 2), (1, 3), (3, 1)]
    assert select_canvas((100, 100), TILE, five) == (2, 1)
    assert select_canvas((480, 640), TILE, five) == (2, 2)
    assert select_canvas((300, 1200), TILE, five) == (1, 3)
    assert map_size((480, 640, 2, 2), 14, None) == (22, 28)  # (28 - 28 * 480 // 640) // 2 = 3 rows cut on each side
    with pytest.raises(ConfigError, match="canvases"):
        Tiles(ConvTower(), canvases=[[1, 2, 3]])


def test_canvas() -> None:
    assert select_canvas((384, 384), 384, grid_canvases(6)) == (1, 1)
    assert select_canvas((10, 10), 384, grid_canvases(6)) == (1, 1)
    assert select_canvas((384, 1000), 384, grid_canvases(6)) == (1, 3)
    assert select_canvas((9000, 9000), 384, grid_canvases(6)) == (6, 6)
    assert select_canvas((9000, 9000), 384, grid_canvases(6, 9)) == (3, 3)
    assert select_canvas((300, 9000), 384, grid_canvases(6, 4)) == (1, 4)


def test_margins() -> None:
    assert unpad((1, 1), 6, 6) == (0, 0)
    assert unpad((1, 2), 8, 8) == (2, 0)
    assert unpad((2, 1), 8, 8) == (0, 2)
    assert unpad((480, 640), 54, 54) == (7, 0)  # 40.5 rows of picture count as 40, so 14 are cut
    assert unpad((1323, 1372), 28, 28) == (1, 0)  # 27 rows of picture count as 26.999..., in floats as published
    assert shrink(54, 54, 27, 4) == (54, 54) and shrink(108, 108, 27, 4) == (54, 54)
    assert shrink(59, 59, 27, 4) == (59, 59)  # within the slack


def onevision(width: int, side: int, tile: int) -> Any:
    """transformers' model of packing; its towers are not used."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=tile,
        patch_size=tile // side,
    )
    text = Qwen2Config(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=8,
    )
    grid = [[tile * i, tile * j] for i in range(1, 7) for j in range(1, 7)]
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_grid_pinpoints=grid, image_token_id=0)
    return LlavaOnevisionModel(config)


class Nothing(nn.Module):
    """An inner connector that leaves features alone."""

    node: Any = None

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        return features_NTE.flatten(0, 1)


@pytest.mark.needs("transformers")
def test_packing_is_llava_onevisions() -> None:
    torch.manual_seed(0)
    draw = random.Random(0)
    width, side, tile = 4, 6, 24
    model = onevision(width, side, tile)
    connector = AnyRes(width, width, inner=Nothing(), max_tiles=4)
    sizes = [(24, 24), (30, 40), (200, 10), (9, 150), (144, 144), (75, 77), (61, 24)]
    sizes += [(draw.randint(5, 200), draw.randint(5, 200)) for _ in range(80)]
    layouts = [layout(h, w, tile) for h, w in sizes]
    crops = [1 + rows * columns for _, _, rows, columns in layouts] + [1]
    groups = [torch.randn(n, side * side, width) for n in crops]
    layouts.append((50, 60))  # one crop: a picture of several
    packed, _ = model.pack_image_features(
        groups, [*sizes, (50, 60)], image_newline=connector.image_newline, vision_aspect_ratio="anyres_max_4"
    )
    batch = MediaBatch(torch.zeros(sum(crops), 1), crops, layouts)
    ours_MD = connector(torch.cat(groups), batch)
    slots = [connector.slots(side * side, Item(torch.zeros(n, 1), at)) for n, at in zip(crops, layouts, strict=True)]
    assert slots == [len(one) for one in packed]
    assert torch.equal(ours_MD, torch.cat(packed))


@pytest.mark.needs("transformers", "torchvision")
@pytest.mark.parametrize(("backend", "levels"), [("pil", 0), ("torchvision", 3)])
@pytest.mark.parametrize("size", [(48, 48), (40, 100), (333, 120), (95, 301), (20, 31), (97, 49)])
def test_tiles_are_llava_onevisions(size: tuple[int, int], backend: str, levels: int) -> None:
    """To rounding, where PIL resizes; torchvision's filter differs from that by some levels at a sharp edge."""
    from transformers import LlavaOnevisionImageProcessor
    from transformers.models.llava_onevision import LlavaOnevisionImageProcessorPil

    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    image = Image.fromarray(np.stack([y * 255 / height, x * 255 / width, (x + y) % 100], -1).astype(np.uint8))
    tile = 48
    kind = {"pil": LlavaOnevisionImageProcessorPil, "torchvision": LlavaOnevisionImageProcessor}[backend]
    processor = kind(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"height": tile, "width": tile},
        image_grid_pinpoints=[[tile * i, tile * j] for i in range(1, 7) for j in range(1, 7)],
    )
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    item = Tiles(ConvTower(tile)).read(image)
    assert item.values.shape == theirs.shape
    assert item.layout == layout(height, width, tile)
    assert (item.values - theirs).abs().max() < (levels + 0.01) / 127.5


def test_one_tile_is_the_whole_picture() -> None:
    tiles = Tiles(ConvTower(24))
    item = tiles.read(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    assert item.values.shape == (2, 3, 24, 24) and torch.equal(item.values[0], item.values[1])


def test_tiles_delegate() -> None:
    tower = ConvTower(24)
    tiles = Tiles(tower, grid=3, max_tiles=4)
    assert (tiles.width, tiles.tokens, tiles.grid, tiles.spec) == (tower.width, tower.tokens, tower.grid, tower.spec)
    item = tiles.read(np.zeros((500, 500, 3), np.uint8))
    assert item.layout == (500, 500, 2, 2)
    assert torch.equal(tiles(item.values), tower(item.values))
    tiles.gradient_checkpointing(True)
    assert tower.checkpointed
    again = build(json.loads(json.dumps(tiles.node)))
    again.load_state_dict(tiles.state_dict())
    assert torch.equal(again(item.values), tiles(item.values)) and again.canvases == grid_canvases(3, 4)


def test_every_position_of_a_picture_reaches_its_slot() -> None:
    """The features of a tile are its pixels' mean colours; the packed map then shows the picture, row by row."""

    class Colours(nn.Module):
        spec, width, tokens, grid = ImageSpec((24, 24)), 3, 36, (6, 6)

        def forward(self, values_N3HW: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(values_N3HW, 4).flatten(2).transpose(1, 2)

    y, x = np.mgrid[0:48, 0:96]
    image = read_image(np.stack([y * 5, x * 2, 0 * x], -1).astype(np.uint8))
    tiles, connector = Tiles(Colours(), grid=6), AnyRes(3, 3, inner=Nothing(), max_tiles=36)
    item = tiles.read(image)
    assert item.layout == (48, 96, 2, 4)
    packed_MD = connector(tiles(item.values), MediaBatch(item.values, [9], [item.layout]))
    rows_HWD = packed_MD[36:].reshape(12, 25, 3)
    assert torch.equal(rows_HWD[:, -1], connector.image_newline.expand(12, 3))
    whole_3HW = nn.functional.avg_pool2d(pixels(image, ImageSpec((48, 96))), 4)
    assert torch.allclose(rows_HWD[:, :-1].permute(2, 0, 1), whole_3HW, atol=1e-6)


def test_a_merging_inner_connector() -> None:
    connector = AnyRes(8, 6, inner="mmdiff.connectors.merge.PixelShuffle")
    item = Item(torch.zeros(3, 3, 24, 24), (24, 48, 1, 2))
    out_MD = connector(torch.randn(3, 16, 8), MediaBatch(item.values, [3], [item.layout]))
    assert len(out_MD) == connector.slots(16, item) == 4 + 2 * 5
    out_MD.sum().backward()
    assert all(p.grad is not None for p in connector.parameters())
    again = build(json.loads(json.dumps(connector.node)))
    assert list(again.state_dict()) == list(connector.state_dict())


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="square"):
        AnyRes(8, 6).slots(30, Item(torch.zeros(2, 3, 4, 4), (4, 4, 1, 1)))
    with pytest.raises(ConfigError, match="max_tiles"):
        AnyRes(8, 6, max_tiles=0)
    with pytest.raises(ConfigError, match="inner.target.*nearest|inner"):
        AnyRes(8, 6, inner="mmdiff.connectors.mlp.MPL")
    with pytest.raises(ConfigError, match="max_tiles"):
        Tiles(ConvTower(), max_tiles=0)
    with pytest.raises(ConfigError, match="Linear"):
        Tiles(nn.Linear(2, 2))


def test_llada_vs_tower_and_connector_fit() -> None:
    config = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    with torch.device("meta"):
        tiles = Tiles(Siglip({**config, "image_size": 384, "patch_size": 14}))
        connector = AnyRes(tiles.width, 4096)
    item = tiles.read(np.zeros((480, 640, 3), np.uint8))
    assert connector.slots(tiles.tokens, item) == 2929 and item.values.shape == (5, 3, 384, 384)
