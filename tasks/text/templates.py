"""Chat templates: messages to the canvas, exactly as the published string, and labels from its structure.

    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

A template is Jinja, as a tokenizer's folder or a model's page has it, rendered by transformers in its sandbox. What an
assistant's turn adds to the string before it, up to its end token, is a target; all else is context. So a template must
only ever add to the string when a turn is added; one that does not is refused.

A special token that a person spells out in a message stays text: the string is cut at the special tokens that the
template wrote, and at answers, and each stretch between is encoded by itself.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdiff.canvas.sample import Part, Target, Text
from mmdiff.canvas.vocab import Vocab, check_text, literal
from mmdiff.errors import ConfigError, DataError, line_of
from mmdiff.parts import part

PUBLISHED = {
    # huggingface.co/GSAI-ML/LLaDA-8B-Instruct, tokenizer_config.json; its generation prompt without the condition that
    # transformers brought later
    "llada": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
"""Templates by name, for folders that bring none."""

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]


@part
class ChatTemplate:
    """A Jinja template. template: its text, or a name of `PUBLISHED`; None: that of the model's tokenizer."""

    def __init__(self, template: str | None = None) -> None:
        self.template = PUBLISHED.get(template, template) if template is not None else None
        self._tokens: Tokens | None = None
        if template is not None and template not in PUBLISHED and "{" not in template:
            raise ConfigError(f"template: {template!r:.60} is no Jinja text (known: {', '.join(sorted(PUBLISHED))})")

    def tokens(self, vocab: Vocab) -> Tokens:
        """Returns the tokens that only a template may write: special ones, and all that it puts around messages."""
        if self._tokens is None or self._tokens.tokenizer is not vocab.tokenizer:
            self._tokens = Tokens.of(self, vocab)
        return self._tokens

    def render(self, messages: Messages, vocab: Vocab, *, tools: Any = None, ask: bool = False) -> str:
        """Returns the string. tools: descriptions that the template lays out. ask: with the header of an answer.

        Raises ConfigError where there is no template, DataError where it refuses these messages.
        """
        import jinja2

        template = self.template or vocab.tokenizer.chat_template
        if template is None:
            raise ConfigError(f"template: the tokenizer has none, expected one of {', '.join(sorted(PUBLISHED))}")
        try:
            return str(
                vocab.tokenizer.apply_chat_template(
                    list(messages), tools, chat_template=template, tokenize=False, add_generation_prompt=ask
                )
            )
        except Exception as error:  # of whatever a template does with messages
            cause = line_of(error)
            if isinstance(error, jinja2.TemplateSyntaxError):
                raise ConfigError(f"template: {cause}") from None
            raise DataError(f"the chat template refuses these messages: {cause}") from None

    def sample(self, messages: Messages, vocab: Vocab, *, tools: Any = None, last_only: bool = False) -> list[Part]:
        """Returns the canvas of a dialogue whose assistant turns are targets. Raises DataError where there is none.

        A message of `weight: 0` is none. last_only: the last message is the only target.
        """
        whole = self.render(messages, vocab, tools=tools)
        special = written_by_template(self, messages, whole, vocab, tools)
        answers: list[Span] = []
        for n, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("weight") == 0 or (last_only and n + 1 < len(messages)):
                continue
            before = self.render(messages[:n], vocab, tools=tools, ask=True)
            after = self.render(messages[: n + 1], vocab, tools=tools)
            ends = [end for begin, end in special if len(before) <= begin and end <= len(after)]
            end = max(ends, default=len(after))
            if not whole.startswith(after):  # as templates do that close what they are given with a token of its own
                same = len(os.path.commonprefix([after, whole]))
                end = max((end for end in ends if end <= same), default=0)
                if self.tokens(vocab).every.sub("", after[end:]).strip():
                    end = 0
            if not (after.startswith(before) and whole.startswith(before) and end):
                alone = "; `last_only: true` trains on the last message alone" if n + 1 < len(messages) else ""
                raise DataError(
                    f"message {n + 1}: the template renders a dialogue otherwise once it goes on, so that what the "
                    f"model is asked is not what it is trained on{alone}"
                )
            answers.append((len(before), end))
        if not answers:
            raise DataError("no message of the assistant, which is what is learnt")
        return _parts(whole, special, answers, vocab, self.tokens(vocab))

    def prompt(self, messages: Messages, vocab: Vocab, length: int, *, tools: Any = None) -> list[Part]:
        """Returns the canvas that asks for the next turn of the assistant: the dialogue, and `length` positions."""
        asked = self.render(messages, vocab, tools=tools, ask=True)
        special = written_by_template(self, messages, asked, vocab, tools, ask=True)
        return [*_parts(asked, special, [], vocab, self.tokens(vocab)), Target(length=length)]


