"""Pictures to pixels: PIL and torch only, so one picture gives the same numbers whatever library the tower comes from.

Shape letters: H height, W width.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.sample import Item
from mmdiff.errors import ConfigError, DataError, nearest, require, shown
from mmdiff.files import unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ResizeMode = Literal["squash", "pad", "crop"]
Triple = tuple[float, float, float]

HALF: Triple = (0.5, 0.5, 0.5)  # mean and std of SigLIP
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 1 << 26  # 8192 x 8192; a larger picture is refused before it is decoded
EMPTY_PIXELS = 1 << 24  # with more, a file has at least a byte for 200 pixels, as even a plain colour has in JPEG
PROGRAMS = ("EPS", "WMF", "EMF")  # PIL starts another program to draw them


@dataclass(frozen=True)
class ImageSpec:
    """The pictures that a tower takes.

    size: (H, W). mean, std: of each colour, with values in 0..1.
    resize_mode: "squash" to the size; "pad" to its aspect ratio first, with the mean colour (LLaVA); "crop" the centre
        after the picture covers the size (CLIP). Raises ConfigError.
    """

    size: tuple[int, int]
    mean: Triple = HALF
    std: Triple = HALF
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "squash"

    def __post_init__(self) -> None:
        for name, length in (("size", 2), ("mean", 3), ("std", 3)):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or len(value) != length:
                raise ConfigError(f"{name}: {value!r} is not a list of {length} numbers")
            object.__setattr__(self, name, tuple(value))  # a list, when it comes from a file
        if not all(isinstance(n, int) and n > 0 for n in self.size):
            raise ConfigError(f"image_size: {self.size} is not (height, width) in whole pixels above 0")
        if not all(isinstance(n, float | int) and n > 0 for n in self.std):
            raise ConfigError(f"std: {self.std} holds a number that is not above 0")
        for name, known in (("interpolation", get_args(Interpolation)), ("resize_mode", get_args(ResizeMode))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name}: {value!r} is unknown{nearest(str(value), known)}")

    def colours(self) -> dict[str, Any]:
        """Returns the arguments of a tower that otherwise come from its checkpoint."""
        return {"mean": list(self.mean), "std": list(self.std), "interpolation": self.interpolation}


def read_item(data: object, spec: ImageSpec) -> Item:
    """Returns one crop: values (1, 3, H, W), layout (original height, original width)."""
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == (*spec.size, 3):
        return Item(_scaled(data, spec)[None], spec.size)  # as below, where nothing is to be decoded or resized
    image = read_image(data)
    return Item(pixels(image, spec)[None], (image.height, image.width))


def read_bytes(data: object, spec: ImageSpec, *, reduce: bool = False) -> Item:
    """Returns one crop as uint8: values (1, 3, H, W), of which `normalised` makes those of `read_item`.

    reduce: JPEG is decoded at a half, quarter or eighth of its size where that is still twice the crop's, and pictures
        are resized by torch, which is faster than Pillow and rounds otherwise; both change values a little.
    """
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == (*spec.size, 3):
        return Item(_as_3HW(data)[None], spec.size)
    image, layout = _read(data, 2 * max(spec.size) if reduce else None)
    return Item(_as_3HW(np.array(fitted(image, spec, _quick if reduce else _resized)))[None], layout)


def normalised(values_N3HW: Tensor, spec: ImageSpec) -> Tensor:
    """uint8 values, in any dtype that holds them, as float32 numbers of the tower, on their device."""
    mean_3 = torch.tensor(spec.mean, device=values_N3HW.device)
    std_3 = torch.tensor(spec.std, device=values_N3HW.device)
    return (values_N3HW.float().div(255) - mean_3[:, None, None]) / std_3[:, None, None]


def read_image(source: object) -> Image:
    """Returns an upright 8-bit RGB picture.

    source: a path, the bytes of a file, a PIL image, an array (H, W[, 1|3|4]) or a tensor ([1|3|4,] H, W). Whole
        numbers are 0..255 (uint8) or 0..65535 (uint16), floats 0..1.
    Transparent pixels become white. Raises DataError that names the file, for what is missing, damaged or too large.
    """
    return _read(source)[0]


def _read(source: object, side: int | None = None) -> tuple[Image, tuple[int, int]]:
    """Returns a picture as `read_image` does, and its height and width as it is stored upright.

    side: JPEG may be decoded at less than its size, but at least at `side` pixels both ways.
    """
    require("PIL", "vision")
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, np.ndarray | Tensor):
        source = _from_array(source)
    name = _name(source)
    if isinstance(source, str | Path) and (fault := unreadable(source)):
        raise DataError(f"{name}: {'a folder, expected a picture' if fault == 'a folder' else fault}")
    try:
        if isinstance(source, bytes | bytearray | memoryview):
            source = io.BytesIO(source)
        elif not isinstance(source, str | Path | Image.Image):
            raise DataError(f"{name} is not a picture, expected a path, bytes, a PIL image, an array or a tensor")
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
            check_opened(image, source, name)
            width, height = image.size
            if side is not None and getattr(image, "format", None) == "JPEG":
                image.draft(None, (side, side))
            image.load()
            drawn = image.size
            upright = ImageOps.exif_transpose(image)
            if upright.size != drawn:  # turned by a quarter
                width, height = height, width
            return _rgb(upright, name), (height, width)
    except DataError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        what = "not a picture" if isinstance(error, UnidentifiedImageError) else "too large"
        raise DataError(f"{name}: {what}") from None
    except Exception as error:  # damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error
        raise DataError(f"{name}: damaged picture ({' '.join(str(error).split()):.200})") from None


def check_opened(image: Image, source: object, name: str) -> None:
    """Raise DataError for a picture that must not be decoded: too large, a trap, a program. source: its file."""
    if 0 in image.size or image.width * image.height > MAX_PIXELS:
        raise DataError(f"{name}: {image.width} x {image.height} pixels, expected 1 to {MAX_PIXELS} in all")
    if image.width * image.height > max(EMPTY_PIXELS, 200 * _size(source)):
        raise DataError(f"{name}: {image.width} x {image.height} pixels in {_size(source)} bytes, a trap")
    if getattr(image, "format", None) in PROGRAMS:
        raise DataError(f"{name}: {image.format} is a program that draws, expected JPEG, PNG, WebP, ...")


def pixels(image: Image, spec: ImageSpec) -> Tensor:
    """Returns an RGB picture as (3, H, W) float32."""
    return _scaled(np.array(fitted(image, spec)), spec)


def fitted(image: Image, spec: ImageSpec, resized: Callable[..., Image] | None = None) -> Image:
    """Returns an RGB picture at the size of `spec`. resized: a function of picture, width, height and interpolation to
    a picture of that size; None: Pillow's."""
    resized = resized or _resized
    height, width = spec.size
    w, h = image.size
    if spec.resize_mode == "pad":
        image = _padded(image, max(w, round(h * width / height)), max(h, round(w * height / width)), spec.mean)
    elif spec.resize_mode == "crop":
        scaled = (width, int(width * h / w)) if w * height <= h * width else (int(height * w / h), height)
        image = resized(image, *scaled, spec.interpolation)
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return resized(image, width, height, spec.interpolation)


