"""Sessions in a notebook: IPython shows a prediction coloured and a draft per step, and nothing in them is markup."""

from __future__ import annotations

import gc
import json
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import toy

from mmdiff.errors import DataError
from mmdiff.session import Prediction, Session, load
from mmdiff.session.prediction import MASKED, MOST, colour, text_of

ROW = toy.Corners(n=1, lengths=(6,))[0]


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.deep: list[str] = []
        self.feed(text)
        self.close()
        assert not self.deep

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.deep.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.deep.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(value: Any) -> str:
    """What IPython shows a browser of a value: the formatter of a kernel."""
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(value)
    assert data["text/plain"]
    html: str = data["text/html"]
    return html


@pytest.fixture(scope="module")
def session(trained: Path) -> Session[Any]:
    return load(trained, trust=True)


def test_a_prediction_is_a_dictionary_that_is_shown_coloured(session: Session[Any]) -> None:
    found = session.predict(ROW, steps=3)
    assert found == {"prediction": found["prediction"], "forwards": 3, "canvas": found["canvas"]}
    assert json.loads(json.dumps(found))["canvas"] == [list(triple) for triple in found["canvas"]]
    page = Page(shown(found))
    spans = [at for tag, at in page.elements if tag == "span" and "confidence" in (at.get("title") or "")]
    assert len(spans) == 6
    for (token, step, sure), at in zip(found["canvas"], spans, strict=True):
        assert at["title"] == f"{token!r}, step {step}, confidence {sure:.3f}"
        assert colour(step, 3, sure) in (at["style"] or "")
    text = "".join(page.words)
    assert found["prediction"] in text and "in 3 forwards" in text and "given" in text and "masked" in text


def test_colours_tell_step_and_confidence() -> None:
    assert len({colour(step, 9, 0.5) for step in range(1, 10)}) == 9
    alphas = [float(colour(1, 1, sure).rpartition(",")[2].rstrip(")")) for sure in (-1.0, 0.0, 0.4, 1.0, 2.0)]
    assert alphas == sorted(alphas) and 0 < alphas[0] == alphas[1] < alphas[2] < alphas[3] == alphas[4] < 1


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</div></div>&lt;",
        "\x00\ud800",
    ],
)
def test_nothing_in_a_prediction_is_markup(session: Session[Any], evil: str, tmp_path: Path) -> None:
    canvas = [(evil, 1, 0.5), (evil, 0, 1.0), (MASKED, 0, 0.0)]
    page = Page(shown(Prediction(prediction=evil, forwards=1, canvas=canvas)))
    assert {tag for tag, _ in page.elements} <= {"div", "span", "b"}
    assert {name for _, at in page.elements for name in at} <= {"style", "title"}
    assert "".join(page.words).count(evil) == 3
    named = Session(session.model, session.task, session.sampler, tmp_path / evil)
    page = Page(shown(named))
    assert {tag for tag, _ in page.elements} <= {"div", "b", "table", "tr", "td"} and evil in "".join(page.words)


def test_a_long_prediction_is_cut() -> None:
    html = shown(Prediction(prediction="x" * 10_000, forwards=1, canvas=[("x", 1, 0.5)] * (MOST + 5)))
    assert "and 5 tokens more" in html and html.count("<span") < MOST + 20 and len(html) < 1_000_000


def test_a_session_says_what_it_is(session: Session[Any]) -> None:
    text = re.sub("<[^>]+>", " ", shown(session))
    assert "toy.Where" in text and "encoders" in text and "image" in text and f"{session.folder}" in text


def test_drafts_lead_to_the_prediction(session: Session[Any]) -> None:
    drafts = list(session.stream(ROW, steps=3))
    assert drafts[-1] == session.predict(ROW, steps=3) and len(drafts) == 4
    open_ = [sum(token == MASKED for token, _, _ in draft["canvas"]) for draft in drafts]
    assert open_ == [4, 2, 0, 0] and [draft["forwards"] for draft in drafts] == [1, 2, 3, 3]
    for before, after in zip(drafts[:-1], drafts[1:], strict=True):
        assert all(a == b for a, b in zip(before["canvas"], after["canvas"], strict=True) if a[0] != MASKED)
    assert drafts[0]["prediction"].count(MASKED) == 4 and "masked" in shown(drafts[0])


def test_who_stops_early_ends_the_generation(session: Session[Any]) -> None:
    before = threading.active_count()
    for draft in session.stream(ROW, steps=6):
        assert draft["forwards"] == 1
        break
    gc.collect()
    assert threading.active_count() == before
    stream = session.stream(ROW, steps=6)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_errors_come_where_somebody_looks(session: Session[Any]) -> None:
    with pytest.raises(DataError, match="answer: is empty"):
        session.stream({**ROW, "answer": ""})
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        broken = Session(session.model, _Broken(session.task), session.sampler, session.folder)
        list(broken.stream(ROW, steps=2))
    assert threading.active_count() == before


class _Broken:
    """A task that cannot read what was generated."""

    def __init__(self, task: Any) -> None:
        self.prompt = task.prompt

    def parse(self, ids: Any, vocab: Any) -> Any:
        return 1 // 0


def test_text_of_a_draft_decodes_what_stands_together(session: Session[Any]) -> None:
    vocab = toy.chat_vocab(["häßlich 猫"], 300)
    ids = vocab.encode("猫 ä")
    assert len(ids) > 3 and text_of(ids, vocab) == "猫 ä"
    assert text_of([None, *ids, None, None], vocab) == f"{MASKED}猫 ä{MASKED}{MASKED}"
