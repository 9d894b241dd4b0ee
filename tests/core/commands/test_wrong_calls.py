"""Wrong arguments of the public functions: one line each, as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy

import mmdiff
from mmdiff import MMDiff, UserError, Vocab, check, collate, evaluate, load, load_backbone, load_config, train
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.typed import fits
from mmdiff.protocols import Source

CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: train("nmae"), 'no configuration, .yaml file or run folder "nmae"'),  # type: ignore[arg-type]
    (lambda: train(5), "train: config: 5 is no Config or string or Path"),  # type: ignore[arg-type]
    (lambda: train(toy.config(clip=-1)), "train.clip=-1: expected a number of at least 0"),
    (lambda: train(toy.config(stage={"lr": "1"})), "train.stages.only.lr: '1' is not a number"),
    (lambda: train(toy.config(), fresh="no"), "train: fresh: 'no' is no true or false"),  # type: ignore[arg-type]
    (lambda: train(toy.config(), frehs=True), "unexpected keyword argument 'frehs'"),  # type: ignore[call-arg]
    (lambda: check("nope"), 'no configuration, .yaml file or run folder "nope"'),
    (lambda: check({"train": {}}), "check: config: {'train': {}} is no Config"),  # type: ignore[arg-type]
    (lambda: MMDiff("x"), "MMDiff: backbone: 'x' is no Backbone"),  # type: ignore[arg-type]
    (lambda: MMDiff(toy.backbone(), {"image": 3}), "encoders: {'image': 3} is no mapping to Module"),  # type: ignore[dict-item]
    (lambda: MMDiff(toy.backbone(), logit_chunk=0), "logit_chunk=0: expected a whole number of at least 1"),
    (lambda: MMDiff.from_pretrained(5), "folder: 5 is no string or Path"),  # type: ignore[arg-type]
    (lambda: MMDiff.from_pretrained("x", dtype=4), "dtype: 4 is no string"),  # type: ignore[arg-type]
    (lambda: MMDiff.from_pretrained("no-such-folder"), "no saved model here"),
    (lambda: load(None), "load: folder: None is no string or Path"),  # type: ignore[arg-type, call-overload]
    (lambda: load("x", 5), "load: overrides: (5,) is no list of string"),  # type: ignore[arg-type, call-overload]
    (lambda: load("x", task="VQA"), "load: task: 'VQA' is no type"),  # type: ignore[arg-type, call-overload]
    (lambda: load_config("vqa-demo", "train.seed=1"), "overrides: 'train.seed=1' is no list of string"),
    (lambda: load_config(["vqa-demo"]), "load_config: name: ['vqa-demo'] is no"),  # type: ignore[arg-type]
    (lambda: evaluate("no-run", toy.Corners()), "no-run: no such folder"),
    (lambda: evaluate(3, toy.Corners()), "evaluate: session: 3 is no Session or string or Path"),  # type: ignore[arg-type]
    (lambda: evaluate("no-run", "rows.json"), "evaluate: rows: 'rows.json' is no Source"),  # type: ignore[arg-type]
    (lambda: collate("ab", None), "collate: samples: 'ab' is no list"),  # type: ignore[arg-type]
    (lambda: collate([], None), "collate: vocab: None is no Vocab"),  # type: ignore[arg-type]
    (lambda: load_backbone(7), "load_backbone: path: 7 is no string or Path"),  # type: ignore[arg-type]
    (lambda: word_tokenizer(words="words.txt"), "tokenizer.words: 'words.txt' is not a list of words"),
    (lambda: word_tokenizer(["a", 3]), "is not a list of words"),  # type: ignore[list-item]
    (lambda: mmdiff.build("toy.Where"), "'toy.Where' is not a node"),
    (lambda: mmdiff.part(5), "part: 5 is neither a class nor a function"),  # type: ignore[type-var]
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_one_line(call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        call()
    assert message in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 300
    assert list(tmp_path.iterdir()) == []


def test_a_session_is_exported_short_to_look_at_and_takes_rows_only(trained: Path) -> None:
    session = load(trained)
    assert isinstance(session, mmdiff.Session)
    assert repr(session).startswith("Session(toy.Where, ") and len(repr(session)) < 300
    row = toy.Corners()[0]
    for call, message in (
        (lambda: session.predict("hello"), "Session.predict: row: 'hello' is no mapping"),  # type: ignore[arg-type]
        (lambda: session.predict_many(row), "predict_many: rows: "),  # type: ignore[arg-type]
        (lambda: session.predict_many([3]), "predict_many: rows: [3] is no list of mapping"),  # type: ignore[list-item]
        (lambda: session.predict(row, step=3), 'sampler.step: no such field (did you mean "steps"?)'),
        (lambda: session.predict(row, steps=0), "sampler.steps=0"),
        (lambda: session.model.generate("hello"), "generate: batch_or_ids: 'hello' is no Batch or Tensor"),  # type: ignore[arg-type]
        (lambda: session.model.generate(None, None, {"steps": 1}), "is no "),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError) as raised:
            call()
        assert message in str(raised.value)


def test_what_fits_an_annotation() -> None:
    assert fits(Source, toy.Corners()) and fits(Source, [{}]) and not fits(Source, "ab") and not fits(Source, {})
    assert fits(int | None, None) and fits(float, 1) and not fits(int, True) and not fits(int, 1.0)
    assert fits(list[str], ["a"]) and not fits(list[str], ("a",)) and not fits(Vocab, "x")
