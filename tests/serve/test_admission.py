"""The request queue and the application, without a socket: slots, deadlines, cancellation, unexpected errors."""

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blip2rt
from blip2rt import gallery
from blip2rt.gallery import Hit
from blip2rt.serve.admission import AdmissionQueue, CancelEvent
from blip2rt.serve.app import make_app
from blip2rt.serve.errors import ApiError
from blip2rt.serve.metrics import Metrics
from blip2rt.serve.protocols import routes
from blip2rt.serve.service import Service
from blip2rt.serve.settings import QueueLimits, Settings
from tests.seeds import new_seed
from tests.serve.server_process import PHOTO, Response, data_uri, respond


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


def test_a_long_request_counts_as_many() -> None:
    """A short one and one of two's size fill a queue for three; the estimate takes its time for that of many."""

    async def scenario(queue: AdmissionQueue) -> None:
        queue._mean_seconds = 0.0
        await queue.run(lambda _: time.sleep(0.5), size=50)
        await asyncio.sleep(0)
        assert 0 < queue._mean_seconds < 0.05
        door = threading.Event()
        first = asyncio.ensure_future(queue.run(lambda _: door.wait(60), size=50))
        while queue.running < 1:
            await asyncio.sleep(0.001)
        short, long = (asyncio.ensure_future(queue.run(lambda _: 1, size=size)) for size in (1, 2))
        while queue.waiting < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(ApiError, match="2 requests are already waiting") as raised:
            await queue.run(lambda _: None)
        assert raised.value.status == 429
        door.set()
        await asyncio.gather(first, short, long)
        assert queue._waiting_size == 0

    with_queue(scenario, parallel=1)


@pytest.mark.parametrize("shutdown", [False, True], ids=["deadline", "shutdown"])
def test_running_and_waiting_requests_end(shutdown: bool) -> None:
    """At the deadline, and when the server shuts down."""

    async def scenario(queue: AdmissionQueue) -> None:
        events: list[CancelEvent] = []

        def work(cancelled: CancelEvent) -> None:
            events.append(cancelled)
            cancelled.wait(60)

        calls = [asyncio.ensure_future(queue.run(work)) for _ in range(2)]
        while not events or (shutdown and queue.waiting < 1):  # the deadline may pass before
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


def test_a_slot_freed_for_a_cancelled_request_goes_to_the_next() -> None:
    async def scenario(queue: AdmissionQueue) -> None:
        door = threading.Event()
        first = asyncio.ensure_future(queue.run(lambda _: door.wait(60)))
        while queue.running < 1:
            await asyncio.sleep(0.001)
        late = asyncio.ensure_future(queue.run(lambda _: None))
        while queue.waiting < 1:
            await asyncio.sleep(0.001)
        [running] = queue._deadlines
        running.add_done_callback(lambda _: late.cancel())  # called after the one that frees the slot
        door.set()
        await asyncio.wait({first, late})
        assert late.cancelled() and await queue.run(lambda _: 1) == 1

    with_queue(scenario, parallel=1, deadline=20.0)


@pytest.fixture
def service(tiny: Any) -> Iterator[Service]:
    service = Service(blip2rt.load(tiny.path, threads=1), Settings(queue=QueueLimits(parallel=1)))
    yield service
    service.close()


async def call(service: Service, path: str, body: Any = None, leave: asyncio.Event | None = None) -> Response:
    method, sent = ("GET", b"") if body is None else ("POST", json.dumps(body).encode())
    return await respond(make_app(service), method, path, sent, {}, leave)


@pytest.mark.parametrize("path", ["/metrics", "/api/tags"])
def test_unexpected_errors_are_logged_and_not_sent(service, monkeypatch, caplog, path):
    def fail(*_: Any) -> Any:
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(service.metrics, "text", fail)
    monkeypatch.setattr("blip2rt.serve.protocols.ollama._model_info", fail)
    monkeypatch.setattr(logging.getLogger("blip2rt"), "propagate", True)
    found = asyncio.run(call(service, path))
    assert found.status == 500 and found.message(path) == "the server failed: its log says why"
    assert found.headers["content-type"] == "application/json" and "x-request-id" in found.headers
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert logged == ["a secret of this machine"]


class DisconnectingClient:
    """A client that disconnects once the work has begun. Create it inside the running event loop."""

    def __init__(self) -> None:
        self._loop, self._begun, self._gone = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def wrap(self, name: str, function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
        """Record the calls of a function, and let the client disconnect during the first one."""

        def wrapped(*arguments: Any) -> Any:
            calls.append(name)
            self._loop.call_soon_threadsafe(self._begun.set)
            assert self._gone.wait(60)
            return function(*arguments)

        return wrapped

    async def call(self, service: Service, path: str, body: Any) -> None:
        """Call, disconnect, and wait for the work to end."""
        await call(service, path, body, self._begun)
        while len(asyncio.all_tasks()) > 1:  # being cancelled
            await asyncio.sleep(0)
        self._gone.set()
        while service.queue.running:
            await asyncio.sleep(0.01)


PICTURE, TEXTS = data_uri(PHOTO.read_bytes()), ["a dog"] * 20


@pytest.mark.parametrize(
    ("path", "body", "first"),
    [
        ("/v1/match", {"image": PICTURE, "texts": TEXTS}, "match_features"),
        ("/blip2itm", {"image": PICTURE, "txt": "a dog"}, "image_embeds"),
        ("/v1/search", {"text": "a dog"}, "_thumbnail"),
    ],
)
def test_disconnecting_ends_the_work_after_one_step(tiny, monkeypatch, path, body, first):
    monkeypatch.setattr(gallery, "Index", FakeIndex)
    index = Path("an.index") if path == "/v1/search" else None
    service = Service(blip2rt.load(tiny.path, threads=1), Settings(queue=QueueLimits(parallel=1), index=index))
    calls: list[str] = []

    async def main() -> None:
        await service.load()
        client = DisconnectingClient()
        model: Any = service.model
        owners = ((model.matcher, ("image_embeds", "text_embeds")), (model, ("match_features",)))
        for owner, names in (*owners, (routes, ("_thumbnail",))):
            for name in names if hasattr(owner, first) else ():
                monkeypatch.setattr(owner, name, client.wrap(name, getattr(owner, name), calls))
        await client.call(service, path, body)

    asyncio.run(main())
    service.close()
    assert calls == [first]


class FakeIndex(contextlib.nullcontext[None]):
    """An index whose ten pictures all match."""

    def __len__(self) -> int:
        return 10

    @classmethod
    def open(cls, *_: Any) -> Any:
        return contextlib.nullcontext(cls())

    def search(self, *_: Any, cancelled: Callable[[], bool], **__: Any) -> list[Hit]:
        assert not cancelled()
        return [Hit(PHOTO, "photo.jpg", 0.5) for _ in range(len(self))]


def test_waiting_streams_stay_open(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that waits for its turn sends its headers and comments, so that a proxy does not give it up."""
    monkeypatch.setattr("blip2rt.serve.service._SILENCE_SECONDS", 0.02)

    async def main() -> Response:
        await service.load()
        door = threading.Event()
        running = asyncio.ensure_future(service.queue.run(lambda _: door.wait(60)))
        asyncio.get_running_loop().call_later(0.2, door.set)
        found = await call(service, "/v1/caption", {"image": PICTURE, "stream": True})
        await running
        return found

    found = asyncio.run(main())
    assert found.status == 200 and found.body.startswith(b": waiting\n\n: waiting\n\n")
    assert found.body.endswith(b"data: [DONE]\n\n") and b'"caption"' in found.body
