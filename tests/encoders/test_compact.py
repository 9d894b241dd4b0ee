"""Pictures that are bytes until the device: the same features; reduced ones are nearly those, and read less."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.media import images
from mmdiff.encoders.media.compact import Compact
from mmdiff.encoders.media.images import ImageSpec, read_item
from mmdiff.encoders.siglip import Siglip
from mmdiff.encoders.tiling import Tiles
from mmdiff.errors import ConfigError, DataError


def smooth(height: int = 480, width: int = 640) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)


def saved(folder: Path, ending: str = "jpg", **options: Any) -> str:
    path = folder / f"a.{ending}"
    smooth().save(path, **options)
    return str(path)


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_those_of_the_encoder_alone(mode: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    tower = Siglip.toy(resize_mode=mode).to(dtype).eval()
    for data in (saved(tmp_path), saved(tmp_path, "png"), np.zeros((*tower.spec.size, 3), np.uint8)):
        plain, item = tower.read(data), Compact(tower).read(data)
        assert item.values.dtype == torch.uint8 and item.layout == plain.layout
        with torch.no_grad():
            assert torch.equal(Compact(tower)(item.values.to(dtype)), tower(plain.values.to(dtype)))


def test_a_reduced_picture_is_nearly_the_same_and_decoded_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a smooth picture, what is left between the two is rounding and JPEG's own noise."""
    path, decoded = saved(tmp_path, quality=95), []
    quick = images._quick
    monkeypatch.setattr(images, "_quick", lambda image, *how: decoded.append(image.size) or quick(image, *how))
    tower = ConvTower(48, 16, 12)
    full, reduced = (Compact(tower, reduce=on).read(path) for on in (False, True))
    assert decoded == [(160, 120)]
    assert full.layout == reduced.layout == (480, 640)
    difference = (full.values.int() - reduced.values.int()).abs().float()
    assert 0 < difference.mean() < 0.5 and difference.max() <= 4
    wide = Compact(ConvTower(240, 16, 12), reduce=True).read(path)  # a half would be no twice the crop
    difference = (wide.values.int() - Compact(ConvTower(240, 16, 12)).read(path).values.int()).abs()
    assert decoded[1] == (640, 480) and difference.max() <= 1


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(96, 96), (31, 50), (400, 500)])
def test_torch_resizes_as_pillow_does(mode: Any, interpolation: Any, size: tuple[int, int]) -> None:
    """Noise, the hardest picture: to one level of 255, and in few values, whatever the filter."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    spec = ImageSpec(size, interpolation=interpolation, resize_mode=mode)
    own, quick = (
        np.array(images.fitted(Image.fromarray(noise), spec, how)).astype(int) for how in (None, images._quick)
    )
    difference = np.abs(own - quick)
    assert difference.max() <= (0 if interpolation in ("lanczos", "nearest") else 2) and difference.mean() < 0.02


def test_a_picture_that_is_turned_keeps_its_layout(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = saved(tmp_path, exif=exif)
    tower = ConvTower(24, 16, 12)
    full, reduced = (Compact(tower, reduce=on).read(path) for on in (False, True))
    assert full.layout == reduced.layout == tower.read(path).layout == (640, 480)
    assert (full.values.int() - reduced.values.int()).abs().float().mean() < 2


def test_reduced_pictures_are_refused_as_whole_ones_are(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path)).read_bytes()
    out = io.BytesIO()
    Image.new("RGB", (8193, 8192)).save(out, "png")
    spec = ImageSpec((24, 24))
    for data in (whole[:2000], out.getvalue(), b"no picture", 3):
        with pytest.raises(DataError) as plain:
            read_item(data, spec)
        with pytest.raises(DataError) as reduced:
            Compact(ConvTower(24, 16, 12), reduce=True).read(data)
        assert str(plain.value).split("(")[0] == str(reduced.value).split("(")[0]


def test_towers_of_several_crops_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^encoder: Tiles does not take a picture as one crop$"):
        Compact(Tiles(ConvTower()))
    with pytest.raises(ConfigError, match=r"^encoder: Compact does not take square pictures, which can be tiled$"):
        Tiles(Compact(ConvTower()))
