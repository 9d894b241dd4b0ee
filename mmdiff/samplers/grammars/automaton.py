"""A regular language as a deterministic automaton, over bytes and then over ids.

Shape letters: S states, the last of which is dead (nothing is accepted behind it), X symbols, C classes of ids, V
vocabulary, K pairs of states with an id that leads from one to the other, G groups: sets of classes that lead from one
state to another, E members of groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmdiff.backbones.family import token_id
from mmdiff.canvas.vocab import NO_MASK, Vocab
from mmdiff.errors import ConfigError, nearest, require

from .regular import SYMBOLS, Regular
from .spelling import Spelling

LARGEST = 2**25
"""Most entries of a table of classes and states."""
MOST_STATES = 2**14
MOST_TIMES = 1024
"""Of a counted repetition, `{m,n}`: its automaton has a state for each."""


@dataclass(frozen=True)
class ByteAutomaton:
    """next_SB: int64, the state behind a state and a byte. State 0 is the first, the last one is dead."""

    next_SB: np.ndarray
    accepts_S: np.ndarray

    def bytes_used(self) -> set[int]:
        """Returns the bytes that stand in an accepted text."""
        return set(np.flatnonzero((self.next_SB < len(self.next_SB) - 1).any(0)).tolist())


def byte_automaton(regex: str, where: str = "") -> ByteAutomaton:
    """Returns the automaton with the fewest states. Raises ConfigError for what is no regular expression."""
    return _smallest(*_table(regex, [bytes([b]) for b in range(256)], where))


def _table(regex: str, symbols: Sequence[bytes], where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Returns next_SX, the state behind a state and a symbol (X of them), and accepts_S. The last state is dead."""
    require("outlines_core", "structured")
    from outlines_core import Index, Vocabulary

    where = f"sampler.constraint{'.' + where if where else ''}"
    counted = re.findall(r"(?<!\\x)\{([0-9]+)(?:,([0-9]*))?\}", regex)
    if any(int(times or 0) > MOST_TIMES for both in counted for times in both):
        raise ConfigError(f"{where}: {regex:.80} repeats a part more than {MOST_TIMES} times")
    x = len(symbols)
    numbers = {symbol: [i] for i, symbol in enumerate(symbols) if symbol != b"\0"} | {b"\0": [x]}
    try:  # NUL ends a text: the library drops ways on from a state that accepts already, and none does before NUL
        index = Index(rf"(?:{regex})\x00", Vocabulary(x + 1, numbers))
    except ValueError as error:
        raise ConfigError(f"{where}: {regex:.80} is no regular expression ({error!s:.120})") from None
    edges: dict[int, dict[int, int]] = index.get_transitions()
    finals, first = index.get_final_states(), index.get_initial_state()
    number = {state: i for i, state in enumerate([first, *(edges.keys() - {first})])}
    dead = len(number)
    if dead > MOST_STATES:
        raise ConfigError(f"{where}: {regex:.80} takes {dead} states, more than {MOST_STATES}")
    next_SX = np.full((dead + 1, x), dead)
    accepts_S = np.zeros(dead + 1, dtype=bool)
    for state, found in edges.items():
        accepts_S[number[state]] = found.pop(x, None) in finals
        for symbol, behind in found.items():
            if symbol < x:
                next_SX[number[state], symbol] = number.get(behind, dead)
    return next_SX, accepts_S


NOTHING = ByteAutomaton(np.zeros((1, 256), dtype=np.int64), np.zeros(1, dtype=bool))
"""Accepts no text."""


def of_regular(regular: Regular) -> ByteAutomaton:
    """Returns the automaton of a regular language, its rules put into one another to their depth."""
    words = [NOTHING if word is None else byte_automaton(word) for word in regular.words]
    symbols = [chr(SYMBOLS[i]).encode() for i in range(len(words))]

    def spliced(expression: str | None) -> ByteAutomaton:
        return NOTHING if expression is None else _spliced(*_table(expression, symbols), words)

    for _ in range(regular.depth if regular.rules else 0):
        level = [spliced(expression) for _, expression in regular.rules]
        for (symbol, _), made in zip(regular.rules, level, strict=True):
            words[symbol] = made
    return spliced(regular.root)


