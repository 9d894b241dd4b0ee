"""One word, one meaning: words that the glossary replaces stay out of the names and docstrings of the product."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from paths import ROOT

ROOMS = ("mmdiff", "encoders", "tasks")
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")


class Rule(NamedTuple):
    """word: a regular expression; for a name it must match all of it. instead: what to write. rooms: where it holds."""

    word: str
    instead: str
    rooms: tuple[str, ...] = ROOMS


CORE = ("mmdiff", "encoders", "tasks/dialogue")
NAMES = [
    Rule(r"_?wanted_\w+|want_\w+", "masked_..."),
    Rule(r"only_[A-Z]+", "allowed_ids_..."),
    Rule(r"parent_[A-Z]+|rows_R", "row_R"),
    Rule(r"_?places?(_[A-Z]+)?", "positions", (*CORE, "tasks/asr", "tasks/protein", "tasks/vla")),
    Rule(r"opened(_[A-Z]+)?|open_[A-Z]+", "masked_..."),
    Rule(r"_?written(_[A-Z]+)?|Written", "committed_..."),
    Rule(r"_?told|_say", "log, summary_line", (*CORE, "tasks/vqa", "tasks/protein", "tasks/vla")),
    Rule(r"answering", "config_entries, prediction"),
    Rule(r"keep_read", "sample_cache_mb"),
    Rule(r"by_budget|make_room|_room", "token_budget, batch_by_tokens"),
    Rule(r"Views|_?views?_[A-Z]+", "NoisedBatch, copies or crops"),
    Rule(r"_?said|said_\w+|_?heard\w*|Heard", "line, found, hypothesis"),
    Rule(r"reopen|relay|relaid", "remask, relayout"),
    Rule(r"heat|heated|sure_[A-Z]+", "temperature, confidence_..."),
    Rule(r"unit_[A-Z]+", "block_..."),
    Rule(r"OPEN|open_positions", "MASKED", ("tasks/protein", "mmdiff")),
    Rule(r"priced|Asked", "bounds, PromptCanvas"),
]
UNITS = "nats|features|tokens|positions|steps|forwards|rows|layouts|letters|bytes|seconds"
DOCSTRINGS = [
    Rule(r"(wanted|open) (places?|positions?)", "masked positions"),
    Rule(rf"({UNITS}) an? [a-z]+", "per", (*CORE, "tasks/vqa", "tasks/asr", "tasks/protein", "tasks/vla")),
    Rule(r"(goes|go|going) on with", "resume"),
    Rule(r"(noisy|noised) views?", "noised copies"),
    Rule(r"budget of (places|positions)", "token budget"),
]


@cache
def trees(room: str) -> list[tuple[Path, ast.Module]]:
    files = sorted((ROOT / room).rglob("*.py"))
    return [(file.relative_to(ROOT), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


@cache
def names_of(room: str) -> dict[str, str]:
    """Name -> file and line where it first stands."""
    found: dict[str, str] = {}
    for file, tree in trees(room):
        for line, name in names(tree):
            found.setdefault(name, f"{file}:{line}")
    return found


@cache
def docstrings_of(room: str) -> list[tuple[str, str]]:
    """(file and line, docstring)."""
    return [(f"{file}:{line}", text) for file, tree in trees(room) for line, text in docstrings(tree)]


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that is defined, assigned, passed or looked up."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if (text := ast.get_docstring(node)) is not None:
                yield getattr(node, "lineno", 1), " ".join(text.split())


def test_every_kind_of_name_is_seen() -> None:
    source = "class A:\n  def b(self, c, *, d: int = e) -> None:\n    f.g = h(i=1)"
    assert {name for _, name in names(ast.parse(source))} >= set("Abcdefghi")
    assert [text for _, text in docstrings(ast.parse('def f():\n  """x\n  y"""'))] == ["x y"]


@pytest.mark.parametrize("rule", NAMES, ids=lambda rule: rule.word)
def test_names(rule: Rule) -> None:
    word = re.compile(rule.word)
    found = {f"{at} {name}" for room in rule.rooms for name, at in names_of(room).items() if word.fullmatch(name)}
    assert not found, f"write {rule.instead}"


@pytest.mark.parametrize("rule", DOCSTRINGS, ids=lambda rule: rule.word)
def test_docstrings(rule: Rule) -> None:
    found = {
        f"{at} {match.group()}"
        for room in rule.rooms
        for at, text in docstrings_of(room)
        if (match := re.search(rf"\b(?:{rule.word})\b", text))
    }
    assert not found, f"write {rule.instead}"


def test_the_glossary_has_forty_terms_at_most_and_names_what_is_in_the_code() -> None:
    table = [line.strip("|").split("|") for line in GLOSSARY.splitlines() if line.startswith("| ")][1:]
    terms = [cells[0].strip() for cells in table]
    assert 0 < len(terms) <= 40 and len(set(terms)) == len(terms)
    used = {name for room in ROOMS for name in names_of(room)}
    named = {name for cells in table for name in re.findall(r"`(\w+)`", cells[2])}
    assert named <= used, named - used
    for _, sentence, _ in table:
        assert sentence.strip().endswith(".")


def test_public_names_say_what_they_are() -> None:
    """Classes and functions of a file that others may use have a docstring; what is overloaded has one."""
    bare = []
    for file, tree in (pair for room in ROOMS for pair in trees(room)):
        seen: dict[str, bool] = {}
        for node in tree.body:
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if named and not node.name.startswith("_"):
                seen[node.name] = seen.get(node.name, False) or ast.get_docstring(node) is not None
        bare += [f"{file}: {name}" for name, explained in seen.items() if not explained]
    assert not bare, "write what it is, with shapes, units and errors"
