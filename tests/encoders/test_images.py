"""One picture, the same numbers: every source and mode, every library's own preprocessing, every kind of damage."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.encoders.media.images import CLIP_MEAN, CLIP_STD, MAX_PIXELS, ImageSpec, pixels, read_image, read_item
from mmdiff.errors import ConfigError, DataError

pytestmark = pytest.mark.needs("PIL")
Image = pytest.importorskip("PIL.Image")


def picture(height: int = 40, width: int = 56) -> Any:
    """Smooth, so that filters agree, and different in every direction and colour."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([y * 5 % 256, x * 4 % 256, (x + y) * 2 % 256], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def array(image: Any) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.png"
    image.save(path)
    rgb = np.asarray(image)
    chw = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, Image.open(path)]
    sources += [rgb, rgb.astype(np.float64) / 255, rgb.astype(np.uint16) * 257, chw, chw / 255, chw.double() / 255]
    sources += [np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])]
    for source in sources:
        assert np.array_equal(array(read_image(source)), rgb), type(source)


def test_grey_arrays() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(array(read_image(source)), np.dstack([grey] * 3))
    assert array(read_image(np.array([[True, False]]))).tolist() == [[[255] * 3, [0] * 3]]


def sixteen_bits() -> Any:
    return Image.fromarray(np.array([[0, 257 * 7, 65535, 257 * 128]], np.uint16))


def paletted(transparent: bool) -> Any:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    if transparent:
        image.info["transparency"] = 0
    return image


MODES = {
    "1": (Image.new("1", (1, 1), 1), [255, 255, 255]),
    "L": (Image.new("L", (1, 1), 77), [77, 77, 77]),
    "LA opaque": (Image.new("LA", (1, 1), (77, 255)), [77, 77, 77]),
    "LA clear": (Image.new("LA", (1, 1), (77, 0)), [255, 255, 255]),
    "RGBA opaque": (Image.new("RGBA", (1, 1), (1, 2, 3, 255)), [1, 2, 3]),
    "RGBA clear": (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), [255, 255, 255]),
    "P": (paletted(False), [10, 20, 30]),
    "P clear": (paletted(True), [255, 255, 255]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 0, 0, 0)), [255, 255, 255]),
    "I;16 dark": (sixteen_bits(), [0, 0, 0]),
    "I;16 7": (sixteen_bits().crop((1, 0, 2, 1)), [7, 7, 7]),
    "I;16 128": (sixteen_bits().crop((3, 0, 4, 1)), [128, 128, 128]),
    "I white": (Image.new("I", (1, 1), 65535), [255, 255, 255]),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name: str) -> None:
    image, rgb = MODES[name]
    assert array(read_image(image))[0, 0].tolist() == rgb


def test_half_transparent_is_half_white() -> None:
    rgb = array(read_image(Image.new("RGBA", (1, 1), (0, 100, 200, 128))))[0, 0]
    assert np.abs(rgb - (np.array([0, 100, 200]) * 128 + 255 * 127) / 255).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_files_of_16_bit_grey(kind: str) -> None:
    """PIL's own conversion to 8 bits would make nearly all of it white."""
    assert array(read_image(encoded(sixteen_bits(), kind)))[0, :, 0].tolist() == [0, 7, 255, 128]


def test_turned_photographs_are_upright() -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    seen = read_image(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif))
    assert np.array_equal(array(seen), np.asarray(image))
    assert read_item(encoded(image, "PNG", exif=exif), ImageSpec((8, 8))).layout == (image.width, image.height)