def _spliced(next_SX: np.ndarray, accepts_S: np.ndarray, words: Sequence[ByteAutomaton]) -> ByteAutomaton:
    """Puts the automaton of each word in the place of its symbol, and makes the whole deterministic (by subsets)."""
    dead = len(next_SX) - 1
    free: list[set[int]] = [set() for _ in range(dead)]  # states that a state leads to without a byte
    copies: dict[tuple[int, int], int] = {}  # of a word that leads to a state: its first state
    steps: list[np.ndarray] = [np.zeros((dead, 256), dtype=np.int64) - 1]
    for state, symbol in zip(*np.nonzero(next_SX[:dead] != dead), strict=True):
        behind, word = int(next_SX[state, symbol]), words[symbol]
        if (symbol, behind) not in copies:
            first = copies[symbol, behind] = len(free)
            steps.append(np.where(word.next_SB < len(word.next_SB) - 1, word.next_SB + first, -1))
            free += [{behind} if accepts else set() for accepts in word.accepts_S]
        free[state].add(copies[symbol, behind])
    step, kind_B = np.unique(np.concatenate(steps), axis=1, return_inverse=True)  # bytes that all words treat alike
    accepting = set(np.flatnonzero(accepts_S).tolist())
    follow = [[(kind, n) for kind, n in enumerate(row) if n >= 0] for row in step.tolist()]

    def closed(states: set[int]) -> frozenset[int]:
        left = list(states)
        while left:
            new = free[left.pop()] - states
            states |= new
            left += new
        return frozenset(states)

    number = {closed({0}): 0}
    rows: list[dict[int, int]] = []
    for subset in (queue := list(number)):
        reached: dict[int, set[int]] = {}
        for state in subset:
            for kind, behind in follow[state]:
                reached.setdefault(kind, set()).add(behind)
        rows.append({})
        for kind, states in reached.items():
            target = closed(states)
            if target not in number:
                number[target] = len(number)
                queue.append(target)
            rows[-1][kind] = number[target]
        if len(queue) > MOST_STATES:
            raise ConfigError(f"sampler.constraint: its automaton has over {MOST_STATES} states")
    out = np.full((len(rows) + 1, step.shape[1]), len(rows))
    for i, row in enumerate(rows):
        out[i, list(row)] = list(row.values())
    accepts = np.array([*(not accepting.isdisjoint(subset) for subset in queue), False])
    return _smallest(out[:, kind_B.reshape(-1)], accepts)


def _smallest(next_SB: np.ndarray, accepts_S: np.ndarray) -> ByteAutomaton:
    """Merges states that accept the same texts (Moore's partition refinement); the dead state's part comes last."""
    part_S = accepts_S.astype(np.int64)
    distinct = np.unique(next_SB, axis=1)  # bytes that no state tells apart are looked at once
    count = 0
    while count < (count := part_S.max() + 1):
        _, part_S = np.unique(np.column_stack([part_S, part_S[distinct]]), axis=0, return_inverse=True)
        part_S = part_S.reshape(-1)
    order = list(dict.fromkeys([part_S[0], *part_S]))
    order = [p for p in order if p != part_S[-1]] + [part_S[-1]]
    rank_of = np.argsort(np.array(order))
    first_of = [int(np.flatnonzero(part_S == p)[0]) for p in order]
    return ByteAutomaton(rank_of[part_S[next_SB[first_of]]], accepts_S[first_of])


@dataclass(frozen=True)
class Automaton:
    """Ids of one class lead from every state to the same state.

    A text ends in end ids, which follow it up to the end of its span; `null` may stand anywhere. next_SC: the state
    behind a state and a class. from_K, next_K, group_K: two states, and the group of the classes that lead from one to
    the other. class_E, group_E: the members of the groups.
    """

    class_V: Tensor
    next_SC: Tensor
    accepts_S: Tensor
    from_K: Tensor
    next_K: Tensor
    group_K: Tensor
    class_E: Tensor
    group_E: Tensor
    groups: int

    @property
    def dead(self) -> int:
        return len(self.accepts_S) - 1

    def shortest(self) -> int:
        """Returns the fewest ids of an accepted text."""
        reached_S = torch.zeros_like(self.accepts_S).index_fill(
            0, torch.tensor([0], device=self.accepts_S.device), True
        )
        for length in range(len(reached_S)):
            if bool((reached_S & self.accepts_S).any()):
                return length
            reached_S = reached_S.index_put((self.next_K[reached_S[self.from_K]],), torch.tensor(True))
        raise ConfigError("sampler.constraint: no text of the tokenizer's is in its language")


