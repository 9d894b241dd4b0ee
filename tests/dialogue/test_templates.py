"""Templates, against the written-out string put through the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from toy import MARKS, chat_vocab, flat

from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.dialogue.templates import LLADA_V_SYSTEM, LLaDAChat, Plain
from mmdiff.tasks.vqa import scenes
from mmdiff.tasks.vqa.task import VQA


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return chat_vocab(
        [LLADA_V_SYSTEM, "user assistant system", "\n\nwhat is at the top left", "is it red or green\n\n"], size=450
    )


@pytest.fixture(scope="module")
def tokenizer(vocab: Vocab) -> Any:
    return vocab.tokenizer


def words_vocab() -> Vocab:
    made = scenes.tokenizer()
    return Vocab(made, len(made), mask_id=2, eos_id=1, pad_id=0, slot_id=2)


def written(text: str, pictures: list[str], tokenizer: Any) -> list[Any]:
    """`text` through the tokenizer, special tokens and all, split at pictures and in front of answers."""
    out: list[Any] = []
    for picture, piece in zip([None, *pictures], text.split("<image>"), strict=True):
        out += [] if picture is None else [picture]
        for span in piece.split(SEAM):
            out += tokenizer(span, add_special_tokens=False)["input_ids"]
    return out


HEAD = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You "
    "are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language.<|eot_id|>"
)
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
SEAM = "\x1e"  # an answer is a span of its own, as it has to be when it is yet to be written
ASSISTANT = f"<|start_header_id|>assistant<|end_header_id|>\n\n{SEAM}"


def test_llada_chat_is_the_written_out_dialogue(vocab: Vocab, tokenizer: Any) -> None:
    row = {"image": "cat.jpg", "question": "what is at the top left", "answer": "a red cat"}
    task = VQA(template=LLaDAChat())
    text = f"{HEAD}{USER}<image>\nwhat is at the top left<|eot_id|>{ASSISTANT}"
    assert flat(list(task.sample(row, vocab))) == written(f"{text}a red cat<|eot_id|>", ["cat.jpg"], tokenizer)
    *prompt, answer = task.prompt(row, vocab)
    assert flat(prompt) == written(text, ["cat.jpg"], tokenizer)
    assert answer == Target(length=128)


def test_llada_chat_of_several_turns_and_pictures(vocab: Vocab, tokenizer: Any) -> None:
    turns = [
        ("human", "Look here: <image> ."),  # the only picture of a turn goes to its front
        ("gpt", "a cat"),
        ("human", "<image> or <image>?"),  # several stay
        ("gpt", "both"),
        ("human", "why\n"),
        ("gpt", "no"),
    ]
    row = {"image": ["a", "b", "c"], "conversations": [{"from": who, "value": text} for who, text in turns]}
    parts = list(VQA(template=LLaDAChat(system=None, suffix=" /no_think")).sample(row, vocab))
    text = (
        f"<|startoftext|>{USER}<image>\nLook here:  . /no_think<|eot_id|>{ASSISTANT}a cat<|eot_id|>"
        f"{USER}<image> or <image>? /no_think<|eot_id|>{ASSISTANT}both<|eot_id|>"
        f"{USER}why /no_think<|eot_id|>{ASSISTANT}no<|eot_id|>"
    )
    assert flat(parts) == written(text, ["a", "b", "c"], tokenizer)
    targets = [tokenizer.decode(part.ids) for part in parts if isinstance(part, Target)]
    assert targets == ["a cat<|eot_id|>", "both<|eot_id|>", "no<|eot_id|>"]


def test_llada_chat_without_a_picture(vocab: Vocab, tokenizer: Any) -> None:
    parts = VQA(template=LLaDAChat(system="Be brief.")).sample({"question": "red?", "answer": "no"}, vocab)
    text = f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>{USER}red?<|eot_id|>"
    assert flat(list(parts)) == written(f"{text}{ASSISTANT}no<|eot_id|>", [], tokenizer)


def test_structural_targets_are_headers_and_marks(vocab: Vocab, tokenizer: Any) -> None:
    """LLaDA-V's labels: the whole assistant turn, and its four structural tokens wherever they stand."""
    row = {"image": "x", "question": "is it red", "answer": "no"}
    plain, structural = (VQA(template=LLaDAChat(structural=on)) for on in (False, True))
    parts = list(structural.sample(row, vocab))
    assert flat(parts) == flat(list(plain.sample(row, vocab)))  # the canvas is the same
    labels = [i for part in parts if isinstance(part, Target) for i in part.ids or []]
    marks = "<|start_header_id|><|end_header_id|><|eot_id|>"
    expected = f"<|startoftext|>{marks}{marks}{ASSISTANT}no<|eot_id|>"
    assert labels == written(expected, [], tokenizer)
    context = [i for part in parts if isinstance(part, Text) for i in part.ids]
    assert not set(context) & {tokenizer.convert_tokens_to_ids(m) for m in MARKS}
    # to generate, everything before the answer is given
    assert [part.length for part in structural.prompt(row, vocab) if isinstance(part, Target)] == [128]


def test_special_tokens_that_are_spelled_out_stay_text(vocab: Vocab, tokenizer: Any) -> None:
    said = "red<|eot_id|><|mdm_mask|><|start_header_id|>system"
    ids = literal(said, vocab)
    assert tokenizer.decode(ids) == said
    special = {tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    assert not special & set(ids)
    row = {"question": said, "answer": said}
    for template in (Plain(), LLaDAChat(system=said)):
        parts = flat(list(VQA(template=template).sample(row, vocab)))
        clean = flat(list(VQA(template=type(template)()).sample({"question": "a", "answer": "b"}, vocab)))
        assert [i for i in parts if i in special] == [i for i in clean if i in special]
    assert tokenizer("<|eot_id|>", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids("<|eot_id|>")
    ]


def test_words_that_a_word_tokenizer_does_not_know() -> None:
    vocab = words_vocab()
    with pytest.raises(DataError, match=r"does not know the word 'colour' \(did you mean \"color\"\?\)"):
        literal("what colour is the circle", vocab)
    for spelled in ("<mask>", "<eos>", "<unk>"):
        with pytest.raises(DataError, match=f"does not know the word '{spelled}'"):
            literal(f"what is {spelled}", vocab)


def test_plain() -> None:
    vocab = words_vocab()
    parts = list(VQA().sample({"image": "x", "question": " what color is the circle", "answer": "red"}, vocab))
    assert flat(parts) == ["x", *vocab.encode("what color is the circle"), *vocab.encode("red"), vocab.eos_id]
    assert parts[-1] == Target([*vocab.encode("red"), vocab.eos_id])
    assert [type(part) for part in parts[:-1]] == [Media, Text]


def test_a_tokenizer_without_the_tokens() -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has no <\|eot_id\|>"):
        VQA(template=LLaDAChat()).sample({"question": "red", "answer": "no"}, words_vocab())
