"""The likeliest string of a language under a model's marginals, or an exact sample of them given the language.

Messages run from the last position of a span to the first: how likely the rest is from each state (filtering); then ids
are chosen from the first to the last (sampling). An automaton that is deterministic has one path per string, so the
likeliest path is the likeliest string, and a sum over paths is one over strings.

Shape letters: N spans, T positions of the longest, P predicted positions, S states, C classes of ids, G groups of
classes, A allow-sets, V vocabulary, X what is pooled, Y what into.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.diffusion.draw import draw

from .automaton import Automaton


@dataclass(frozen=True)
class Spans:
    """What stands at the positions of N spans; a short one is filled up behind its end.

    inside_NT: bool, False behind the end. allow_N: the allow-set of a span. predicted_NT: int64, which of the P
    predicted positions, -1 elsewhere. given_NT: the class of the id that stands there, -1 where none does: a position
    that is neither may hold any id of its allow-set.
    """

    inside_NT: Tensor
    allow_N: Tensor
    predicted_NT: Tensor
    given_NT: Tensor


def pooled(x_NX: Tensor, index_X: Tensor, size: int, drawn_N1: Tensor | None = None) -> Tensor:
    """Returns fp64 (N, size), the largest of the logarithms of each index; of their sums where drawn_N1 is True."""
    out_NY = x_NX.new_full((len(x_NX), size), -torch.inf)
    out_NY = out_NY.scatter_reduce(1, index_X.expand_as(x_NX), x_NX, "amax").double()
    if drawn_N1 is None:
        return out_NY
    shift_NY = out_NY.clamp(min=torch.finfo(torch.float64).min)
    sum_NY = torch.zeros_like(out_NY).index_add_(1, index_X, (x_NX.double() - shift_NY[:, index_X]).exp_())
    return torch.where(drawn_N1, shift_NY + sum_NY.log(), out_NY)


@dataclass(frozen=True)
class Free:
    """fp64 logarithms of 0 and 1: of what may stand at a position whatever the model says.

    free_AC, free_AG: 0 where an allow-set holds an id of a class or group. fixed_CG: 0 at the groups of a class.
    """

    free_AC: Tensor
    free_AG: Tensor
    fixed_CG: Tensor

    @classmethod
    def of(cls, a: Automaton, allow_AV: Tensor) -> Free:
        n_classes = a.next_SC.shape[1]
        zero_AV = torch.zeros(allow_AV.shape, device=allow_AV.device).masked_fill_(~allow_AV, -torch.inf)
        free_AC = pooled(zero_AV, a.class_V, n_classes)
        fixed_CG = torch.full((n_classes, a.groups), -torch.inf, dtype=torch.float64, device=allow_AV.device)
        fixed_CG[a.class_E, a.group_E] = 0.0
        return cls(free_AC, pooled(free_AC[:, a.class_E], a.group_E, a.groups), fixed_CG)


@dataclass(frozen=True)
class Weights:
    """fp64 logarithms, at the predicted positions, of the largest probability of a class or group of ids, or of their
    sum where drawn_P1 is True."""

    class_PC: Tensor
    group_PG: Tensor
    drawn_P1: Tensor | None

    @classmethod
    def of(cls, a: Automaton, logits_PV: Tensor, drawn_P1: Tensor | None) -> Weights:
        """logits_PV: divided by the temperature where an id is drawn."""
        class_PC = pooled(logits_PV, a.class_V, a.next_SC.shape[1], drawn_P1)
        return cls(class_PC, pooled(class_PC[:, a.class_E], a.group_E, a.groups, drawn_P1), drawn_P1)


def messages(automaton: Automaton, spans: Spans, free: Free, w: Weights | None = None) -> Tensor:
    """Returns fp64 (T + 1, N, S), the weight of all that can follow from a state at position T; -inf: nothing can.

    w: None where no position is predicted.
    """
    a, (n, length) = automaton, spans.inside_NT.shape
    n_predicted = 0 if w is None else len(w.group_PG)
    rows = [] if w is None else [w.group_PG]
    rows_YG = torch.cat([*rows, free.free_AG, free.fixed_CG])  # predicted, any id of an allow-set, given
    first_given = n_predicted + len(free.free_AG)
    other_NT = torch.where(spans.given_NT < 0, spans.allow_N[:, None] + n_predicted, spans.given_NT + first_given)
    row_NT = torch.where(spans.predicted_NT < 0, other_NT, spans.predicted_NT)
    drawn_NT = None
    if w is not None and w.drawn_P1 is not None:
        drawn_NT = w.drawn_P1.squeeze(1)[spans.predicted_NT] & (spans.predicted_NT >= 0)
    last_S = torch.zeros(a.accepts_S.shape, dtype=torch.float64, device=a.accepts_S.device)
    rest_NS = last_S.masked_fill_(~a.accepts_S, -torch.inf).expand(n, -1)
    out = [rest_NS]
    for t in reversed(range(length)):
        through_NK = rows_YG[row_NT[:, t]][:, a.group_K] + rest_NS[:, a.next_K]
        behind_NS = pooled(through_NK, a.from_K, a.dead + 1, None if drawn_NT is None else drawn_NT[:, t, None])
        rest_NS = torch.where(spans.inside_NT[:, t, None], behind_NS, rest_NS)
        out.append(rest_NS)
    return torch.stack(out[::-1])


def classes(automaton: Automaton, spans: Spans, free: Free, w: Weights, rest_TNS: Tensor, u_P: Tensor) -> Tensor:
    """Returns int64 (P,), the class of the id at each predicted position: of the likeliest string, or of a drawn one.

    u_P: float64 numbers strictly between 0 and 1, one per position.
    """
    a, (n, length) = automaton, spans.inside_NT.shape
    rows_YC = torch.cat([w.class_PC, free.free_AC])
    row_NT = torch.where(spans.predicted_NT < 0, spans.allow_N[:, None] + len(w.class_PC), spans.predicted_NT)
    drawn_NT = torch.zeros_like(spans.inside_NT)
    if w.drawn_P1 is not None:
        drawn_NT = w.drawn_P1.squeeze(1)[spans.predicted_NT] & (spans.predicted_NT >= 0)
    state_N = torch.zeros(n, dtype=torch.int64, device=rest_TNS.device)
    out_P = torch.zeros(len(w.class_PC) + 1, dtype=torch.int64, device=rest_TNS.device)  # one more, for the others
    for t in range(length):
        predicted_N, given_N = spans.predicted_NT[:, t], spans.given_NT[:, t]
        next_NC = a.next_SC[state_N]
        weight_NC = rows_YC[row_NT[:, t]] + rest_TNS[t + 1].gather(1, next_NC)
        if w.drawn_P1 is None:
            chosen_N = weight_NC.argmax(1)
        else:
            chosen_N = draw(weight_NC, drawn_NT[:, t].double(), u_P[predicted_N])
        chosen_N = torch.where(given_N < 0, chosen_N, given_N)
        out_P[predicted_N] = chosen_N
        state_N = torch.where(spans.inside_NT[:, t], next_NC.gather(1, chosen_N[:, None]).squeeze(1), state_N)
    return out_P[:-1]
