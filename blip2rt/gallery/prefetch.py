"""Decodes pictures on threads ahead of the graphs, with bounded memory, and runs the graphs on several threads.

Pictures are numbered in order and cut into batches of `batch_size`. A batch goes through the graphs together, and an
interrupted batch is recomputed as a whole. So batches, and with them the texts, do not depend on interruptions.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..errors import ImageError
from .sources import Failure, Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..model import Model
    from ..tasks import GenerationTask

    Rgb = NDArray[np.uint8]
    MakeTask = Callable[[Model], GenerationTask]  # can be sent to another process, unlike a task

MAX_BATCHES_AHEAD = 2  # decoded while others are in the graphs
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A numbered picture. job: the work to do with it; None if it is done already."""

    number: int
    picture: Picture
    job: T | None


@dataclass
class Batch(Generic[T]):
    """Pictures that go through the graphs together, and what failed before them.

    images: the decoded entries with their pixels, RGB (height, width, 3) uint8.
    failures: in the order of the walk, each with the number of the next picture.
    """

    first: int  # the number of the first picture
    entries: list[Entry[T]] = field(default_factory=list)
    images: list[tuple[Entry[T], Rgb]] = field(default_factory=list)
    failures: list[tuple[int, Failure]] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """The number of pictures that were done already."""
        return sum(entry.job is None for entry in self.entries)

    @property
    def has_work(self) -> bool:
        return any(entry.job is not None for entry, _ in self.images)

    @property
    def needed(self) -> list[Entry[T]]:
        """The entries to decode: the new ones, or all of an interrupted batch, of which only the first are done."""
        new = [entry for entry in self.entries if entry.job is not None]
        interrupted = new and new == self.entries[len(self.entries) - len(new) :]
        return self.entries if interrupted else new


@dataclass(frozen=True)
class Parallelism:
    """How many pictures and threads work at the same time.

    workers: batches in the graphs at once. threads: of each worker's graphs, to load the model with; None: the default.
    """

    batch_size: int
    decode_threads: int
    workers: int = 1
    threads: int | None = None


class Executor(Protocol):
    """Decodes and computes pictures elsewhere: see integrations.ray_executor."""

    def run(
        self,
        walked: Iterable[Picture | Failure],
        plan: Callable[[Picture], T | Failure | None],
        batch_size: int,
        make_task: MakeTask | None = None,
    ) -> Iterator[tuple[Batch[T], Any]]: ...


def prefetch(
    model: Model,
    walked: Iterable[Picture | Failure],
    plan: Callable[[Picture], T | Failure | None],
    parallelism: Parallelism,
) -> Iterator[Batch[T]]:
    """Yield decoded batches in order.

    plan: returns the work to do with a picture, None if it is done, or why it cannot be done.
    """
    pool = ThreadPoolExecutor(parallelism.decode_threads, "blip2rt-decode")
    queue: deque[tuple[Batch[T], list[Future[Rgb | Failure]]]] = deque()
    try:
        for batch in cut_batches(walked, plan, parallelism.batch_size):
            queue.append((batch, [pool.submit(decode, model, entry.picture) for entry in batch.needed]))
            if len(queue) > MAX_BATCHES_AHEAD:
                yield _collect(*queue.popleft())
        while queue:
            yield _collect(*queue.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def decode(model: Model, picture: Picture) -> Rgb | Failure:
    """Return the pixels of a picture, or why there are none."""
    try:
        return model.prepare(picture.source())
    except ImageError as error:
        return Failure(picture.name, str(error))
    except OSError as error:
        return Failure.unreadable(picture.name, error)


def _collect(batch: Batch[T], futures: Sequence[Future[Rgb | Failure]]) -> Batch[T]:
    """Wait for the pixels of the needed entries."""
    for entry, future in zip(batch.needed, futures, strict=True):
        decoded = future.result()
        if isinstance(decoded, Failure):
            batch.failures.append((entry.number, decoded))
        else:
            batch.images.append((entry, decoded))
    batch.failures.sort(key=lambda pair: pair[0])
    return batch


def cut_batches(
    walked: Iterable[Picture | Failure], plan: Callable[[Picture], T | Failure | None], batch_size: int
) -> Iterator[Batch[T]]:
    """Yield batches of pictures that are not decoded yet, in order."""
    batch: Batch[T] = Batch(0)
    number = 0
    for item in walked:
        job = item if isinstance(item, Failure) else plan(item)
        if isinstance(job, Failure):
            batch.failures.append((number, job))
        elif isinstance(item, Picture):
            batch.entries.append(Entry(number, item, job))
        if isinstance(item, Picture):
            number += 1
            if number % batch_size == 0:
                yield batch
                batch = Batch(number)
    if batch.entries or batch.failures:
        yield batch


def map_ordered(items: Iterable[T], work: Callable[[T], R], workers: int) -> Iterator[tuple[T, R]]:
    """Yield each item with `work(item)`, in the order of the items.

    At most `workers` items run at once, and one more waits in the queue. A single worker is the caller's thread.
    Several are daemon threads: a caller that stops early, as on Ctrl-C, does not wait for running work. Graphs that use
    every core wait for their slowest thread at the end of each operator, and leave cores idle while Python, the
    tokenizer or the search runs. Two workers with half of the cores each fill those gaps. They share one model.
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
