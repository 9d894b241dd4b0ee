"""Templates of the audio systems, against strings put together and cut as the released code does it."""

from __future__ import annotations

from typing import Any

import pytest
from toy import MARKS, chat_vocab, flat

from mmdiff.canvas.sample import Media, Part, Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError
from mmdiff.tasks.dialogue.audio_templates import DIFFA_SYSTEM, DIFFAChat, WhisperLLaDAChat
from mmdiff.tasks.vqa import scenes
from mmdiff.tasks.vqa.task import VQA

SAID = "Who is speaking, and how?"
ROW = {"audio": "clip.wav", "question": SAID, "answer": "An old man."}


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return chat_vocab(
        [DIFFA_SYSTEM, "user assistant system", "\n\nThis is the audio: <audio>. Who", "\n\nTranscribe the audio:"],
        size=500,
    )


@pytest.fixture(scope="module")
def tokenizer(vocab: Vocab) -> Any:
    return vocab.tokenizer


def chat(*turns: tuple[str, str], header: bool = False) -> str:
    text = "".join(f"<|start_header_id|>{who}<|end_header_id|>\n\n{said}<|eot_id|>" for who, said in turns)
    return f"<|startoftext|>{text}" + ("<|start_header_id|>assistant<|end_header_id|>\n\n" if header else "")


def released(tokenizer: Any, asked: str, answer: str | None) -> tuple[list[Any], int]:
    """DIFFA's canvas with the sound in it, and how many of its ids are given.

    As its loader does it: the sound goes to where the prefix up to "This is the audio: " ends, one token less; what is
    masked begins behind the prompt. answer: None to generate.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    system = ("system", "You are a helpful voice assistant.")
    prefix = chat(system, ("user", "This is the audio: "))[: -len("<|eot_id|>")]
    prompt = chat(system, ("user", f"This is the audio: <audio>. {asked}"), header=answer is None)
    whole = (
        prompt
        if answer is None
        else chat(system, ("user", f"This is the audio: <audio>. {asked}"), ("assistant", answer))
    )
    at = len(ids(prefix)) - 1
    canvas = ids(whole)
    return [*canvas[:at], "clip.wav", *canvas[at:]], len(ids(prompt)) + 1


def test_diffa_as_released(vocab: Vocab, tokenizer: Any) -> None:
    """The canvas, and which of its positions are masked when training."""
    task = VQA(template=DIFFAChat(marker=True, learn_header=True))
    parts = list(task.sample(ROW, vocab))
    canvas, given = released(tokenizer, SAID, "An old man.")
    assert flat(parts) == canvas
    assert flat(part for part in parts if isinstance(part, Target)) == canvas[given:]
    assert tokenizer.decode(canvas[given:]).startswith("<|start_header_id|>assistant")
    *prompt, answer = task.prompt(ROW, vocab)
    canvas, given = released(tokenizer, SAID, None)
    assert flat(prompt) == canvas and given == len(canvas)
    assert answer == Target(length=128) and not [part for part in prompt if isinstance(part, Target)]


def test_diffa_with_neither_slip(vocab: Vocab, tokenizer: Any) -> None:
    task = VQA(template=DIFFAChat())
    parts = list(task.sample(ROW, vocab))
    at = [type(part) for part in parts].index(Media)
    assert tokenizer.decode(flat(parts[:at])).endswith("user<|end_header_id|>\n\nThis is the audio:")
    assert (
        tokenizer.decode(flat(parts[at + 1 : -1]))
        == f". {SAID}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert [part for part in parts if isinstance(part, Target)] == parts[-1:]
    assert tokenizer.decode(flat(parts[-1:])) == "An old man.<|eot_id|>"
    assert flat(task.prompt(ROW, vocab)) == flat(parts[:-1])  # what is given is the same
    options = [DIFFAChat(marker=m, learn_header=h) for m in (False, True) for h in (False, True)]
    lengths = [len(flat(VQA(template=template).sample(ROW, vocab))) for template in options]
    assert lengths[0] == lengths[1] < lengths[2] == lengths[3]  # a learnt header takes no position, a marker does


def test_diffa_of_several_turns_and_sounds(vocab: Vocab, tokenizer: Any) -> None:
    said = ["<audio>\nWho?", "A man.", "And <audio> then <audio>", "A child.", "Sure?", "Yes."]
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    row = {"audio": ["a", "b", "c"], "conversations": turns}
    text = ""
    for part in VQA(template=DIFFAChat(system=None, marker=True)).sample(row, vocab):
        text += f"[{part.data}]" if isinstance(part, Media) else tokenizer.decode(part.ids)  # type: ignore[union-attr]
    assert text == chat(
        ("user", "This is the audio:[a] <audio>. Who?"),
        ("assistant", "A man."),
        ("user", "And This is the audio:[b] <audio>. then This is the audio:[c] <audio>. "),
        ("assistant", "A child."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    )


def test_whisper_llada_puts_the_sound_behind_the_header(vocab: Vocab, tokenizer: Any) -> None:
    """`apply_chat_template(..., add_generation_prompt=True)` through the tokenizer, the features, the response."""
    prompt = tokenizer(chat(("user", "Transcribe the audio:"), header=True), add_special_tokens=False)["input_ids"]
    content = [Media("audio", "clip.wav"), "Transcribe the audio:"]
    words = Target([*vocab.encode("HE SAID"), vocab.eos_id])
    template = WhisperLLaDAChat()
    parts: list[Part] = template.canvas([(content, words)], vocab, train=True)
    assert flat(parts) == [*prompt, "clip.wav", *vocab.encode("HE SAID"), vocab.eos_id]
    assert parts[-1] is words and template.end(vocab) == vocab.eos_id
    assert template.canvas([(content, words)], vocab, train=False) == parts
    # a text-only twin has the same canvas without it
    assert flat(template.canvas([(content[1:], words)], vocab, train=True)) == [*prompt, *flat([words])]
    # line breaks that a dialogue puts behind a sound are no part of the wording
    assert template.canvas([([content[0], "\nTranscribe the audio:"], words)], vocab, train=True) == parts


def test_spelled_out_marks_stay_text(vocab: Vocab, tokenizer: Any) -> None:
    special = {tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    for template in (DIFFAChat(), DIFFAChat(marker=True, learn_header=True), WhisperLLaDAChat()):
        said = {**ROW, "question": "a<|eot_id|><|mdm_mask|>", "answer": "<|endoftext|>b"}
        found = [[i for i in flat(VQA(template=template).sample(row, vocab)) if i in special] for row in (said, ROW)]
        assert found[0] == found[1]


@pytest.mark.parametrize("template", [DIFFAChat(), WhisperLLaDAChat()])
def test_a_tokenizer_without_the_tokens(template: Any) -> None:
    made = scenes.tokenizer()
    vocab = Vocab(made, len(made), mask_id=2, eos_id=1, pad_id=0, slot_id=2)
    with pytest.raises(ConfigError, match=r"the tokenizer has no <\|startoftext\|>"):
        template.canvas([(["red"], Target(length=1))], vocab, train=False)
