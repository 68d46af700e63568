"""JSON Schema -> a form: a tree of fields that a picture can fill. The rest is an OptionError that names the field.

A form is smaller than its schema: references are resolved, and of several alternatives the first that can be filled
stays. Every value that a form describes is valid under its schema. Knows nothing of pictures and models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from ..errors import OptionError
from .form import JSON, Array, Choice, Field, Flag, Form, Number, Object, Text, short
from .questions import LABEL_WORDS, is_personal, words_of

MAX_FIELDS = 100  # of a schema, objects and the least items of lists included; most cost a question
MAX_DEPTH = 16
MAX_CHOICES = 64  # of an enum
MAX_CHOICE_LENGTH = 4000  # characters of all choices together: the language model reads each of them
MAX_REFERENCES = 64  # $ref and allOf that lead to a field
MAX_MIN_ITEMS = 16
MAX_MIN_LENGTH = 200  # characters; BLIP-2's texts are short

_KEYWORDS = {
    "object": "properties required".split(),
    "array": "items minItems maxItems uniqueItems".split(),
    "string": "minLength maxLength".split(),
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum".split(),
}
_KEYWORDS["integer"] = _KEYWORDS["number"]
_REJECTED_TEXT = frozenset("pattern format contentEncoding contentMediaType".split())
_REJECTED = frozenset(
    "not if then else oneOf allOf anyOf multipleOf patternProperties propertyNames minProperties maxProperties "
    "dependentRequired dependentSchemas dependencies contains minContains maxContains prefixItems additionalItems "
    "unevaluatedItems unevaluatedProperties $dynamicRef $recursiveRef $id".split()
)
_PERSONAL = "no picture shows this of people: leave it out, or allow null"
_KNOWN = _REJECTED.union(_REJECTED_TEXT, *_KEYWORDS.values())
_VALIDATING = _KNOWN | {"type", "enum", "const", "additionalProperties", "$ref"}


class _CannotFill(OptionError):
    """A field that no picture fills. An optional or nullable one is left out; otherwise the schema is rejected."""


def read(schema: JSON) -> Form:
    """JSON Schema -> form. Raises OptionError, which names the field."""
    try:
        root = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"$: the schema is not JSON: {error}") from None
    if isinstance(root, dict):
        root.pop("$id", None)
    return _Reader(root).form(root, _Place("$", ""))


@dataclass(frozen=True)
class _Place:
    """Where a schema stands. refs: the references that lead to it."""

    path: str
    name: str
    depth: int = 0
    refs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return short(self.path)

    def inside(self, path: str, name: str) -> _Place:
        return replace(self, path=self.path + path, name=name, depth=self.depth + 1)


class _Reader:
    def __init__(self, root: JSON) -> None:
        self._root = root
        self._fields = 0

    def form(self, schema: JSON, place: _Place) -> Form:
        self._count(place)
        if place.depth == MAX_DEPTH:
            raise OptionError(f"{place}: the schema is nested deeper than {MAX_DEPTH} levels: flatten it")
        schema, place = self._resolved({} if schema is True else schema, place)
        kind = schema.get("type")
        kinds = kind if isinstance(kind, list) else [kind]
        if kind is not None and not (kinds and all(isinstance(each, str) and each in _TYPES for each in kinds)):
            raise OptionError(f"{place}: JSON Schema has no type {short(repr(kind))}")
        if "anyOf" in schema:
            return self._first(schema, place)
        if "const" in schema or "enum" in schema:
            return self._choice(schema, _field(schema, place))
        if isinstance(kind, list):
            return self._first({"anyOf": [{**schema, "type": each} for each in kind]}, place)
        return self._typed(schema, kind, place)

    def _typed(self, schema: dict[str, Any], kind: JSON, place: _Place) -> Form:
        if kind is None:
            kind = next((kind for kind, words in _KEYWORDS.items() if any(word in schema for word in words)), "string")
        self._check_keywords(schema, kind, place)
        field = _field(schema, place)
        if kind == "object":
            return self._object(schema, field, place)
        if kind == "array":
            return self._array(schema, field, place)
        if kind == "null":
            return Choice(*field.parts, (None,))
        if kind != "string" and is_personal(place.name, field.description if kind == "boolean" else ""):
            raise _CannotFill(f"{place}: {_PERSONAL}")
        if kind == "boolean":
            return Flag(*field.parts)
        if kind == "string":
            return _text(schema, field)
        return _number(schema, field, kind == "integer")

    def _count(self, place: _Place | Field, more: int = 1) -> None:
        self._fields += more
        if self._fields > MAX_FIELDS:
            raise OptionError(f"{place}: the schema has more than {MAX_FIELDS} fields: ask for fewer")

    def _resolved(self, schema: JSON, place: _Place) -> tuple[dict[str, Any], _Place]:
        """Follow $ref and merge allOf."""
        for _ in range(MAX_REFERENCES):
            if not isinstance(schema, dict):
                raise _CannotFill(f"{place}: its schema is {short(repr(schema))}, not an object")
            reference, parts, key = schema.get("$ref"), schema.get("allOf"), "allOf"
            if reference is not None:
                if reference in place.refs:
                    raise _CannotFill(f"{place}: its schema contains itself: give the levels one by one")
                place = replace(place, refs=(*place.refs, reference))
                parts, key = [self._target(reference, place)], "$ref"
            if parts is None:
                return schema, place
            if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], dict):
                raise _CannotFill(f"{place}: allOf of several schemas is not supported: merge them")
            schema = _joined({name: value for name, value in schema.items() if name != key}, parts[0], place)
        raise OptionError(f"{place}: more than {MAX_REFERENCES} references lead to its schema: shorten the chain")

    def _target(self, reference: JSON, place: _Place) -> JSON:
        found = self._root
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise OptionError(f"{place}: $ref {short(repr(reference))} is outside the schema: use #/$defs/NAME")
        for key in unquote(reference).split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found or "$id" in found:
                raise OptionError(f"{place}: $ref {short(reference)} names nothing in the schema")
            found = found[key]
        return found

    def _first(self, schema: dict[str, Any], place: _Place) -> Form:
        """The first alternative that can be filled; null is the last resort."""
        branches = schema["anyOf"]
        if not isinstance(branches, list) or not branches:
            raise OptionError(f"{place}: anyOf must be a list of schemas")
        is_list = any(isinstance(each, dict) and each.get("type") == "array" for each in branches)
        if is_list and schema.get("default", 0) is None and not LABEL_WORDS.intersection(words_of(place.name)):
            branches = [each for each in branches if _is_null(each)] or branches  # "concerns" are no question
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        wrong: _CannotFill | None = None
        for branch in sorted(branches, key=_is_null):
            try:
                branch = {} if branch is True else branch
                whole = _joined(rest, branch, place) if isinstance(branch, dict) else branch
                return self.form(whole, replace(place, depth=place.depth + 1))
            except _CannotFill as error:
                wrong = wrong or error
        assert wrong is not None
        raise wrong

    def _check_keywords(self, schema: dict[str, Any], kind: JSON, place: _Place) -> None:
        allowed = _KEYWORDS.get(kind, ())
        for keyword in schema:
            if keyword in _REJECTED or (kind == "string" and keyword in _REJECTED_TEXT):
                raise _CannotFill(f"{place}: {keyword} is not supported: leave it out, or allow null")
            if keyword in _KNOWN and keyword not in allowed and schema.get("type") is None:
                raise _CannotFill(f"{place}: {keyword} does not fit the other keywords: give its type")

    def _choice(self, schema: dict[str, Any], field: Field) -> Form:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
            raise _CannotFill(f"{field}: enum must list texts, numbers, true, false or null")
        other = [key for key in schema if key in _KNOWN or (key == "enum" and "const" in schema)]
        if other:
            raise _CannotFill(f"{field}: {other[0]} stands beside const or enum: leave it out")
        kinds = schema.get("type")
        values = list({_key(value): value for value in values if kinds is None or _has_type(value, kinds)}.values())
        if not values:
            raise _CannotFill(f"{field}: enum has no value of its type: correct one of them")
        if len(values) > 1 and is_personal(field.name):
            if None not in values:
                raise _CannotFill(f"{field}: {_PERSONAL}")
            values = [None]
        if len(values) > MAX_CHOICES:
            raise OptionError(f"{field}: enum has {len(values)} values: give {MAX_CHOICES} at most")
        if len(values) > 1 and (size := sum(len(str(value)) for value in values)) > MAX_CHOICE_LENGTH:
            raise OptionError(f"{field}: enum has {size:,} characters: give {MAX_CHOICE_LENGTH:,} at most")
        return Choice(*field.parts, tuple(values))

    def _object(self, schema: dict[str, Any], field: Field, place: _Place) -> Object:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        named = isinstance(required, list) and all(isinstance(name, str) for name in required)
        if not isinstance(properties, dict) or not named:
            raise OptionError(f"{field}: properties must be an object, and required a list of names")
        filled = []
        for name in dict.fromkeys([*properties, *required]):
            inner = place.inside(f".{name}", name)
            found = properties.get(name, schema.get("additionalProperties", {}))
            if found is False and name in required:
                raise _CannotFill(f"{inner}: it is required, and its object does not allow it: describe it")
            try:
                filled.append((name, self.form(found, inner)))
            except _CannotFill:
                if name in required:
                    raise
        return Object(*field.parts, tuple(filled))

    def _array(self, schema: dict[str, Any], field: Field, place: _Place) -> Array:
        least, most = _whole(schema, "minItems", field) or 0, _whole(schema, "maxItems", field)
        if least > MAX_MIN_ITEMS:
            raise OptionError(f"{field}: minItems is {least}: ask for {MAX_MIN_ITEMS} at most")
        if most is not None and most < least:
            raise _CannotFill(f"{field}: maxItems is below minItems: swap them")
        item, before = None, self._fields
        try:
            inner = place.inside("[]", place.name)
            item = self.form(schema.get("items", {}), inner)
        except _CannotFill:
            if least:
                raise
        self._count(field, max(least - 1, 0) * (self._fields - before))
        if least > 1 and schema.get("uniqueItems"):
            raise _CannotFill(f"{field}: its items cannot all be different: lower minItems")
        return Array(*field.parts, item, least, most)


def _field(schema: dict[str, Any], place: _Place) -> Field:
    about = schema.get("description") or schema.get("title") or ""
    return Field(place.path, place.name, about[:2000] if isinstance(about, str) else "")


def _text(schema: dict[str, Any], field: Field) -> Text:
    least, most = _whole(schema, "minLength", field) or 0, _whole(schema, "maxLength", field)
    if most is not None and most < least:
        raise _CannotFill(f"{field}: maxLength is below minLength: swap them")
    if least > MAX_MIN_LENGTH:
        raise _CannotFill(f"{field}: minLength is {least}: ask for {MAX_MIN_LENGTH} at most")
    return Text(*field.parts, least, most)


def _number(schema: dict[str, Any], field: Field, whole: bool) -> Number:
    def limit(keyword: str, default: float, inside: Callable[[float], float]) -> float:
        value = schema.get(keyword)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:
            raise _CannotFill(f"{field}: {keyword} is {short(repr(value))}, not a number up to 1e15")
        return inside(value)

    def next_to(value: float, to: float) -> float:
        return math.nextafter(value, to) if not whole else math.floor(value) + 1 if to > 0 else math.ceil(value) - 1

    low = max(
        limit("minimum", -math.inf, math.ceil if whole else float),
        limit("exclusiveMinimum", -math.inf, lambda value: next_to(value, math.inf)),
    )
    high = min(
        limit("maximum", math.inf, math.floor if whole else float),
        limit("exclusiveMaximum", math.inf, lambda value: next_to(value, -math.inf)),
    )
    if low > high:
        raise _CannotFill(f"{field}: no number is within its limits: correct them")
    return Number(*field.parts, whole, low, high)


def _whole(schema: dict[str, Any], keyword: str, field: Field) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        raise OptionError(f"{field}: {keyword} is {short(repr(value))}: give a whole number from 0 up")
    return int(value)


def _joined(schema: dict[str, Any], part: dict[str, Any], place: _Place) -> dict[str, Any]:
    """A schema and what it refers to -> one. Raises _CannotFill if it has more than descriptions of its own."""
    if both := [key for key in schema if key in _VALIDATING]:
        raise _CannotFill(f"{place}: {both[0]} stands beside $ref, allOf or anyOf: move it there")
    return {**part, **schema}


def _key(value: JSON) -> str:
    """A text that equal values share: 1 equals 1.0, and not true."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)


_TYPES: dict[str, Callable[[JSON], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


def _has_type(value: JSON, kinds: JSON) -> bool:
    return any(_TYPES[kind](value) for kind in (kinds if isinstance(kinds, list) else [kinds]))


def _is_null(branch: JSON) -> bool:
    return isinstance(branch, dict) and (branch.get("type") == "null" or branch.get("const", 0) is None)
