"""One step of a generation: what a noise process is given to carry it out.

Shape letters: B samples, R rows that have work, L canvas length, P predicted positions, S committed positions that are
judged again, Q queried positions (P and S), V vocabulary, X end ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.query import Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.draw import confidence, draw, kept
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError

from .blocks import Work
from .grammars.allowed import Allowed
from .grammars.constraint import Constraint
from .rules.rules import Rules
from .rules.state import State


class Offer(NamedTuple):
    """What is proposed at a step. commit_P: bool, what is committed of it; None: what the rules select."""

    ids_P: Tensor
    commit_P: Tensor | None = None


class Proposer(Protocol):
    """Proposes tokens in place of `Step.propose`: an energy or a verifier of `sampler.denoise` does."""

    def __call__(self, step: Step, logits_PV: Tensor) -> Offer: ...


@dataclass(frozen=True)
class Settings:
    """What does not change between the steps of a generation. late_ids_X: ids that are committed after all others.

    model: the Denoise of the model itself, without any link. kept: what a noise process prepares at its start for all
        steps, by name.
    """

    config: GenerationConfig
    rules: Rules
    vocab: Vocab
    allowed: Allowed
    end_ids_X: Tensor
    late_ids_X: Tensor
    constraint: Constraint | None = None
    proposer: Proposer | None = None
    model: Any = None
    kept: dict[str, Any] = field(default_factory=dict)

    def extra(self, name: str) -> Any:
        """Returns an extra of the model. Raises ConfigError where it has none of that name."""
        found = getattr(self.model, "extra", None)
        if found is None:
            raise ConfigError(
                f"sampler.process: {type(self.model).__qualname__} has no extras, expected a model's Denoise"
            )
        return found(name)


class Parts(NamedTuple):
    """Logits of a step. `logits`: ids that may not stand there are -inf; `judged`: what confidences are taken from.

    at_S: the S rows (of R) and positions that are judged again; None: there are none.
    """

    logits_PV: Tensor
    judged_PV: Tensor
    logits_SV: Tensor | None = None
    judged_SV: Tensor | None = None
    at_S: tuple[Tensor, Tensor] | None = None


@dataclass
class Step:
    """The rows `rows` of `state` at one step, and the logits of their queried positions.

    logits_QV: of the queried positions, with -inf at ids that may not stand there. judged_QV: the same, but with all
    ids where a confidence is over the whole vocabulary (`sampler.confidence`). row_R: which of the B rows.
    quota_R: the positions that the schedule commits. query: what the model was asked. hidden_QD: the states that
    predict, for a process with `hidden`.
    """

    state: GenerationState
    settings: Settings
    rows: State
    work: Work
    row_R: Tensor
    quota_R: Tensor
    noise: StepNoise
    logits_QV: Tensor
    judged_QV: Tensor
    query: Query
    hidden_QD: Tensor | None = None

    @property
    def at_P(self) -> tuple[Tensor, Tensor]:
        """The rows (of B) and positions of the predicted positions."""
        row_P, position_P = self.work.at_P
        return (row_P if self.work.every else self.row_R[row_P]), position_P

    def split(self) -> Parts:
        """Returns the logits of the predicted positions, and of those that are judged again."""
        if self.work.at_Q is self.work.at_P:
            return Parts(self.logits_QV, self.judged_QV)
        predict_Q, (row_Q, position_Q) = self.work.predict_RL[self.work.at_Q], self.work.at_Q
        n = int(self.work.predicted_R.sum())
        index_P, index_S = _index(predict_Q, n), _index(~predict_Q, len(predict_Q) - n)
        logits_PV, logits_SV = self.logits_QV[index_P], self.logits_QV[index_S]
        judged_PV, judged_SV = logits_PV, logits_SV
        if self.judged_QV is not self.logits_QV:
            judged_PV, judged_SV = self.judged_QV[index_P], self.judged_QV[index_S]
        return Parts(logits_PV, judged_PV, logits_SV, judged_SV, (row_Q[index_S], position_Q[index_S]))

    def offer(self, logits_PV: Tensor) -> Offer:
        """Returns what is proposed for the predicted positions, by the proposer where there is one."""
        proposer = self.settings.proposer
        return Offer(self.propose(logits_PV)) if proposer is None else proposer(self, logits_PV)

    def propose(self, logits_PV: Tensor) -> Tensor:
        """Returns ids (P,) for the predicted positions: the likeliest, or drawn at the temperature of the step."""
        config, constraint = self.settings.config, self.settings.constraint
        temperature_P = self.temperature(logits_PV)
        if constraint is not None:
            return constraint.propose(self, logits_PV, temperature_P)
        if temperature_P is None:
            return logits_PV.argmax(-1)
        return draw(kept(logits_PV, config.top_k, config.top_p), temperature_P, self.noise.uniform("token"))

    def law(self, logits_PV: Tensor) -> Tensor:
        """Returns float64 (P, V), the probabilities that `propose` draws with where no grammar is held.

        At temperature 0 the likeliest id has all of it.
        """
        config, temperature_P = self.settings.config, self.temperature(logits_PV)
        best_PV = torch.zeros_like(logits_PV, dtype=torch.float64).scatter_(1, logits_PV.argmax(-1, keepdim=True), 1.0)
        if temperature_P is None:
            return best_PV
        temperature_P1 = temperature_P.double()[:, None]
        scaled_PV = kept(logits_PV, config.top_k, config.top_p).double() / temperature_P1.clamp(min=1e-9)
        return torch.where(temperature_P1 > 0, scaled_PV.softmax(-1), best_PV)

    def temperature(self, logits_PV: Tensor) -> Tensor | None:
        """Returns the temperature of each predicted position; None: 0 everywhere."""
        first, last = self.settings.config.temperature, self.settings.config.temperature_end
        if not first and not last:
            return None
        if last is None:
            return torch.full((len(logits_PV),), first, device=logits_PV.device)
        return self.rows.between(first, last)[self.work.at_P[0]]

    def rescored(self, judged_SV: Tensor, at_S: tuple[Tensor, Tensor]) -> Tensor:
        """Returns fp32 RL, this step's probability of committed ids where they are judged again; 1 elsewhere."""
        late_X, ids_S = self.settings.late_ids_X, self.rows.ids_RL[at_S]
        confidence_S = confidence(judged_SV.index_fill(1, late_X, -torch.inf), ids_S)
        confidence_S = confidence_S.masked_fill(torch.isin(ids_S, late_X), 1.0)
        return torch.ones_like(self.work.predict_RL, dtype=torch.float32).index_put(at_S, confidence_S.float())

    def rows_of_batch(self, values_RL: Tensor) -> Tensor:
        """Returns (B, L): the values at the rows of the step, False at all others."""
        if self.work.every:
            return values_RL
        out_BL = torch.zeros(self.state.ids_BL.shape, dtype=values_RL.dtype, device=values_RL.device)
        return out_BL.index_copy(0, self.row_R, values_RL)


def _index(mask_Q: Tensor, count: int) -> Tensor:
    return torch.nonzero_static(mask_Q, size=count).squeeze(1)
