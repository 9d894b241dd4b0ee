"""A context-free grammar in EBNF, as lark reads it, held to a depth of recursion.

Which strings may stand at several positions at once is a question with a finite answer only for regular languages.
Lists and operators (rules that begin or end with themselves) are regular, and are held whole; a rule that stands inside
itself, as in parentheses, is held to a depth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mmdiff.errors import ConfigError, require
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0

from .regular import Expression, Regular, Writer, either, joined, literal, repeated

QUOTED = r'"(?:[^"\\\n]|\\.)*"'  # lark's ESCAPED_STRING, which looks behind itself


@part
@dataclass(frozen=True)
class Ebnf:
    """The text is one that a grammar of lark derives, from its rule `start`, read without a lexer.

    depth: how often a rule may stand inside itself. null: as in `mmdiff.samplers.grammars.pattern.Pattern`.
    """

    grammar: str
    start: str = "start"
    depth: AtLeast0 = 3
    null: str | None = None

    def regular(self) -> Regular:
        require("lark", "structured")
        import lark
        import regex

        for name in re.findall(r"^\s*%import\s+(\S+)", self.grammar, re.M):
            if not name.startswith("common."):
                raise ConfigError(f"sampler.constraint.grammar: %import {name:.40}: expected common.<name>")
        try:
            read = lark.Lark(self.grammar, start=self.start, parser="earley", maybe_placeholders=False)
        except (lark.exceptions.LarkError, re.error, regex.error, ValueError) as error:
            raise ConfigError(f"sampler.constraint.grammar: {' '.join(str(error).split()):.200}") from None
        rules: dict[str, list[list[Any]]] = {}
        for rule in read.rules:
            rules.setdefault(rule.origin.name, []).append(list(rule.expansion))
        terminals = {terminal.name: _expression(terminal.pattern) for terminal in read.terminals}
        writer = Writer()
        skipped = repeated(either(writer.word(terminals[name]) for name in read.ignore_tokens)) or ""
        behind = {name: joined(writer.word(text), skipped) for name, text in terminals.items()}
        return writer.done(joined(skipped, Unrolled(rules, behind, writer).rule(self.start, ())), self.depth)


@dataclass(frozen=True)
class Unrolled:
    """Rules of a grammar as expressions, where a rule within itself is written as a symbol.

    rules: the alternatives of each rule. terminals: expressions of the terminals. writer: makes rules of symbols.
    """

    rules: dict[str, list[list[Any]]]
    terminals: dict[str, Expression]
    writer: Writer

    def rule(self, name: str, within: tuple[str, ...]) -> Expression:
        """Returns the expression of a rule. within: the rules that it stands in; if it is one of them, its symbol."""
        if name in within:
            return self.writer.rule(name, lambda: self._rule(name, (name,)))
        return self._rule(name, (*within, name))

    def _rule(self, name: str, within: tuple[str, ...]) -> Expression:
        """N = a | N b | c N has the strings c* a b*, which ends the recursion at either side (Arden's lemma)."""
        before, alone, behind = [], [], []
        for symbols in self.rules[name]:
            if symbols and not symbols[0].is_term and symbols[0].name == name:
                behind.append(self._sequence(symbols[1:], within))
            elif symbols and not symbols[-1].is_term and symbols[-1].name == name:
                before.append(self._sequence(symbols[:-1], within))
            else:
                alone.append(self._sequence(symbols, within))
        return joined(repeated(either(before)), either(alone), repeated(either(behind)))

    def _sequence(self, symbols: list[Any], within: tuple[str, ...]) -> Expression:
        return joined(*(self.terminals[s.name] if s.is_term else self.rule(s.name, within) for s in symbols))


def _expression(pattern: Any) -> str:
    flags = "".join(sorted(pattern.flags))
    text = literal(pattern.value) if pattern.type == "str" else str(pattern.value)
    if pattern.type == "re" and r"(?<!\\)" in text and text.startswith('"') and text.endswith('"'):
        text = QUOTED
    return f"(?{flags}:{text})" if flags else text
