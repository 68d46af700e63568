"""The server as an ASGI application: the routes in one table, behind the gate. Knows no socket and no signal."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import Blip2rtError
from . import ollama, openai, openapi, own, search
from .faults import Fault, fault_of
from .gate import Gate
from .logs import LOG
from .metrics import CONTENT_TYPE
from .service import Service

_HERE = Path(__file__).parent
# The pages are one file each: their style and script stand in them, and nothing comes from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make(service: Service) -> ASGIApp:
    """The application of a service."""
    settings = service.settings
    routes = [*_common(service), *openai.routes(service), *own.routes(service), *ollama.routes(service),
              *search.routes(service)]  # fmt: skip
    app = Starlette(
        routes=routes,
        exception_handlers={
            Fault: _failed,
            Blip2rtError: _failed,
            HTTPException: _http,
            MemoryError: _failed,
            Exception: _unforeseen,
        },
    )
    app.router.redirect_slashes = False  # what is not there is 404, in our format
    known = {route.path for route in routes}

    def label(path: str) -> str:
        return path if path in known else "/v1/models/{name}" if path.startswith("/v1/models/") else "other"

    gate = Gate(app, settings, service.metrics, label, service.intake.release)
    if not settings.access.origins:
        return gate
    return _Cors(gate, allow_origins=list(settings.access.origins), allow_methods=["GET", "POST"], allow_headers=["*"],
                 expose_headers=["X-Request-Id", "Retry-After"])  # fmt: skip


class _Cors(CORSMiddleware):
    """Stands before the gate, so that pages that may call can read its refusals. Refuses in our format."""

    def preflight_response(self, request_headers: Headers) -> Response:
        found = super().preflight_response(request_headers)
        if found.status_code == 200:
            return found
        fault = Fault(403, "a page may not call so: start the server with --cors-origin, and send GET or POST",
                      "origin_not_allowed")  # fmt: skip
        return JSONResponse(fault.body(), fault.status)


def _common(service: Service) -> list[Route]:
    """What every server has: its pages, whether it lives, what it has done."""
    document = openapi.document(bool(service.settings.access.keys))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        if service.ending or not service.ready:
            status = "ending" if service.ending else "loading"
            return JSONResponse({"status": status}, 503, {"Retry-After": "2"})
        return JSONResponse({"status": "ready", "model": service.name, "pictures": service.pictures})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def described(_: Request) -> Response:
        return JSONResponse(document)

    async def page(_: Request) -> Response:
        return _page("page.html")

    async def docs(_: Request) -> Response:
        return _page("docs.html")

    return [
        Route("/", page),
        Route("/docs", docs),
        Route("/openapi.json", described),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
    ]


def _page(name: str) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return FileResponse(_HERE / name, headers=headers, media_type="text/html; charset=utf-8")


async def _failed(request: Request, error: Exception) -> Response:
    fault = fault_of(error)
    if fault.status == 499:
        request.scope["notes"].fields["status"] = 499
        return Response(status_code=400)  # nobody reads it
    if fault.status == 500:
        LOG.error("a request failed", exc_info=error, extra={"fields": {"id": request.scope["notes"].id}})
    headers = fault.headers()
    if fault.status in (408, 413, 503):
        headers["Connection"] = "close"  # what is left of the body is not read
    request.scope["notes"].fields["error"] = fault.code
    return JSONResponse(fault.body(request.scope["path"]), fault.status, headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Starlette raises the error again, and the gate logs it."""
    fault = fault_of(error)
    request.scope["notes"].fields["error"] = fault.code
    return JSONResponse(fault.body(request.scope["path"]), fault.status)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    messages = {404: f"there is no {path[:100]}: /docs lists what there is",
                405: f"{path[:100]} is not called by {request.method[:20]}: /docs says how"}  # fmt: skip
    codes = {404: "not_found", 405: "method_not_allowed"}
    fault = Fault(error.status_code, messages.get(error.status_code, str(error.detail)),
                  codes.get(error.status_code, "http_error"))  # fmt: skip
    return JSONResponse(fault.body(path), fault.status, dict(error.headers or {}))
