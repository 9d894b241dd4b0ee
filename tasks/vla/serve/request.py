"""The body of POST /act to a row that a policy answers; what is wrong with it, in one line with a status of HTTP.

A picture is base64 of a PNG or JPEG file, nested lists (H, W, 3), or what json_numpy writes of an array
({"__numpy__": base64, "dtype": "|u1", "shape": [H, W, 3]}). It is never a path: a request opens no file.

Shape letters: K actions of a chunk, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import DataError, nearest

SINGLE = ("full_image", "wrist_image", "left_wrist_image", "right_wrist_image")  # openvla-oft, in camera order
FIELDS = ("image", "images", *SINGLE, "instruction", "state", "given", "unnorm_key", "seed")
PICTURE = "base64 of a PNG or JPEG file, nested lists (H, W, 3), or a json_numpy array"
NUMPY = {"__numpy__", "dtype", "shape"}
SHORT = reprlib.Repr()  # of what was sent, however large or deep it is
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 50


class Refused(DataError):
    """A request that is not answered, and its status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Contract:
    """What a policy takes and gives.

    chunk, dims, state: K, D, S. S is 0 where the policy takes no state; one that is sent all the same is left aside, as
        every client of openvla-oft sends one, and so are pictures where the policy has no camera.
    cameras: names in order. keys: of the statistics. key: the one that is meant where a request names none; None: it
        must name one. names: of the D dimensions, or empty.
    """

    chunk: int
    dims: int
    state: int
    cameras: tuple[str, ...]
    key: str | None
    keys: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request that was understood.

    row: as `mmdiff.tasks.vla.rollout.policies` hands it to a task. seed: noise is drawn under it, or None.
    """

    row: dict[str, Any]
    seed: int | None


def read_request(body: bytes, contract: Contract) -> Asked:
    """Raises Refused: 400 for what is no JSON object, 422 for a field that is missing, unknown or wrong."""
    payload = _object(body, "body")
    if "encoded" in payload:  # openvla-oft: the payload as a string of JSON in a field of its own
        if len(payload) > 1 or not isinstance(payload["encoded"], str):
            raise Refused("encoded: expected a string of JSON, and no field beside it")
        payload = _object(payload["encoded"], "encoded")
    for name in payload:
        if name not in FIELDS:
            raise Refused(f"{_short(name)}: no such field{nearest(name, FIELDS)}")
    instruction = payload.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise Refused(f"instruction: {_short(instruction)} is not a sentence")
    if any("\ud800" <= letter <= "\udfff" for letter in instruction):  # half a letter, which no tokenizer takes
        raise Refused(f"instruction: {_short(instruction)} is no text of Unicode")
    pictures = _pictures(payload, contract.cameras) if contract.cameras else []
    row: dict[str, Any] = {"image": pictures[0] if len(pictures) == 1 else pictures, "instruction": instruction}
    if contract.state:
        row["state"] = _numbers(payload.get("state"), "state", (contract.state,))
    if (given_nD := _given(payload.get("given"), contract)) is not None:
        row["given"] = given_nD
    row["dataset"] = _key(payload.get("unnorm_key"), contract)
    return Asked(row, _seed(payload.get("seed")))


def _object(text: str | bytes, field: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no text, and endless numbers
        why = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise Refused(f"{field}: not JSON ({why[:120]})", 400) from None
    if not isinstance(found, dict):
        raise Refused(f"{field}: {_short(found)}, expected a JSON object with image and instruction", 400)
    return found


def _pictures(payload: Mapping[str, Any], cameras: Sequence[str]) -> list[np.ndarray]:
    """uint8 (H, W, 3) of each camera."""
    single = [name for name in SINGLE if payload.get(name) is not None]
    ways = [name for name in ("image", "images") if payload.get(name) is not None] + single[:1]
    wanted = f"{len(cameras)} ({', '.join(cameras)})"
    if not ways:
        raise Refused(f"image: missing, expected {PICTURE}; pictures: {wanted}")
    if len(ways) > 1:
        raise Refused(f"{ways[1]}: given beside {ways[0]}; expected one of image, images, full_image")
    if single:
        named = [(name, payload[name]) for name in single]
    else:
        named = _named(payload[ways[0]], ways[0], cameras)
    if len(named) != len(cameras):
        raise Refused(f"{ways[0]}: {len(named)} pictures, expected {wanted}")
    return [_picture(value, name) for name, value in named]


def _named(value: Any, field: str, cameras: Sequence[str]) -> list[tuple[str, Any]]:
    """Pictures that one field holds, each under the name that a message calls it by."""
    if isinstance(value, Mapping) and "__numpy__" not in value:
        for name in value:
            if name not in cameras:
                raise Refused(f"{field}.{_short(name)}: no such camera{nearest(name, cameras)}")
        if missing := [name for name in cameras if name not in value]:
            raise Refused(f"{field}.{missing[0]}: missing, expected pictures of {', '.join(cameras)}")
        return [(f"{field}.{name}", value[name]) for name in cameras]
    if isinstance(value, Mapping):
        array = _array(value, field)
        if array.ndim != 4:
            return [(field, array)]
        if len(array) != len(cameras):  # before they are counted one by one: a shape of no bytes may have any length
            raise Refused(f"{field}: {len(array)} pictures, expected {len(cameras)} ({', '.join(cameras)})")
        return [(f"{field}[{i}]", one) for i, one in enumerate(array)]
    if isinstance(value, list) and not (_depth(value) == 3 and _is_number(_first(value))):
        return [(f"{field}[{i}]", one) for i, one in enumerate(value)]
    return [(field, value)]


def _picture(value: Any, field: str) -> np.ndarray:
    if isinstance(value, str):
        text = value.split(",", 1)[1] if value.startswith("data:") and "," in value else value
        source: Any = _bytes("".join(text.split()), field, PICTURE)
        if not source:
            raise Refused(f"{field}: empty, expected {PICTURE}")
    elif isinstance(value, np.ndarray):
        source = value
    elif isinstance(value, list | Mapping):
        source = _array(value, field)
    else:
        raise Refused(f"{field}: {_short(value)}, expected {PICTURE}")
    if isinstance(source, np.ndarray) and source.dtype.kind in "iu" and source.dtype not in (np.uint8, np.uint16):
        if source.size and not (0 <= source.min() and source.max() <= 255):
            raise Refused(f"{field}: pixels {source.min()} to {source.max()}, expected 0 to 255")
        source = source.astype(np.uint8)
    try:
        return np.asarray(read_image(source))
    except DataError as error:
        raise Refused(f"{field}: {error}") from None


def _given(value: Any, contract: Contract) -> np.ndarray | None:
    """float32 (n, D) or None."""
    if value is None or value == []:
        return None
    given = _numbers(value, "given", (None, contract.dims))
    if len(given) >= contract.chunk:
        raise Refused(f"given: {len(given)} actions, expected fewer than the {contract.chunk} of a chunk")
    return given if len(given) else None


def _key(value: Any, contract: Contract) -> str:
    known = " or ".join(contract.keys)
    if value is None:
        if contract.key is None:
            raise Refused(f"unnorm_key: missing, expected {known}")
        return contract.key
    if value not in contract.keys:
        raise Refused(f"unnorm_key: {_short(value)} is no key of this policy's statistics, expected {known}")
    return str(value)


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise Refused(f"seed: {_short(value)} is not a whole number from 0 to 2^63 - 1")
    return value


def _numbers(value: Any, field: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """float32 of `shape`, None standing for any length. A number that is not finite is named by its place."""
    wanted = " x ".join("any number" if n is None else str(n) for n in shape) + " numbers"
    if value is None:
        raise Refused(f"{field}: missing, expected {wanted}")
    array = _array(value, field, wanted)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise Refused(f"{field}: shape {array.shape}, expected {wanted}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if len(bad := np.argwhere(~np.isfinite(array))):
        place = "".join(f"[{i}]" for i in bad[0])
        raise Refused(f"{field}{place}: {array[tuple(bad[0])]}, expected a finite number")
    return array


def _array(value: Any, field: str, wanted: str = PICTURE) -> np.ndarray:
    """Nested lists, or what json_numpy writes, as an array of numbers."""
    if isinstance(value, Mapping):
        if set(value) != NUMPY:
            raise Refused(f"{field}: an object of {_short(sorted(value))}, expected {wanted}")
        try:
            dtype = np.dtype(str(value["dtype"]))
        except (TypeError, ValueError, SyntaxError):
            dtype = np.dtype(object)
        shape = value["shape"]
        if dtype.kind not in "biuf":
            raise Refused(f"{field}.dtype: {_short(value['dtype'])} is no type of real numbers")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused(f"{field}.shape: {_short(shape)} is not a list of whole numbers")
        data = _bytes(value["__numpy__"], f"{field}.__numpy__", "base64")
        fits = len(shape) <= 8 and math.prod(max(n, 1) for n in shape) < 1 << 40  # else numpy has no such shape
        if not fits or len(data) != math.prod(shape) * dtype.itemsize:
            raise Refused(f"{field}: {len(data)} bytes, expected shape {_short(shape)} of {dtype}")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if not isinstance(value, list):
        raise Refused(f"{field}: {_short(value)}, expected {wanted}")
    if (text := _text(value)) is not None:  # numpy would give every entry the room of the longest text
        raise Refused(f"{field}: holds {_short(text)}, expected {wanted}")
    try:
        array = np.array(value)
    except ValueError:
        raise Refused(f"{field}: lists of unequal length, expected {wanted}") from None
    if array.size and array.dtype.kind not in "iuf":
        raise Refused(f"{field}: holds {_short(_first(value))}, expected {wanted}")
    return array


def _bytes(text: Any, field: str, wanted: str) -> bytes:
    if not isinstance(text, str):
        raise Refused(f"{field}: {_short(text)}, expected {wanted}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{field}: {_short(text)} is not base64, expected {wanted}") from None


def _text(value: list[Any]) -> str | None:
    """The first text in nested lists."""
    lists = [value]
    while lists:
        for one in lists.pop():
            if isinstance(one, list):
                lists.append(one)
            elif isinstance(one, str):
                return one
    return None


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth, value = depth + 1, value[0] if value else None
    return depth


def _first(value: Any) -> Any:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return "nothing" if value is None else SHORT.repr(value)
