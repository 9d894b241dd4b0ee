"""The reference policy: the model that training begins from and is not to leave, frozen.

    reference: {target: mmdiff.objectives.policy.reference.AdaptersOff}
    reference: {target: mmdiff.objectives.policy.reference.Saved, folder: runs/sft/model}

The first takes no memory, the second that of the weights once more (16 GB of LLaDA-8B in bfloat16). Neither has
gradients, moments of an optimizer, or a place in a checkpoint; both are the same after a resume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch

from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.parts import part
from mmdiff.protocols import Model

T = TypeVar("T")


class Frozen(Protocol):
    """A reference that is known: it has functions of a model called with the reference in its place."""

    def __call__(self, function: Callable[[Any], T], model: Model) -> T:
        """Returns `function(reference)`, without a gradient. model: what is trained, on its device."""
        ...


class Reference(Protocol):
    """Where the reference comes from."""

    def of(self, model: Model) -> Frozen:
        """Returns the reference of a model that a stage begins to train, adapters in place. Raises ConfigError."""
        ...


@part
@dataclass(frozen=True)
class AdaptersOff:
    """The weights below LoRA's factors, which training leaves alone: the same model with its adapters off.

    Raises ConfigError for a model without adapters, and where a weight that is no adapter is trained. The factors of an
    earlier stage are off, too: add them to the weights before (`mmdiff export --merge`), or name that model by `Saved`.
    """

    def of(self, model: Model) -> Frozen:
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        others = [name for name in trained if not re.search(r"\.lora_[AB]\.", name)]
        if not model.adapters or others:
            what = f"{others[0]} is trained" if model.adapters else "the model has no adapters"
            raise ConfigError(f"objective.reference: {what}; expected LoRA alone, or reference: {SAVED}")
        return _off


def _off(function: Callable[[Any], T], model: Any) -> T:
    with torch.no_grad(), evaluating(model), _adapters_off(model):
        return function(model)


@contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:  # `enable_adapters` would take `requires_grad` from the factors, too
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@part
@dataclass(frozen=True)
class Saved:
    """A saved model, frozen. folder: `runs/<name>/model`, say. dtype: of its backbone; None: as it was saved.

    Raises ConfigError for a folder that is none, and for a model of another vocabulary.
    """

    folder: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def of(self, model: Model) -> Frozen:
        made = MMDiff.from_pretrained(self.folder, dtype=self.dtype)
        if made.vocab.size != model.vocab.size:
            what = f"{made.vocab.size} ids, expected {model.vocab.size}, those of the model that is trained"
            raise ConfigError(f"objective.reference.folder: {self.folder} has {what}")
        return Beside(made)

    @classmethod
    def toy(cls, folder: str, dtype: str | None = None) -> Copied:
        """A copy of the toy model, whatever the folder."""
        return Copied()


SAVED = "{target: mmdiff.objectives.policy.reference.Saved, folder: ...}"


@dataclass(frozen=True)
class Copied:
    """A copy of the model as it is now: of a run that begins here, and resumes nowhere else."""

    def of(self, model: Model) -> Frozen:
        return Beside(deepcopy(model))


@dataclass(eq=False)
class Beside:
    """A second model in memory."""

    model: Any

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    def __call__(self, function: Callable[[Any], T], model: Any) -> T:
        if self.model.device != model.device:
            self.model.to(model.device)
        with torch.no_grad():
            return function(self.model)
