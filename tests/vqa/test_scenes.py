"""Scenes: answers by an independent checker, the held-out rule, pixel facts, purity, and the controls."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from mmdiff.errors import ConfigError
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.controls import Blank, Shuffled, WithoutImage, majority
from mmdiff.tasks.vqa.scenes import COLORS, HELD_OUT, SceneCaptions, SceneCells, Scenes, draw_scene, tokenizer, words

N = 1500


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(Scenes(N, seed=1))


@pytest.fixture(scope="module")
def heldout() -> list[Row]:
    return list(Scenes(400, seed=4, heldout=True))


def solve(question: str, objects: list[tuple[str, str, int]]) -> str:
    """The answer, read off the words of the question and the objects; fails where it is not unique."""
    numbers = ["zero", "one", "two", "three", "four"]
    match question.split():
        case ["what", "color", "is", "the", shape]:
            (found,) = {c for c, s, _ in objects if s == shape}
            return found
        case ["what", "shape", "is", "the", color, "object"]:
            (found,) = {s for c, s, _ in objects if c == color}
            return found
        case ["how", "many", "objects", "are", "there"]:
            return numbers[len(objects)]
        case ["how", "many", color, "objects", "are", "there"]:
            return numbers[sum(c == color for c, _, _ in objects)]
        case ["is", "there", "a", color, shape]:
            return "yes" if any((c, s) == (color, shape) for c, s, _ in objects) else "no"
        case ["where", "is", "the", color, shape]:
            (cell,) = [cell for c, s, cell in objects if (c, s) == (color, shape)]
            return f"{'bottom' if cell // 2 else 'top'} {'right' if cell % 2 else 'left'}"
        case ["what", "is", "at", "the", row, column]:
            at = 2 * ["top", "bottom"].index(row) + ["left", "right"].index(column)
            found = [f"{c} {s}" for c, s, cell in objects if cell == at]
            return found[0] if found else "nothing"
    raise AssertionError(question)


def test_every_answer_is_right(rows: list[Row], heldout: list[Row]) -> None:
    for row in [*rows, *heldout, *SceneCaptions(400, seed=3)]:
        objects = [tuple(thing) for thing in row["objects"]]
        assert len({cell for *_, cell in objects}) == len(objects)
        assert solve(row["question"], objects) == row["answer"], row["question"]


def test_training_never_names_a_held_out_pair_but_shows_it(rows: list[Row]) -> None:
    named = {tuple(row["question"].split()[-2:]) for row in rows if row["kind"] in ("exist", "where")}
    assert len(named) == 18 and not named & set(HELD_OUT)
    shown = defaultdict(set)
    for row in rows:
        for thing in row["objects"]:
            shown[row["kind"]].add(thing.pair)
    for kind in ("color", "shape", "count", "exist", "where", "what"):
        assert set(HELD_OUT) <= shown[kind], kind
    # ... and its attributes are asked for: "what color is the cross" about a red one
    asked = {(row["answer"], row["question"].split()[-1]) for row in rows if row["kind"] == "color"}
    asked |= {(row["question"].split()[-2], row["answer"]) for row in rows if row["kind"] == "shape"}
    assert set(HELD_OUT) <= asked


def test_the_held_out_set_names_nothing_else(heldout: list[Row]) -> None:
    assert {row["kind"] for row in heldout} == {"exist", "where"}
    assert {tuple(row["question"].split()[-2:]) for row in heldout} == set(HELD_OUT)
    assert sorted(color for color, _ in HELD_OUT) == sorted(COLORS)  # every colour once: no colour gives it away


def test_questions_are_balanced(rows: list[Row], heldout: list[Row]) -> None:
    kinds = Counter(row["kind"] for row in rows)
    assert all(abs(n - N / 6) < 4.5 * (N * 5 / 36) ** 0.5 for n in kinds.values()), kinds
    for several in (rows, heldout):
        said = Counter(row["answer"] for row in several if row["kind"] == "exist")
        n = said.total()
        assert abs(said["yes"] - n / 2) < 4.5 * (n / 4) ** 0.5
    # what a "no" is about is partly there: its colour, its shape, or often both on different things
    hard = 0
    for row in (noes := [r for r in rows if r["answer"] == "no"]):
        color, shape = row["question"].split()[-2:]
        there = any(t.color == color for t in row["objects"]), any(t.shape == shape for t in row["objects"])
        assert any(there)
        hard += all(there)
    assert hard > 0.3 * len(noes)


def test_pixels(rows: list[Row]) -> None:
    """An empty cell is noise on grey. A full one has pixels of its colour: nearer to it than to any other colour."""
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], dtype=float)
    right = total = 0
    for row in rows[:300]:
        image = row["image"]
        assert image.shape == (24, 24, 3) and image.dtype == np.uint8
        by_cell = {thing.cell: thing for thing in row["objects"]}
        for cell in range(4):
            y, x = 12 * (cell // 2), 12 * (cell % 2)
            pixels = image[y : y + 12, x : x + 12].reshape(-1, 3).astype(float)
            colored = pixels[np.ptp(pixels, axis=1) > 60]
            if cell not in by_cell:
                assert pixels.std() < 12 and 80 < pixels.mean() < 140 and len(colored) == 0
                continue
            assert 8 < len(colored) < 100
            nearest = np.linalg.norm(colored.mean(0) - palette, axis=1).argmin()
            right += names[nearest] == by_cell[cell].color
            total += 1
    assert right == total > 500


def test_shapes_look_different() -> None:
    """Filled share of the box around a shape: square 1, circle pi/4, triangle about 1/2, cross .57; and where it is."""
    share = defaultdict(list)
    low_half = defaultdict(list)
    for row in SceneCells(400, seed=5):
        for thing in row["objects"]:
            y, x = 12 * (thing.cell // 2), 12 * (thing.cell % 2)
            inside = np.ptp(row["image"][y : y + 12, x : x + 12].astype(int), axis=2) > 50
            ys, xs = inside.nonzero()
            box = inside[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            share[thing.shape].append(box.mean())
            low_half[thing.shape].append(box[-(len(box) // 2) :].sum() / box.sum())
    mean = {shape: float(np.mean(values)) for shape, values in share.items()}
    assert mean["square"] > 0.97
    assert 0.72 < mean["circle"] < 0.9
    assert 0.45 < mean["cross"] < 0.68
    assert np.mean(low_half["triangle"]) > 0.65 > 0.56 > np.mean(low_half["circle"])


@pytest.mark.parametrize("make", [Scenes, SceneCells, SceneCaptions])
def test_rows_depend_on_seed_and_index_only(make: type[Scenes]) -> None:
    first, again, other = make(50, seed=1), make(20, seed=1), make(50, seed=2)
    for i in (13, 3, 7):  # any order, any size of source
        a, b = first[i], again[i]
        assert np.array_equal(a["image"], b["image"])
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
    assert not np.array_equal(first[3]["image"], other[3]["image"])
    assert not np.array_equal(first[3]["image"], first[8]["image"])
    assert first[3]["image"] is first[3]["image"]  # rendered once
    assert np.array_equal(first[-1]["image"], first[49]["image"])
    with pytest.raises(IndexError):
        first[50]
    assert len(list(first)) == 50


def test_sources_of_one_seed_do_not_share_scenes() -> None:
    scenes = [Scenes(5, 1)[0], Scenes(5, 1, heldout=True)[0], SceneCells(5, 1)[0], SceneCaptions(5, 1)[0]]
    assert len({row["image"].tobytes() for row in scenes}) == 4


def test_cells() -> None:
    for row in SceneCells(60, seed=2):
        said = row["answer"].split()
        assert len(said) == 8 and 2 <= len(row["objects"]) <= 4
        expected = ["nothing"] * 8
        for thing in row["objects"]:
            expected[2 * thing.cell : 2 * thing.cell + 2] = thing.pair
        assert said == expected
    # a finer tower: 4 x 4 features, each with the words of the quarter it lies in
    small, fine = SceneCells(3, seed=2)[1]["answer"].split(), SceneCells(3, seed=2, grid=4)[1]["answer"].split()
    for row in range(4):
        for column in range(4):
            at, cell = 4 * row + column, 2 * (row // 2) + column // 2
            assert fine[2 * at : 2 * at + 2] == small[2 * cell : 2 * cell + 2]
    with pytest.raises(ConfigError, match="grid: 3 is not a multiple of 2"):
        SceneCells(3, seed=2, grid=3)


def test_captions_go_through_the_cells_of_each_scene() -> None:
    rows = list(SceneCaptions(40, seed=2))
    places = ["top left", "top right", "bottom left", "bottom right"]
    for i, row in enumerate(rows):
        assert row["question"] == f"what is at the {places[i % 4]}"
        assert row["image"] is rows[i - i % 4]["image"]
    assert any(row["answer"] == "nothing" for row in rows)


def test_the_vocabulary_is_closed(rows: list[Row], heldout: list[Row]) -> None:
    said = {
        word
        for row in [*rows, *heldout, *SceneCells(50, 1), *SceneCaptions(50, 1)]
        for text in (row["question"], row["answer"])
        for word in text.split()
    }
    assert said == set(words()) and len(words()) == 36
    made = tokenizer()
    assert len(made) == 40
    text = "where is the red cross"
    assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text


def test_scene_sizes() -> None:
    rng = np.random.default_rng(0)
    assert {len(draw_scene(rng)) for _ in range(200)} == {1, 2, 3, 4}
    assert {len(draw_scene(rng, low=2)) for _ in range(200)} == {2, 3, 4}


@pytest.mark.parametrize(
    "n, seed, message", [(0, 1, "n=0: expected a whole number of at least 1"), (5, -1, "seed=-1: expected")]
)
def test_refusals(n: int, seed: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scenes(n, seed)


# Controls


def test_shuffled_gives_every_question_another_picture() -> None:
    rows = Scenes(97, seed=1)
    shuffled = Shuffled(rows, seed=5)
    own = {row["image"].tobytes(): i for i, row in enumerate(rows)}
    taken = [own[row["image"].tobytes()] for row in shuffled]
    assert sorted(taken) == list(range(97))
    assert all(other != i for i, other in enumerate(taken))
    assert [row["question"] for row in shuffled] == [row["question"] for row in rows]
    assert taken == [own[row["image"].tobytes()] for row in Shuffled(rows, seed=5)]
    assert taken != [own[row["image"].tobytes()] for row in Shuffled(rows, seed=6)]
    with pytest.raises(ConfigError, match="1 of them cannot be shuffled"):
        Shuffled(Scenes(1, seed=1), seed=0)


def test_blank_is_grey_and_leaves_the_rows_alone() -> None:
    rows = Scenes(5, seed=1)
    before = rows[2]["image"].copy()
    blank = Blank(rows)[2]
    assert blank["image"].shape == (24, 24, 3) and set(blank["image"].ravel()) == {128}
    assert blank["answer"] == rows[2]["answer"] and np.array_equal(rows[2]["image"], before)


@pytest.mark.needs("PIL")
def test_blank_reads_the_size_of_files(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (7, 5), "red").save(tmp_path / "a.png")
    two = Blank([{"image": [str(tmp_path / "a.png"), Image.new("L", (2, 3))], "question": "?"}, {"question": "?"}])
    assert [picture.size for picture in two[0]["image"]] == [(7, 5), (2, 3)]
    assert two[0]["image"][0].getpixel((3, 3)) == (128, 128, 128)
    assert "image" not in two[1]


def test_without_image() -> None:
    rows = WithoutImage(Scenes(5, seed=1))
    assert len(rows) == 5 and all("image" not in row and row["question"] for row in rows)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "an <image> tag"}]
    row = WithoutImage([{"image": "a.png", "conversations": turns}])[0]
    assert row == {"conversations": [{"from": "human", "value": "What?"}, turns[1]]}
    assert turns[0]["value"].startswith("<image>")


def test_majority() -> None:
    pairs = [("q", "a"), ("q", "b"), ("q", "b"), ("r", "a"), ("s", "c"), ("t", "a")]
    guess = majority([{"question": q, "answer": a} for q, a in pairs])
    assert [guess(q) for q in ("q", "r", "s", "never seen")] == ["b", "a", "c", "a"]


def test_questions_alone_do_not_tell_the_answer(rows: list[Row]) -> None:
    guess = majority(rows)
    test = Scenes(600, seed=2)
    assert np.mean([guess(row["question"]) == row["answer"] for row in test]) < 0.35
