"""A form: the fields of a JSON value, as a tree. schema.py reads it from a JSON Schema, fill.py fills it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

JSON: TypeAlias = Any
LIST_ITEMS = 5  # of a list that may be longer
MAX_COUNTED = 20  # largest range from which a whole number is chosen; in wider ones it is read from an answer
_COUNTS = 6  # texts that a question how many of something there are costs


@dataclass(frozen=True)
class Field:
    """What all fields have in common. path: "$.car.colour". name: the property's, "" for the root."""

    path: str
    name: str
    description: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """The fields of a Field."""
        return self.path, self.name, self.description

    def __str__(self) -> str:
        return short(self.path)


@dataclass(frozen=True)
class Text(Field):
    """A string of min_length to max_length characters."""

    min_length: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class Choice(Field):
    """One of several values."""

    values: tuple[JSON, ...] = ()


@dataclass(frozen=True)
class Flag(Field):
    """True or false."""


@dataclass(frozen=True)
class Number(Field):
    """A number from low to high, both included."""

    whole: bool = False
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Array(Field):
    """A list of at least min_items items, all different. item: None if there is nothing to fill it with."""

    item: Form | None = None
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True)
class Object(Field):
    """An object with these properties."""

    properties: tuple[tuple[str, Form], ...] = ()


Form: TypeAlias = Text | Choice | Flag | Number | Array | Object


def answers_of(form: Form) -> int:
    """How many texts the model reads or writes to fill a form: answers, values of enums, numbers to choose from."""
    if isinstance(form, Object):
        return sum(answers_of(each) for _, each in form.properties)
    if isinstance(form, Array):
        most = 1 if isinstance(form.item, Text | Choice) else items_of(form)
        return 0 if form.item is None else most * answers_of(form.item)
    if isinstance(form, Choice):
        return len(form.values)
    if isinstance(form, Number) and form.whole:
        return int(form.high - form.low) + 1 if form.high - form.low <= MAX_COUNTED else _COUNTS
    return 2 if isinstance(form, Flag) else 1


def items_of(form: Array) -> int:
    """How many items a list is filled with at most."""
    return max(form.min_items, min(form.max_items or LIST_ITEMS, LIST_ITEMS))


def short(text: str) -> str:
    """A text of the user's, as an error shows it."""
    return text if len(text) <= 120 else f"{text[:117]}..."
