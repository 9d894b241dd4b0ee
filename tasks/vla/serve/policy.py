"""A policy that answers requests one at a time, and counts them. Its inputs and outputs are its `Contract`.

Shape letters: K actions of a chunk, D dimensions of an action.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdiff.errors import ConfigError, UserError
from mmdiff.serving.http.guard import BadRequest
from mmdiff.tasks.vla.task import VLA

from .request import Contract, read_request

if TYPE_CHECKING:
    from starlette.requests import Request

    from mmdiff.session import Session

MAX_WAITING = 64  # requests; the next one is refused
GONE = 499  # nginx's status for a client that has disconnected, and does not read it


def contract_of(task: Any, cameras: Sequence[str] | None = None) -> Contract:
    """Returns the inputs and outputs of a policy. cameras: names of its pictures, in the policy's order.

    Raises ConfigError.
    """
    if not isinstance(task, VLA):
        raise ConfigError(
            f"task: {type(task).__name__} gives no chunks of actions, expected a run of mmdiff.tasks.vla.VLA"
        )
    if cameras is None:
        cameras = ["image"] if task.cameras == 1 else [f"image{i}" for i in range(task.cameras)]
    if len(cameras) != task.cameras or len(set(cameras)) < len(cameras):
        raise ConfigError(f"cameras: {', '.join(cameras) or 'none'}; expected {task.cameras} different names")
    keys = sorted(task.statistics)
    key = keys[0] if len(keys) == 1 else task.key
    names = task.units(key or keys[0]).action.statistics.names
    return Contract(task.chunk, task.dims, task.state_dims, tuple(cameras), key, tuple(keys), names)


class PolicyServer:
    """A policy that many requests reach at a time and that answers one at a time, in one thread.

    thread: the only one that runs the model; None: one of its own.
    """

    def __init__(
        self, session: Session[VLA], contract: Contract, sampler: Mapping[str, Any], thread: Executor | None = None
    ) -> None:
        self.contract, self.sampler = contract, dict(sampler)
        one = len(contract.keys) == 1
        self.sessions = {
            key: session if one else replace(session, task=acting_by(session.task, key)) for key in contract.keys
        }
        self.began = time.monotonic()
        self.waiting = self.answered = self.refused = self.failed = 0
        self.seconds: deque[float] = deque(maxlen=1000)
        self._turn = asyncio.Lock()
        # a new thread would compute with another number of threads than this one, and so with other rounding
        self._thread = thread or ThreadPoolExecutor(1, "policy", torch.set_num_threads, (torch.get_num_threads(),))

    async def act(self, body: bytes | bytearray, request: Request) -> dict[str, Any]:
        """Returns the body of the response. Raises BadRequest."""
        if self.waiting >= MAX_WAITING:
            raise BadRequest(f"busy: {self.waiting} requests are waiting; come back later", 503)
        self.waiting += 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise BadRequest("client: gone before its turn", GONE)
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, body)
        finally:
            self.waiting -= 1

    def _answer(self, body: bytes | bytearray) -> dict[str, Any]:
        sent = read_request(body, self.contract)
        began = time.perf_counter()
        first = self.answered if sent.seed is None else sent.seed
        try:
            found = self.sessions[sent.row["dataset"]].predict_many([sent.row], first=first, **self.sampler)[0]
        except UserError as error:
            raise BadRequest(str(error).removeprefix(f"row {first}: ")) from None
        actions_KD = np.asarray(found["prediction"], dtype=np.float64)
        expected = (self.contract.chunk, self.contract.dims)
        if actions_KD.shape != expected or not np.isfinite(actions_KD).all():
            raise RuntimeError(f"the policy's answer has shape {actions_KD.shape}, expected {expected} finite numbers")
        took = time.perf_counter() - began
        self.answered += 1
        self.seconds.append(took)
        return {
            "actions": actions_KD.tolist(),
            "names": list(self.contract.names),
            "forwards": int(found["forwards"]),
            "seconds": round(took, 6),
            "seed": first,
        }

    def metrics(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("answered", "refused", "failed", "waiting")}
        p50, p95 = np.percentile(list(self.seconds), [50, 95]).round(6).tolist() if self.seconds else (None, None)
        return {**counts, "seconds_p50": p50, "seconds_p95": p95}

    def uptime(self) -> float:
        return round(time.monotonic() - self.began, 3)


def acting_by(task: VLA, key: str) -> VLA:
    """Returns the task with another choice of statistics."""
    other = copy.copy(task)
    other.key = key
    return other
