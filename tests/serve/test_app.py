"""The application called without a socket: unexpected errors, and work whose client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blip2rt
from blip2rt import gallery
from blip2rt.gallery import Hit
from blip2rt.serve.app import make_app
from blip2rt.serve.protocols import routes
from blip2rt.serve.service import Service
from blip2rt.serve.settings import QueueLimits, Settings
from tests.serve.server_process import PHOTO, Response, data_uri


@pytest.fixture
def service(tiny: Any) -> Iterator[Service]:
    service = Service(blip2rt.load(tiny.path, threads=1), Settings(queue=QueueLimits(parallel=1)))
    yield service
    service.close()


async def call(
    service: Service, method: str, path: str, body: Any = None, leave: asyncio.Event | None = None
) -> Response:
    """Return the response to a request whose client disconnects when `leave` is set."""
    unread = [json.dumps(body).encode()]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [(b"host", b"localhost")]}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}
    await make_app(service)(scope, receive, send)
    start, *parts = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Response(start["status"], headers, b"".join(part["body"] for part in parts))


@pytest.mark.parametrize("path", ["/metrics", "/api/tags"])
def test_unexpected_errors_are_logged_and_not_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(service.metrics, "text", fail)
    monkeypatch.setattr("blip2rt.serve.protocols.ollama._model_info", fail)
    monkeypatch.setattr(logging.getLogger("blip2rt"), "propagate", True)
    found = asyncio.run(call(service, "GET", path))
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
        await call(service, "POST", path, body, self._begun)
        while len(asyncio.all_tasks()) > 1:  # being cancelled
            await asyncio.sleep(0)
        self._gone.set()
        while service.queue.running:
            await asyncio.sleep(0.01)


PICTURES, TEXTS = [data_uri(PHOTO.read_bytes())] * 20, ["a dog"] * 20


@pytest.mark.parametrize(
    ("path", "body", "first"),
    [
        ("/v1/embeddings", {"input": TEXTS}, "text_embeds"),
        ("/v1/embeddings", {"input": PICTURES}, "image_embeds"),
        ("/api/embed", {"input": [*TEXTS[:8], *PICTURES]}, "text_embeds"),
        ("/v1/match", {"image": PICTURES[0], "texts": TEXTS}, "match_features"),
        ("/blip2itm", {"image": PICTURES[0], "txt": "a dog"}, "image_embeds"),
        ("/v1/search", {"text": "a dog"}, "_thumbnail"),
    ],
)
def test_disconnecting_ends_the_work_after_one_step(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, first: str
) -> None:
    monkeypatch.setattr(gallery, "Index", FakeIndex)
    index = Path("an.index") if path == "/v1/search" else None
    service = Service(blip2rt.load(tiny.path, threads=1), Settings(queue=QueueLimits(parallel=1), index=index))
    calls: list[str] = []

    async def main() -> None:
        await service.load()
        client = DisconnectingClient()
        model: Any = service.model
        owners = ((model.pipeline.backend, ("image_embeds", "text_embeds")), (model, ("match_features",)))
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
        found = await call(service, "POST", "/v1/caption", {"image": PICTURES[0], "stream": True})
        await running
        return found

    found = asyncio.run(main())
    assert found.status == 200 and found.body.startswith(b": waiting\n\n: waiting\n\n")
    assert found.body.endswith(b"data: [DONE]\n\n") and b'"caption"' in found.body
