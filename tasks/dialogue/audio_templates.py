"""How the published audio systems lay out a dialogue on a canvas, by the protocol of `templates.py`."""

from __future__ import annotations

from collections.abc import Sequence

from mmdiff.canvas.sample import Media, Part, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.parts import part

from .templates import answer_header, special, turn
from .turns import Content

DIFFA_SYSTEM = "You are a helpful voice assistant."


@part
class DIFFAChat:
    """The dialogue format of DIFFA (arXiv 2507.18452, github.com/NKU-HLT/DIFFA): every sound is announced by
    "This is the audio:", what is asked follows it. White space around what is asked is dropped.

    Two options give the released canvas. Both are slips of the released code that only cost positions, so they are off
    here:
    marker: "<audio>", which marks the position of the sound in the wording, stays there as text, behind the sound.
        Released weights expect it.
    learn_header: the header of an answer is masked and trained like the answer when training, although it is given when
        generating.
    system: None leaves the system turn out.

    Raises ConfigError when the tokenizer lacks one of the special tokens.
    """

    def __init__(self, system: str | None = DIFFA_SYSTEM, *, marker: bool = False, learn_header: bool = False) -> None:
        self.system, self.marker, self.learn_header = system, marker, learn_header

    def end(self, vocab: Vocab) -> int:
        return special("<|eot_id|>", vocab)

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        parts: list[Part] = [Text([special("<|startoftext|>", vocab)])]
        if self.system is not None:
            parts += turn("system", [self.system], vocab)
        header = answer_header(vocab, Target if self.learn_header and train else Text)
        for content, answer in turns:
            parts += [*turn("user", self._announced(content), vocab), *header, answer]
        return parts

    def _announced(self, content: Content) -> Content:
        out: list[str | Media] = []
        for piece in content:
            if isinstance(piece, Media):
                out += ["This is the audio:", piece, " <audio>. " if self.marker else ". "]
            elif piece.strip():
                out += [piece.strip(), " "]
        return out[:-1] if out and out[-1] == " " else out


@part
class WhisperLLaDAChat:
    """The canvas of Whisper-LLaDA (arXiv 2509.16622, github.com/liuzhan22/Diffusion-ASR): LLaDA's chat template over
    what is asked ("Transcribe the audio:"), no system turn, and the sound behind the header of the answer.

    Answers end in EOS, as published: there the longest transcript of a batch has no end id at all; here each has one.

    Raises ConfigError when the tokenizer lacks one of the special tokens.
    """

    def end(self, vocab: Vocab) -> int:
        return vocab.eos_id

    def canvas(self, turns: Sequence[tuple[Content, Text | Target]], vocab: Vocab, *, train: bool) -> list[Part]:
        parts: list[Part] = [Text([special("<|startoftext|>", vocab)])]
        for content, answer in turns:
            asked = [piece.strip() for piece in content if isinstance(piece, str)]
            parts += turn("user", [" ".join(asked)], vocab)
            parts += [*answer_header(vocab), *(p for p in content if isinstance(p, Media)), answer]
        return parts
