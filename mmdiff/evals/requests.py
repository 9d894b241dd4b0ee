"""What entries to harnesses have in common: requests in batches of like length, log-likelihoods, texts cut at stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.patterns import Causal
from mmdiff.errors import ConfigError, nearest
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import estimate, next_token
from mmdiff.model.likelihood.passes import Estimator
from mmdiff.samplers.options import generation_config

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


class Settings(NamedTuple):
    """What a harness asks of the generations of a request; requests with the same are run together.

    length: positions of the answer; None: as many as the model's own settings have. sampling: fields of
    GenerationConfig, by name. stops: strings before the first of which a text ends.
    """

    length: int | None
    sampling: tuple[tuple[str, float], ...]
    stops: tuple[str, ...]


LENGTHS = ("max_gen_toks", "max_new_tokens")
DRAWN = ("temperature", "top_p", "top_k")
WITHOUT_EFFECT = ("num_beams", "image_aspect_ratio")
"""What tasks of harnesses name besides, and no sampler of canvases has."""


def settings_of(named: Mapping[str, Any]) -> Settings:
    """Returns the settings that a request names (`generation_kwargs` of a task, `--gen_kwargs`); null is none.

    Without `do_sample` those of drawing are left as the model has them. Raises ConfigError for an unknown name and a
    value out of range.
    """
    given = {name: value for name, value in named.items() if value is not None}
    known = ("until", "do_sample", *LENGTHS, *DRAWN, *WITHOUT_EFFECT)
    for name in given:
        if name not in known:
            raise ConfigError(f"generation_kwargs: no {name!r}{nearest(str(name), known)}")
    stops = given.get("until", [])
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise ConfigError(f"generation_kwargs.until: {stops!r:.80}, expected a text or a list of texts")
    if not isinstance(given.get("do_sample", False), bool):
        raise ConfigError(f"generation_kwargs.do_sample: {given['do_sample']!r:.80}, expected true or false")
    sampling = {name: given[name] for name in DRAWN if name in given}
    length = next((given[name] for name in LENGTHS if name in given), None)
    generation_config(None, **sampling, **({} if length is None else {"max_new_tokens": length}))  # checks ranges
    return Settings(length, tuple(sampling.items()) if given.get("do_sample") else (), tuple(stops))


def cut(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of its stop strings."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text


def number(request: Any, i: int) -> int:
    """Returns what identifies the random numbers of a request: those of one question have the same."""
    return i if request.doc_id is None else int(request.doc_id)