def png_header(width: int, height: int) -> bytes:
    """A file of a few bytes that promises many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return start + struct.pack(">I", 4) + b"IDAT" + bytes(8)


def half(file: bytes) -> bytes:
    return file[: len(file) // 2]


BAD: dict[str, tuple[Any, str]] = {
    "missing": ("nowhere/cat.jpg", "nowhere/cat.jpg: no such file"),
    "text": (b"hello", "5 bytes: not a picture"),
    "empty": (b"", "0 bytes: not a picture"),
    "cut jpeg": (half(encoded(picture(), "JPEG")), "damaged picture"),
    "cut png": (half(encoded(picture(), "PNG")), "damaged picture"),
    "bomb": (png_header(20000, 20000), "too large"),
    "large": (png_header(8193, 8192), f"8193 x 8192 pixels, expected 1 to {MAX_PIXELS}"),
    "float mode": (Image.new("F", (2, 2)), "white is unknown"),
    "floats": (np.full((2, 2, 3), 1.5), "floats in 1.5..1.5: expected 0..1"),
    "nan": (np.full((2, 2, 3), np.nan), "expected 0..1"),
    "integers": (np.zeros((2, 2, 3), np.int64), "int64"),
    "colours first": (np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
    "colours last": (torch.zeros(8, 8, 3), "(8, 8, 3)"),
    "batch": (torch.zeros(1, 3, 8, 8), "(1, 3, 8, 8)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "holds no pixels"),
    "number": (3, "int is not a picture"),
    "none": (None, "NoneType is not a picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(name: str) -> None:
    source, message = BAD[name]
    with pytest.raises(DataError) as caught:
        read_image(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(half(encoded(picture())))
    with Image.open(path) as opened:
        for source in (path, str(path), opened):
            with pytest.raises(DataError, match="cut.png: damaged"):
                read_image(source)
    with pytest.raises(DataError, match="a folder"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL warns of some damage
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damage_is_a_data_error_or_harmless(kind: str) -> None:
    draw = random.Random(0)
    whole = encoded(picture(), kind)
    for _ in range(60):
        bad = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        try:
            read_image(bytes(bad))
        except DataError as error:
            assert "\n" not in str(error)


def test_pixels_of_a_plain_colour() -> None:
    spec = ImageSpec((5, 7), CLIP_MEAN, CLIP_STD)
    values_3HW = pixels(Image.new("RGB", (11, 3), (0, 51, 255)), spec)
    assert values_3HW.shape == (3, 5, 7) and values_3HW.dtype == torch.float32
    wanted = (torch.tensor([0, 0.2, 1]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(values_3HW, wanted[:, None, None].expand(3, 5, 7), atol=1e-6)


def test_a_picture_of_the_right_size_is_not_filtered() -> None:
    image = picture()
    for mode in ("squash", "pad", "crop"):
        values_3HW = pixels(image, ImageSpec((40, 56), resize_mode=mode))  # type: ignore[arg-type]
        assert torch.allclose(values_3HW * 127.5 + 127.5, torch.tensor(np.asarray(image)).permute(2, 0, 1).float())


def test_pad_keeps_the_shape() -> None:
    """Twice as wide as high: a quarter of mean colour above and below."""
    spec = ImageSpec((16, 16), resize_mode="pad", interpolation="nearest")
    values_3HW = pixels(Image.new("RGB", (32, 16), "white"), spec)
    grey_3HW = torch.full((3, 4, 16), 127 / 127.5 - 1)
    assert torch.allclose(values_3HW, torch.cat([grey_3HW, torch.ones(3, 8, 16), grey_3HW], 1), atol=1e-6)


@pytest.mark.needs("transformers", "torchvision")
def test_pad_is_llavas(tmp_path: Path) -> None:
    from transformers import LlavaOnevisionImageProcessor

    image = picture(41, 56)
    processor = LlavaOnevisionImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 48, "width": 48}
    )
    theirs_3HW = processor([[image, image]], return_tensors="pt")["pixel_values"][0, 0]
    ours_3HW = pixels(image, ImageSpec((48, 48), resize_mode="pad"))
    assert (ours_3HW - theirs_3HW).abs().max() < 2.01 / 127.5


@pytest.mark.needs("open_clip", "torchvision")
@pytest.mark.parametrize("size", [(40, 56), (56, 40), (97, 60), (300, 200)])
@pytest.mark.parametrize(("ours", "theirs"), [("squash", "squash"), ("crop", "shortest")])
def test_pixels_are_open_clips(size: tuple[int, int], ours: str, theirs: str) -> None:
    import open_clip

    image = picture(*size)
    transform = open_clip.image_transform(
        48, is_train=False, mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic", resize_mode=theirs
    )
    spec = ImageSpec((48, 48), CLIP_MEAN, CLIP_STD, resize_mode=ours)  # type: ignore[arg-type]
    assert torch.equal(pixels(image, spec), transform(image))


@pytest.mark.needs("timm", "torchvision")
def test_pixels_are_timms() -> None:
    from timm.data import create_transform

    transform = create_transform((3, 48, 32), interpolation="bicubic", crop_pct=1.0, crop_mode="squash", mean=[0.5] * 3)
    spec = ImageSpec((48, 32), std=(0.229, 0.224, 0.225))
    assert torch.equal(pixels(picture(), spec), transform(picture()))


@pytest.mark.needs("transformers", "torchvision")
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_pixels_are_transformers_to_one_level(backend: str) -> None:
    from transformers.models.siglip import SiglipImageProcessor, SiglipImageProcessorPil

    processor = {"pil": SiglipImageProcessorPil, "torchvision": SiglipImageProcessor}[backend]
    theirs_3HW = processor(size={"height": 48, "width": 48})(picture(), return_tensors="pt")["pixel_values"][0]
    assert (pixels(picture(), ImageSpec((48, 48))) - theirs_3HW).abs().max() < 1.01 / 127.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 4)}, "image_size"),
        ({"size": 4}, "size: 4"),
        ({"size": (4, 4), "mean": (0.5,)}, "mean"),
        ({"size": (4, 4), "std": (1.0, 0.0, 1.0)}, "std"),
        ({"size": (4, 4), "interpolation": "bicubik"}, 'did you mean "bicubic"'),
        ({"size": (4, 4), "resize_mode": "stretch"}, "resize_mode"),
    ],
)
def test_bad_specs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageSpec(**fields)


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
def test_an_array_of_the_right_size_is_read_as_its_picture_is(mode: Any) -> None:
    """Nothing is resized then, so that it need not become a picture first; turned arrays too."""
    spec = ImageSpec((12, 20), resize_mode=mode, mean=CLIP_MEAN, std=CLIP_STD)
    array = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    for one in (array, array[::-1, ::-1]):
        item = read_item(one, spec)
        assert torch.equal(item.values[0], pixels(read_image(one), spec)) and item.layout == (12, 20)
