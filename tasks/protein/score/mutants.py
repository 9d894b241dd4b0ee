"""Mutants of a protein, each scored by how much likelier it is under the model than the wild type. Higher: fitter.

Every method is a difference of log p in nats, and 0 for the wild type. The softmax is over the 20 residues only, so
that special tokens and X take no part in it; sites whose wild type is none of the 20 are context and cannot be mutated.

    wt_marginal        log p(new) - log p(old) at each site, from one forward of the wild type with nothing masked. Of
                       masked language models: one trained by diffusion alone never had to predict what it sees
    masked_marginal    the same with all sites of the mutant masked (one forward per set of sites), summed over sites
    chain              log p(mutated sites | the others) by the chain rule, less that of the wild type: all sites are
                       masked and revealed one after another; the mean over orders of revealing
    pseudo_likelihood  sum over all residues of log p(x_i | all others), mutant less wild type: a forward per residue
    bound              the bound on -log p, wild type less mutant, same noise (`mmdiff.model.likelihood.bound`)

The first two: Meier et al. 2021, Language models enable zero-shot prediction of the effects of mutations.

Shape letters: N residues of a sequence, K = 20, P positions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmdiff.config.typed import typed
from mmdiff.data.token_budget import token_budget
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, nearest, short
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.residues import CANONICAL, Residues
from mmdiff.tasks.protein.task import Protein

from .log_probs import Canvas, MaskedSequence, bounds, canvas, log_probs, pseudo_log_p

METHODS = ("wt_marginal", "masked_marginal", "chain", "pseudo_likelihood", "bound")
WILD_TYPE = ("WT", "wt", "_wt")
WINDOW = 256  # mutants whose forwards are shared
SPELLED = re.compile(r"(\D)(-?[0-9]{1,18})(\D)")
COLUMN = {letter: k for k, letter in enumerate(CANONICAL)}


class Mutation(NamedTuple):
    """The residue `at` a position (from 0) of the wild type, `old`, becomes `new`."""

    at: int
    old: str
    new: str


def parse_mutant(text: str, sequence: str, offset: int = 1) -> list[Mutation]:
    """`A1P:D2N` (or `A1P,D2N`) of `sequence`, whose first residue has the number `offset`; `WT` is no mutation at all.

    Raises DataError in one line: for another spelling, a residue that is none of the 20, a position that is not there,
    another residue there, and a site that is named twice.
    """
    shown = short(repr(text), 60)
    found: dict[int, Mutation] = {}
    for one in spelled(text):
        index = one.at - offset
        if not 0 <= index < len(sequence):
            ends = f"{offset} to {offset + len(sequence) - 1}"
            raise DataError(f"mutant {shown}: position {one.at} is not there, expected {ends}")
        if sequence[index] != one.old:
            raise DataError(f"mutant {shown}: position {one.at}: {one.old}, but the wild type has {sequence[index]}")
        if index in found:
            raise DataError(f"mutant {shown}: position {one.at} is named twice")
        found[index] = one._replace(at=index)
    return list(found.values())


def spelled(text: str) -> list[Mutation]:
    """As `parse_mutant`, with `at` the number in the text, and no sequence to compare with."""
    if text.strip() in WILD_TYPE:
        return []
    out = []
    for part in re.split("[:,]", text):
        match, shown = SPELLED.fullmatch(part.strip()), f"{short(repr(text), 60)}: {short(repr(part.strip()), 60)}"
        if match is None:
            raise DataError(f"mutant {shown}, expected residue, position, residue, as in A1P:D2N")
        old, number, new = match.groups()
        for letter in (old, new):
            if letter not in COLUMN:
                raise DataError(f"mutant {shown}: {letter!r} is none of {CANONICAL}")
        out.append(Mutation(int(number), old, new))
    return out


def mutated(sequence: str, mutant: Sequence[Mutation]) -> str:
    """Returns the sequence of a mutant."""
    letters = list(sequence)
    for one in mutant:
        letters[one.at] = one.new
    return "".join(letters)


@typed
def score_mutants(
    session: Session[Protein],
    wild_type: str,
    mutants: Sequence[str | Sequence[Mutation]],
    method: str = "masked_marginal",
    offset: int = 1,
    *,
    target: str | None = None,
    orders: AtLeast1 = 8,
    levels: AtLeast1 = 16,
    tokens: AtLeast1 | None = None,
    seed: int = 0,
) -> list[float]:
    """One score per mutant, in nats; see the head of this file. target: the chain that the wild type binds, as context.

    orders: of revealing, for `chain`: all of them while there are no more than that, else so many, drawn by (seed,
        number of sites). levels, seed: of the bound, whose noise is one for all. tokens: token budget of a
        forward; changes no score. A residue that is "mutated" to itself is no mutation.
    Raises ConfigError for an unknown method, DataError for a mutant that is none of the wild type.
    """
    if method not in METHODS:
        raise ConfigError(f"method: {short(repr(method), 60)}{nearest(method, METHODS)}")
    tokens = token_budget(session.model.device, tokens)
    parsed = [parse_mutant(m, wild_type, offset) if isinstance(m, str) else list(m) for m in mutants]
    changed = [tuple(sorted(one for one in mutant if one.old != one.new)) for mutant in parsed]
    row: Row = {"id": "wild type", "sequence": wild_type, **({"target": target} if target else {})}
    base = canvas(session, row, CANONICAL)
    unique = sorted(set(changed), key=lambda mutant: [one.at for one in mutant])  # those of the same sites together
    scores: dict[tuple[Mutation, ...], float] = {}
    with tqdm(total=len(unique), unit=" mutants", desc=method, file=sys.stderr, leave=False) as bar:
        for first in range(0, len(unique), WINDOW):
            group = unique[first : first + WINDOW]
            if method == "bound":
                every = [base, *(_canvas(session, row, mutant) for mutant in group)]
                same = [0] * len(every)  # the number under which noise is drawn
                nats = bounds(session.model, every, same, levels=levels, tokens=tokens, seed=seed)
                found = [nats[0] - nll for nll in nats[1:]]
            elif method == "pseudo_likelihood":
                every = [base, *(_canvas(session, row, mutant) for mutant in group)]
                sums = [float(np.nansum(p)) for p in pseudo_log_p(session.model, every, CANONICAL, tokens=tokens)]
                found = [log_p - sums[0] for log_p in sums[1:]]
            else:
                found = _by_terms(session, base, [_terms(mutant, method, orders, seed) for mutant in group], tokens)
            scores |= zip(group, found, strict=True)
            bar.update(len(group))
    return [scores[mutant] for mutant in changed]


class State(NamedTuple):
    """What a forward sees: the wild type with residues `placed` and sites `masked`. Nothing masked: all count."""

    masked: tuple[int, ...]
    placed: tuple[tuple[int, str], ...]


class Term(NamedTuple):
    """weight * log p(letter `at` a position | state)."""

    state: State
    at: int
    letter: str
    weight: float


def _terms(mutant: Sequence[Mutation], method: str, orders: int, seed: int) -> list[Term]:
    """The sum that is a mutant's score."""
    sites = tuple(one.at for one in mutant)
    if method != "chain":
        state = State(sites if method == "masked_marginal" else (), ())
        return [Term(state, m.at, letter, w) for m in mutant for letter, w in ((m.new, 1.0), (m.old, -1.0))]
    out = []
    every = list(_orders(len(mutant), orders, seed))
    for order in every:
        for step, at in enumerate(order):
            masked = tuple(sorted(sites[k] for k in order[step:]))
            placed = tuple(sorted((sites[k], mutant[k].new) for k in order[:step]))
            one, weight = mutant[at], 1 / len(every)
            out.append(Term(State(masked, placed), one.at, one.new, weight))
            out.append(Term(State(masked, ()), one.at, one.old, -weight))
    return out