def _scaled(image_HW3: np.ndarray[Any, Any], spec: ImageSpec) -> Tensor:
    """uint8 (H, W, 3) -> (3, H, W) float32."""
    return normalised(_as_3HW(image_HW3), spec)


def _as_3HW(image_HW3: np.ndarray[Any, Any]) -> Tensor:
    image_HW3 = np.require(image_HW3, requirements=["C", "W"])  # bytes of a request cannot be written to
    return torch.from_numpy(image_HW3).permute(2, 0, 1).contiguous()


def _resized(image: Image, width: int, height: int, interpolation: Interpolation) -> Image:
    from PIL.Image import Resampling

    return image.resize((max(width, 1), max(height, 1)), Resampling[interpolation.upper()])


def _quick(image: Image, width: int, height: int, interpolation: Interpolation) -> Image:
    """As `_resized`, to a level of 255 in few values, in a sixth of the time: torch's filters have Pillow's weights."""
    from PIL.Image import fromarray

    if interpolation not in ("bilinear", "bicubic"):
        return _resized(image, width, height, interpolation)
    size = (max(height, 1), max(width, 1))
    drawn_13HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    small_13HW = torch.nn.functional.interpolate(drawn_13HW, size, mode=interpolation, antialias=True)
    return fromarray(small_13HW[0].permute(1, 2, 0).numpy())


def _padded(image: Image, width: int, height: int, mean: Triple) -> Image:
    from PIL import Image

    red, green, blue = (int(value * 255) for value in mean)
    canvas = Image.new("RGB", (width, height), (red, green, blue))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _rgb(image: Image, name: str) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise DataError(f"{name}: 32-bit float pixels, whose white is unknown; expected 8 or 16 bits per colour")
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip everything above 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray[Any, Any] | Tensor) -> Image:
    from PIL import Image

    shape = tuple(array.shape)
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        values = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
        values = values.transpose(1, 2, 0) if values.ndim == 3 else values
    else:
        values = array
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise DataError(f"picture of shape {shape}: expected an array (H, W, colours) or a tensor (colours, H, W)")
    if 0 in shape:
        raise DataError(f"picture of shape {shape}: holds no pixels")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype == np.uint16:
        values = (values / 257).round().astype(np.uint8)
    elif np.issubdtype(values.dtype, np.floating):
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise DataError(f"picture of floats in {values.min():g}..{values.max():g}: expected 0..1")
        values = (values.astype(np.float64) * 255).round().astype(np.uint8)
    elif values.dtype != np.uint8:
        raise DataError(f"picture of {values.dtype}: expected uint8, uint16, bool or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))


def _size(source: object) -> float:
    """Returns the bytes of a file; without end for a picture that is decoded already."""
    if isinstance(source, io.BytesIO):
        return source.getbuffer().nbytes
    return os.path.getsize(source) if isinstance(source, str | Path) else math.inf


def _name(source: object) -> str:
    if isinstance(source, str | Path):
        return shown(source) or "''"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"picture of {len(source)} bytes"
    return str(getattr(source, "filename", "") or type(source).__name__)
