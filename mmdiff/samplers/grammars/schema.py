"""JSON Schema as a regular language: every text of it parses and is valid. What cannot be held so is refused.

Recursion (`$ref`, and the values of an object or array of which nothing is said) goes to a depth. Objects have
the properties that are named, in the order in which they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmdiff.errors import ConfigError, nearest
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0

from .automaton import byte_automaton
from .regular import Expression, Regular, Writer, either, joined, literal, repeated, unanchored

CHARACTER = r'(?:[^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt])'
INTEGER = "-?(?:0|[1-9][0-9]*)"
PLAIN = {
    "integer": INTEGER,
    "number": rf"{INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?",
    "boolean": "(?:true|false)",
    "null": "null",
}
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"[1-9][0-9]{{3}}-{_DAY}"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
SPACES = {"none": "", "one": "[ ]?", "any": r"[ \t\r\n]*"}
SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
SAYS_NOTHING |= {"$schema", "$id", "$comment", "$defs", "definitions"}
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
SHAPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(["properties"], ((dict,), "a mapping")),
    **dict.fromkeys(["required", "enum", "anyOf", "prefixItems"], ((list, tuple), "a list")),
    **dict.fromkeys(["minLength", "maxLength", "minItems", "maxItems"], ((int,), "a whole number of at least 0")),
    **dict.fromkeys(["pattern", "format", "$ref"], ((str,), "a text")),
    **dict.fromkeys(["type"], ((str, list, tuple), "a type or a list of types")),
}
MOST_NUMBERS = 10_000  # of an integer between two bounds: each is written out


@part
@dataclass(frozen=True)
class Schema:
    """The text is a JSON value that a schema describes.

    schema: a mapping, or its JSON text (in which a property may also be called `target`). depth: how often a value may
    lie within one of its own kind. spaces: between the parts of a value: none, at most `one`, or `any` white space.
    null: as in `mmdiff.samplers.grammars.pattern.Pattern`.
    """

    schema: Mapping[str, Any] | str
    depth: AtLeast0 = 3
    spaces: Literal["none", "one", "any"] = "one"
    null: str | None = None

    def regular(self) -> Regular:
        writer, root = Writer(), self.mapping()
        found = Compiler(root, SPACES[self.spaces], writer.word, writer).value(root, "", ())
        return writer.done(found, self.depth)

    def mapping(self) -> Mapping[str, Any]:
        """Returns the schema. Raises ConfigError where it is none."""
        schema: Any = self.schema
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise ConfigError(f"sampler.constraint.schema: not JSON: {error}") from None
        if not isinstance(schema, Mapping):
            raise ConfigError(f"sampler.constraint.schema: {schema!r:.80} is not a schema, expected a mapping")
        return schema


@dataclass(frozen=True)
class Compiler:
    """root: the whole schema, in which references are looked up. word: `Writer.word`."""

    root: Mapping[str, Any]
    space: str
    word: Callable[[Expression], Expression]
    writer: Writer

    def value(self, node: Any, where: str, within: tuple[str, ...]) -> Expression:
        """Returns the expression of a value. within: the references that the value lies in, and `any` for each value
        of which nothing is said."""
        if node is True:
            node = {}
        if not isinstance(node, Mapping):
            raise wrong(where, f"{node!r:.80} is not a schema, expected a mapping")
        says = {name: item for name, item in node.items() if name not in SAYS_NOTHING}
        for name, beside in (("$ref", set()), ("anyOf", set()), ("enum", {"type"}), ("const", {"type"})):
            if name in says:
                self.only(says, {name, *beside}, where)
                return getattr(self, f"of_{name.strip('$')}")(says, where, within)
        kinds = says.get("type", list(TYPES) if not says else None)
        if kinds is None:
            raise wrong(where, f"{', '.join(says)} without a type cannot be held")
        if not says and "any" in within:
            return self.writer.rule("any", lambda: self.value({}, where, ()))
        within = within if says else (*within, "any")
        self.only({"type": kinds}, {"type"}, where)
        kinds = [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]
        self.only(says, {"type"}.union(*(KEYWORDS.get(kind, ()) for kind in kinds)), where)
        return either(self.of_kind(kind, says, where, within) for kind in kinds)

    def only(self, says: Mapping[str, Any], known: set[str], where: str) -> None:
        """Raises ConfigError for a keyword that is not known here, or is not what it must be."""
        for name, item in says.items():
            if name not in known:
                raise wrong(f"{where}.{name}", f"cannot be held here{nearest(str(name), known)}")
            kinds, expected = SHAPES.get(name, ((object,), ""))
            if not isinstance(item, kinds) or kinds == (int,) and (isinstance(item, bool) or says[name] < 0):
                raise wrong(f"{where}.{name}", f"{item!r:.40} is not {expected}")

    def of_ref(self, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        name, found = says["$ref"], self.root
        if not (name == "#" or name.startswith("#/")):
            raise wrong(f"{where}.$ref", f"{name!r:.80} is not in this schema, expected #/...")
        for key in name.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise wrong(f"{where}.$ref", f"{name!r:.80} is not there")
            found = found[key]
        if name in within:
            return self.writer.rule(name, lambda: self.value(found, f"{where}.$ref", (name,)))
        return self.value(found, f"{where}.$ref", (*within, name))

    def of_anyOf(self, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        return either(self.value(node, f"{where}.anyOf.{i}", within) for i, node in enumerate(says["anyOf"]))

    def of_const(self, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        return self.of_enum({**says, "enum": [says["const"]]}, where, within)

    def of_enum(self, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        kinds = says.get("type", list(TYPES))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        fits = [v for v in says["enum"] if any(type(v) in TYPES.get(str(kind), ()) for kind in kinds)]
        return self.word(either(literal(json.dumps(value, ensure_ascii=False)) for value in fits))

    def of_kind(self, kind: str, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        if kind not in TYPES:
            raise wrong(f"{where}.type", f"{kind!r:.80}{nearest(str(kind), TYPES)}")
        if kind == "string":
            return self.word(joined('"', self.string(says, where), '"'))
        if kind == "integer" and ("minimum" in says or "maximum" in says):
            low, high = says.get("minimum"), says.get("maximum")
            if not isinstance(low, int) or not isinstance(high, int) or high - low >= MOST_NUMBERS:
                raise wrong(
                    where, f"minimum and maximum: expected both, with at most {MOST_NUMBERS} numbers from one on"
                )
            return self.word(either(map(str, range(low, high + 1))))
        if kind in PLAIN:
            return self.word(PLAIN[kind])
        return (self.array if kind == "array" else self.object)(says, where, within)

    def string(self, says: Mapping[str, Any], where: str) -> Expression:
        if len(says.keys() & KEYWORDS["string"] - {"minLength"}) > 1 or says.keys() >= {"pattern", "minLength"}:
            raise wrong(where, "pattern, format and lengths of one string cannot be held together")
        if "format" in says:
            if says["format"] not in FORMATS:
                raise wrong(f"{where}.format", f"{says['format']!r:.80}{nearest(str(says['format']), FORMATS)}")
            return FORMATS[says["format"]]
        if "pattern" in says:
            inner, begins, ends = unanchored(says["pattern"])
            used = byte_automaton(f"(?:{inner})", f"{where.lstrip('.')}.pattern").bytes_used()
            if used & {ord('"'), ord("\\"), *range(32)}:
                raise wrong(
                    f"{where}.pattern", 'may hold a quote, backslash or control character; write [^"\\\\] for .'
                )
            rest = repeated(CHARACTER) or ""
            return joined("" if begins else rest, "(?:", inner, ")", "" if ends else rest)
        return repeated(CHARACTER, says.get("minLength", 0), says.get("maxLength"))

    def array(self, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        comma, low, high = self.word(f"{self.space},{self.space}"), says.get("minItems", 0), says.get("maxItems")
        if "prefixItems" in says:
            if says.keys() & {"minItems", "maxItems"} or says.get("items") not in (None, False):
                raise wrong(where, "prefixItems stand alone, or with items: false")
            fixed = [self.value(node, f"{where}.prefixItems.{i}", within) for i, node in enumerate(says["prefixItems"])]
            items = joined(*[x for item in fixed for x in (comma, item)][1:])
        else:
            item = self.value(says.get("items", True), f"{where}.items", within)
            more = repeated(joined(comma, item), max(low - 1, 0), None if high is None else max(high - 1, 0))
            some = None if high == 0 else joined(item, more)
            items = either([some] if low else [some, ""])
        return joined(self.word(rf"\[{self.space}"), items, self.word(rf"{self.space}\]"))

    def object(self, says: Mapping[str, Any], where: str, within: tuple[str, ...]) -> Expression:
        colon, comma = f"{self.space}:{self.space}", self.word(f"{self.space},{self.space}")
        properties, needed = says.get("properties", {}), says.get("required", [])
        for name in needed:
            if name not in properties:
                raise wrong(f"{where}.required", f"{name!r:.80} is not among the properties")
        if not properties:
            extra = says.get("additionalProperties", True)
            value = None if extra is False else self.value(extra, f"{where}.additionalProperties", within)
            entry = joined(self.word(f'"{CHARACTER}*"{colon}'), value)
            inside = either([joined(entry, repeated(joined(comma, entry))), ""])
        else:
            entries = {}
            for name, node in properties.items():
                value = self.value(node, f"{where}.properties.{name}", within)
                entries[name] = joined(self.word(literal(json.dumps(name, ensure_ascii=False)) + colon), value)
            inside = self.listed(entries, needed, comma)
        return joined(self.word(rf"\{{{self.space}"), inside, self.word(rf"{self.space}\}}"))

    def listed(self, entries: Mapping[str, Expression], needed: list[str], comma: Expression) -> Expression:
        """Returns the entries with commas between them; those that are not needed may be left out."""
        names, options = list(entries), []
        for i, first in enumerate(names):
            behind = []
            for name in names[i + 1 :]:
                one = joined(comma, entries[name])
                behind.append(one if name in needed else repeated(one, 0, 1))
            options.append(joined(entries[first], *behind))
            if first in needed:
                return either(options)
        return either([*options, ""])


def wrong(where: str, line: str) -> ConfigError:
    """Returns the error for a place in the schema."""
    return ConfigError(f"sampler.constraint.schema{where}: {line}")
