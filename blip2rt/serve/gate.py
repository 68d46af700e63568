"""The gate that every request passes: who may call, its number, its line in the log, its part of the metrics.

ASGI. Knows headers and statuses; nothing of what a request is about, besides the notes that a route leaves.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .faults import Fault
from .logs import LOG
from .metrics import Metrics
from .settings import Settings

OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json", "/api/version")  # no key is needed
_POLLED = ("/health", "/ready", "/metrics")  # called every few seconds, and worth no line each
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass
class Notes:
    """What a route notes of its request."""

    id: str = ""
    start: float = field(default_factory=time.monotonic)
    end: float | None = None  # when an answer is too late; None until the body has come
    held: int = 0  # bytes of the body that are held
    fields: dict[str, Any] = field(default_factory=dict)  # for the log


class Gate:
    """See the module."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, label: Callable[[str], str],
        release: Callable[[Notes], None],
    ) -> None:  # fmt: skip
        """label: a path -> what the metrics call its route. release: is told when a request is over."""
        self._app, self._settings, self._metrics, self._label, self._release = app, settings, metrics, label, release
        self._keys = [key.encode() for key in settings.access.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = scope["notes"] = Notes(id=uuid.uuid4().hex[:16])
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = notes.id
                for name, value in _SAFE.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            fault = self._refusal(scope)
            if fault is None:
                await self._app(scope, receive, sent)
            else:
                said = fault.body(scope["path"])
                await JSONResponse(said, fault.status, fault.headers())(scope, receive, sent)
        except Exception:
            LOG.exception("a request failed", extra={"fields": {"id": notes.id, "path": scope["path"][:200]}})
            if not status:
                failed = Fault(500, "the server failed: its log says why", "internal_error")
                await JSONResponse(failed.body(scope["path"]), 500)(scope, receive, sent)
        finally:
            self._release(notes)
            self._tell(scope, notes, status or 499)

    def _refusal(self, scope: Scope) -> Fault | None:
        headers, path = Headers(scope=scope), scope["path"]
        access = self._settings.access
        host, origin = headers.get("host", ""), headers.get("origin")
        page = None if {"*", origin} & set(access.origins) else origin  # that nobody has named
        # The name server of a stranger's page may lead here.
        if (self._settings.loopback or page is not None) and not _is_local(host) and _name(host) not in access.hosts:
            return Fault(403, f"{_name(host)[:100]!r} is no name of this server: call it by its address, or start it "
                         "with --allow-host NAME", "host_not_allowed")  # fmt: skip
        if page is not None and page.partition("://")[1:] != ("://", host):
            return Fault(403, "a page of another site may not call: start the server with --cors-origin",
                         "origin_not_allowed")  # fmt: skip
        if self._keys and path not in OPEN and scope["method"] != "OPTIONS" and not self._known(headers):
            self._metrics.refused.labels("key").inc()
            return Fault(401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key")
        return None

    def _known(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = (given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        return sum(hmac.compare_digest(key, known) for known in self._keys) > 0  # all, so that time tells nothing

    def _tell(self, scope: Scope, notes: Notes, status: int) -> None:
        seconds, route = time.monotonic() - notes.start, self._label(scope["path"])
        status = notes.fields.pop("status", status)
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if status == 499:
            self._metrics.gone.inc()
        client = scope.get("client")
        level = logging.DEBUG if scope["path"] in _POLLED else logging.INFO
        LOG.log(level, "request", extra={"fields": {
            "id": notes.id, "client": client[0] if client else None, "method": scope["method"],
            "path": scope["path"][:200], "status": status, "seconds": round(seconds, 4), **notes.fields,
        }})  # fmt: skip


def _name(host: str) -> str:
    """Host header -> the name without the port."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0].lower()


def _is_local(host: str) -> bool:
    """Whether a Host header is one that no name server of a stranger answers: an address, or a name of this machine."""
    name = _name(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == ""  # HTTP/1.0
    return True
