"""C12: Sudoku of 4 x 4 by the exact posterior. Several cells per forward by confidence against random order.

The model is all 288 grids: given what stands, a cell's law is its share among the grids that agree. With one cell per
forward every order makes a grid; with several, cells that depend on each other are drawn apart from each other, unless
only those are taken together that are certain. (A fixed number per forward is no such rule: it leaves the cells that
depend on each other to the last forwards.) Shape letters: G grids, R rows, L cells, P predicted cells.
"""

from __future__ import annotations

import math
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import MASK, VOCAB, V
from torch import Tensor

from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Target
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.samplers.loop import sample
from mmdiff.samplers.rules.state import Proposal

PUZZLES = 250


def all_grids() -> Tensor:
    """Returns (288, 16), numbers 0 to 3: different in each row, column and box."""
    out = []
    for rows in product(list(permutations(range(4))), repeat=4):
        grid = np.array(rows)
        boxes = grid.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
        if all(len(set(line)) == 4 for line in (*grid.T.tolist(), *boxes.tolist())):
            out.append(grid.reshape(-1))
    return torch.from_numpy(np.array(out))


GRID_GL = all_grids()


def posterior(query: Query) -> Prediction:
    """The Denoise of the exact law; uniform where no grid agrees any more."""
    known_RL = query.ids_RL < 4
    agrees_RG = ((query.ids_RL[:, None] == GRID_GL) | ~known_RL[:, None]).all(2)
    p_RLK = torch.einsum("rg,glk->rlk", agrees_RG.double(), torch.nn.functional.one_hot(GRID_GL, 4).double())
    p_RLK = torch.where(agrees_RG.any(1)[:, None, None], p_RLK, 1.0)
    logits_RLV = torch.full((*query.ids_RL.shape, V), -torch.inf, dtype=torch.float64)
    logits_RLV[..., :4] = (p_RLK / p_RLK.sum(2, keepdim=True)).log()
    return Prediction(logits_RLV[query.predict_RL].float())


class AnyCell:
    """A score that is no confidence: two cells in five, whatever they are, pass for certain."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        return proposal.noise.uniform("order") + 0.4


def filled(given: int = 4, **settings: Any) -> tuple[np.ndarray, float]:
    """Returns which of the puzzles, some cells of a grid, become a grid, and the mean number of forwards."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(PUZZLES):
        cells = np.full(16, MASK)
        shown = rng.permutation(16)[:given]
        cells[shown] = GRID_GL[rng.integers(len(GRID_GL))].numpy()[shown]
        rows.append([Target(cells.tolist())])
    config = GenerationConfig(temperature=1.0, seed=3, early_stop=False, **settings)
    made = sample(posterior, collate(rows, VOCAB), VOCAB, config)
    right = (made.ids_BL[:, None] == GRID_GL).all(2).any(1)
    return right.numpy(), float(made.step_BL.amax(1).double().mean())


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Returns how many standard errors more of the same puzzles become a grid by one than by the other."""
    gap = one.astype(float) - other
    return float(gap.mean() / (gap.std() / PUZZLES**0.5))


def test_there_are_288_grids() -> None:
    assert len(GRID_GL) == 288


def test_what_is_certain_may_be_taken_at_once_and_random_cells_may_not() -> None:
    """All that is certain, else one cell: every puzzle becomes a grid, where as many forwards in random order fail."""
    sure, forwards = filled(threshold=0.999)
    random, _ = filled(remasking="random", steps=math.ceil(forwards))
    print(
        f"a grid, in {forwards:.1f} forwards of 12 cells: by confidence {sure.mean():.2f}, random {random.mean():.2f}"
    )
    assert sure.all() and forwards < 7
    assert apart(sure, random) > 3.5


@pytest.mark.parametrize("wrong", [{"threshold": 0.999, "remasking": f"{__name__}.AnyCell"}, {"threshold": 0.4}])
def test_other_ways_to_take_several_do_not_make_a_grid_of_each(wrong: dict[str, Any]) -> None:
    """The deliberately wrong parts: any are taken for certain, or those that are likely."""
    assert not filled(**wrong)[0].all()


@pytest.mark.parametrize("rule", ["low_confidence", "random", "left_to_right"])
def test_one_cell_per_forward_makes_a_grid_in_any_order(rule: str) -> None:
    assert filled(3, remasking=rule, steps=13)[0].all()
