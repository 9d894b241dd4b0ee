"""Rendered scenes with compositional questions: a visual question answering problem that needs no files.

    {"image": uint8 (24, 24, 3), "question": "is there a red cross", "answer": "no", "kind": "exist"}

A scene is a picture of 24 x 24 pixels, 2 x 2 cells, with one to four coloured shapes. Six of the 24 conjunctions of a
colour and a shape are held out: training shows them and asks for their attributes (`color`, `shape`, `count`, `what`),
but never names one in a question (`exist`, `where`). The held-out set names nothing else, so it tells composition from
recall. Every row is a pure function of (seed, index), rendered when it is first asked for, and kept.

Shape letters: H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, Philox, SeedSequence

from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1
from mmdiff.protocols import Row

GRID, CELL = 2, 12  # cells per side, pixels per cell
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (160, 60, 190),
    "cyan": (60, 200, 210),
}
INSIDE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # x right and y down, in radii from the centre
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "triangle": lambda x, y: (y >= -1) & (y <= 0.8) & (abs(x) <= 0.6 * (y + 1)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.35) & (np.maximum(abs(x), abs(y)) <= 1),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")  # by cell number
NUMBERS = ("zero", "one", "two", "three", "four")
PAIRS = tuple((color, shape) for color in COLORS for shape in INSIDE)
HELD_OUT = (
    ("red", "cross"),
    ("green", "circle"),
    ("blue", "triangle"),
    ("yellow", "square"),
    ("purple", "triangle"),
    ("cyan", "circle"),
)
NAMED_IN_TRAINING = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


class Thing(NamedTuple):
    """An object of a scene."""

    color: str
    shape: str
    cell: int  # 0 ... 3 in reading order

    @property
    def pair(self) -> tuple[str, str]:
        return self.color, self.shape


Scene = tuple[Thing, ...]
QuestionAnswer = tuple[str, str]  # a question and its answer


def words() -> list[str]:
    """Returns the closed vocabulary of all questions and answers, sorted."""
    question = "what color is the shape object how many objects are there a where at".split()
    places = " ".join(PLACES).split()
    return sorted({*question, "yes", "no", "nothing", *COLORS, *INSIDE, *places, *NUMBERS})


@part
def tokenizer() -> Any:
    """Returns a transformers tokenizer over `words()`."""
    return word_tokenizer(words())


def draw_scene(rng: Generator, low: int = 1) -> Scene:
    """Returns `low` to four things in different cells; colours and shapes may repeat."""
    cells = rng.permutation(GRID * GRID)[: rng.integers(low, GRID * GRID + 1)]
    return tuple(Thing(*PAIRS[rng.integers(len(PAIRS))], int(cell)) for cell in cells)


def render(scene: Scene, rng: Generator) -> np.ndarray:
    """Returns uint8 (H, W, 3). Grey level, sizes, positions in the cell, shades and pixel noise are random."""
    image_HW3 = np.full((GRID * CELL, GRID * CELL, 3), rng.uniform(90, 130))
    middle = np.arange(CELL) + 0.5
    for thing in scene:
        row, column = divmod(thing.cell, GRID)
        radius = rng.uniform(3.6, 5.2)
        play = 0.9 * (CELL / 2 - radius)
        x, y = rng.uniform(-play, play, 2) + CELL / 2
        inside = INSIDE[thing.shape]((middle[None, :] - x) / radius, (middle[:, None] - y) / radius)
        cell_HW3 = image_HW3[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        cell_HW3[inside] = np.clip(COLORS[thing.color] + rng.normal(0, 14, 3), 0, 255)
    return np.clip(image_HW3 + rng.normal(0, 6, image_HW3.shape), 0, 255).astype(np.uint8)


# Questions: each is asked of a scene, or None when the scene does not allow it. `named` are the conjunctions that a
# question may name.

Pairs = tuple[tuple[str, str], ...]


def ask_color(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Returns a question for the color of an object whose shape is its own; None where there is none."""
    shapes = [thing.shape for thing in scene]
    thing = _one([t for t in scene if shapes.count(t.shape) == 1], rng)
    return thing and (f"what color is the {thing.shape}", thing.color)


