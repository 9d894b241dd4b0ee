"""A regular expression, or a list of texts, as the language of a target span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmdiff.errors import ConfigError
from mmdiff.parts import part

from .regular import Regular, either, literal, of_regex, unanchored


@part
@dataclass(frozen=True)
class Pattern:
    """The whole text matches a regular expression, in the syntax of Rust's crate `regex`.

    null: a token, as it is spelled, that may stand anywhere and is no part of the text (`scaffold.text_of`).
    """

    pattern: str
    null: str | None = None

    def regular(self) -> Regular:
        return of_regex(unanchored(self.pattern)[0])


@part
@dataclass(frozen=True)
class Choices:
    """The text is one of a list. null: as in `Pattern`."""

    choices: Sequence[str]
    null: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or not self.choices or not all(isinstance(c, str) for c in self.choices):
            raise ConfigError(f"sampler.constraint.choices: {self.choices!r:.80} is not a list of texts")

    def regular(self) -> Regular:
        return of_regex(either(map(literal, self.choices)) or "")
