"""Strategies to decode a chunk of actions, by name: fields of GenerationConfig for K actions of D tokens.

A codec whose tokens are no K x D grid gives its groups by `codec.steps(chunk, dims)`: pass these two numbers.
A strategy sets all the fields that decide how tokens are chosen, so that it means the same over any other settings; the
allowed tokens, guidance and the seed are left as they are. Numbers of steps are defaults, which may be overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmdiff.errors import UserError, nearest

ITERATIONS = 2  # forwards per action, as in LLaDA-VLA: 10 for 5 actions
ROUNDS = 12  # forwards per chunk in Discrete Diffusion VLA

GREEDY: Mapping[str, Any] = {
    "steps": None,
    "schedule": "linear",
    "block_length": None,
    "temperature": 0.0,
    "temperature_end": None,
    "remasking": "low_confidence",
    "threshold": None,
    "select": None,
    "revise": None,
    "draft": None,
}


def one_shot(chunk: int, dims: int) -> dict[str, Any]:
    """All tokens in one forward, each the most likely (OpenVLA-OFT's discrete variant, MM-ACT)."""
    return {**GREEDY, "steps": 1}


def low_confidence(chunk: int, dims: int) -> dict[str, Any]:
    """The most confident tokens first, equally many per step (LLaDA); with the forwards of `hierarchical`."""
    return {**GREEDY, "steps": chunk * iterations(dims)}


def hierarchical(chunk: int, dims: int) -> dict[str, Any]:
    """The most confident action first, in it the most confident tokens (LLaDA-VLA, arXiv 2509.06932)."""
    rule = {"target": "mmdiff.samplers.rules.hierarchical.Hierarchical", "size": dims, "iterations": iterations(dims)}
    return {**GREEDY, "steps": chunk * iterations(dims), "select": rule}


def cosine(chunk: int, dims: int) -> dict[str, Any]:
    """Few tokens at first and more at each step, drawn at a temperature that falls to 0 (Discrete Diffusion VLA)."""
    return {**GREEDY, "steps": ROUNDS, "schedule": "cosine", "temperature": 1.0, "temperature_end": 0.0}


def time_ordered(chunk: int, dims: int) -> dict[str, Any]:
    """One action after the other in time; as many forwards as `hierarchical`."""
    return {**GREEDY, "steps": chunk * iterations(dims), "block_length": dims}


def remask(chunk: int, dims: int) -> dict[str, Any]:
    """`cosine`, and tokens that later ones contradict are masked again. The thresholds are ours, not the paper's."""
    rule = {"target": "mmdiff.samplers.rules.maskgit.Remask", "threshold": 0.05, "threshold_end": 0.3}
    return {**cosine(chunk, dims), "revise": rule}


def sampled(chunk: int, dims: int) -> dict[str, Any]:
    """One token per forward in random order at temperature 1: a sample of the model's joint distribution."""
    return {**GREEDY, "temperature": 1.0, "remasking": "random"}


STRATEGIES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "one_shot": one_shot,
    "low_confidence": low_confidence,
    "hierarchical": hierarchical,
    "cosine": cosine,
    "time_ordered": time_ordered,
    "remask": remask,
    "sampled": sampled,
}


def strategy(name: str, chunk: int, dims: int) -> dict[str, Any]:
    """Fields of GenerationConfig. Raises UserError for an unknown name."""
    if name not in STRATEGIES:
        raise UserError(f"strategy: {name!r}{nearest(name, STRATEGIES)}")
    return STRATEGIES[name](chunk, dims)


def iterations(dims: int) -> int:
    """Returns the rounds in which the tokens of one action are committed."""
    return min(ITERATIONS, dims)
