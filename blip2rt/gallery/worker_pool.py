"""Runs work on a few threads at once and returns the results in order.

Graphs that use every core wait for their slowest thread at the end of each operator, and leave cores idle while Python,
the tokenizer or the search runs. Two workers with half of the cores each fill those gaps. They share one model.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from ..system import usable_cpus

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(items: Iterable[T], work: Callable[[T], R], workers: int) -> Iterator[tuple[T, R]]:
    """Yield each item with `work(item)`, in the order of the items.

    At most `workers` items run at once, and one more waits in the queue. A single worker is the caller's thread.
    Several are daemon threads: a caller that stops early, as on Ctrl-C, does not wait for running work.
    """
    if workers == 1:
        for item in items:
            yield item, work(item)
        return
    queue: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
    pending: deque[tuple[T, Future[R]]] = deque()
    for _ in range(workers):
        threading.Thread(target=_run_worker, args=(queue, work), name="blip2rt-worker", daemon=True).start()
    try:
        for item in items:
            pending.append((item, Future()))
            queue.put(pending[-1])
            if len(pending) > workers:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for _, future in pending:
            future.cancel()
        for _ in range(workers):
            queue.put(None)


def _run_worker(queue: SimpleQueue[Any], work: Callable[[Any], Any]) -> None:
    while (job := queue.get()) is not None:
        item, future = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work(item))
        except BaseException as error:  # noqa: BLE001  # raised again by future.result()
            future.set_exception(error)
        del job, item, future  # an idle worker keeps nothing alive


def physical_cores() -> int:
    """The number of physical cores available to this process; logical ones if the topology is unknown."""
    usable = usable_cpus()
    topology = Path("/sys/devices/system/cpu")
    try:
        return len({(topology / f"cpu{i}" / "topology" / "thread_siblings_list").read_text() for i in usable})
    except OSError:
        return len(usable)
