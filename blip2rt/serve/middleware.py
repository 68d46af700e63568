"""ASGI middleware around every request: access control, request id, log line and metrics."""

import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import CLIENT_GONE, ApiError, bad_request
from .logs import LOG
from .metrics import Metrics
from .settings import Settings

_PARTS = ("page.css", "page.js", "server.js", "docs.css", "docs.js", "coffee.jpg", "camera.jpg")
PAGES = {"/": "index.html", "/docs": "docs.html", **{f"/{name}": name for name in _PARTS}}  # path -> file
_NO_KEY_NEEDED = (*PAGES, "/health", "/ready", "/openapi.json", "/api/version")
MAX_HEAD_BYTES = 1 << 16  # request line and headers
_POLLED = ("/health", "/ready", "/metrics")  # called every few seconds: logged at DEBUG
_SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_SECURITY_HEADERS |= {"Cross-Origin-Resource-Policy": "same-origin"}


@dataclass
class RequestContext:
    """What is known about one request, in scope["context"]."""

    id: str = ""
    start: float = field(default_factory=time.monotonic)
    deadline: float | None = None  # set once the body has arrived
    first_piece: float | None = None  # when the first piece of a stream came
    body_bytes: int = 0  # in memory
    log_fields: dict[str, Any] = field(default_factory=dict)


class RequestMiddleware:
    """Check access, then run the application, then log and count the request."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        paths: Container[str],
        release: Callable[[RequestContext], None],
    ) -> None:
        """paths: those of the routes. release: called when a request ends."""
        self._app, self._settings, self._metrics = app, settings, metrics
        self._paths, self._release = paths, release
        self._keys = [key.encode() for key in settings.access.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(id=_request_id(scope))
        path, status = self._route_path(scope["path"]), 0
        scope = {**scope, "path": path, "context": context}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = context.id
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if error := self._access_error(scope):
            app = JSONResponse(error.body(path), error.status, error.headers())
        elif error := _head_error(scope):
            app = JSONResponse(error.body(path), error.status, {"Connection": "close"})
        try:
            await app(scope, receive, send_with_headers)
        except Exception:
            LOG.exception("request failed", extra={"fields": {"id": context.id, "path": path[:200]}})
            if not status:
                failure = ApiError(500, "the server failed: its log says why", "internal_error")
                await JSONResponse(failure.body(path), 500)(scope, receive, send_with_headers)
        finally:
            self._release(context)
            self._record(scope, context, status or CLIENT_GONE)

    def _route_path(self, path: str) -> str:
        """Return the route that a client means whose base URL lacks /v1, or has it twice."""
        for prefix, base in (("/v1/v1/", "/v1/"), ("/v1/api/", "/api/"), ("/models/", "/v1/models/")):
            if path.startswith(prefix):
                path = base + path.removeprefix(prefix)
        return f"/v1{path}" if f"/v1{path}" in self._paths else path

    def _access_error(self, scope: Scope) -> ApiError | None:
        headers, path, access = Headers(scope=scope), scope["path"], self._settings.access
        host, origin = headers.get("host", ""), headers.get("origin")
        foreign = None if {"*", origin} & set(access.origins) else origin
        # DNS rebinding: the name server of a malicious page may point its name at this server.
        known_host = _is_local(host) or _host_name(host) in access.hosts
        if (self._settings.loopback or foreign is not None) and not known_host:
            message = f"{_host_name(host)[:100]!r} is not a name of this server: call it by its address, or start it "
            return ApiError(403, message + "with --allow-host NAME", "host_not_allowed")
        if foreign is not None and foreign.partition("://")[1:] != ("://", host):
            message = "pages of other sites may not call: start the server with --cors-origin"
            return ApiError(403, message, "origin_not_allowed")
        needs_key = bool(self._keys) and path not in _NO_KEY_NEEDED and scope["method"] != "OPTIONS"
        if needs_key and not self._has_key(headers):
            self._metrics.refused.labels("key").inc()
            return ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key")
        return None

    def _has_key(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        key = (token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        return sum(hmac.compare_digest(key, known) for known in self._keys) > 0  # compare all: constant time

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        seconds, path = time.monotonic() - context.start, scope["path"]
        route = path if path in self._paths else "/v1/models/{name}" if path.startswith("/v1/models/") else "other"
        status = context.log_fields.pop("status", status)
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if status == CLIENT_GONE:
            self._metrics.gone.inc()
        if trace := Headers(scope=scope).get("traceparent"):
            context.log_fields["traceparent"] = trace[:100]
        client = scope.get("client")
        fields = {"id": context.id, "client": client[0] if client else None, "method": scope["method"]}
        fields |= {"path": path[:200], "status": status, "seconds": round(seconds, 4), **context.log_fields}
        level = logging.DEBUG if path in _POLLED else logging.INFO
        LOG.log(level, "request", extra={"fields": fields})


def _head_error(scope: Scope) -> ApiError | None:
    """Return the fault of a head that h11 accepts: it limits incomplete heads only, and prefers Transfer-Encoding."""
    url = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    if url + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEAD_BYTES:
        message = f"the URL and headers have more than {MAX_HEAD_BYTES:,} bytes: send shorter ones"
        return bad_request(message, code="head_too_large")
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        message = "the request has Content-Length and Transfer-Encoding: send one of them"
        return bad_request(message, code="ambiguous_length")
    return None


def _request_id(scope: Scope) -> str:
    """Return the request's id: the proxy's X-Request-Id, if it can stand in a log, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if re.fullmatch("[A-Za-z0-9._-]{1,128}", given) else uuid.uuid4().hex[:16]


def _host_name(host: str) -> str:
    """Host header -> the name without its port."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0].lower()


def _is_local(host: str) -> bool:
    """Whether a Host header is an IP address or localhost, which no foreign name server can answer for."""
    name = _host_name(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == ""  # HTTP/1.0
    return True
