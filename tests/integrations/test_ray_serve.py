"""The application that Ray Serve runs, and its flags. Ray itself is not needed."""

import asyncio

import pytest

from blip2rt.command_line import UsageError
from blip2rt.integrations import ray_serve
from tests.tiny.bundle import Tiny


def test_replica_loads_at_startup_and_answers(tiny: Tiny) -> None:
    app = ray_serve.ReplicaApp(ray_serve.parse(f"--model {tiny.path} --parallel 2"))

    async def get(path: str) -> int:
        sent = []
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}

        async def receive() -> dict:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return int(sent[0]["status"])

    async def run() -> None:
        messages, events = asyncio.Queue[dict](), asyncio.Queue[dict]()
        lifespan = asyncio.create_task(app({"type": "lifespan"}, messages.get, events.put))
        assert await get("/ready") == 503 and await get("/health") == 200
        await messages.put({"type": "lifespan.startup"})
        assert (await events.get())["type"] == "lifespan.startup.complete"
        assert await get("/ready") == 200 and await get("/nothing") == 404
        await messages.put({"type": "lifespan.shutdown"})
        assert (await events.get())["type"] == "lifespan.shutdown.complete"
        await lifespan

    asyncio.run(run())


def test_flags_are_those_of_the_server() -> None:
    args = ray_serve.parse("--api-key 'k' --max-tokens 9 --replicas 2 8 --threads 3")
    assert (args.api_keys, args.new_tokens, args.replicas, args.threads) == (["k"], 9, [2, 8], 3)
    for flags in ("--replicas 2", "--threads 0", "--max-tokenz 3"):
        with pytest.raises((UsageError, SystemExit)):
            ray_serve.parse(flags)
