"""The body of POST /act, parsed to a row; an error is one line with a status of HTTP.

    {"image": "iVBORw0KGgo...", "instruction": "open the drawer", "state": [0.1, -0.2], "seed": 7}

A picture is base64 of a PNG or JPEG file, nested lists (H, W, 3), or what json_numpy writes of an array
({"__numpy__": base64, "dtype": "|u1", "shape": [H, W, 3]}). It is never a path: a request opens no file.

Shape letters: K actions of a chunk, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from mmdiff.errors import nearest, require
from mmdiff.serving.http.guard import BadRequest, short

from .arrays import PICTURE, to_array, to_numbers, to_picture

require("pydantic", "serve")
from pydantic import BaseModel, ConfigDict, Field, ValidationError  # noqa: E402

VALUES = 4_000_000  # numbers, lists and objects of a body; a 1280 x 720 picture in nested lists has 3.7 million
SINGLE = ("full_image", "wrist_image", "left_wrist_image", "right_wrist_image")  # openvla-oft, in camera order


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of a policy.

    chunk, dims, state: K, D, S. S is 0 where the policy takes no state; one that is sent all the same is ignored, as
        every client of openvla-oft sends one, and so are pictures where the policy has no camera.
    cameras: names in order. keys: of the statistics. key: the default of a request without one; None: there is none.
        names: of the D dimensions, or empty.
    """

    chunk: int
    dims: int
    state: int
    cameras: tuple[str, ...]
    key: str | None
    keys: tuple[str, ...]
    names: tuple[str, ...] = ()


class ActRequest(BaseModel):
    """The fields of a request.

    Pictures and arrays are read by `arrays.py`: pydantic would report every wrong pixel, with its value in full.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    instruction: Annotated[str, Field(pattern=r"\S")]
    image: Any = None
    images: Any = None
    full_image: Any = None
    wrist_image: Any = None
    left_wrist_image: Any = None
    right_wrist_image: Any = None
    state: Any = None
    given: Any = None
    unnorm_key: str | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None


WRONG = {
    "instruction": "is not a sentence",
    "unnorm_key": "is not a string",
    "seed": "is not a whole number from 0 to 2^63 - 1",
    "string_unicode": "is no text of Unicode",  # a lone surrogate, which no tokenizer accepts
}


@dataclass(frozen=True)
class ParsedRequest:
    """A valid request.

    row: as `mmdiff.tasks.vla.rollout.policies` passes it to a task. seed: noise is drawn under it, or None.
    """

    row: dict[str, Any]
    seed: int | None


def read_request(body: bytes | bytearray, contract: Contract) -> ParsedRequest:
    """Raises BadRequest: 400 for what is no JSON object, 422 for a field that is missing, unknown or wrong."""
    if (count := sum(map(body.count, b",[{"))) > VALUES:  # an empty list takes 56 bytes
        raise BadRequest(f"body: {count:,} values, expected at most {VALUES:,}; send pictures as base64 of files", 413)
    payload = _object(body, "body")
    if "encoded" in payload:  # openvla-oft: the payload as a string of JSON in a field of its own
        if len(payload) > 1 or not isinstance(payload["encoded"], str):
            raise BadRequest("encoded: expected a string of JSON, and no field beside it")
        payload = _object(payload["encoded"], "encoded")
    try:
        parsed = ActRequest.model_validate(payload)
    except ValidationError as error:
        raise _refusal(error) from None
    pictures = _pictures(parsed, contract.cameras) if contract.cameras else []
    row: dict[str, Any] = {"image": pictures[0] if len(pictures) == 1 else pictures, "instruction": parsed.instruction}
    if contract.state:
        row["state"] = to_numbers(parsed.state, "state", (contract.state,))
    if (given_nD := _given(parsed.given, contract)) is not None:
        row["given"] = given_nD
    row["dataset"] = _key(parsed.unnorm_key, contract)
    return ParsedRequest(row, parsed.seed)


def _refusal(error: ValidationError) -> BadRequest:
    """Returns the first error, unknown fields before all others."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    name, kind = str(first["loc"][0]), first["type"]
    if kind == "extra_forbidden":
        return BadRequest(f"{short(name)}: no such field{nearest(name, ActRequest.model_fields)}")
    value = None if kind == "missing" else first["input"]
    return BadRequest(f"{name}: {short(value)} {WRONG.get(kind, WRONG[name])}")


def _object(text: str | bytes | bytearray, field: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no text, and endless numbers
        why = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BadRequest(f"{field}: not JSON ({why[:120]})", 400) from None
    if not isinstance(found, dict):
        raise BadRequest(f"{field}: {short(found)}, expected a JSON object with image and instruction", 400)
    return found


def _pictures(parsed: ActRequest, cameras: Sequence[str]) -> list[np.ndarray]:
    """uint8 (H, W, 3) of each camera."""
    sent = {name: value for name in ("image", "images", *SINGLE) if (value := getattr(parsed, name)) is not None}
    single = [name for name in SINGLE if name in sent]
    ways = [name for name in sent if name not in single] + single[:1]
    expected = f"{len(cameras)} ({', '.join(cameras)})"
    if not ways:
        raise BadRequest(f"image: missing, expected {PICTURE}; pictures: {expected}")
    if len(ways) > 1:
        raise BadRequest(f"{ways[1]}: given beside {ways[0]}; expected one of image, images, full_image")
    named = [(name, sent[name]) for name in single] if single else _named(sent[ways[0]], ways[0], cameras)
    if len(named) != len(cameras):
        raise BadRequest(f"{ways[0]}: {len(named)} pictures, expected {expected}")
    return [to_picture(value, name) for name, value in named]


def _named(value: Any, field: str, cameras: Sequence[str]) -> list[tuple[str, Any]]:
    """Returns the pictures of one field, each with the name that error messages give it."""
    if isinstance(value, Mapping) and "__numpy__" not in value:
        for name in value:
            if name not in cameras:
                raise BadRequest(f"{field}.{short(name)}: no such camera{nearest(name, cameras)}")
        if missing := [name for name in cameras if name not in value]:
            raise BadRequest(f"{field}.{missing[0]}: missing, expected pictures of {', '.join(cameras)}")
        return [(f"{field}.{name}", value[name]) for name in cameras]
    if isinstance(value, Mapping):
        array = to_array(value, field)
        if array.ndim != 4:
            return [(field, array)]
        if len(array) != len(cameras):  # before they are counted one by one: a shape of no bytes may have any length
            raise BadRequest(f"{field}: {len(array)} pictures, expected {len(cameras)} ({', '.join(cameras)})")
        return [(f"{field}[{i}]", one) for i, one in enumerate(array)]
    if isinstance(value, list) and _depth(value) != 3:
        return [(f"{field}[{i}]", one) for i, one in enumerate(value)]
    return [(field, value)]


def _given(value: Any, contract: Contract) -> np.ndarray | None:
    """float32 (n, D) or None."""
    if value is None or value == []:
        return None
    given = to_numbers(value, "given", (None, contract.dims))
    if len(given) >= contract.chunk:
        raise BadRequest(f"given: {len(given)} actions, expected fewer than the {contract.chunk} of a chunk")
    return given if len(given) else None


def _key(value: str | None, contract: Contract) -> str:
    known = " or ".join(contract.keys)
    if value is None:
        if contract.key is None:
            raise BadRequest(f"unnorm_key: missing, expected {known}")
        return contract.key
    if value not in contract.keys:
        raise BadRequest(f"unnorm_key: {short(value)} is no key of this policy's statistics, expected {known}")
    return value


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth, value = depth + 1, value[0] if value else None
    return depth
