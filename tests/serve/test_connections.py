"""Connections of clients that read slowly, or not at all."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from blip2rt.serve.protocol import protocol

SIZE = 8 << 20  # bytes of an answer, more than the system holds


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """As an application: /close ends the connection, /stream sends the answer in parts."""
    closes = [(b"connection", b"close")] if scope["path"] == "/close" else []
    parts = 64 if scope["path"] == "/stream" else 1
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % SIZE), *closes]})
    for i in range(parts):
        await send({"type": "http.response.body", "body": bytes(SIZE // parts), "more_body": i < parts - 1})


def asked(scenario: Any, unread_seconds: float) -> Any:
    """Run a scenario with a function that sends a request and returns the socket, and the server's connections."""

    async def main() -> Any:
        config = uvicorn.Config(large, lifespan="off", access_log=False, log_config=None, timeout_keep_alive=2)
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        kind: Any = protocol(30, 100, unread_seconds)
        server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)

        async def ask(path: bytes) -> socket.socket:
            caller = socket.socket()
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.setblocking(False)
            await loop.sock_connect(caller, server.sockets[0].getsockname())
            await loop.sock_sendall(caller, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
            return caller

        try:
            return await asyncio.wait_for(scenario(ask, state.connections), 120)
        finally:
            server.close()

    return asyncio.run(main())


def test_who_reads_nothing_is_cut_off() -> None:
    """Where the answer is still being sent, where it has been given over, and where the connection is to end."""

    async def scenario(ask: Any, connections: set[Any]) -> None:
        callers = [await ask(path) for path in (b"/stream", b"/", b"/close")]
        while len(connections) < len(callers):
            await asyncio.sleep(0.01)
        while connections:
            await asyncio.sleep(0.05)
        for caller in callers:
            caller.close()

    asked(scenario, 0.3)


@pytest.mark.long(9)
def test_who_reads_slowly_gets_all() -> None:
    """100 KB a second, four times as long as a connection lasts that nothing is read from; then the rest."""

    async def scenario(ask: Any, connections: set[Any]) -> list[int]:
        loop, seconds, rate = asyncio.get_running_loop(), 8.0, 100_000

        async def read(path: bytes) -> int:
            caller, begun, received = await ask(path), time.monotonic(), 0
            while received < SIZE:
                gone = time.monotonic() - begun
                while received < (rate * gone if gone < seconds else SIZE):
                    chunk = await loop.sock_recv(caller, 4096)
                    assert chunk, f"cut off after {received:,} bytes and {gone:.1f} seconds"
                    received += len(chunk)
                await asyncio.sleep(0.05)
            caller.close()
            return received

        return await asyncio.gather(read(b"/stream"), read(b"/"), read(b"/close"))

    assert min(asked(scenario, 2)) >= SIZE
