"""The request queue: which requests run, which wait, and which are rejected. Does not know about HTTP or the model.

A request waits for a free slot, runs in a worker thread, and frees the slot when the thread is done. When its client
disconnects, its CancelEvent is set.
"""

import asyncio
import math
import threading
import time
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .errors import ApiError
from .metrics import Metrics
from .settings import QueueLimits

T = TypeVar("T")
P = TypeVar("P")


class CancelEvent(threading.Event):
    """Set when the client no longer waits for the result. Work checks it between steps, or registers a callback."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], object]] = []

    def on_set(self, callback: Callable[[], object]) -> None:
        """Call a quick function when this is set, in the thread that sets it; immediately if it is set already."""
        self._callbacks.append(callback)
        if self.is_set():
            callback()

    def set(self) -> None:
        super().set()
        for callback in self._callbacks:
            callback()


class AdmissionQueue:
    """Runs functions in `parallel` threads, first come, first served. Create it inside the running event loop."""

    def __init__(self, parallel: int, limits: QueueLimits, metrics: Metrics) -> None:
        self._parallel, self._limits, self._metrics = parallel, limits, metrics
        self._threads = ThreadPoolExecutor(parallel, "blip2rt-request")
        self._slots = asyncio.Semaphore(parallel)
        self._shutdown: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mean_seconds = 1.0  # moving average of a short request's time in its thread
        self._deadlines: dict[asyncio.Future[Any], float] = {}  # of what runs
        self.running = self.waiting = self._waiting_size = 0

    @property
    def is_stuck(self) -> bool:
        """Whether a request beyond its deadline holds every slot."""
        late = [deadline < time.monotonic() for deadline in self._deadlines.values()]
        return len(late) >= self._parallel and all(late)

    def abort(self) -> None:
        """Fail running and waiting requests, because the time for shutdown is over."""
        if not self._shutdown.done():
            self._shutdown.set_result(None)

    def close(self) -> None:
        """Release the threads without waiting for what still runs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def deadline(self) -> float:
        """Return the deadline, in monotonic time, of a request that starts now."""
        return time.monotonic() + self._limits.deadline_seconds

    async def run(self, function: Callable[[CancelEvent], T], deadline: float | None = None, size: int = 1) -> T:
        """Run a function in a thread when a slot is free. Cancelling this sets its event. Raises ApiError.

        size: how many short requests it takes the time of. The queue's limits and estimates count it as so many.
        """
        cancelled, deadline = CancelEvent(), deadline or self.deadline()
        future = await self._start(function, cancelled, deadline, size)
        try:
            await self._wait(future, deadline)
            return future.result()
        finally:
            cancelled.set()

    async def stream(
        self, function: Callable[[CancelEvent, Callable[[P], None]], T], deadline: float | None = None, size: int = 1
    ) -> AsyncGenerator[P | T, None]:
        """Run a function that emits pieces: yield them as they come, and its result last. Leaving the loop cancels."""
        cancelled, deadline, loop = CancelEvent(), deadline or self.deadline(), asyncio.get_running_loop()
        pieces: deque[P] = deque()
        arrived = asyncio.Event()

        def store(piece: P) -> None:
            pieces.append(piece)
            arrived.set()

        def emit(piece: P) -> None:
            loop.call_soon_threadsafe(store, piece)

        future = await self._start(lambda event: function(event, emit), cancelled, deadline, size)
        future.add_done_callback(lambda _: arrived.set())
        try:
            while pieces or not future.done():
                if not pieces:
                    arrived.clear()
                    await self._wait(asyncio.ensure_future(arrived.wait()), deadline)
                while pieces:
                    yield pieces.popleft()
            yield future.result()
        finally:
            cancelled.set()

    async def _wait(self, future: asyncio.Future[Any], deadline: float) -> None:
        """Wait for a future. Raises ApiError at the deadline, and when the server shuts down."""
        timeout = max(deadline - time.monotonic(), 0)
        await asyncio.wait({future, self._shutdown}, timeout=timeout, return_when=FIRST_COMPLETED)
        if future.done():
            return
        if isinstance(future, asyncio.Task):
            future.cancel()
        if self._shutdown.done():
            raise ApiError(503, "the server is shutting down: try again later", "ending", retry_after=10)
        self._metrics.refused.labels("deadline").inc()
        message = f"no answer within {self._limits.deadline_seconds:g} seconds: ask for less, or try again later"
        raise ApiError(504, message, "deadline_exceeded", retry_after=1)

    async def _start(self, function: Callable[[CancelEvent], T], event: CancelEvent, deadline: float, size: int) -> Any:
        """Wait for a slot, then start the function. Raises ApiError if the queue is full or the wait too long."""
        arrival = time.monotonic()
        if self._slots.locked():
            ahead = self._mean_seconds * (self._waiting_size + size) / self._parallel
            too_long = ahead > deadline - arrival or self._waiting_size + size > self._limits.waiting
            if (self.waiting and too_long) or not self._limits.waiting:
                self._metrics.refused.labels("queue").inc()
                message = f"{self.waiting} requests are already waiting, about {ahead:.0f} s: try again later"
                raise ApiError(429, message, "queue_full", retry_after=max(1, min(math.ceil(ahead), 60)))
        await self._acquire(deadline, size)
        start = time.monotonic()
        self._metrics.wait.observe(start - arrival)
        self._count(running=1)
        future = asyncio.get_running_loop().run_in_executor(self._threads, function, event)
        self._deadlines[future] = deadline
        future.add_done_callback(lambda done: self._finish(done, start, size))
        return future

    async def _acquire(self, deadline: float, size: int) -> None:
        """Take a slot. A slot that arrives while the request is given up goes to the next one."""
        if not self._slots.locked():
            await self._slots.acquire()  # returns at once
            return
        turn = asyncio.ensure_future(self._slots.acquire())
        self._count(waiting=1, size=size)
        try:
            await self._wait(turn, deadline)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._slots.release()
            turn.cancel()
            raise
        finally:
            self._count(waiting=-1, size=-size)

    def _finish(self, future: asyncio.Future[Any], start: float, size: int) -> None:
        del self._deadlines[future]
        self._slots.release()
        self._count(running=-1)
        self._mean_seconds += 0.2 * ((time.monotonic() - start) / size - self._mean_seconds)
        if not future.cancelled():
            future.exception()  # mark it as retrieved: a client that has disconnected does not ask for it

    def _count(self, running: int = 0, waiting: int = 0, size: int = 0) -> None:
        self.running += running
        self.waiting += waiting
        self._waiting_size += size
        self._metrics.running.set(self.running)
        self._metrics.waiting.set(self.waiting)
