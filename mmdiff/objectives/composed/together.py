"""Several objectives on the same batch, each with its own noise and a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, nearest
from mmdiff.objectives.terms import Term
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative
from mmdiff.protocols import Model, Objective


@dataclass
class Plans:
    """The plans of several objectives by name, for one batch."""

    batch: Batch
    plans: dict[str, Any]
    counts: dict[str, float] = field(default_factory=dict)


@part
@dataclass(frozen=True)
class Together:
    """The sum of objectives, each term divided by its own count; a term is called `<objective>_<term>`.

    MDiff4STR's loss (arXiv 2512.01422), for example, is masks of `mmdiff.diffusion.spans.Mixture` together with
    replaced tokens. Each objective makes its own forward.

    of: objectives by name. weights: of some of them; 1 for others. Raises ConfigError for a weight of none of them.
    """

    of: Mapping[str, Objective]
    weights: Mapping[str, NotNegative] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.weights:
            if name not in self.of:
                raise ConfigError(f"objective.weights.{name}: no such objective{nearest(name, self.of)}")

    def for_model(self, model: Model) -> Together:
        """Returns the same with objectives that know the model."""
        return replace(
            self, of={name: getattr(one, "for_model", lambda _, o=one: o)(model) for name, one in self.of.items()}
        )

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Plans:
        plans = {name: one.plan(batch, key.fold(name), vocab) for name, one in self.of.items()}
        counts = {f"{name}_{term}": n for name, plan in plans.items() for term, n in plan.counts.items()}
        return Plans(batch, plans, counts)

    def terms(self, model: Model, plan: Plans) -> dict[str, Term]:
        out = {}
        for name, one in self.of.items():
            for term, value in one.terms(model, plan.plans[name]).items():
                coefficient = value.coefficient * self.weights.get(name, 1.0)
                out[f"{name}_{term}"] = replace(value, coefficient=coefficient)
        return out
