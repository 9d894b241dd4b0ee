"""Three small tasks that are trained from nothing in minutes, and whose right answers are known by rule.

    sudoku      a 4x4 grid whose givens have one solution; grids of the test are not trained on
                {"cells": "3 _ _ 2 _ _ 3 _ ...", "answer": "3 4 1 2 2 1 3 4 ..."}
    countdown   two steps of arithmetic on three numbers that make a goal, with what the first gives; several may do it
                {"numbers": "2 5 7", "goal": "3", "answer": "5 * 2 10 10 - 7"}
    chain       16 states of a Markov chain in which each state has two successors: any path along them is right
                {"answer": "a c f b ..."}

Rows are functions of seed and index. `python benchmarks/learning/puzzles.py` prints a row of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np

from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer

SIGNS = ("+", "-", "*")
MOST = 99
STATES = "abcdefgh"
LENGTH = 16
HELD_OUT = 48  # of the 288 grids


def tokenizer() -> Any:
    return word_tokenizer([*map(str, range(1, MOST + 1)), *SIGNS, *STATES])


@cache
def grids() -> np.ndarray:
    """Returns all 288 grids, (288, 16), in an order that has nothing to do with how they look."""
    found: list[list[int]] = []

    def fill(grid: list[int]) -> None:
        if len(grid) == 16:
            found.append(list(grid))
            return
        row, column = divmod(len(grid), 4)
        seen = {v for i, v in enumerate(grid) if i // 4 == row or i % 4 == column or _box(i) == _box(len(grid))}
        for value in {1, 2, 3, 4} - seen:
            fill([*grid, value])

    fill([])
    return np.random.default_rng(0).permutation(np.array(found))


def _box(cell: int) -> int:
    return cell // 8 * 2 + cell % 4 // 2


def givens(grid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a bool array (16,): as few givens as still leave one solution, cells left out in random order."""
    given = np.ones(16, dtype=bool)
    for cell in rng.permutation(16):
        given[cell] = False
        if (grids()[:, given] == grid[given]).all(1).sum() > 1:
            given[cell] = True
    return given


class Puzzles:
    """A task whose prediction is a text, and its `n` rows; those of a test are others."""

    def __init__(self, n: int = 0, seed: int = 0, test: bool = False) -> None:
        self.n, self.seed, self.test = n, seed, test

    def __len__(self) -> int:
        return self.n

    def rng(self, index: int) -> np.random.Generator:
        """Returns the random numbers of a row."""
        return np.random.default_rng([self.seed + 10**6 * self.test, index])

    def sample(self, row: Any, vocab: Vocab) -> Sample:
        return [Target(vocab.encode(row["answer"]))]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        return vocab.decode(ids)


class Sudoku(Puzzles):
    """The task, and its rows: of the training grids, or puzzles of the others."""

    def __getitem__(self, index: int) -> dict[str, str]:
        rng = np.random.default_rng([self.seed, index])
        part = grids()[-HELD_OUT:] if self.test else grids()[:-HELD_OUT]
        grid = part[rng.integers(len(part))]
        given = givens(grid, rng) if self.test else np.zeros(16, dtype=bool)
        return {
            "cells": " ".join(str(v) if g else "_" for v, g in zip(grid, given, strict=True)),
            "answer": " ".join(map(str, grid)),
        }

    def prompt(self, row: Any, vocab: Vocab) -> Sample:
        return [Target([vocab.mask_id if v == "_" else vocab.encode(v)[0] for v in row["cells"].split()])]

    def score(self, prediction: str, row: Any) -> dict[str, float]:
        return {"right": float(prediction == row["answer"])}


def result(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


@cache
def sums() -> dict[tuple[tuple[int, ...], int], list[str]]:
    """Returns {(three numbers, goal): ways}, of three different numbers below 8, all results from 1 to 99."""
    found: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for a, b, c in permutations(range(1, 8), 3):
        for one, two in product(SIGNS, SIGNS):
            between = result(a, one, b)
            for x, y in ((between, c), (c, between)):
                goal = result(x, two, y)
                if 0 < between <= MOST and 0 < goal <= MOST:
                    found.setdefault((tuple(sorted((a, b, c))), goal), []).append(
                        f"{a} {one} {b} {between} {x} {two} {y}"
                    )
    return found


class Countdown(Puzzles):
    """The task, and its rows: one of the ways of a problem. There are 485 problems: those of a test are trained on."""

    def __getitem__(self, index: int) -> dict[str, str]:
        rng = self.rng(index)
        problems = sorted(sums())
        numbers, goal = problems[rng.integers(len(problems))]
        ways = sums()[numbers, goal]
        return {
            "numbers": " ".join(map(str, numbers)),
            "goal": str(goal),
            "answer": ways[rng.integers(len(ways))],
        }

    def sample(self, row: Any, vocab: Vocab) -> Sample:
        return [Text(vocab.encode(f"{row['numbers']} {row['goal']}")), Target(vocab.encode(row["answer"]))]

    def prompt(self, row: Any, vocab: Vocab) -> Sample:
        return [Text(vocab.encode(f"{row['numbers']} {row['goal']}")), Target(length=7)]

    def score(self, prediction: str, row: Any) -> dict[str, float]:
        numbers = tuple(map(int, row["numbers"].split()))
        return {"right": float(prediction in sums()[numbers, int(row["goal"])])}


@cache
def law() -> np.ndarray:
    """Returns the transitions (8, 8): two successors per state, two predecessors too, at 0.6 and 0.4.

    Every state is as likely as any other at every position: one position alone says nothing.
    """
    n = len(STATES)
    order = np.random.default_rng(2).permutation(n)
    out = np.zeros((n, n))
    out[np.arange(n), order] = 0.6
    out[np.arange(n), np.roll(order, 1)] = 0.4
    return out


class Chain(Puzzles):
    """The task, and its rows: paths drawn by the law."""

    def __getitem__(self, index: int) -> dict[str, str]:
        rng = self.rng(index)
        path = [int(rng.integers(len(STATES)))]
        for u in rng.random(LENGTH - 1):
            path.append(int(np.searchsorted(law()[path[-1]].cumsum(), u, side="right")))
        return {"answer": " ".join(STATES[s] for s in path)}

    def prompt(self, row: Any, vocab: Vocab) -> Sample:
        return [Target(length=LENGTH)]

    def score(self, prediction: str, row: Any) -> dict[str, float]:
        path = [STATES.find(s) for s in prediction.split()]
        steps = law()[path[:-1], path[1:]]
        right = len(path) == LENGTH and min(path) >= 0 and bool((steps > 0).all())
        return {"right": float(right), **({"likely": float((steps > 0.5).mean())} if right else {})}


TASKS: dict[str, Any] = {"sudoku": Sudoku, "countdown": Countdown, "chain": Chain}


def main() -> None:
    for name, task in TASKS.items():
        print(name, task(1, test=True)[0])


if __name__ == "__main__":
    main()
