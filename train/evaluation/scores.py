"""Results of an evaluation: measures in total and per group, and rows for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .report import Row


class Grouped(Protocol):
    @property
    def group(self) -> str: ...


T = TypeVar("T", bound=Grouped)
ALL = "all"


@dataclass(frozen=True)
class Scores:
    """columns: "all", then each group's name -> measure -> value."""

    columns: dict[str, dict[str, float]]
    rows: list[Row]
    about: dict[str, Any]
    tables: dict[str, dict[str, dict[str, float]]] | None = None  # of the report, by title; None: `columns` is the one


def by_group(items: Sequence[T], metrics: Callable[[Sequence[T]], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Apply `metrics` to the items of each group, if there are several; an item's `group` names its group."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return {name or "other": metrics(part) for name, part in sorted(groups.items())} if len(groups) > 1 else {}
