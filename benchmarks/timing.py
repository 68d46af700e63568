"""Helpers for the benchmarks: alternating measurements and aligned output."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def timed(call: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """Call and return the result with the wall-clock time in seconds."""
    start = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - start


def seconds(call: Callable[..., object], *arguments: Any) -> float:
    """Return the wall-clock time of a call."""
    return timed(call, *arguments)[1]


def alternate(candidates: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Measure candidates in turns, so that a noisy machine affects all of them alike, after one warm-up run each."""
    for measure in candidates.values():
        measure()
    values: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, measure in candidates.items():
            values[name].append(measure())
    return values


def typical(values: Sequence[float], digits: int = 0, best: Callable[[Sequence[float]], float] = min) -> str:
    """Format the median with the best value in parentheses."""
    return f"{statistics.median(values):.{digits}f} ({best(values):.{digits}f})"


def show(name: str, value: str, note: str = "") -> None:
    print(f"{name:60s} {value:20s} {note}".rstrip(), flush=True)
