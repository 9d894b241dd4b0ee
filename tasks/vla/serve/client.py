"""A policy that is served elsewhere: POST /act over HTTP. Needs the standard library, numpy and Pillow only.

Shape letters: K actions of a chunk, D dimensions of an action, H W pixels.
"""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Row
from mmdiff.serving.http.guard import read_token

ANSWER = 16 << 20  # bytes of an answer that are read


class ActClient:
    """A policy (`mmdiff.tasks.vla.rollout.policies.Policy`) whose chunks a server's model predicts.

    url: `http://127.0.0.1:8777`. key: of the statistics, where the server has several. timeout: seconds per call.
    token: the server's, where it has one; None: that of the environment (`MMDIFF_TOKEN`), if any.
    Noise is drawn under a row's `index`, else under the number of rows sent so far. calls, rows and forwards add up;
    seconds are those of the whole exchange. Raises ConfigError where no server answers, DataError for a row that the
    server refuses.
    """

    sees = True

    def __init__(
        self,
        url: str = "http://127.0.0.1:8777",
        *,
        key: str | None = None,
        timeout: float = 60.0,
        token: str | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url: {url!r} does not begin with http://")
        self.url, self.key, self.timeout = url.rstrip("/"), key, timeout
        token = read_token(None) if token is None else token
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        # a robot's server stands nearby: no proxy
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.health = self._call("/health")
        self.chunk, self.execute = (self.health.get(name) for name in ("chunk", "execute"))
        if not all(type(n) is int and n > 0 for n in (self.chunk, self.execute)):
            raise ConfigError(f"{self.url}/health: the answer of another kind of server")
        self.calls = self.rows = self.forwards = 0
        self.seconds = 0.0

    def act(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """A chunk (K, D) in robot units per row; one request each."""
        start = time.perf_counter()
        answers = [self._call("/act", self._payload(row, self.rows + i)) for i, row in enumerate(rows)]
        self.calls += 1
        self.rows += len(rows)
        try:
            self.forwards += sum(answer["forwards"] for answer in answers)
            chunks = [np.asarray(answer["actions"], np.float64) for answer in answers]
        except (LookupError, TypeError, ValueError):
            raise DataError(f"{self.url}/act: the answer has no actions, or no numbers of forwards") from None
        self.seconds += time.perf_counter() - start
        return chunks

    def _payload(self, row: Row, number: int) -> dict[str, Any]:
        image = row["image"]
        pictures = list(image) if isinstance(image, list | tuple) else [image]
        body = {"images": [encoded(one) for one in pictures], "instruction": row["instruction"]}
        body["seed"] = int(row.get("index", number))
        for name in ("state", "given"):
            if row.get(name) is not None:
                body[name] = np.asarray(row[name]).tolist()
        return body if self.key is None else {**body, "unnorm_key": self.key}

    def _call(self, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                found = json.loads(answer.read(ANSWER))
                return found if isinstance(found, dict) else {}
        except urllib.error.HTTPError as error:
            with error:
                raise DataError(f"{self.url}{path}: {error.code}: {_reason(error)}") from None
        except (
            OSError,
            ValueError,
            RecursionError,
            HTTPException,
        ) as error:  # ValueError: what answers is no server of ours
            why = getattr(error, "reason", None) or error
            raise ConfigError(f"{self.url}{path}: no answer ({why}); is `mmdiff vla serve` running there?") from None


def encoded(picture: Any) -> str:
    """base64 of a picture's file: bytes are sent as they are, everything else as PNG, which loses nothing."""
    if isinstance(picture, bytes | bytearray | memoryview):
        return base64.b64encode(picture).decode()
    file = io.BytesIO()
    read_image(picture).save(file, "png", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read(ANSWER))["error"]
        return str(found["message"] if isinstance(found, dict) else found)  # of `mmdiff serve`, of `mmdiff vla serve`
    except (ValueError, KeyError, TypeError, OSError):
        return str(error.reason)
