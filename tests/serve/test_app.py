"""The application, called without a socket: what fails inside it, and work that nobody waits for."""

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
from blip2rt.serve.app import make
from blip2rt.serve.search import _thumbnail
from blip2rt.serve.service import Service
from blip2rt.serve.settings import Queue, Settings
from tests.serve.running import PHOTO, Response, data_uri


@pytest.fixture
def service(tiny: Any) -> Iterator[Service]:
    made = Service(blip2rt.load(tiny.path, threads=1), Settings(queue=Queue(parallel=1)))
    yield made
    made.close()


async def called(
    service: Service, method: str, path: str, body: Any = None, leave: asyncio.Event | None = None
) -> Response:
    """The response to a request, whose client leaves when `leave` is set."""
    sent: list[bytes] = [json.dumps(body).encode()]
    received: list[Any] = []

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop(), "more_body": False}
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        received.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [(b"host", b"localhost")],
             "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}  # fmt: skip
    await make(service)(scope, receive, send)
    start, *parts = received
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Response(start["status"], headers, b"".join(part["body"] for part in parts))


def test_what_nobody_has_foreseen_has_the_form_of_an_error(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(service.metrics, "text", fails)
    monkeypatch.setattr("blip2rt.serve.ollama._entry", fails)
    monkeypatch.setattr(logging.getLogger("blip2rt"), "propagate", True)
    for path in ("/metrics", "/api/tags"):
        caplog.clear()
        found = asyncio.run(called(service, "GET", path))
        assert found.status == 500 and found.told(path) == "the server failed: its log says why"
        assert found.headers["content-type"] == "application/json" and "x-request-id" in found.headers
        told = [record for record in caplog.records if record.exc_info]
        assert [str(record.exc_info[1]) for record in told if record.exc_info] == ["a secret of this machine"]


PICTURES = [data_uri(PHOTO.read_bytes())] * 20
TEXTS = ["a dog"] * 20
UNWANTED = {
    "texts": ("/v1/embeddings", {"input": TEXTS}, "text_embeds"),
    "pictures": ("/v1/embeddings", {"input": PICTURES}, "image_embeds"),
    "pictures after texts": ("/api/embed", {"input": [*TEXTS[:8], *PICTURES]}, "text_embeds"),
    "matches": ("/v1/match", {"image": PICTURES[0], "texts": TEXTS}, "match_features"),
    "a robot": ("/blip2itm", {"image": PICTURES[0], "txt": "a dog"}, "image_embeds"),
}


@pytest.mark.parametrize(("path", "body", "first"), UNWANTED.values(), ids=UNWANTED)
def test_what_nobody_waits_for_ends_after_its_part(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, first: str
) -> None:
    """The client leaves during the first part, which goes on until then."""
    parts: list[str] = []

    async def main() -> None:
        await service.load()
        leave = Leaving()
        model: Any = service.model
        for owner, names in ((model.pipeline.backend, ("image_embeds", "text_embeds")), (model, ("match_features",))):
            for name in names if hasattr(owner, first) else ():
                monkeypatch.setattr(owner, name, leave.during(getattr(owner, name), parts))
        await leave.call(service, path, body)

    asyncio.run(main())
    assert parts == [first]


def test_no_thumbnail_is_made_that_nobody_waits_for(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "Index", Found)
    service = Service(blip2rt.load(tiny.path, threads=1), Settings(index=Path("an.index")))
    parts: list[str] = []

    async def main() -> None:
        await service.load()
        leave = Leaving()
        monkeypatch.setattr("blip2rt.serve.search._thumbnail", leave.during(_thumbnail, parts))
        await leave.call(service, "/v1/search", {"text": "a dog"})

    asyncio.run(main())
    service.close()
    assert parts == ["_thumbnail"]


class Found(contextlib.nullcontext[None]):
    """As an index: all of its ten pictures fit."""

    pictures = 10

    def __len__(self) -> int:
        return self.pictures

    @classmethod
    def open(cls, *_: Any) -> Any:
        return contextlib.nullcontext(cls())

    def search(self, *_: Any, cancelled: Callable[[], bool], **__: Any) -> list[Hit]:
        assert not cancelled()
        return [Hit(PHOTO, "photo.jpg", 0.5) for _ in range(self.pictures)]


class Leaving:
    """A client that leaves once its work has begun. Must be made where the event loop runs."""

    def __init__(self) -> None:
        self._loop, self._begun, self._left = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def during(self, function: Callable[..., Any], parts: list[str]) -> Callable[..., Any]:
        """A part of the work, in which the client leaves; its name is added to the parts."""

        def part(*words: Any) -> Any:
            parts.append(function.__name__)
            self._loop.call_soon_threadsafe(self._begun.set)
            assert self._left.wait(60)
            return function(*words)

        return part

    async def call(self, service: Service, path: str, body: Any) -> None:
        """Call, leave, and wait for the work to end."""
        await called(service, "POST", path, body, self._begun)
        while len(asyncio.all_tasks()) > 1:  # those that it has left are being cancelled
            await asyncio.sleep(0)
        self._left.set()
        while service.work.running:
            await asyncio.sleep(0.01)
