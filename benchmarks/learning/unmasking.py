"""The picture of the README: canvases of small models, step by step, from real runs.

    python benchmarks/learning/unmasking.py --svg docs/unmasking.svg

Each model is trained as a page of `docs/start/` says: its blocks are run, in an empty folder.
Half a minute of one core.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import mmdiff
from mmdiff.commands import cli
from mmdiff.files import write_text

PAGES = Path(__file__).resolve().parents[2] / "docs" / "start"
CELL, ROW, GAP, LEFT, WIDTH = 25, 25, 6, 100, 910
COLOURS = {"given": "#cfd8dc", "masked": "#546e7a", "new": "#fff176", "committed": "#a5d6a7"}


class Panel(NamedTuple):
    """title: what was asked. tokens: (text, step) of every position; step 0: it was given. width: of a cell."""

    title: str
    tokens: Sequence[tuple[str, int]]
    width: int
    picture: bytes | None = None


def trained(page: str) -> None:
    """Run the blocks of a page up to its training, in the working folder."""
    names: dict[str, Any] = {"__name__": page}
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", (PAGES / f"{page}.md").read_text("utf-8"), re.M | re.S):
        if kind == "python":
            exec(compile(text, page, "exec"), names)
        elif kind == "yaml":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif kind == "bash" and (command := shlex.split(text.splitlines()[0]))[1] == "train":
            with contextlib.redirect_stdout(sys.stderr):
                assert cli.main(command[1:]) == 0
            return


def filled(run: str, row: Mapping[str, Any], **settings: Any) -> list[tuple[str, int]]:
    """(token, step) of the target positions, as the run fills them."""
    return [(token, step) for token, step, _ in mmdiff.load(run).predict(row, **settings)["canvas"]]


def panels() -> Iterator[Panel]:
    """Train and ask."""
    trained("text")
    story = filled("runs/stories", {"text": ["The", 7]}, steps=7, temperature=0.0)
    yield Panel("write a sentence", [("The", 0), *story], 82)
    trained("pictures")
    heldout = json.loads(Path("data/heldout.json").read_text(encoding="utf-8"))
    asked = next(row for row in heldout if row["answer"] == "blue")
    file = Path("data") / asked["image"]
    answer = filled("runs/shapes", {"image": str(file), "question": asked["question"]})
    context = [("picture", 0), *((word, 0) for word in re.findall(r"\w+|\?", asked["question"]))]
    yield Panel("answer a question about a picture that it has not seen", [*context, *answer], 82, file.read_bytes())
    trained("proteins")
    template = "YKC____KSFS_____RHL____"
    yield Panel("fill in a protein", filled("runs/fingers", {"sequence": template}, steps=5, temperature=0.0), 31)


def drawn(found: Sequence[Panel]) -> str:
    """The panels below each other as SVG, a line per step."""
    parts: list[str] = []
    y = 8
    for panel in found:
        parts.append(f'<text x="8" y="{y + 17}" class="title">{escape(panel.title)}</text>')
        y += 28
        if panel.picture:
            data = base64.b64encode(panel.picture).decode()
            parts.append(f'<image x="10" y="{y}" width="73" height="73" href="data:image/png;base64,{data}"/>')
            parts.append(f'<rect x="10" y="{y}" width="73" height="73" fill="none" stroke="#90a4ae"/>')
        for step in range(max(at for _, at in panel.tokens) + 1):
            if not panel.picture:
                label = f"step {step}" if step else "before"
                parts.append(f'<text x="8" y="{y + 17}" class="step">{label}</text>')
            for n, (token, at) in enumerate(panel.tokens):
                kind = "given" if at == 0 else "masked" if at > step else "new" if at == step else "committed"
                x = LEFT + n * panel.width
                size = f'width="{panel.width - 3}" height="{CELL - 2}"'
                parts.append(f'<rect x="{x}" y="{y}" {size} rx="4" fill="{COLOURS[kind]}"/>')
                if kind != "masked":
                    middle = x + (panel.width - 3) / 2
                    shown = escape(token.strip() or token).replace("&lt;eos&gt;", "end")
                    parts.append(f'<text x="{middle}" y="{y + 17}" class="token">{shown}</text>')
            y += ROW
        y += 3 * GAP
    names = {"given": "given", "masked": "masked", "new": "committed at this step", "committed": "committed before"}
    x = LEFT
    for kind, name in names.items():
        parts.append(f'<rect x="{x}" y="{y}" width="20" height="16" rx="3" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 27}" y="{y + 13}" class="step">{name}</text>')
        x += 60 + 8 * len(name)
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;fill:#212121}.title{font-size:16px;font-weight:bold}"
        ".step{font-size:13px;fill:#546e7a}.token{font-size:13px;text-anchor:middle}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 28}" role="img"><style>{style}</style>'
        f'<rect width="{WIDTH}" height="{y + 28}" fill="#fff"/>' + "\n".join(parts) + "</svg>\n"
    )


def main() -> None:
    """Write the picture."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--svg", required=True, type=Path, help="the file to write")
    out: Path = arguments.parse_args().svg.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        write_text(out, drawn(list(panels())))


if __name__ == "__main__":
    main()
