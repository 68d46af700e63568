"""uvicorn's connections: an end for who sends a request's head a byte at a time, and a limit to how many there are."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def protocol(head_seconds: float, most: int) -> type[asyncio.Protocol]:
    """The class of connections whose heads come within so many seconds, and of which there are so many at most."""

    class Bounded(HttpToolsProtocol):
        _watch: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.close()
                return
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            if self._watch is None:
                self._wait_for_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def _wait_for_head(self) -> None:
            self._watch = self.loop.call_later(head_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

    return Bounded
