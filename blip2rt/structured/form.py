"""A form: the fields of a JSON value, as a tree. schema.py reads it from a JSON Schema, fill.py fills it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

JSON: TypeAlias = Any


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


def short(text: str) -> str:
    """A text of the user's, as an error shows it."""
    return text if len(text) <= 120 else f"{text[:117]}..."
