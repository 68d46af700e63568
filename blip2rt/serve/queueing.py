"""The queue of a model: who is worked on, who waits, who is sent away. Knows threads and time, nothing of HTTP.

A request waits for a place, is worked on in a thread, and gives the place back when the thread is free. Who leaves sets
its Stop.
"""

from __future__ import annotations

import asyncio
import math
import time
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from .. import bundle as contract
from ..errors import CapabilityError
from .faults import Fault
from .settings import Queue
from .work import Answer, Job, Piece, Stop, answer, prepared, shares_steps

if TYPE_CHECKING:
    from ..model import Model
    from .metrics import Metrics

T = TypeVar("T")
_ALONE = 2  # requests that are computed at the same time where they share no steps
_TOGETHER = 8  # and where they do


class _Slots:
    """Places that are taken in the order of asking. None is lost where who waits leaves."""

    def __init__(self, places: int, tell: Callable[[int], None]) -> None:
        """tell: is told how many wait, when that changes."""
        self.free, self.waiters = places, deque[asyncio.Future[None]]()
        self._tell = tell

    async def take(self, wait: Callable[[asyncio.Future[None]], Awaitable[None]]) -> None:
        """Wait for a place, as long as `wait` does."""
        if self.free and not self.waiters:
            self.free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self.waiters.append(turn)
        self._tell(len(self.waiters))
        try:
            await wait(turn)
        except BaseException:
            if turn.done():
                self.give()
            else:
                self.waiters.remove(turn)
                self._tell(len(self.waiters))
            raise

    def give(self) -> None:
        """Give a place back, to who has waited longest."""
        if not self.waiters:
            self.free += 1
            return
        self.waiters.popleft().set_result(None)
        self._tell(len(self.waiters))


class Work:
    """The requests of one model."""

    def __init__(self, model: Model, queue: Queue, most_tokens: int, metrics: Metrics) -> None:
        """Must be called where the event loop runs."""
        self.model = model
        self._queue, self._most, self._metrics = queue, most_tokens, metrics
        self.parallel = queue.parallel or (_TOGETHER if shares_steps(model) else _ALONE)
        self._threads = ThreadPoolExecutor(self.parallel, "blip2rt-work")
        self._slots = _Slots(self.parallel, metrics.waiting.set)
        self.running = 0
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seconds = 1.0  # that a request takes, lately

    def cut(self) -> None:
        """End what is under way, and let nobody begin: the server's time is over."""
        if not self._cut.done():
            self._cut.set_result(None)

    def close(self) -> None:
        """Wait for no one: what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._slots.waiters)

    @property
    def chats(self) -> bool:
        """Whether the model goes on from what was said."""
        try:
            self.model.pipeline.require(contract.GENERATIVE, "chat")
            self.model.pipeline.language.need_chat()
        except CapabilityError:
            return False
        return True

    def check(self, job: Job, streamed: bool) -> None:
        """Raise what a job's options are refused with. Its image is not looked at."""
        prepared(self.model, job, self._most, streamed)

    def end(self) -> float:
        """When what begins now is too late."""
        return time.monotonic() + self._queue.deadline

    async def until(self, end: float | None, work: Awaitable[T]) -> T:
        """What `work` gives, which is cancelled with this. Raises Fault where it takes longer."""
        task = asyncio.ensure_future(work)
        try:
            await self._within(task, end or self.end())
            return task.result()
        finally:
            task.cancel()

    async def answer(self, job: Job, end: float | None = None) -> Answer:
        """The texts of a job, when all are there. Raises Fault and Blip2rtError."""
        return await self.run(lambda stop: answer(self.model, job, self._most, stop, None), end)

    async def run(self, function: Callable[[Stop], T], end: float | None = None) -> T:
        """Call a function of the model in a thread, when its turn has come. Cancelling this sets its Event."""
        stop, end = Stop(), end or self.end()
        future = await self._start(function, stop, end)
        try:
            await self._within(future, end)
            return future.result()
        finally:
            stop.set()

    async def stream(self, job: Job, end: float | None = None) -> AsyncGenerator[Piece | Answer, None]:
        """Pieces of the texts as they come, and the Answer at the end. Leaving the loop ends the generation."""
        stop, end, loop = Stop(), end or self.end(), asyncio.get_running_loop()
        pieces: deque[Piece] = deque()
        came = asyncio.Event()

        def take(piece: Piece) -> None:
            pieces.append(piece)
            came.set()

        def tell(piece: Piece) -> None:
            loop.call_soon_threadsafe(take, piece)

        future = await self._start(lambda stop: answer(self.model, job, self._most, stop, tell), stop, end)
        future.add_done_callback(lambda _: came.set())
        try:
            while pieces or not future.done():
                if not pieces:
                    came.clear()
                    await self._within(asyncio.ensure_future(came.wait()), end)
                while pieces:
                    yield pieces.popleft()
            yield future.result()
        finally:
            stop.set()

    async def _within(self, future: asyncio.Future[Any], end: float) -> None:
        """Wait for a future until then. Raises Fault where it is not done, or the server ends before."""
        await asyncio.wait({future, self._cut}, timeout=max(end - time.monotonic(), 0), return_when=FIRST_COMPLETED)
        if future.done():
            return
        if isinstance(future, asyncio.Task):
            future.cancel()
        if self._cut.done():
            raise Fault(503, "the server is being stopped: try again later", "ending", retry_after=10)
        self._metrics.refused.labels("deadline").inc()
        raise Fault(504, f"no answer within {self._queue.deadline:g} seconds: ask for less, or try again later",
                    "deadline_exceeded", retry_after=1)  # fmt: skip

    async def _start(self, function: Callable[[Stop], T], stop: Stop, end: float) -> asyncio.Future[T]:
        """Wait for a place and begin. Raises Fault where too many wait, or the wait is too long."""
        if self._slots.free == 0 and self.waiting >= self._queue.waiting:
            ahead = math.ceil(self._seconds * (self.waiting + 1) / self.parallel)
            self._metrics.refused.labels("queue").inc()
            raise Fault(429, f"{self.waiting} requests wait already: try again later", "queue_full",
                        retry_after=max(1, min(ahead, 60)))  # fmt: skip
        await self._slots.take(lambda turn: self._within(turn, end))
        begun = time.monotonic()
        self.running += 1
        self._metrics.running.set(self.running)
        future = asyncio.get_running_loop().run_in_executor(self._threads, function, stop)
        future.add_done_callback(lambda done: self._finished(done, begun))
        return future

    def _finished(self, future: asyncio.Future[Any], begun: float) -> None:
        self._slots.give()
        self.running -= 1
        self._metrics.running.set(self.running)
        self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
        if not future.cancelled():
            future.exception()  # who has left does not ask for it
