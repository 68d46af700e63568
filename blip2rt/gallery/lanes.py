"""Lanes: threads that work on several things at a time, with results in order. Knows nothing about pictures.

Graphs that use every core wait for their slowest thread at the end of each operator, and leave cores idle while Python,
the tokenizer or the search works. Two lanes of half of the cores fill each other's holes. They share a model, and its
weights.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(items: Iterable[T], work: Callable[[T], R], lanes: int) -> Iterator[tuple[T, R]]:
    """Items, and what `work` makes of each, in the order of the items.

    So many lanes work at a time, and one item more waits for the first that is free. One lane is the caller's thread.
    Several are daemons: a caller that stops, as by Ctrl-C, does not wait for what they still work on.
    """
    if lanes == 1:
        for item in items:
            yield item, work(item)
        return
    given: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
    waiting: deque[tuple[T, Future[R]]] = deque()
    for _ in range(lanes):
        threading.Thread(target=_lane, args=(given, work), name="blip2rt-lane", daemon=True).start()
    try:
        for item in items:
            waiting.append((item, Future()))
            given.put(waiting[-1])
            if len(waiting) > lanes:
                first, made = waiting.popleft()
                yield first, made.result()
        while waiting:
            first, made = waiting.popleft()
            yield first, made.result()
    finally:
        for _, made in waiting:
            made.cancel()
        for _ in range(lanes):
            given.put(None)


def _lane(given: SimpleQueue[Any], work: Callable[[Any], Any]) -> None:
    while (pair := given.get()) is not None:
        item, made = pair
        if not made.set_running_or_notify_cancel():
            continue
        try:
            made.set_result(work(item))
        except BaseException as error:  # noqa: BLE001  # whoever waits for the result raises it
            made.set_exception(error)
        del pair, item, made  # nothing is held while the lane waits


def cores() -> int:
    """Physical cores that this process may use; all that the system counts, where it does not say which are one."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = Path("/sys/devices/system/cpu")
    try:
        return len({(topology / f"cpu{i}" / "topology" / "thread_siblings_list").read_text() for i in usable})
    except OSError:
        return len(usable)
