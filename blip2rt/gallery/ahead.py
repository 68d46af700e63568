"""Decodes pictures on threads ahead of the graphs. Knows how many may be in memory, nothing about what is made of them.

Pictures are numbered as they come, and cut into cells of `batch`. A cell goes through the graphs together, so which
pictures share a batch does not depend on when a run before was ended: what is left of a cell whose first pictures are
done is made as the whole cell was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import ImageError
from .pictures import Fault, Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..pipeline import Pipeline

    Prepared = NDArray[np.uint8]

CELLS_AHEAD = 2  # that are decoded while others are in the graphs
T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A picture in its place. what: what is to be done with it; None: it is done already."""

    number: int
    picture: Picture
    what: T | None


@dataclass(frozen=True)
class Cell(Generic[T]):
    """Pictures that go through the graphs together, and what could not be read before them.

    rows: the entries that were decoded, and their pixels, RGB (height, width, 3).
    faults: in the order of the walk, with the number of the picture that comes next.
    """

    first: int  # the number of the cell's first picture
    rows: list[tuple[Entry[T], Prepared]]
    faults: list[tuple[int, Fault]]
    done: int  # pictures that were done already

    @property
    def new(self) -> bool:
        """Whether a row is there that is not done."""
        return any(entry.what is not None for entry, _ in self.rows)


@dataclass(frozen=True)
class Pace:
    """batch: pictures of a cell. workers: threads that decode. lanes: cells that are in the graphs at a time.

    threads: of each lane's graphs, which the model is to be loaded with; None: load's own.
    """

    batch: int
    workers: int
    lanes: int = 1
    threads: int | None = None


def cells(
    model: Pipeline, walked: Iterable[Picture | Fault], what: Callable[[Picture], T | Fault | None], pace: Pace
) -> Iterator[Cell[T]]:
    """Pictures -> decoded cells, in order.

    what: what is to be done with a picture, None where that is nothing, or why it cannot be done.
    """
    pool = ThreadPoolExecutor(pace.workers, "blip2rt-decode")
    waiting: deque[_Waiting[T]] = deque()
    try:
        for gathered in _gathered(walked, what, pace.batch):
            waiting.append(_Waiting(gathered, [pool.submit(_prepared, model, e.picture) for e in gathered.needed]))
            if len(waiting) > CELLS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepared(model: Pipeline, picture: Picture) -> Prepared | Fault:
    try:
        return model.prepare(picture.source())
    except ImageError as error:
        return Fault(picture.name, str(error))
    except OSError as error:
        return Fault(picture.name, f"cannot read {picture.name!r}: {error.strerror}")


@dataclass
class _Gathered(Generic[T]):
    """A cell before it is decoded."""

    first: int
    entries: list[Entry[T]]
    faults: list[tuple[int, Fault]]

    @property
    def needed(self) -> list[Entry[T]]:
        """What is decoded. A cell of which the first pictures are done, and no others, was broken off: all of it."""
        todo = [entry for entry in self.entries if entry.what is not None]
        broken_off = todo and todo == self.entries[len(self.entries) - len(todo) :]
        return self.entries if broken_off else todo


@dataclass
class _Waiting(Generic[T]):
    gathered: _Gathered[T]
    futures: list[Future[Prepared | Fault]]

    def result(self) -> Cell[T]:
        rows, faults = [], list(self.gathered.faults)
        for entry, future in zip(self.gathered.needed, self.futures, strict=True):
            made = future.result()
            if isinstance(made, Fault):
                faults.append((entry.number, made))
            else:
                rows.append((entry, made))
        done = sum(entry.what is None for entry in self.gathered.entries)
        return Cell(self.gathered.first, rows, sorted(faults, key=lambda pair: pair[0]), done)


def _gathered(
    walked: Iterable[Picture | Fault], what: Callable[[Picture], T | Fault | None], batch: int
) -> Iterator[_Gathered[T]]:
    gathered: _Gathered[T] = _Gathered(0, [], [])
    number = 0
    for each in walked:
        plan = each if isinstance(each, Fault) else what(each)
        if isinstance(plan, Fault):
            gathered.faults.append((number, plan))
        if isinstance(each, Fault):
            continue
        if not isinstance(plan, Fault):
            gathered.entries.append(Entry(number, each, plan))
        number += 1
        if number % batch == 0:
            yield gathered
            gathered = _Gathered(number, [], [])
    if gathered.entries or gathered.faults:
        yield gathered
