"""JSON schemas, against texts that are of them and texts that are not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError
from mmdiff.samplers.grammars.automaton import of_regular
from mmdiff.samplers.grammars.schema import Schema
from tests.core.samplers.grammars.grammar_texts import Noise, filled, runs, texts

pytestmark = pytest.mark.needs("outlines_core")


SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string", "minLength": 1, "maxLength": 2}, ['"é"', r'"\"a"'], ['""', '"abc"', '"a']),
    ({"type": "string", "pattern": "a+"}, ['"bab"', '"a"'], ['"b"']),
    ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"ab"']),
    ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-02-30"', '"2024-13-01"']),
    ({"type": ["integer", "null"]}, ["-12", "null", "0"], ["01", "1.0", "nul"]),
    ({"const": {"a": [1, "x"]}}, ['{"a": [1, "x"]}'], ['{"a": [1]}']),
    ({"type": "integer", "enum": [1, "b", True]}, ["1"], ['"b"', "true"]),
    ({"type": "array", "items": {"type": "null"}, "minItems": 1}, ["[null]", "[null, null]"], ["[]", "[null,]"]),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"const": 1}]}, ["[null, 1]"], ["[null]"]),
    ({"type": "object", "additionalProperties": {"const": 1}}, ["{}", '{"a": 1, "b": 1}'], ['{"a": 2}', '{"a"}']),
    (
        {"type": "object", "properties": {k: {"const": 1} for k in 'a"c'}, "required": ['"']},
        [r'{"\"": 1}', r'{"a": 1, "\"": 1}', r'{"\"":1,"c":1}'],
        ["{}", '{"a": 1}', r'{"\"": 1,}', r'{,"\"": 1}'],
    ),
    (
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}},
        ["{}", '{"n": {}}', '{"n": {"n": {}}}'],
        ['{"n": null}'],
    ),
    ({"anyOf": [{"type": "boolean"}, True]}, ["true", '{"x": [1, {"y": []}]}', '"x"'], ["yes"]),
]


def accepts(grammar: Any, text: str) -> bool:
    return runs(of_regular(grammar.regular()), text)


@pytest.mark.parametrize(("schema", "valid", "others"), SCHEMAS, ids=[f"{i}" for i in range(len(SCHEMAS))])
def test_schemas(schema: Any, valid: list[str], others: list[str]) -> None:
    grammar = Schema(json.dumps(schema))
    assert [text for text in valid if not accepts(grammar, text)] == []
    assert [text for text in others if accepts(grammar, text)] == []
    for text in valid:
        json.loads(text)


def test_texts_of_a_schema_are_those_of_another_implementation(vocab: Vocab) -> None:
    from outlines_core.json_schema import build_regex_from_schema

    kinds: list[Any] = [{"type": kind} for kind in ("integer", "number", "boolean", "null")]
    kinds = [{"type": "string", "maxLength": 3}, *kinds]
    kinds += [{"enum": ["a.b", 2, None]}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]
    properties = {f"p{i}": kind for i, kind in enumerate(kinds)}
    schema = {"type": "object", "properties": properties, "required": ["p0", "p3"]}
    theirs = re.compile(build_regex_from_schema(json.dumps(schema)))
    seen = set()
    for seed in range(3):
        named: dict[str, Any] = dict(denoise=Noise(vocab, seed, scale=6.0), temperature=1.0, steps=3)
        out = filled(vocab, *[Target(length=n) for n in (28, 60, 100)], grammar=Schema(schema, spaces="none"), **named)
        for text in texts(vocab, out):
            signed = re.sub(r"([0-9][eE])([0-9])", r"\1+\2", text)  # they want a sign there
            assert theirs.fullmatch(signed), text
            seen |= json.loads(text).keys()
    assert {"p0", "p3"} < seen


@pytest.mark.parametrize(
    ("schema", "line"),
    [
        ({"type": "number", "minimum": 0}, r"schema.minimum: cannot be held"),
        ({"type": "object", "properties": {"a": {"oneOf": []}}}, r"schema.properties.a: oneOf without a type"),
        ({"type": "string", "maxlength": 3}, r"did you mean .maxLength"),
        ({"type": "string", "pattern": ".*"}, "may hold a quote"),
        ({"type": "string", "pattern": "(?=a)"}, "no regular expression"),
        ({"type": "object", "required": ["a"]}, "'a' is not among the properties"),
        ({"$ref": "#/$defs/x"}, "is not there"),
        ({"$ref": 3}, "3 is not a text"),
        ({"type": "object", "properties": ["a"]}, "is not a mapping"),
        ({"enum": 3}, "3 is not a list"),
        ({"type": 3}, "3 is not a type"),
        ({"type": "strin"}, "did you mean .string"),
        ({"type": ["string", {}]}, "known: array"),
        ({"type": "string", "minLength": -1}, "is not a whole number"),
        ({"anyOf": [3]}, "is not a schema"),
        ({"type": "integer", "minimum": 0}, "expected both"),
        ("{", "not JSON"),
        ("3", "is not a schema"),
    ],
    ids=str,
)
def test_what_a_schema_says_and_cannot_be_held_is_refused(schema: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        of_regular(Schema(schema).regular())
