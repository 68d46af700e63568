"""uvicorn's connections: bounds to the time and the bytes of a request's head, and to how many there are."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .faults import Fault, bad

MOST_HEAD = 1 << 16  # bytes of a request's line and headers


def protocol(head_seconds: float, most: int) -> type[asyncio.Protocol]:
    """The class of connections whose heads come within so many seconds, and of which there are so many at most."""

    class Bounded(HttpToolsProtocol):
        _watch: asyncio.TimerHandle | None = None
        _loose = 0  # bytes that have come since a request began, or a part of its body: of a head, a trailer, nothing

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.close()
                return
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._loose += len(data)
            super().data_received(data)
            if self._loose > MOST_HEAD:
                self._refuse_head()
            elif self._loose and self._watch is None and (self.cycle is None or self.cycle.response_complete):
                self._wait_for_head()  # empty lines before a request

        def on_message_begin(self) -> None:
            self._loose = 0
            if self._watch is None:
                self._wait_for_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._loose = 0
            self._stop_waiting()
            if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MOST_HEAD:
                self._refuse_head()
                raise ValueError("the head is too large")  # which ends the parsing
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._loose = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._loose = 0
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(bad("what was sent is no request of HTTP/1.1: use an HTTP client", code="invalid_http"))

        def _refuse_head(self) -> None:
            self._refuse(Fault(431, f"the request's line and headers have more than {MOST_HEAD:,} bytes: put into the "
                               "body what is large", "head_too_large"))  # fmt: skip

        def _refuse(self, fault: Fault) -> None:
            """Answer what never becomes a request, and close."""
            if self.transport.is_closing():
                return
            body = json.dumps(fault.body())
            head = f"HTTP/1.1 {fault.status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            self.transport.close()

        def _wait_for_head(self) -> None:
            self._watch = self.loop.call_later(head_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

    return Bounded
