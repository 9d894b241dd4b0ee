"""A grammar held at every step of a generation, whatever the order of unmasking.

At each step the proposals for a target span are one string of its language that fits what is committed: the likeliest
under the model's marginals, or a sample of them given the language. Whichever of them are committed, and whatever is
masked again, the rest can be completed, as that string shows. Masked positions of later blocks may hold any id until
their block is predicted. A confidence stays the model's own probability.

Shape letters: B samples, L canvas length, R rows of a step, N spans, T positions of the longest span, P predicted
positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.draw import draw
from mmdiff.errors import ConfigError, DataError
from mmdiff.samplers.rules.rules import build_rule
from mmdiff.samplers.stopping import spans

from .allowed import Allowed
from .automaton import Automaton, automaton, null_id
from .paths import Free, Spans, Weights, classes, messages
from .regular import Regular

LEAST = -1e9
"""What a logit of -inf counts as where its id may stand: a string is found whatever the model says."""


class Grammar(Protocol):
    """A node of `sampler.constraint`."""

    null: str | None  # a token that may stand anywhere and is no part of the text

    def regular(self) -> Regular:
        """Returns the language. Raises ConfigError."""
        ...


@dataclass(frozen=True)
class Constraint:
    """The spans of a batch that a grammar is held on. Arrays are on the CPU, `automaton` on the device."""

    automaton: Automaton
    free: Free
    allowed: Allowed
    row_N: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray
    allow_N: np.ndarray

    @classmethod
    def of(cls, state: GenerationState, vocab: Vocab, config: GenerationConfig, allowed: Allowed) -> Constraint | None:
        """Returns None where no grammar is given. A grammar is held on the target spans that have masked positions.

        Raises ConfigError for settings that cannot be held together with a grammar, and DataError for a span that no
        text fits.
        """
        if config.constraint is None:
            return None
        grammar: Grammar = build_rule(config.constraint, "sampler.constraint", "regular")
        _check_settings(grammar, vocab, config)
        found = to_device(automaton(grammar.regular(), vocab, grammar.null), state.ids_BL.device)
        span_BL = spans(state.batch.target_BL, allowed.allow_BL)
        laid_out = _laid_out(state.batch.target_BL, span_BL, state.pending_BL, allowed.allow_BL)
        out = cls(found, Free.of(found, allowed.allow_KV), allowed, *laid_out)
        out._check(state)
        return out

    def _spans(self, pick: np.ndarray, rows: tuple[np.ndarray, Tensor, Tensor, Tensor | None]) -> Spans:
        """Returns what stands at the spans of these numbers.

        rows: the row number of each span among ids_RL, pending_RL and predict_RL.
        """
        row_N, ids_RL, pending_RL, predict_RL = rows
        width, longest = ids_RL.shape[1], int(self.length_N[pick].max(initial=0))
        offset_T = np.arange(longest)
        laid_out = (
            offset_T < self.length_N[pick, None],
            row_N[:, None] * width + np.minimum(self.start_N[pick, None] + offset_T, width - 1),
            self.allow_N[pick],
        )
        inside_NT, at_NT, allow_N = (torch.from_numpy(x).to(ids_RL.device, non_blocking=True) for x in laid_out)
        predicted_NT = torch.full_like(at_NT, -1)
        if predict_RL is not None:
            flat = predict_RL.flatten()
            predicted_NT = torch.where(flat[at_NT] & inside_NT, (flat.cumsum(0) - 1)[at_NT], -1)
        class_NT = self.automaton.class_V[ids_RL.flatten()[at_NT]]
        given_NT = torch.where(pending_RL.flatten()[at_NT], -1, class_NT)
        return Spans(inside_NT, allow_N, predicted_NT, given_NT)

    def _check(self, state: GenerationState) -> None:
        """Raises DataError for the first span that no text fits."""
        found = self._spans(np.arange(len(self.row_N)), (self.row_N, state.ids_BL, state.pending_BL, None))
        fits_N = messages(self.automaton, found, self.free)[0, :, 0].isfinite().cpu().numpy()
        if fits_N.all():
            return
        n = int(np.flatnonzero(~fits_N)[0])
        blank = Spans(found.inside_NT, found.allow_N, found.predicted_NT, torch.full_like(found.given_NT, -1))
        given = bool(messages(self.automaton, blank, self.free)[0, n, 0].isfinite())
        why = "the ids that are given in it contradict it" if given else "its length, or the ids that may stand there"
        raise DataError(
            f"sampler.constraint: row {self.row_N[n]}: no text of the language fits the {self.length_N[n]} positions "
            f"from {self.start_N[n]} on ({why}; the shortest text takes {self.automaton.shortest()})"
        )

    def propose(self, step: Any, logits_PV: Tensor, temperature_P: Tensor | None) -> Tensor:
        """Returns ids (P,) of the predicted positions of a step (`mmdiff.samplers.step.Step`).

        temperature_P: None: 0 everywhere.
        """
        work, rows, a = step.work, step.rows, self.automaton
        pick = np.flatnonzero(np.isin(self.row_N, work.row_R))
        row_N = np.searchsorted(work.row_R, self.row_N[pick])
        found = self._spans(pick, (row_N, rows.ids_RL, rows.pending_RL, work.predict_RL))
        allowed_PV = self.allowed.of_positions(step.at_P)
        logits_PV = logits_PV.clamp(min=LEAST).masked_fill_(~allowed_PV, -torch.inf)
        drawn_P1, scaled_PV, u_P = None, logits_PV, torch.empty(0)
        if temperature_P is not None:
            drawn_P1 = temperature_P[:, None] > 0
            scaled_PV = logits_PV.double() / torch.where(drawn_P1, temperature_P[:, None], 1.0)
            u_P = step.noise.uniform("class")
        w = Weights.of(a, scaled_PV, drawn_P1)
        class_P = classes(a, found, self.free, w, messages(a, found, self.free, w), u_P)
        logits_PV.masked_fill_(a.class_V != class_P[:, None], -torch.inf)
        if temperature_P is None:
            return logits_PV.argmax(-1)
        return draw(logits_PV, temperature_P, step.noise.uniform("token"))


def _check_settings(grammar: Grammar, vocab: Vocab, config: GenerationConfig) -> None:
    if config.top_k is not None or config.top_p is not None:
        raise ConfigError("sampler.constraint: top_k and top_p could leave no text of the language; leave them out")
    if vocab.tokenizer is None:
        raise ConfigError("sampler.constraint: the model has no tokenizer, so its ids spell no text")
    ends = (vocab.eos_id, *vocab.end_ids)
    if config.early_stop and grammar.null is not None and null_id(vocab, grammar.null) in ends:
        raise ConfigError(f"sampler.constraint.null: {grammar.null} ends an answer; set early_stop to false")


def _laid_out(target_BL: Tensor, span_BL: Tensor, pending_BL: Tensor, allow_BL: Tensor) -> np.ndarray:
    """Returns row, first position, length and allow-set (4, N) of the target spans that have pending positions."""
    targets, spans, pending, allow = (x.cpu().numpy() for x in (target_BL, span_BL, pending_BL, allow_BL))
    out = []
    for row in range(len(targets)):
        for span in np.unique(spans[row][pending[row]]):
            positions = np.flatnonzero(targets[row] & (spans[row] == span))
            out.append((row, positions[0], len(positions), allow[row, positions[0]]))
    return np.array(out, dtype=np.int64).reshape(-1, 4).T
