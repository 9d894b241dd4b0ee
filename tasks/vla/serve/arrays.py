"""Pictures and arrays in JSON, to numpy. An error is one line, however large the value.

Shape letters: H W pixels.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import DataError
from mmdiff.serving.http.guard import BadRequest, short

PICTURE = "base64 of a PNG or JPEG file, nested lists (H, W, 3), or a json_numpy array"
NUMPY = {"__numpy__", "dtype", "shape"}
_NONE = object()


def to_picture(value: Any, field: str) -> np.ndarray:
    """uint8 (H, W, 3). Raises BadRequest."""
    if isinstance(value, str):
        text = value.split(",", 1)[1] if value.startswith("data:") and "," in value else value
        source: Any = _bytes("".join(text.split()), field, PICTURE)
        if not source:
            raise BadRequest(f"{field}: empty, expected {PICTURE}")
    elif isinstance(value, np.ndarray):
        source = value
    elif isinstance(value, list | Mapping):
        source = to_array(value, field)
    else:
        raise BadRequest(f"{field}: {short(value)}, expected {PICTURE}")
    if isinstance(source, np.ndarray) and source.dtype.kind in "iu" and source.dtype not in (np.uint8, np.uint16):
        if source.size and not (0 <= source.min() and source.max() <= 255):
            raise BadRequest(f"{field}: pixels {source.min()} to {source.max()}, expected 0 to 255")
        source = source.astype(np.uint8)
    try:
        return np.asarray(read_image(source))
    except DataError as error:
        raise BadRequest(f"{field}: {error}") from None


def to_numbers(value: Any, field: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """float32 of `shape`, None standing for any length. A number that is not finite is named by its index."""
    expected = " x ".join("any number" if n is None else str(n) for n in shape) + " numbers"
    if value is None:
        raise BadRequest(f"{field}: missing, expected {expected}")
    array = to_array(value, field, expected)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise BadRequest(f"{field}: shape {array.shape}, expected {expected}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if len(bad := np.argwhere(~np.isfinite(array))):
        index = "".join(f"[{i}]" for i in bad[0])
        raise BadRequest(f"{field}{index}: {array[tuple(bad[0])]}, expected a finite number")
    return array


def to_array(value: Any, field: str, expected: str = PICTURE) -> np.ndarray:
    """Nested lists, or what json_numpy writes, as an array of numbers."""
    if isinstance(value, Mapping):
        if set(value) != NUMPY:
            raise BadRequest(f"{field}: an object of {short(sorted(value))}, expected {expected}")
        name = value["dtype"]
        try:
            dtype = np.dtype(name if isinstance(name, str) and len(name) <= 16 else object)
        except (TypeError, ValueError, SyntaxError):
            dtype = np.dtype(object)
        shape = value["shape"]
        if dtype.kind not in "biuf":
            raise BadRequest(f"{field}.dtype: {short(value['dtype'])} is no type of real numbers")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise BadRequest(f"{field}.shape: {short(shape)} is not a list of whole numbers")
        data = _bytes(value["__numpy__"], f"{field}.__numpy__", "base64")
        fits = len(shape) <= 8 and math.prod(max(n, 1) for n in shape) < 1 << 40  # else numpy has no such shape
        if not fits or len(data) != math.prod(shape) * dtype.itemsize:
            raise BadRequest(f"{field}: {len(data)} bytes, expected shape {short(shape)} of {dtype}")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if not isinstance(value, list):
        raise BadRequest(f"{field}: {short(value)}, expected {expected}")
    if (stray := _stray(value)) is not _NONE:  # numpy would give every entry the size of the longest text
        raise BadRequest(f"{field}: holds {short(stray)}, expected {expected}")
    try:
        array = np.array(value)
    except ValueError:
        raise BadRequest(f"{field}: lists of unequal length, expected {expected}") from None
    if array.size and array.dtype.kind not in "iuf":
        raise BadRequest(f"{field}: {short(value)}, expected {expected}")
    return array


def _bytes(text: Any, field: str, expected: str) -> bytes:
    if not isinstance(text, str):
        raise BadRequest(f"{field}: {short(text)}, expected {expected}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{field}: {short(text)} is not base64, expected {expected}") from None


def _stray(value: list[Any]) -> Any:
    """The first entry of nested lists that is neither a list nor a number; `_NONE` where all are."""
    lists = [value]
    while lists:
        for one in lists.pop():
            if isinstance(one, list):
                lists.append(one)
            elif type(one) not in (int, float):
                return one
    return _NONE
