"""The task: canvases, generation canvases, parsing and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.turns import answers
from mmdiff.tasks.vqa import scenes
from mmdiff.tasks.vqa.task import VQA

EOS, MASK = 1, 2


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    made = scenes.tokenizer()
    return Vocab(made, len(made), mask_id=MASK, eos_id=EOS, pad_id=0, slot_id=MASK, end_ids=(EOS,))


def chat(*texts: str, **fields: Any) -> Row:
    who = ["human", "gpt"]
    return {"conversations": [{"from": who[i % 2], "value": text} for i, text in enumerate(texts)], **fields}


def targets(parts: Any) -> list[Target]:
    return [part for part in parts if isinstance(part, Target)]


@pytest.mark.parametrize(
    "positions, answer, filled",
    [
        (None, "red cross", ["red", "cross", EOS]),
        (3, "red cross", ["red", "cross", EOS]),
        (3, "yes", ["yes", EOS, EOS]),
        (2, "red cross", ["red", "cross"]),  # the edge of the canvas ends it
        (4, "no", ["no", EOS, EOS, EOS]),
    ],
)
def test_answer_length(positions: int | None, answer: str, filled: list[Any], vocab: Vocab) -> None:
    task = VQA(answer_length=positions)
    row = {"question": "where", "answer": answer}
    expected = [vocab.encode(i)[0] if isinstance(i, str) else i for i in filled]
    parts = task.sample(row, vocab)
    assert targets(parts) == [Target(expected)]
    assert task.parse(expected, vocab) == answer
    assert targets(task.prompt(row, vocab)) == [Target(length=positions or 128)]


def test_scenes_on_a_canvas(vocab: Vocab) -> None:
    rows = scenes.Scenes(6, seed=1)
    task = VQA(answer_length=3)
    for row in rows:
        media, question, target = task.sample(row, vocab)
        assert isinstance(media, Media) and media.kind == "image" and media.data is row["image"]
        assert isinstance(question, Text) and list(question.ids) == vocab.encode(row["question"])
        assert isinstance(target, Target) and task.parse(target.ids or [], vocab) == row["answer"]
        assert task.score(row["answer"], row) == {"exact_match": 1.0}
    cells = VQA(answer_length=8).sample(scenes.SceneCells(3, seed=1)[0], vocab)
    assert len(targets(cells)[0].ids or []) == 8


def test_turns_are_all_targets_and_earlier_ones_are_given_when_generating(vocab: Vocab) -> None:
    row = chat("<image>\nwhat is at the top left", "red cross", "is there a red cross", "yes", image="x")
    task = VQA(answer_length=3)
    red, cross, yes = vocab.encode("red cross yes")
    assert targets(task.sample(row, vocab)) == [Target([red, cross, EOS]), Target([yes, EOS, EOS])]
    prompt = list(task.prompt(row, vocab))
    assert targets(prompt) == [Target(length=3)] == prompt[-1:]
    assert Text([red, cross, EOS]) in prompt  # laid down as in training
    # the last turn may wait for its answer; nothing changes
    waiting = chat("<image>\nwhat is at the top left", "red cross", "is there a red cross", image="x")
    assert list(task.prompt(waiting, vocab)) == prompt
    with pytest.raises(DataError, match="no answer"):
        task.sample(waiting, vocab)


def test_pictures_are_optional_several_or_of_another_kind(vocab: Vocab) -> None:
    task = VQA(answer_length=3, media="photo")
    row = {"question": "is there a red cross", "answer": "no"}
    assert not [part for part in task.sample(row, vocab) if isinstance(part, Media)]
    two = [part for part in task.sample({**row, "image": ["a", "b"]}, vocab) if isinstance(part, Media)]
    assert two == [Media("photo", "a"), Media("photo", "b")]
    array = np.zeros((2, 2, 3), np.uint8)
    (media,) = [part for part in task.sample({**row, "image": array}, vocab) if isinstance(part, Media)]
    assert media.data is array
    batch = collate([task.sample(row, vocab), task.prompt(row, vocab)], vocab)
    assert batch.ids_BL.shape == (2, 8) and batch.target_BL.sum(1).tolist() == [3, 3]


@pytest.mark.parametrize(
    "question, image, order",
    [
        ("where", "x", ["x", "where"]),
        ("<image> where", "x", ["x", "where"]),
        ("where <image>", "x", ["x", "where"]),
        ("what <image> where <image>", ["x", "y"], ["what", "x", "where", "y"]),
        ("where", ["x", "y"], ["x", "y", "where"]),
    ],
)
def test_slots(question: str, image: Any, order: list[str], vocab: Vocab) -> None:
    parts = VQA().sample({"question": question, "image": image, "answer": "no"}, vocab)
    found = [part.data if isinstance(part, Media) else vocab.decode(part.ids or []) for part in parts[:-1]]
    assert [piece for piece in found if piece] == order


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "where", "answer": "top left red cross"}, "cross' takes 4 positions, answer_length is 3"),
        ({"question": "where"}, "no answer"),
        ({"question": "where", "answer": " "}, "empty answer"),
        ({"question": "where", "answer": ["yes", ""]}, "empty answer"),
        ({"question": "where", "answer": 3}, "answer is not text: 3"),
        ({"answer": "no"}, "no question"),
        ({"qestion": "is it red", "answer": "no"}, r'no question: \(did you mean "qestion"'),
        ({"question": "where <image>", "answer": "no"}, "more <image> slots than pictures: 1 slots, 0 pictures"),
        ({"question": "<image> where", "answer": "no", "image": ["a", "b"]}, "fewer <image> slots than pictures: 1 "),
        ({"question": "is there a dog", "answer": "no"}, "the tokenizer does not know the word 'dog'"),
        ({"question": "where", "answer": "nothing much"}, "the tokenizer does not know the word 'much'"),
        ({"question": "where", "where": "rows.json row 7"}, "^rows.json row 7: no answer$"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(row: Row, message: str, vocab: Vocab) -> None:
    with pytest.raises(DataError, match=message):
        VQA(answer_length=3).sample(row, vocab)


def test_parse_stops_at_the_first_end(vocab: Vocab) -> None:
    red, cross = vocab.encode("red cross")
    task = VQA(answer_length=4)
    assert task.parse([red, EOS, cross, cross], vocab) == "red"
    assert task.parse([EOS, red], vocab) == ""
    assert task.parse([red, cross], vocab) == "red cross"


def test_chat_templates_end_answers_with_their_own_token() -> None:
    from mmdiff.backbones.families.llada import toy_tokenizer
    from mmdiff.tasks.dialogue.templates import LLaDAChat

    made = toy_tokenizer()
    eos, mask = made.eos_token_id, made.mask_token_id
    vocab = Vocab(made, len(made), mask_id=mask, eos_id=eos, pad_id=eos, slot_id=mask, end_ids=(eos,))
    task = VQA(answer_length=6, template=LLaDAChat())
    eot = made.convert_tokens_to_ids("<|eot_id|>")
    (target,) = targets(task.sample({"question": "Is it?", "answer": "no"}, vocab))
    said = vocab.encode("no")
    assert list(target.ids or []) == [*said, eot, *[eos] * 6][:6]
    assert task.parse([*said, eot, *said, eos], vocab) == "no"  # although the vocabulary does not list it as an end


# Scores


@pytest.mark.needs("rapidfuzz")
def test_scores_by_name() -> None:
    row = {"question": "?", "answer": ["cat", "dog", "cat"]}
    sets = VQA(metrics=["gqa_accuracy", "textvqa_accuracy"])
    assert sets.score("Cat.", row) == {"gqa_accuracy": 1.0, "textvqa_accuracy": pytest.approx(2 / 3)}
    task = VQA(metrics=["exact_match", "vqa_accuracy", "anls"])
    assert task.score("Cat", row) == {"exact_match": 1.0, "vqa_accuracy": pytest.approx(2 / 3), "anls": 1.0}
    dog = task.score("dog", row)  # one reference: the most frequent; several: any
    assert dog["exact_match"] == 0.0 and dog["anls"] == 1.0 and 0 < dog["vqa_accuracy"] < 1
    assert VQA(metrics="relaxed_accuracy").score("10.2", {"answer": "10"}) == {"relaxed_accuracy": 1.0}
    assert VQA().score("yes", chat("red?", "no", "blue?", "yes")) == {"exact_match": 1.0}
    with pytest.raises(DataError, match="no answer"):
        VQA().score("yes", chat("red?"))


def test_the_most_frequent_answer_is_trained_on(vocab: Vocab) -> None:
    (target,) = targets(VQA().sample({"question": "where", "answer": ["no", "yes", "yes", "no", "one"]}, vocab))
    assert list(target.ids or []) == [*vocab.encode("no"), EOS]  # the first of two equals
    assert answers({"answer": ["no", "yes", "yes"]}) == ["yes", "no", "yes"]


def test_medical_questions_are_scored_by_their_type() -> None:
    task = VQA(metrics=["med_closed", "med_open"])
    closed = {"question": "?", "answer": "yes", "answer_type": "CLOSED"}
    opened = {"question": "?", "answer": "left lung", "answer_type": "OPEN"}
    assert task.score("yes", closed) == {"med_closed": 1.0}
    scores = task.score("the left lobe", opened)
    assert set(scores) == {"open_recall", "open_precision", "open_f1", "open_exact_match"}
    assert scores["open_recall"] == 0.5
    assert len(task.score("yes", {"question": "?", "answer": "yes"})) == 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"metrics": ["exact_mach"]}, r"task.metrics: no metric 'exact_mach' \(did you mean \"exact_match\"\?\)"),
        ({"metrics": "bleu"}, r"task.metrics: no metric 'bleu' \(did you mean \"bleu_."),
        ({"metrics": "spice"}, "task.metrics: no metric 'spice' .*known: anls, bleu_1, .*exact_match"),
        ({"answer_length": 0}, "VQA.answer_length=0: expected a whole number of at least 1"),
        ({"max_new_tokens": 0}, "VQA.max_new_tokens=0: expected a whole number of at least 1"),
    ],
)
def test_arguments(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VQA(**arguments)
