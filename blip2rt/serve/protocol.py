"""uvicorn's connections: bounds to a request's head, to who does not read, and to how many there are.

An upgrade that a request offers is passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .faults import Fault, bad

MOST_HEAD = 1 << 16  # bytes of a request's line and headers
UNREAD_SECONDS = 20.0  # a client that takes nothing of what waits for it keeps a place from others
UNREAD = 1 << 16  # bytes that the system holds for a client, about; more would hide that a slow one reads


def protocol(head_seconds: float, most: int, unread_seconds: float = UNREAD_SECONDS) -> type[asyncio.Protocol]:
    """The class of connections whose heads come within so many seconds, and of which there are so many at most.

    unread_seconds: a client that takes nothing of what waits for it is cut off after so long, or twice as long.
    """

    class Bounded(HttpToolsProtocol):
        _watch: asyncio.TimerHandle | None = None
        _look: asyncio.TimerHandle | None = None
        _unread = 0  # bytes that waited for the client at the last look
        _loose = 0  # bytes that have come since a request began, or a part of its body: of a head, a trailer, nothing

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.close()
                return
            self._wait_for_head()
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
            self._look = self.loop.call_later(unread_seconds, self._look_for_reading)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            if self._look is not None:
                self._look.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._loose += len(data)
            self._unset_keepalive_if_required()
            try:
                self._parse(memoryview(data))
            except httptools.HttpParserError:
                self.send_400_response("")
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
            if self._offers:
                return  # it is read again, without the offer
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
            if self._offers:
                return
            self._loose = 0
            super().on_message_complete()

        def resume_writing(self) -> None:
            self._unread = 0
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            self._refuse(bad("what was sent is no request of HTTP/1.1: use an HTTP client", code="invalid_http"))

        @property
        def _offers(self) -> bool:
            """Whether the request that is read offers an upgrade; CONNECT demands one."""
            return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

        def _parse(self, data: memoryview) -> None:
            """Read what has come. A parser ends with an offer and reads no body: another one gets the head again."""
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as end:
                    if not self._offers:
                        return
                    data = data[end.args[0] :]
                    version = self.parser.get_http_version().encode()
                    line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
                    kept = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
                    self.parser = httptools.HttpRequestParser(self)
                    with contextlib.suppress(AttributeError):  # httptools before 0.6.3
                        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
                    self.parser.feed_data(b"\r\n".join([line, *kept, b"\r\n"]))

        def _look_for_reading(self) -> None:
            """End the connection where nothing was read since the last look. Nothing is written meanwhile."""
            stands = self.flow.write_paused or self.transport.is_closing()
            unread = self.transport.get_write_buffer_size() if stands else 0
            if unread and unread == self._unread:
                self.transport.abort()
                return
            self._unread = unread
            self._look = self.loop.call_later(unread_seconds, self._look_for_reading)

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