def _orders(n: int, most: int, seed: int) -> Iterator[tuple[int, ...]]:
    if factorial(n) <= most:
        yield from permutations(range(n))
        return
    key = NoiseKey(seed, stream="orders")
    for copy in range(most):
        yield tuple(key.uniform(n, n, copy).argsort(kind="stable").tolist())


def _by_terms(session: Session[Protein], base: Canvas, sums: Sequence[Sequence[Term]], tokens: int) -> list[float]:
    ids = Residues(session.model.vocab).id_of
    every = tuple(range(len(base.position_N)))
    states = list(dict.fromkeys(term.state for terms in sums for term in terms))

    def queries() -> Iterator[MaskedSequence]:
        for state in states:
            ids_L = base.ids_L.copy()
            for index, letter in state.placed:
                ids_L[base.position_N[index]] = ids[letter]
            ids_L[base.position_N[list(state.masked)]] = session.model.vocab.mask_id
            yield MaskedSequence(ids_L, base.position_N[list(state.masked or every)])

    log_p = dict(zip(states, log_probs(session.model, queries(), CANONICAL, tokens=tokens), strict=True))
    return [
        sum(
            (
                weight * log_p[state][(state.masked or every).index(index), COLUMN[letter]]
                for state, index, letter, weight in terms
            ),
            start=0.0,
        )
        for terms in sums
    ]


def _canvas(session: Session[Protein], row: Row, mutant: Sequence[Mutation]) -> Canvas:
    return canvas(session, {**row, "sequence": mutated(row["sequence"], mutant)}, CANONICAL)
