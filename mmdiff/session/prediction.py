"""What a session returns for a row: a dictionary, which a notebook shows as tokens coloured by step and confidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.vocab import Vocab
from mmdiff.model import MMDiff

Triple = tuple[str, int, float]
"""A target position: its token, the step at which it was committed, and its confidence then. A token of step 0 was
given, or, with confidence 0, is `MASKED`."""

MASKED = "░"
MOST = 4096  # tokens that are shown; a page of more is slow
PAGE = "color:#111;background:#fff;border:1px solid #ccc;border-radius:6px;padding:.6em .8em;max-width:60em"
PALE, GIVEN = "color:#999", "border-bottom:2px solid #888"
TOKENS = "font-family:monospace;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere;margin:.4em 0"


class Prediction(dict[str, Any]):
    """{"prediction", "forwards", "canvas"}: what the task makes of the generated ids, forward passes, and a `Triple`
    per target position. It is a dictionary in all respects, which a notebook shows as a page."""

    def _repr_html_(self) -> str:
        canvas = [(str(token), int(step), float(sure)) for token, step, sure in self["canvas"]]
        last = max((step for _, step, _ in canvas), default=0)
        tokens = "".join(_span(*triple, last) for triple in canvas[:MOST])
        more = f" and {len(canvas) - MOST:,} tokens more" if len(canvas) > MOST else ""
        head = f"<b>{escape(_plain(self['prediction']))}</b> in {int(self['forwards'])} forwards"
        return f'<div style="{PAGE}"><div>{head}</div><div style="{TOKENS}">{tokens}{more}</div>{_legend(last)}</div>'


def canvas_of(out: Generation, row: int, model: MMDiff) -> list[Triple]:
    """The (token, step, confidence) of each target position of a row; tokens of step 0 were given."""
    rows = (x[row][out.target_BL[row]].tolist() for x in (out.ids_BL, out.step_BL, out.confidence_BL))
    piece = model.vocab.piece
    return [(piece(i), step, round(sure, 4)) for i, step, sure in zip(*rows, strict=True)]


def draft_of(row: int, state: Any, vocab: Vocab) -> Prediction:
    """Returns a generation that is not finished (`mmdiff.canvas.generation.GenerationState`) as a `Prediction`.

    Its `prediction` is text in which `MASKED` stands for each position that is not filled.
    """
    at_L: Tensor = state.batch.target_BL[row]
    kinds = (state.ids_BL, state.pending_BL, state.step_BL, state.confidence_BL)
    triples = list(zip(*(kind[row][at_L].tolist() for kind in kinds), strict=True))
    canvas = [
        (MASKED, 0, 0.0) if pending else (vocab.piece(i), step, round(sure, 4)) for i, pending, step, sure in triples
    ]
    text = text_of([None if pending else i for i, pending, _, _ in triples], vocab)
    return Prediction(prediction=text, forwards=int(state.forwards_B[row]), canvas=canvas)


def text_of(ids: Iterable[int | None], vocab: Vocab) -> str:
    """Returns the text of ids, `MASKED` for None. Between these they are decoded together: a token may be a part of a
    character."""
    out, run = "", []  # type: str, list[int]
    for i in [*ids, None]:
        if i is not None:
            run.append(i)
            continue
        out, run = out + (vocab.decode(run) if run else "") + MASKED, []
    return out[: -len(MASKED)]


# HTML -----------------------------------------------------------------------------------------------------------------


def _span(token: str, step: int, sure: float, last: int) -> str:
    text = escape(token.replace("\n", "⏎\n"))
    if step == 0:
        return (
            f'<span style="{PALE if sure == 0 else GIVEN}" title="{"masked" if sure == 0 else "given"}">{text}</span>'
        )
    title = f"{escape(repr(token))}, step {step}, confidence {sure:.3f}"
    return f'<span style="background:{colour(step, last, sure)};border-radius:3px" title="{title}">{text}</span>'


def colour(step: int, last: int, sure: float) -> str:
    """Returns the CSS colour of a token: from blue for the first of `last` steps to red, paler the less confident."""
    share = (step - 1) / max(1, last - 1)
    return f"hsla({220 - 215 * share:.0f},85%,62%,{0.12 + 0.68 * min(max(sure, 0.0), 1.0):.2f})"


def _legend(last: int) -> str:
    shown = sorted({1 + round(i * (last - 1) / 7) for i in range(8)}) if last else []
    steps = "".join(f'<span style="background:{colour(s, last, 1.0)};padding:0 .4em">{s}</span>' for s in shown)
    sure = "".join(
        f'<span style="background:{colour(1, last, x)};padding:0 .4em">{x:g}</span>' for x in (0.25, 0.5, 0.75, 1.0)
    )
    parts = [f"step {steps}", f"confidence {sure}"] if last else []
    parts += [f'<span style="{GIVEN}">given</span>', f'<span style="{PALE}">{MASKED} masked</span>']
    return f'<div style="font-size:85%">{" &nbsp; ".join(parts)}</div>'


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def settings_page(title: str, rows: Mapping[str, Any]) -> str:
    """Returns a table of names and values as HTML, in which nothing is markup."""
    cells = "".join(
        f'<tr><td style="text-align:left">{escape(str(name))}</td><td style="text-align:left">'
        f"{escape(_plain(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f'<div style="{PAGE}"><b>{escape(title)}</b><table>{cells}</table></div>'
