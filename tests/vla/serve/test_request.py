"""What is wrong with a request is named in one line, with a status of HTTP."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from robots.policy_server import HTTP, PICTURE, STATE, task  # noqa: E402

from mmdiff.tasks.vla.serve.arrays import BadRequest  # noqa: E402
from mmdiff.tasks.vla.serve.client import encoded  # noqa: E402
from mmdiff.tasks.vla.serve.policy import contract_of  # noqa: E402
from mmdiff.tasks.vla.serve.request import read_request  # noqa: E402


def png(width: int, height: int) -> str:
    """A PNG file whose header says so many pixels; there is next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


DEEP: list[Any] = []
for _ in range(900):
    DEEP = [DEEP]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"instruction": None}, r"instruction: nothing is not a sentence"),
    ({"instruction": "  "}, r"instruction: ' +' is not a sentence"),
    ({"instruction": ["open"]}, r"instruction: \['open'\] is not a sentence"),
    ({"instruction": "too long"}, r"^instruction: 900 tokens, expected at most 64"),
    ({"image": None}, r"image: missing, expected base64 of a PNG.*pictures: 1 \(image\)"),
    ({"image": ""}, r"image: empty, expected base64"),
    ({"image": "cat.jpg"}, r"image: 'cat.jpg' is not base64"),
    ({"image": "/etc/passwd"}, r"image: '/etc/passwd' is not base64|picture of \d+ bytes: not a picture"),
    ({"image": base64.b64encode(b"hello").decode()}, r"image: picture of 5 bytes: not a picture"),
    ({"image": encoded(PICTURE)[:80]}, r"image: .*(damaged|not a picture)"),
    ({"image": 7}, r"image: 7, expected base64"),
    ({"image": True}, r"image: True, expected base64"),
    ({"image": {}}, r"images?: 0 pictures|image.image: missing"),
    ({"image": []}, r"image: 0 pictures, expected 1 \(image\)"),
    ({"image": [[1, 2], [3]]}, r"image.*(pictures|unequal)"),
    ({"image": [[[1, 2, 3], [1, 2]]]}, r"image: lists of unequal length"),
    ({"image": [[[300, 0, 0]]]}, r"image: pixels 0 to 300, expected 0 to 255"),
    ({"image": [[[-1, 0, 0]]]}, r"image: pixels -1 to 0, expected 0 to 255"),
    ({"image": [[[1.5, 0, 0]]]}, r"image: picture of floats in 0..1.5: expected 0..1"),
    ({"image": [[[float("nan"), 0, 0]]]}, r"image: picture of floats"),
    ({"image": [[["a", "b", "c"]]]}, r"image"),
    ({"image": [[[1, 2]]]}, r"image: picture of shape \(1, 1, 2\): expected an array \(H, W, colours\)"),
    ({"image": png(20000, 20000)}, r"image: .*(20000 x 20000 pixels|too large)"),
    ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [9, 9, 3]}}, r"image: 3 bytes, expected shape"),
    ({"image": {"__numpy__": "", "dtype": "|u1", "shape": [1 << 40, 1 << 40, 0]}}, r"image"),
    ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [-3]}}, r"image.shape: \[-3\]"),
    ({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [3]}}, r"image.dtype: '\|O' is no type of real numbers"),
    ({"image": {"__numpy__": "AAAA", "dtype": "no", "shape": [3]}}, r"image.dtype: 'no'"),
    ({"image": {"__numpy__": "AAAA", "dtype": ["x"], "shape": [3]}}, r"image.dtype"),
    ({"image": {"__numpy__": 3, "dtype": "|u1", "shape": [3]}}, r"image.__numpy__: 3, expected base64"),
    ({"image": {"__numpy__": "AAAA"}}, r"image: an object of \['__numpy__'\]"),
    ({"images": [encoded(PICTURE)] * 2, "image": None}, r"images: 2 pictures, expected 1 \(image\)"),
    ({"images": [encoded(PICTURE)]}, r"images: given beside image"),
    ({"image": None, "wrist_image": "x", "full_image": "y"}, r"full_image: 2 pictures, expected 1|full_image"),
    ({"state": None}, r"state: missing, expected 2 numbers"),
    ({"state": [1, 2, 3]}, r"state: shape \(3,\), expected 2 numbers"),
    ({"state": [[1, 2]]}, r"state: shape \(1, 2\), expected 2 numbers"),
    ({"state": [1, float("nan")]}, r"state\[1\]: nan, expected a finite number"),
    ({"state": [1, float("inf")]}, r"state\[1\]: inf, expected a finite number"),
    ({"state": [1, 1e300]}, r"state\[1\]: inf, expected a finite number"),
    ({"state": [1, None]}, r"state: holds"),
    ({"state": ["1", "2"]}, r"state: holds '1', expected 2 numbers"),
    ({"state": [True, False]}, r"state: holds True"),
    ({"state": "1 2"}, r"state: '1 2', expected 2 numbers"),
    ({"state": {"x": 1}}, r"state: an object of \['x'\]"),
    ({"given": [[1, 2]]}, r"given: shape \(1, 2\), expected any number x 3 numbers"),
    ({"given": [[1, 2, 3]] * 4}, r"given: 4 actions, expected fewer than the 4 of a chunk"),
    ({"given": [[1, 2, float("nan")]]}, r"given\[0\]\[2\]: nan"),
    ({"unnorm_key": "bridge"}, r"unnorm_key: 'bridge' is no key of this policy's statistics, expected arm"),
    ({"unnorm_key": ["arm"]}, r"unnorm_key: \['arm'\]"),
    ({"seed": -1}, r"seed: -1 is not a whole number"),
    ({"seed": 1.5}, r"seed: 1.5 is not"),
    ({"seed": True}, r"seed: True is not"),
    ({"seed": 1 << 63}, r"seed: 9223372036854775808 is not"),
    ({"instrution": "open"}, r"'instrution': no such field \(did you mean \"instruction\"\?\)"),
    ({"state": DEEP}, r"state: holds|state: lists|state: shape"),
    ({"image": DEEP}, r"image"),
    ({"given": DEEP}, r"given"),
    ({"instruction": DEEP}, r"instruction: \[\[.* is not a sentence"),
    ({"unnorm_key": DEEP}, r"unnorm_key: \[\["),
    ({"seed": DEEP}, r"seed: \[\["),
    ({"state": {"__numpy__": "AAAA", "dtype": "(99999999999,99999999999)u1", "shape": [1]}}, r"state.dtype"),
    ({"state": {"__numpy__": "AAAA", "dtype": None, "shape": [1]}}, r"state.dtype"),
    ({"x" * 1000: 1}, r"'xxx.*no such field"),
    ({"encoded": "{}"}, r"encoded: expected a string of JSON, and no field beside it"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_wrong_field_is_named(url: str, changes: dict[str, Any], said: str) -> None:
    payload = {"image": encoded(PICTURE), "instruction": "open", "state": STATE, **changes}
    body = json.dumps({k: v for k, v in payload.items() if v is not None})  # also NaN, which httpx would not write
    answer = HTTP.post(f"{url}/act", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert re.search(said, answer.json()["error"]), answer.json()["error"]
    assert "\n" not in answer.json()["error"] and len(answer.json()["error"]) < 300


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: not JSON"),
        (b"{", "body: not JSON"),
        (b"\xff\xfe\x00", "body: not JSON"),
        (b"[" * 100_000, "body: not JSON (nested too deeply)"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "body: not JSON"),
        (b"[]", "body: [], expected a JSON object"),
        (b"null", "body: nothing, expected a JSON object"),
        (b'{"encoded": "{"}', "encoded: not JSON"),
        (b'{"encoded": "[]"}', "encoded: [], expected a JSON object"),
    ],
)
def test_what_is_no_json_object(url: str, body: bytes, said: str) -> None:
    answer = HTTP.post(f"{url}/act", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 400 and said in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"image": {"__numpy__": "", "dtype": "|u1", "shape": [1 << 39, 0, 1, 1]}},
            "549755813888 pictures, expected 1",
        ),
        ({"state": ["a" * 100_000] + ["b"] * 30_000}, "state: holds 'aaa"),
        ({"instruction": "\ud800"}, "no text of Unicode"),
    ],
)
def test_a_small_request_takes_little_room(change: dict[str, Any], message: str) -> None:
    body = {"image": PICTURE.tolist(), "instruction": "go", "state": STATE, **change}
    with pytest.raises(BadRequest, match=re.escape(message)):
        read_request(json.dumps(body).encode(), contract_of(task()))