@dataclass(frozen=True)
class Tokens:
    """The tokens that only a template may write.

    every: matches them. plain: matches those not declared special, which a tokenizer finds in messages too.
    """

    tokenizer: Any
    every: re.Pattern[str]
    plain: re.Pattern[str]

    @classmethod
    def of(cls, template: ChatTemplate, vocab: Vocab) -> Tokens:
        special = special_tokens(vocab.tokenizer)
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        text = template.render(probe, vocab) + template.render(probe[:1], vocab, ask=True)
        around = {token for token in vocab.tokenizer.get_added_vocab() if token in text} - special
        return cls(vocab.tokenizer, _any_of(special | around), _any_of(around))

    def encode(self, text: str, vocab: Vocab) -> list[int]:
        """Returns the ids of text that is none of these tokens, whatever it spells out."""
        cuts = [0, *(match.start() + 1 for match in self.plain.finditer(text)), len(text)]
        return [i for a, b in zip(cuts[:-1], cuts[1:], strict=True) if a < b for i in literal(text[a:b], vocab)]


def written_by_template(
    template: ChatTemplate, messages: Messages, rendered: str, vocab: Vocab, tools: Any, *, ask: bool = False
) -> list[Span]:
    """Returns where in the string special tokens stand that the template wrote, and no message.

    Raises DataError where a message spells one out and it cannot be known which is which: for a template that changes
    the text of messages, and outside their text.
    """
    token = template.tokens(vocab).every
    found = [match.span() for match in token.finditer(rendered)]
    if not any(token.search(text) for text in _strings([*messages, tools])):
        return found
    outside = [{k: v for k, v in message.items() if k != "content"} for message in messages]
    if any(token.search(text) for text in _strings([*outside, tools])):
        raise DataError("a special token is spelled out in a part of a message that is not its content")
    mark = "\ue000"  # of private use, and in no text from here on
    if mark in rendered:
        raise DataError(f"a message holds the character {mark!a}, beside a special token that is spelled out")
    named = [
        {**m, "content": f"{mark}{n}{mark}"} if isinstance(m.get("content"), str) else m for n, m in enumerate(messages)
    ]
    skeleton = re.split(f"{mark}(\\d+){mark}", template.render(named, vocab, tools=tools, ask=ask))
    for trimmed in (False, True):
        texts = [str(messages[int(n)]["content"]) for n in skeleton[1::2]]
        pieces = list(skeleton)
        pieces[1::2] = [text.strip() if trimmed else text for text in texts]
        if "".join(pieces) == rendered:
            spans, at = [], 0
            for n, piece in enumerate(pieces):
                spans += [] if n % 2 else [(at + a, at + b) for a, b in (m.span() for m in token.finditer(piece))]
                at += len(piece)
            return spans
    raise DataError("a message spells a special token out, and the template changes the text of messages")


def _parts(text: str, special: Sequence[Span], answers: Sequence[Span], vocab: Vocab, known: Tokens) -> list[Part]:
    """Returns the canvas of a string: special tokens are ids, answers targets, each stretch is encoded by itself."""
    cuts = sorted({0, len(text), *(edge for span in (*special, *answers) for edge in span)})
    tokens = {begin: text[begin:end] for begin, end in special}
    parts: list[Part] = []
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        piece, target = text[begin:end], any(a <= begin < b for a, b in answers)
        ids = [vocab.id_of(piece, "template")] if tokens.get(begin) == piece else known.encode(piece, vocab)
        kind = Target if target else Text
        if parts and isinstance(parts[-1], kind) and begin not in {a for a, _ in answers}:
            parts[-1] = kind([*(parts[-1].ids or ()), *ids])
        else:
            parts.append(kind(ids))
    return parts


def special_tokens(tokenizer: Any) -> set[str]:
    """Returns the tokens that `split_special_tokens` makes text of: those with a role, and others declared special."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    """Returns what matches any of the tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=lambda t: (-len(t), t)))) or r"(?!)")


def _strings(value: Any) -> Iterator[str]:
    """Yields all strings in a value, those of nested ones too, and checks that each is text."""
    if isinstance(value, str):
        check_text(value)
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(name)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
