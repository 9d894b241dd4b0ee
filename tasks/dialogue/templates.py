"""How a dialogue is laid out on a canvas: what stands around the questions, and which id ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmdiff.canvas.sample import Media, Part, Target, Text
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.errors import ConfigError, nearest
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0

from .turns import Content

LLADA_V_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class Template(Protocol):
    """The format of a dialogue."""

    def end(self, vocab: Vocab) -> int:
        """Returns the id that ends an answer."""
        ...

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        """Returns the whole sample. The answers are on it as they are given, with their end id."""
        ...


@part
class Plain:
    """Pictures, question and answer, and nothing else; ends in EOS. White space around texts is dropped."""

    def end(self, vocab: Vocab) -> int:
        return vocab.eos_id

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        parts: list[Part] = []
        for content, answer in turns:
            for piece in content:
                parts.append(piece if isinstance(piece, Media) else Text(literal(piece.strip(), vocab)))
            parts.append(answer)
        return parts


@part
class LLaDAChat:
    """The dialogue format of LLaDA-8B-Instruct and LLaDA-V (github.com/ML-GSAI/LLaDA-V, template llava_llada).

    system: None leaves the system turn out. LLaDA-MedV has its own text.
    suffix: put behind every user turn; the last LLaDA-V stage was trained with " /think" and " /no_think".
    structural: train on the tokens that LLaDA-V's labels hold besides the answers: the headers of assistant turns, and
        every begin, header and end-of-turn token of the dialogue. They carry no information; for parity.

    Raises ConfigError when the tokenizer lacks one of the tokens.
    """

    def __init__(self, system: str | None = LLADA_V_SYSTEM, suffix: str = "", structural: bool = False) -> None:
        self.system, self.suffix, self.structural = system, suffix, structural

    def end(self, vocab: Vocab) -> int:
        return special("<|eot_id|>", vocab)

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        kind = Target if self.structural and train else Text
        parts: list[Part] = [kind([special("<|startoftext|>", vocab)])]
        if self.system is not None:
            parts += turn("system", [self.system], vocab, kind)
        for content, answer in turns:
            parts += [*turn("user", [*content, self.suffix], vocab, kind), *answer_header(vocab, kind), answer]
        return parts


@part
class ChatML:
    """The dialogue format of Qwen and Dream, with LLaVA's system text: LaViDa-Dream (arXiv 2505.16839).

    system: None leaves the system turn out. behind: what stands between a picture and the text behind it. around: the
        tokens before and behind each picture, two of them or none: of Dream-VL <|vision_start|> and <|vision_end|>,
        between which it is laid out by rows and columns. Raises ConfigError when the tokenizer lacks one of the tokens.
    """

    def __init__(
        self, system: str | None = LLADA_V_SYSTEM, behind: str = "\n", around: Sequence[str | AtLeast0] = ()
    ) -> None:
        self.system, self.behind, self.around = system, behind, around

    def end(self, vocab: Vocab) -> int:
        return special("<|im_end|>", vocab)

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        parts: list[Part] = [] if self.system is None else self._turn("system", [self.system], vocab)
        for i, (content, answer) in enumerate(turns):
            before = [] if i == 0 else [Text(literal("\n", vocab))]  # behind the end id of the answer before
            start = [Text([special("<|im_start|>", vocab)]), Text(literal("assistant\n", vocab))]
            parts += [*before, *self._turn("user", content, vocab), *start, answer]
        return parts

    def _turn(self, role: str, content: Content, vocab: Vocab) -> list[Part]:
        spoken = marked(joined([f"{role}\n", *touching(content, self.behind)]), self.around, vocab)
        ends = [Text([special("<|im_end|>", vocab)]), Text(literal("\n", vocab))]
        return [Text([special("<|im_start|>", vocab)]), *spoken, *ends]


@part
class GemmaChat:
    """The dialogue format of Gemma 4 and DiffusionGemma; the text behind a picture follows it at once.

    around: the ids or tokens before and behind each picture: <|image> and <image|>. opening: what stands before an
        answer that is asked for; Gemma 4's larger models have an empty thought there, "<|channel>thought\\n<channel|>".
    system: None leaves the system turn out. Raises ConfigError when the tokenizer lacks one of the tokens.
    """

    def __init__(
        self,
        system: str | None = None,
        opening: str = "",
        around: Sequence[str | AtLeast0] = ("<|image>", "<image|>"),
    ) -> None:
        self.system, self.opening, self.around = system, opening, around

    def end(self, vocab: Vocab) -> int:
        return special("<turn|>", vocab)

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        parts: list[Part] = [Text([vocab.bos_id])] if vocab.bos_id is not None else []
        if self.system is not None:
            parts += self._turn("system", [self.system.strip()], vocab)
        for i, (content, answer) in enumerate(turns):
            before = [] if i == 0 else [Text(literal("\n", vocab))]  # behind the end id of the answer before
            spoken = touching(content, "")
            start = [Text([special("<|turn>", vocab)]), Text(literal("model\n", vocab))]
            opening = vocab.tokenizer(self.opening, add_special_tokens=False)["input_ids"] if self.opening else []
            parts += [
                *before,
                *self._turn("user", spoken, vocab),
                *start,
                *([Text(opening)] if opening else []),
                answer,
            ]
        return parts

    def _turn(self, role: str, content: Content, vocab: Vocab) -> list[Part]:
        spoken = marked(joined([f"{role}\n", *content]), self.around, vocab)
        ends = [Text([special("<turn|>", vocab)]), Text(literal("\n", vocab))]
        return [Text([special("<|turn>", vocab)]), *spoken, *ends]


Kind = type[Text] | type[Target]


def turn(role: str, content: Content, vocab: Vocab, kind: Kind = Text) -> list[Part]:
    """Returns a whole turn of LLaDA's format, from its header to its end. kind: what its structural tokens become.

    Its text is encoded with the line breaks in front of it, as it is in the written-out string.
    """
    pieces = joined(["\n\n", *content])
    spoken = [piece if isinstance(piece, Media) else Text(literal(piece, vocab)) for piece in pieces]
    return [*_header(role, vocab, kind), *spoken, kind([special("<|eot_id|>", vocab)])]


def answer_header(vocab: Vocab, kind: Kind = Text) -> list[Part]:
    """Returns the header in front of an answer, with its line breaks; all of it is of `kind`."""
    return [*_header("assistant", vocab, kind), kind(literal("\n\n", vocab))]


def _header(role: str, vocab: Vocab, kind: Kind) -> list[Part]:
    start, end = (kind([special(token, vocab)]) for token in ("<|start_header_id|>", "<|end_header_id|>"))
    return [start, (kind if role == "assistant" else Text)(literal(role, vocab)), end]


def touching(content: Content, behind: str) -> Content:
    """Returns the content with `behind` in place of the line break that follows each of its media."""
    out: list[str | Media] = []
    for piece in content:
        if isinstance(piece, str) and out and isinstance(out[-1], Media) and piece.startswith("\n"):
            piece = behind + piece[1:]
        out.append(piece)
    return out


def marked(content: Content, around: Sequence[str | int], vocab: Vocab) -> list[Part]:
    """Returns the parts of the canvas that a content is, with a token before and one behind each of its media.

    around: the two tokens, or their ids; empty: none. Raises ConfigError for one that the tokenizer has not.
    """
    if len(around) not in (0, 2):
        raise ConfigError(f"template.around: {list(around)!r}, expected two tokens or none")
    ids = [special(token, vocab) if isinstance(token, str) else token for token in around]
    parts: list[Part] = []
    for piece in content:
        if isinstance(piece, str):
            parts.append(Text(literal(piece, vocab)))
        else:
            parts += [Text(ids[:1]), piece, Text(ids[1:])] if ids else [piece]
    return parts


def joined(content: Content) -> Content:
    """Returns the content with neighbouring texts as one.

    A tokenizer may merge across the seam, as it does in the written-out string.
    """
    out: list[str | Media] = []
    for piece in content:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece != "":
            out.append(piece)
    return out


def special(token: str, vocab: Vocab) -> int:
    """Returns the id of a special token. Raises ConfigError when the tokenizer does not have it."""
    tokenizer = vocab.tokenizer
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ConfigError(f"template: the tokenizer has no {token}{nearest(token, tokenizer.get_added_vocab())}")
    return int(found)
