"""What entries to harnesses have in common: requests in batches of like length, log-likelihoods, texts cut at stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.patterns import Causal
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import estimate, next_token
from mmdiff.model.likelihood.passes import Estimator

T = TypeVar("T")


def batch_of(given: int | str, auto: int) -> int:
    """Returns a harness's `batch_size`; `auto` of those that look for it, `auto:4` too. Raises ConfigError."""
    text = str(given)
    if text.partition(":")[0] == "auto":
        return auto
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"batch_size: {given!r}, expected a whole number of at least 1, or auto")
    return int(text)


def device_of(given: str) -> torch.device:
    """Returns the device of that name. Raises ConfigError."""
    try:
        return torch.device(given)
    except RuntimeError:
        raise ConfigError(f"device: {given!r}, expected one of torch: cpu, cuda, cuda:0") from None


def batched(jobs: Sequence[Any], run: Callable[[Any], list[T]], size: Callable[[Any], int], count: int) -> list[T]:
    """Returns `run` of all jobs, in their order, `count` at a time; those of one size are run together."""
    order, out = sorted(range(len(jobs)), key=lambda i: -size(jobs[i])), dict[int, T]()
    for start in range(0, len(order), count):
        some = order[start : start + count]
        out |= dict(zip(some, run([jobs[i] for i in some]), strict=True))
    return [out[i] for i in range(len(jobs))]


def log_likelihoods(
    model: MMDiff, batch: Batch, estimator: Estimator, *, seed: int, links: Sequence[Any] = ()
) -> tuple[list[float], list[bool] | None]:
    """Returns log p of each row's targets, and whether greedy decoding gives them, None where that is not known.

    Under causal attention both are exact. Else log p is minus the estimate; rows of one index have the same random
    numbers. batch: on the CPU.
    """
    with evaluating(model), torch.no_grad():
        if not isinstance(model.attention, Causal):
            return (-estimate(model, batch, estimator, seed=seed, links=links).nll_B).tolist(), None
        nll_P, right_P, row_P = (v.cpu() for v in next_token(model, to_device(batch, model.device)))
        logp_B = -torch.zeros(len(batch), dtype=torch.float64).index_add(0, row_P, nll_P.double())
        greedy_B = torch.ones(len(batch)).scatter_reduce(0, row_P, right_P.float(), "amin") > 0
        return logp_B.tolist(), greedy_B.tolist()


def cut(text: str, stops: str | Sequence[str] | None) -> str:
    """Returns a text up to the first of its stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop)[0] if stop else text
    return text


def number(request: Any, i: int) -> int:
    """Returns what identifies the random numbers of a request: those of one question have the same."""
    return i if request.doc_id is None else int(request.doc_id)
