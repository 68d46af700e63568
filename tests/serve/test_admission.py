"""The request queue: slots, deadlines, cancellation and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from blip2rt.serve.admission import AdmissionQueue, CancelEvent
from blip2rt.serve.errors import ApiError
from blip2rt.serve.metrics import Metrics
from blip2rt.serve.settings import QueueLimits
from tests.seeds import new_seed


def with_queue(scenario: Callable[[AdmissionQueue], Awaitable[Any]], parallel: int = 2, deadline: float = 60.0) -> Any:
    """Run a scenario with a queue in which three requests may wait."""

    async def main() -> Any:
        queue = AdmissionQueue(parallel, QueueLimits(parallel, 3, deadline), Metrics())
        try:
            return await scenario(queue)
        finally:
            queue.close()

    return asyncio.run(main())


def test_late_requests_in_every_slot_are_noticed() -> None:
    async def scenario(queue: AdmissionQueue) -> None:
        door = threading.Event()
        calls = []
        for _ in range(2):
            assert not queue.is_stuck
            calls.append(asyncio.ensure_future(queue.run(lambda _: door.wait(60))))
            with pytest.raises(ApiError, match="no answer within"):
                await calls[-1]
        assert queue.is_stuck
        door.set()
        while queue.running:
            await asyncio.sleep(0.001)
        assert not queue.is_stuck

    with_queue(scenario, parallel=2, deadline=0.05)


def test_running_and_waiting_requests_are_limited() -> None:
    async def scenario(queue: AdmissionQueue) -> None:
        door, begun = threading.Event(), []

        def work(_: CancelEvent) -> int:
            begun.append(1)
            door.wait(60)
            return 7

        calls = [asyncio.ensure_future(queue.run(work)) for _ in range(5)]
        while queue.waiting < 3:
            await asyncio.sleep(0.001)
        with pytest.raises(ApiError) as raised:
            await queue.run(work)
        assert raised.value.status == 429 and raised.value.retry_after is not None
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        assert (queue.running, queue.waiting, len(begun)) == (2, 3, 2)
        calls[4].cancel()
        await asyncio.sleep(0.01)
        assert queue.waiting == 2
        door.set()
        assert await asyncio.gather(*calls[:4]) == [7] * 4
        await asyncio.sleep(0)
        assert (queue.running, queue.waiting) == (0, 0)

    with_queue(scenario)


def test_a_long_wait_is_refused() -> None:
    """Before the queue is full: its requests take 10 seconds each, and the deadline is in 15."""

    async def scenario(queue: AdmissionQueue) -> None:
        door = threading.Event()
        queue._mean_seconds = 10.0
        calls = [asyncio.ensure_future(queue.run(lambda _: door.wait(60))) for _ in range(2)]
        while queue.waiting < 1:
            await asyncio.sleep(0.001)
        with pytest.raises(ApiError) as raised:
            await queue.run(lambda _: None)
        assert (raised.value.status, raised.value.code, raised.value.retry_after) == (429, "queue_full", 20)
        door.set()
        await asyncio.gather(*calls)

    with_queue(scenario, parallel=1, deadline=15.0)


@pytest.mark.parametrize("shutdown", [False, True], ids=["deadline", "shutdown"])
def test_running_and_waiting_requests_end(shutdown: bool) -> None:
    """At the deadline, and when the server shuts down."""

    async def scenario(queue: AdmissionQueue) -> None:
        events: list[CancelEvent] = []

        def work(cancelled: CancelEvent) -> None:
            events.append(cancelled)
            cancelled.wait(60)

        calls = [asyncio.ensure_future(queue.run(work)) for _ in range(2)]
        while queue.waiting < 1 or not events:
            await asyncio.sleep(0.001)
        if shutdown:
            queue.abort()
        results = await asyncio.gather(*calls, return_exceptions=True)
        code = "ending" if shutdown else "deadline_exceeded"
        assert [each.code for each in results if isinstance(each, ApiError)] == [code] * 2
        assert events[0].is_set()

    with_queue(scenario, parallel=1, deadline=60.0 if shutdown else 0.3)


def test_errors_and_cancellation_lose_no_slot() -> None:
    rng = random.Random(new_seed())

    async def scenario(queue: AdmissionQueue) -> None:
        async def call() -> None:
            seconds, divisor = rng.random() * 0.004, rng.choice([0, 1])
            with contextlib.suppress(ApiError, ZeroDivisionError):
                await queue.run(lambda _: time.sleep(seconds) or 1 // divisor, time.monotonic() + rng.random() * 0.02)

        calls: list[asyncio.Task[None]] = []
        for _ in range(400):
            calls.append(asyncio.create_task(call()))
            if rng.random() < 0.3:
                rng.choice(calls).cancel()
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.003)
        await asyncio.gather(*calls, return_exceptions=True)
        while queue.running:
            await asyncio.sleep(0.001)
        assert queue.waiting == 0
        both = threading.Barrier(2)  # both slots are free: two requests meet
        await asyncio.gather(*(queue.run(lambda _: both.wait(60)) for _ in range(2)))

    with_queue(scenario)
