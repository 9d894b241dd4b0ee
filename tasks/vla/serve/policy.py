"""A policy that answers requests one at a time. Its inputs and outputs are its `Contract`.

Shape letters: K actions of a chunk, D dimensions of an action.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdiff.errors import ConfigError, UserError
from mmdiff.serving.http.guard import BadRequest
from mmdiff.tasks.vla.task import VLA

from .request import Contract, read_request

if TYPE_CHECKING:
    from mmdiff.session import Session


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
    """A policy that answers one request at a time, and numbers those that bring no seed."""

    def __init__(self, session: Session[VLA], contract: Contract) -> None:
        self.contract, self.answered = contract, 0
        one = len(contract.keys) == 1
        self.sessions = {
            key: session if one else replace(session, task=acting_by(session.task, key)) for key in contract.keys
        }

    def answer(self, body: bytes | bytearray) -> dict[str, Any]:
        """Returns the body of the response to one of POST /act. Raises BadRequest."""
        sent = read_request(body, self.contract)
        began = time.perf_counter()
        first = self.answered if sent.seed is None else sent.seed
        try:
            found = self.sessions[sent.row["dataset"]].predict_many([sent.row], first=first)[0]
        except UserError as error:
            raise BadRequest(str(error).removeprefix(f"row {first}: ")) from None
        actions_KD = np.asarray(found["prediction"], dtype=np.float64)
        expected = (self.contract.chunk, self.contract.dims)
        if actions_KD.shape != expected or not np.isfinite(actions_KD).all():
            raise RuntimeError(f"the policy's answer has shape {actions_KD.shape}, expected {expected} finite numbers")
        took = time.perf_counter() - began
        self.answered += 1
        return {
            "actions": actions_KD.tolist(),
            "names": list(self.contract.names),
            "forwards": int(found["forwards"]),
            "seconds": round(took, 6),
            "seed": first,
        }


def acting_by(task: VLA, key: str) -> VLA:
    """Returns the task with another choice of statistics."""
    other = copy.copy(task)
    other.key = key
    return other