def ask_shape(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Returns a question for the shape of an object whose color is its own; None where there is none."""
    colors = [thing.color for thing in scene]
    thing = _one([t for t in scene if colors.count(t.color) == 1], rng)
    return thing and (f"what shape is the {thing.color} object", thing.shape)


def ask_count(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Returns a question for the number of objects, of all or of those of one color."""
    colors = [thing.color for thing in scene]
    if rng.random() < 0.3:
        return "how many objects are there", NUMBERS[len(scene)]
    color = _one(colors if rng.random() < 0.75 else list(COLORS), rng)
    return f"how many {color} objects are there", NUMBERS[colors.count(color)]


def ask_exist_yes(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Returns a question for an object that is there; None where there is none that may be named."""
    pair = _one([thing.pair for thing in scene if thing.pair in named], rng)
    return pair and (f"is there a {pair[0]} {pair[1]}", "yes")


def ask_exist_no(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Half of the questions, where possible, name a colour and a shape that are there, but of different things."""
    pairs, colors, shapes = zip(*((t.pair, t.color, t.shape) for t in scene), strict=True)
    absent = [pair for pair in named if pair not in pairs]
    near = [p for p in absent if p[0] in colors or p[1] in shapes]
    nearer = [p for p in absent if p[0] in colors and p[1] in shapes]
    pair = _one(nearer if nearer and rng.random() < 0.5 else near, rng)
    return pair and (f"is there a {pair[0]} {pair[1]}", "no")


def ask_where(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Returns a question for the cell of an object; None where no single one may be named."""
    pairs = [thing.pair for thing in scene]
    thing = _one([t for t in scene if t.pair in named and pairs.count(t.pair) == 1], rng)
    return thing and (f"where is the {thing.color} {thing.shape}", PLACES[thing.cell])


def ask_what(scene: Scene, rng: Generator, named: Pairs) -> QuestionAnswer | None:
    """Returns a question for what is in a cell, which may be empty."""
    taken = [thing.cell for thing in scene]
    return what_is_at(scene, int(_one(taken if rng.random() < 0.85 else list(range(GRID * GRID)), rng)))


def what_is_at(scene: Scene, cell: int) -> QuestionAnswer:
    """Returns the question for what is in a cell, and its answer."""
    there = " ".join(f"{thing.color} {thing.shape}" for thing in scene if thing.cell == cell)
    return f"what is at the {PLACES[cell]}", there or "nothing"


def _one(choices: Any, rng: Generator) -> Any:
    return choices[rng.integers(len(choices))] if choices else None


Ask = Callable[[Scene, Generator, Pairs], QuestionAnswer | None]
KINDS: Mapping[str, tuple[Ask, ...]] = {  # more than one: equally often, whatever a scene allows
    "color": (ask_color,),
    "shape": (ask_shape,),
    "count": (ask_count,),
    "exist": (ask_exist_yes, ask_exist_no),
    "where": (ask_where,),
    "what": (ask_what,),
}


# Sources of rows: {"image": uint8 (H, W, 3), "question", "answer", "kind", "objects": the things of the scene}


KEPT = 1 << 15  # rows of a source that stay in memory once rendered, some 3 kB each


@part
class Scenes:
    """Questions of all six kinds, or with `heldout` those of `exist` and `where` that name a held-out conjunction.

    pictures: False leaves them out, unrendered; questions and answers are the same.
    """

    def __init__(self, n: AtLeast1, seed: AtLeast0, heldout: bool = False, pictures: bool = True) -> None:
        self.n, self.seed, self.heldout, self.pictures = n, seed, heldout, pictures
        self._rows: dict[int, Row] = {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Row:
        i = range(self.n)[index]
        row = self._rows.get(i) or self._row(i)
        if len(self._rows) < KEPT:
            self._rows[i] = row
        return row

    def _row(self, i: int) -> Row:
        rng = _rng(self.seed, "heldout" if self.heldout else "scenes", i)
        kind = _one(["exist", "where"] if self.heldout else list(KINDS), rng)
        ask = _one(KINDS[kind], rng)
        asked = None
        while asked is None:
            scene = draw_scene(rng)
            asked = ask(scene, rng, HELD_OUT if self.heldout else NAMED_IN_TRAINING)
        question, answer = asked
        picture = {"image": render(scene, rng)} if self.pictures else {}
        return {**picture, "question": question, "answer": answer, "kind": kind, "objects": scene}


@part
class SceneCells:
    """The words of every cell, for the pre-training of a tower: no question, the answer is "red cross" per cell.

    grid: features per side of the tower, 2 or a multiple; each feature, in reading order, is given the two words of the
    cell it lies in ("nothing nothing" for an empty one). Scenes have two to four things.
    """

    def __init__(self, n: AtLeast1, seed: AtLeast0, grid: AtLeast1 = GRID) -> None:
        if grid < GRID or grid % GRID:
            raise ConfigError(f"grid: {grid} is not a multiple of {GRID}, the cells per side")
        self.n, self.seed, self.grid = n, seed, grid
        self._rows: dict[int, Row] = {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Row:
        i = range(self.n)[index]
        if i not in self._rows:
            rng = _rng(self.seed, "cells", i)
            scene = draw_scene(rng, low=2)
            by_cell = {thing.cell: f"{thing.color} {thing.shape}" for thing in scene}
            side = [at * GRID // self.grid for at in range(self.grid)]
            answer = " ".join(by_cell.get(row * GRID + column, "nothing nothing") for row in side for column in side)
            self._rows[i] = {
                "image": render(scene, rng),
                "question": "",
                "answer": answer,
                "kind": "cells",
                "objects": scene,
            }
        return self._rows[i]


@part
class SceneCaptions:
    """ "what is at the top left": four rows per scene, one per cell, empty cells too. To align a connector."""

    def __init__(self, n: AtLeast1, seed: AtLeast0) -> None:
        self.n, self.seed = n, seed
        self._scenes: dict[int, tuple[Scene, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Row:
        i, cell = divmod(range(self.n)[index], GRID * GRID)
        if i not in self._scenes:
            rng = _rng(self.seed, "captions", i)
            scene = draw_scene(rng)
            self._scenes[i] = scene, render(scene, rng)
        scene, image_HW3 = self._scenes[i]
        question, answer = what_is_at(scene, cell)
        return {"image": image_HW3, "question": question, "answer": answer, "kind": "caption", "objects": scene}


_STREAMS = ("scenes", "heldout", "cells", "captions")


def _rng(seed: int, stream: str, index: int) -> Generator:
    return Generator(Philox(SeedSequence((seed, _STREAMS.index(stream), index))))