_KNOWN: WeakKeyDictionary[Any, dict[Any, Automaton]] = WeakKeyDictionary()  # by tokenizer


def automaton(regular: Regular, vocab: Vocab, null: str | None = None) -> Automaton:
    """Returns the automaton of a language over the ids of a vocabulary; the last few are kept."""
    known = _KNOWN.setdefault(vocab.tokenizer, {}) if vocab.tokenizer is not None else {}
    key = regular, null, vocab.size, vocab.end_ids
    if key not in known:
        while len(known) >= 8:
            known.pop(next(iter(known)))
        known[key] = _of_ids(regular, vocab, null)
    return known[key]


def null_id(vocab: Vocab, null: str) -> int:
    """Returns the id of the null token. Raises ConfigError where the tokenizer has none."""
    found = token_id(vocab.tokenizer, null)
    if found is None:
        near = nearest(null, vocab.tokenizer.all_special_tokens)
        raise ConfigError(f"sampler.constraint.null: the tokenizer has no {null!r:.40}{near}")
    return found


def _of_ids(regular: Regular, vocab: Vocab, null: str | None) -> Automaton:
    spelling = Spelling.of(vocab)
    letters = of_regular(regular.within(spelling.before, spelling.behind))
    if len(letters.next_SB) == 1:
        raise ConfigError("sampler.constraint: its language has no text")
    dead = len(letters.next_SB)  # the dead state of the bytes becomes the state behind an end id
    end = dead - 1
    next_SB = np.where(letters.next_SB == end, dead, letters.next_SB)
    next_SB = np.concatenate([next_SB, np.full((1, 256), dead)])
    accepts_S = np.append(letters.accepts_S, False)
    same_S = np.arange(dead + 1)
    rows = [np.full(dead + 1, dead), np.where(accepts_S | (same_S == end), end, dead), same_S]
    nothing, ends, nulls = range(3)
    class_V = np.full(vocab.size, nothing)
    number = {row.tobytes(): i for i, row in enumerate(rows)}
    behind: dict[tuple[int, int], int] = {}
    for i, spelled in spelling.bytes_of.items():
        found = nulls  # no byte yet
        for byte in spelled:
            step = (found, byte)
            if step not in behind:
                row = next_SB[rows[found], byte]
                behind[step] = number.setdefault(row.tobytes(), len(rows))
                if behind[step] == len(rows):
                    rows.append(row)
                    if len(rows) * (dead + 1) > LARGEST:
                        raise ConfigError(f"sampler.constraint: its automaton is too large, {dead + 1} states")
            found = behind[step]
        class_V[i] = found
    class_V[[vocab.eos_id, *vocab.end_ids]] = ends
    if null is not None:
        class_V[null_id(vocab, null)] = nulls
    if vocab.mask_id != NO_MASK:
        class_V[vocab.mask_id] = nothing
    used, class_V = np.unique(np.append([nothing], class_V), return_inverse=True)  # `nothing` is class 0
    next_SC = np.stack([rows[c] for c in used], axis=1)
    accepts_S[end] = True
    return _grouped(class_V.reshape(-1)[1:], next_SC, accepts_S)


def _grouped(class_V: np.ndarray, next_SC: np.ndarray, accepts_S: np.ndarray) -> Automaton:
    dead = len(next_SC) - 1
    groups: dict[bytes, int] = {}
    pairs: list[tuple[int, int, int]] = []
    members: list[np.ndarray] = []
    for state, next_C in enumerate(next_SC[:dead]):
        for behind in np.unique(next_C[next_C != dead]):
            classes = np.flatnonzero(next_C == behind)
            group = groups.setdefault(classes.tobytes(), len(groups))
            if group == len(members):
                members.append(classes)
            pairs.append((state, int(behind), group))
    from_K, next_K, group_K = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).T.contiguous()
    return Automaton(
        class_V=torch.from_numpy(class_V),
        next_SC=torch.from_numpy(next_SC),
        accepts_S=torch.from_numpy(accepts_S),
        from_K=from_K,
        next_K=next_K,
        group_K=group_K,
        class_E=torch.from_numpy(np.concatenate(members or [np.zeros(0, np.int64)])),
        group_E=torch.from_numpy(np.repeat(np.arange(len(members)), [len(m) for m in members])),
        groups=len(members),
    )
