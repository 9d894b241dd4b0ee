"""Regular expressions over words: texts are first written as a sequence of words, each a regular expression itself.

An expression is a string in which each word is one character (`SYMBOLS`), so that repeated words stay small. It may
hold rules, too: expressions that stand in themselves, which are put in to a depth. None stands for the language without
any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mmdiff.errors import ConfigError

Expression = str | None
LONGEST = 2**20
"""Most characters of one expression: a small grammar can be that of a very large one."""
SYMBOLS = range(0xE000, 0xF900)
"""Characters of private use, one for each word."""


@dataclass(frozen=True)
class Regular:
    """root: over words and rules. words: the regular expression of each symbol, None for a rule. rules: by symbol."""

    root: Expression
    words: tuple[str | None, ...]
    rules: tuple[tuple[int, Expression], ...] = ()
    depth: int = 0

    def within(self, before: str, behind: str) -> Regular:
        """Returns the texts with two others around them."""
        a, b = (chr(SYMBOLS[len(self.words) + i]) for i in range(2))
        root = joined(a, "(?:", self.root, ")", b)
        return Regular(root, (*self.words, literal(before), literal(behind)), self.rules, self.depth)


@dataclass
class Writer:
    """Collects the words and rules of a grammar as its expressions are written."""

    words: dict[str, str] = field(default_factory=dict)  # a regular expression -> its symbol; a rule by its name
    rules: dict[str, Expression] = field(default_factory=dict)

    def word(self, regex: Expression) -> Expression:
        """Returns the symbol of a regular expression. Raises ConfigError where there are too many."""
        return None if regex is None else self._symbol(f"word {regex}")

    def rule(self, name: str, make: Callable[[], Expression]) -> Expression:
        """Returns the symbol of a rule, and has its expression made the first time."""
        if name not in self.rules:
            self.rules[name] = None  # for within `make` it may come again
            self.rules[name] = make()
        return self._symbol(f"rule {name}")

    def done(self, root: Expression, depth: int) -> Regular:
        words = [key.removeprefix("word ") if key.startswith("word ") else None for key in self.words]
        rules = [(SYMBOLS.index(ord(self._symbol(f"rule {name}"))), made) for name, made in self.rules.items()]
        return Regular(root, tuple(words), tuple(rules), depth)

    def _symbol(self, key: str) -> str:
        if len(self.words) > len(SYMBOLS) - 3:
            raise ConfigError(f"sampler.constraint: over {len(SYMBOLS)} different words")
        return self.words.setdefault(key, chr(SYMBOLS[len(self.words)]))


def of_regex(regex: str) -> Regular:
    """Returns the expression of a regular expression."""
    return Regular(chr(SYMBOLS[0]), (regex,))


def literal(text: str) -> str:
    """Returns the expression of one string."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in text)


def joined(*parts: Expression) -> Expression:
    """Returns one part after the other. Raises ConfigError where that becomes too long."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    if sum(map(len, found)) > LONGEST:
        raise ConfigError(f"sampler.constraint: its regular expression has over {LONGEST} characters")
    return "".join(found)


def either(options: Iterable[Expression]) -> Expression:
    """Returns one of the options; those without a string are left out."""
    found = list(dict.fromkeys(option for option in options if option is not None))
    return joined("(?:", "|".join(found), ")") if found else None


def repeated(part: Expression, least: int = 0, most: int | None = None) -> Expression:
    """Returns a part so many times."""
    if part is None or most == 0:
        return None if least else ""
    return joined("(?:", part, f"){{{least},{'' if most is None else most}}}")


def unanchored(pattern: str) -> tuple[str, bool, bool]:
    """Returns an expression without `^` at its beginning and `$` at its end, and whether it had them."""
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(?:\\\\)*\$$", pattern) is not None
    return pattern[begins : len(pattern) - ends], begins, ends
