"""The page about protein sequences: what stands where, what cannot run, and that it needs nothing else."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages.html_page import EVIL, Page

from mmdiff.tasks.protein.evaluate.plots import (
    composition_plot,
    conserved_plot,
    identity_plot,
    kmer_plot,
    length_plot,
    lines,
    mask_filling_plot,
)
from mmdiff.tasks.protein.evaluate.report import GeneratedSequence, number, shown, write_protein_report


def page(folder: Path, **more: Any) -> Page:
    file = write_protein_report(folder / "a.html", **{"title": "t", "figures": {}, **more})
    found = Page(file.read_text())
    assert not found.open  # every element is closed
    return found


# Tables


def test_figures_as_shown() -> None:
    assert [number(x) for x in ("a", 1234567, 0.12345, 0.0, 0.00021, -2.0, 12345.6)] == [
        "a",
        "1,234,567",
        "0.1235",
        "0.0000",
        "2.1e-04",
        "-2.0000",
        "12345.6000",
    ]
    columns, rows = shown({"model": {"accuracy": 0.5, "n": 3}, "unigram": {"n": 4, "nats": 1.0}})
    assert columns == ["accuracy", "n", "nats"]
    assert rows == {"model": ["0.5000", "3", "–"], "unigram": ["–", "4", "1.0000"]}


def test_tables_plots_and_curves_stand_in_the_page(tmp_path: Path) -> None:
    found = page(
        tmp_path,
        figures={"Hidden residues": {"15 %": {"model": 0.5}}, "Nothing": {}},
        plots=[("Composition", "data:image/png;base64,AA"), ("k-mers", "data:image/png;base64,BB")],
        curves="data:image/png;base64,CC",
        notes=["a note"],
    )
    assert [text for _, text in found.find("h2")] == ["Hidden residues", "Training"]
    assert [text for _, text in found.find("td")] == ["0.5000"]
    assert [a["src"] for a, _ in found.find("img")] == [f"data:image/png;base64,{x}" for x in ("CC", "AA", "BB")]
    assert found.find("p")[0][1] == "a note" and not found.find("section")
    assert not found.find("link") and "http" not in (tmp_path / "a.html").read_text()


# Sequences


def test_residues_have_the_colour_of_their_step(tmp_path: Path) -> None:
    one = GeneratedSequence("x1", "ACDEFGHIKLMN", [0, 1, 2, 5, *[3] * 8], {"identity": 0.625})
    found = page(tmp_path, examples={"Generated": [one, GeneratedSequence("x2", "AC", [1, 2])], "None": []})
    boxes = found.find("i")
    assert "".join(text for _, text in boxes) == "ACDEFGHIKLMNAC"
    assert [a["style"] for a, _ in boxes[:4]] == ["--t: 0.000", "--t: 0.000", "--t: 0.250", "--t: 1.000"]
    assert [a["data-step"] for a, _ in boxes[:4]] == ["0", "1", "2", "5"]
    assert [a.get("class") for a, _ in boxes[:2]] == ["given", None]
    told = [a["title"] for a, _ in boxes]
    assert told[:2] == ["A1: given", "C2: committed at step 1"] and told[-1] == "C2: committed at step 2"
    assert [text for _, text in found.find("sub")] == ["10"]  # behind ten residues
    assert [text for _, text in found.find("b")] == ["x1", "x2"]
    assert "identity 0.6250" in [text for _, text in found.find("span", "small")]
    ((slider, _),) = found.find("input")
    assert slider["max"] == "5" and [text for _, text in found.find("h2")] == ["Generated"]


def test_a_sequence_that_was_given_has_no_slider(tmp_path: Path) -> None:
    found = page(tmp_path, examples={"Given": [GeneratedSequence("x", "AC", [0, 0])]})
    assert not found.find("input") and len(found.find("i", "given")) == 2


def test_steps_and_residues_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        page(tmp_path, examples={"x": [GeneratedSequence("x", "ACD", [1, 2])]})
    assert not (tmp_path / "a.html").exists()


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = GeneratedSequence(EVIL, "<", [1], {EVIL: EVIL})
    found = page(
        tmp_path,
        title=EVIL,
        notes=[EVIL],
        figures={EVIL: {EVIL: {EVIL: EVIL}}},
        plots=[(EVIL, EVIL)],
        examples={EVIL: [evil]},
    )
    assert len(found.find("script")) == 1 and len(found.find("img")) == 1
    assert not any(key.startswith("on") for _, of_one, _ in found.elements for key in of_one)
    assert found.find("h1")[0][1] == EVIL and found.find("i")[0][1] == "<"


# Plots


def pixels(uri: str) -> Any:
    from PIL import Image

    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=int)


def share(uri: str, colour: str) -> float:
    """Share of the pixels that are about of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels(uri) - wanted).max(2) < 12).mean())


def test_bars_are_as_high_as_their_figures() -> None:
    from mmdiff.tasks.protein.evaluate.plots import COLOURS

    all_a = {"A": 1.0}
    even = {letter: 0.05 for letter in "ACDEFGHIKLMNPQRSTVWY"}
    both = composition_plot({"natural": even, "generated": all_a})
    # twenty bars of 1/20 take as much room as one of 1, but for their white edges and the legend
    assert share(both, COLOURS[0]) == pytest.approx(share(both, COLOURS[1]), rel=0.35)


def test_plots_are_drawn_of_what_there_is() -> None:
    model = {"0.15": {"accuracy": 0.5, "nll": 1.0}, "0.5": {"accuracy": 0.4, "nll": 1.5}}
    nearest = {"0.15": {"accuracy": 0.6}}
    two = pixels(mask_filling_plot({"model": model, "nearest": nearest}))
    one = pixels(mask_filling_plot({"nearest": nearest}))  # no cross-entropy, so no second panel
    assert two.shape[1] > 1.8 * one.shape[1]
    report = {"1": {"samples": 0.001, "floor": 0.0005}, "2": {"samples": 0.01, "floor": 0.01}}
    found = {"consensus": "CG", "columns": [2, 9], "natural": [0.9, 0.8], "samples": [0.95, 0.7]}
    for uri in (
        kmer_plot(report, {"samples": "generated", "floor": "natural", "columns": "shuffled"}),
        conserved_plot(found),
        length_plot({"natural": [50, 52, 53], "generated": [53, 53]}),
        length_plot({"natural": [5]}),
        identity_plot({"generated": [0.2, 0.5, 1.0]}),
        lines({"nats": {"generated": {"1": -4.7, "32": -1.8}}}, x="steps", log=True),
    ):
        assert pixels(uri).std() > 5  # something is drawn
